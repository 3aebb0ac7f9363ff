"""Splits what a reasoning model thinks from what it answers, as DeepSeek-R1's distills and Qwen3 write it.

    <think>
    ...
    </think>

    answer

Some templates open the thoughts themselves, at the end of the prompt; then the reply begins inside them.
"""

from agentkv.text_cut import overlap

OPEN, CLOSE = "<think>", "</think>"


class ThinkingSplitter:
    """Splits one reply, as it comes.

    Args:
        opened: the prompt has opened the thoughts.

    Attributes:
        is_thinking: the text so far ends inside thoughts.
    """

    def __init__(self, *, opened: bool) -> None:
        self.is_thinking = opened
        self._answers = False  # the answer has begun: all that comes is it
        self._has_thought = opened  # space before the answer goes with the thoughts
        self._begun = False  # something but space was thought
        self._text = ""

    def feed(self, text: str) -> tuple[str, str]:
        """New thoughts, and new text of the answer."""
        if self._answers:
            return "", text
        self._text += text
        if self.is_thinking or self._opens():
            thought = self._think()
            return thought, "" if self.is_thinking else self._answer()
        return "", self._answer()

    def finish(self) -> tuple[str, str]:
        """The rest, once no more text comes."""
        text, self._text = self._text, ""
        if self.is_thinking:
            return text.rstrip() if self._begun else text.strip(), ""
        return "", text.lstrip() if self._has_thought else text

    def _opens(self) -> bool:
        """Whether thoughts begin here."""
        rest = self._text.lstrip()
        if self._has_thought or not rest.startswith(OPEN):
            return False
        self._text, self.is_thinking, self._has_thought = rest.removeprefix(OPEN), True, True
        return True

    def _think(self) -> str:
        thought, tag, behind = self._text.partition(CLOSE)
        if tag:
            self._text, self.is_thinking = behind, False
            return thought.rstrip() if self._begun else thought.strip()
        sure = len(self._text[: len(self._text) - overlap(self._text, CLOSE)].rstrip())
        thought, self._text = self._text[:sure], self._text[sure:]
        if not self._begun:
            thought = thought.lstrip()
            self._begun = bool(thought)
        return thought

    def _answer(self) -> str:
        """The answer as far as it is known to be one."""
        rest = self._text.lstrip()
        if not rest or (not self._has_thought and overlap(rest, OPEN) == len(rest)):
            return ""
        text, self._text, self._answers = rest if self._has_thought else self._text, "", True
        return text
