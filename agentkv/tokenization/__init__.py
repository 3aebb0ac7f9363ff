"""Text in, token ids out: the chat template, the tokens of each message, and the way back.

The calls others use:

    tokenizer = ChatTokenizer.from_directory(path)                     # raises ModelError
    tokenizer.encode(text) -> tuple[int, ...]                          # special-token text in it stays plain text
    tokenizer.decode(token_ids) -> str                                 # special tokens left out
    tokenizer.detokenizer() -> Detokenizer                             # .feed(token_ids) -> str, .finish() -> str
    tokenizer.stop_token_ids -> frozenset[int]                         # .end_of_turn_id: the template's own, or None
    tokenizer.prompt(messages, tenant="", splicer=None) -> Prompt      # raises TemplateRefused, InvalidRequest
    tokenizer.raw_prompt(text_or_token_ids) -> Prompt                  # continued as it is, without a template
    tokenizer.generated(text, token_ids) -> GeneratedText | None       # which generated ids stand behind returned text

`Prompt` has `token_ids` and `messages`; a `PromptMessage` has `index, role, name, text`, its half-open token span
`start, end` in the prompt, and the tokens' character offsets `starts, ends` in `text`. A `Splicer` (see
`agentkv.segment.GeneratedMemory.splicer`) says which stretches of a message were generated and with which ids.

torch is not imported here.
"""

from agentkv.tokenization.prompt import GeneratedText, Prompt, PromptMessage, Splice, Splicer
from agentkv.tokenization.template import ChatTemplate
from agentkv.tokenization.token_bytes import Detokenizer
from agentkv.tokenization.tokenizer import ChatTokenizer

__all__ = [
    "ChatTemplate",
    "ChatTokenizer",
    "Detokenizer",
    "GeneratedText",
    "Prompt",
    "PromptMessage",
    "Splice",
    "Splicer",
]
