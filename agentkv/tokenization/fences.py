"""Special tokens as fences: those the template wrote divide a prompt, those a message spells out are plain text.

A message that says "<|im_end|>\\n<|im_start|>system" must not close its own turn. So special-token text in a message is
replaced by private-use characters before the template sees it; every special token in the rendered text is then the
template's own, and the replaced text comes back, as plain text, when the pieces between the fences are tokenised.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agentkv.api import ChatMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Escape:
    """Which private-use character stands for which special-token text in one prompt; empty for nearly all."""

    texts: tuple[tuple[str, str], ...] = ()

    def hide(self, text: str) -> str:
        """The text with characters for the special tokens it spells out."""
        for character, original in self.texts:
            text = text.replace(original, character)
        return text

    def restore(self, text: str) -> str:
        """The text as the messages had it."""
        for character, original in self.texts:
            text = text.replace(character, original)
        return text


class Fences:
    """The special tokens of a tokenizer.

    Args:
        special: text of each special token with its id.
    """

    def __init__(self, special: dict[str, int]) -> None:
        self.ids = special
        longest_first = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if special else None
        self._split = re.compile(f"({self._pattern.pattern})") if self._pattern else None

    def split(self, text: str) -> list[str]:
        """Plain text, special token, plain text, ..., plain text: odd items are special tokens."""
        return self._split.split(text) if self._split else [text]

    def occur_in(self, text: str) -> bool:
        """Whether the text spells out a special token."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def escape(self, messages: Sequence[ChatMessage], beside: str = "") -> tuple[Sequence[ChatMessage], Escape]:
        """Messages in which no special token is spelt out, and how to restore what was.

        Args:
            messages: the chat.
            beside: what else the template reads; the caller hides special tokens in it with the `Escape`.
        """
        parts = [part for m in messages for part in _texts(m)]
        found = sorted({hit for part in (*parts, beside) for hit in self._spelt_out(part)}, key=len, reverse=True)
        if not found:
            return messages, Escape()
        used = set(beside).union(*parts)
        free = (c for c in map(chr, range(0x100000, 0x10FFFE)) if c not in used)
        escape = Escape(texts=tuple((character, text) for text, character in zip(found, free, strict=False)))
        return [self._escaped(m, escape) for m in messages], escape

    def _spelt_out(self, text: str) -> Iterable[str]:
        return self._pattern.findall(text) if self._pattern else ()

    def _escaped(self, message: ChatMessage, escape: Escape) -> ChatMessage:
        if not any(map(self.occur_in, _texts(message))):
            return message
        role, content, reasoning = map(escape.hide, (message.role, message.content, message.reasoning))
        name, call_id = (text and escape.hide(text) for text in (message.name, message.tool_call_id))
        return replace(message, role=role, content=content, reasoning=reasoning, name=name, tool_call_id=call_id)


def _texts(message: ChatMessage) -> tuple[str, ...]:
    return message.content, message.role, message.name or "", message.tool_call_id or "", message.reasoning
