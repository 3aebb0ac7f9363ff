"""The tokenizer of the embedded model: byte-level BPE of 4,096 entries, digits single, every byte covered."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator
from pydoc_data import topics

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentkv_evals.worlds import words
from agentkv_evals.worlds.lessons import Level, lesson

VOCAB_SIZE = 4096
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (PAD, START, END)
"""Ids 0, 1 and 2."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer: digits stand alone, a word takes the one character before it."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['name'] is defined and message['name'] %}{{ ' name=' + message['name'] }}{% endif %}"
    "{{ '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML that shows who speaks."""

_MODULES = ("argparse", "asyncio", "collections", "concurrent", "ctypes", "datetime", "decimal", "difflib", "email")
_MODULES += ("functools", "http", "inspect", "itertools", "json", "logging", "multiprocessing", "os", "pathlib")
_MODULES += ("random", "re", "shutil", "socket", "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile")
_MODULES += ("tempfile", "textwrap", "threading", "typing", "unittest", "urllib", "uuid", "xml", "zipfile")


def general_english() -> Iterator[str]:
    """English that ships with Python: the language reference's topics and the standard library's docstrings."""
    yield from topics.topics.values()
    for name in _MODULES:
        package = importlib.import_module(name)
        children = [f"{name}.{info.name}" for info in pkgutil.iter_modules(getattr(package, "__path__", []))]
        for module in [package, *(importlib.import_module(child) for child in children if _harmless(child))]:
            yield inspect.getdoc(module) or ""
            yield from (inspect.getdoc(member) or "" for _, member in inspect.getmembers(module) if callable(member))


def _harmless(module: str) -> bool:
    """Whether importing a standard module has no effect but its definitions on every platform."""
    return not any(part in module for part in ("__main__", "windows", "win32", "popen", "macholib", "wintypes"))


def world_text(lessons: int, seed: int) -> Iterator[str]:
    """Dialogues of the training worlds, and each word of the worlds often enough to become one token."""
    rng = random.Random(f"tokenizer/{seed}")
    level = Level(tokens=512, depth_cap=4, new_share=0.0, extras=0.7, roles=0.4)
    for _ in range(lessons):
        sample = lesson(rng, level)
        yield from (f"{message.role} name={message.name}\n{message.content}" for message in sample.prompt)
        for exchange in sample.exchanges:
            yield exchange.question or ""
            yield exchange.reply.replace("{", "").replace("}", "")
    for word in single_words():
        yield f" {word}" * 2000


def single_words() -> list[str]:
    """The words that must be one token after a space, and the syllables that must be one in their names."""
    quoted = [word for part in words.QUOTE_WORDS for word in part]
    firsts = [*words.PERSON_SYLLABLES[0], *words.PLACE_SYLLABLES[0]]
    return [*words.PERSONS, *words.PLACES, *words.OBJECTS, *words.NOUNS, *quoted, *words.ORDINALS, *firsts]


def train_tokenizer(lessons: int = 4000, seed: int = 0) -> Tokenizer:
    """Train the tokenizer; about a minute on one core."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def corpus() -> Iterator[str]:
        yield from general_english()
        yield from world_text(lessons, seed)
        for syllable in (*words.PERSON_SYLLABLES[1], *words.PLACE_SYLLABLES[1]):
            yield f"\n{syllable}" * 3000

    tokenizer.train_from_iterator(corpus(), trainer=trainer)
    return tokenizer


def as_transformers(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers` loads it, with the chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def split_names(tokenizer: Tokenizer) -> list[str]:
    """Names of two tokens that this tokenizer splits otherwise than at their syllables."""
    bad = []
    for firsts, seconds in (words.PERSON_SYLLABLES, words.PLACE_SYLLABLES):
        for first in firsts:
            for second in seconds:
                pieces = tokenizer.encode(f" {first}{second}", add_special_tokens=False).tokens
                if pieces != [f"Ġ{first}", second]:
                    bad.append(f"{first}{second}: {pieces}")
    return bad
