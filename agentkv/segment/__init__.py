"""Segments: which stretches of a prompt are texts whose KV is kept.

The calls others use (all thread-safe):

    memory = GeneratedMemory(tokenizer)                                   # generated ids beside their text, bounded
    memory.remember(tenant, text, token_ids) -> GeneratedText | None      # text as returned, ids as emitted
    prompt = tokenizer.prompt(messages, tenant=tenant, splicer=memory.splicer(tenant))

    recognizer = Recognizer(min_tokens=16)
    recognizer.recognise(prompt, tenant) -> Recognition                   # .spans, .misses, .segments
    recognizer.wants(tenant, prompt, message) -> str | None               # None: worth keeping; else the reason why not
    recognizer.remember(tenant, prompt, message, resident) -> Kept        # a message that the prompt holds
    recognizer.remember_output(tenant, prompt, generated, resident) -> Kept   # the reply
    recognizer.forget(handle)                                             # lock-free, from the engine's thread

`Kept.release` lists the residents to give back to the engine: the older copy that was replaced, or the new resident
itself where it was not kept (`Kept.reason` says why). For a message the resident holds exactly the tokens
[message.start, message.end); for a reply it holds tokens from `generated.first` on of the generated ids, so the
service keeps positions `len(prompt.token_ids) + generated.first` to at most `+ generated.last`.
"""

from agentkv.segment.context import Change, Comparison, Context, Trail
from agentkv.segment.generated import GeneratedMemory
from agentkv.segment.recognizer import Recognition, Recognizer
from agentkv.segment.segment import Segment
from agentkv.segment.shelf import Kept
from agentkv.segment.spoken import SpokenMemory

__all__ = [
    "Change",
    "Comparison",
    "Context",
    "GeneratedMemory",
    "Kept",
    "Recognition",
    "Recognizer",
    "Segment",
    "SpokenMemory",
    "Trail",
]
