"""Conversations of several agents as cases, for any tokenizer with a chat template.

Whatever an agent wrote, or was the first to read, is kept, and read by the agents after it: where it stands in their
prompts, with the tokens with which it was generated, and with what its author had before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agentkv.api import ChatMessage
from agentkv.segment.context import Comparison, Trail
from agentkv.tokenization import ChatTokenizer, GeneratedText, Prompt, PromptMessage, Splice, Splicer
from agentkv_evals.accuracy.cases import Case, Cell, Kept, Message, reply_source
from agentkv_evals.accuracy.tasks.task import Replies

_SHIFTS = range(-16, 17)
"""Where a kept text may begin in its reader's tokens: templates trim and wrap, which changes a few at the edges."""
_FEWEST = 4
"""Shorter runs of equal tokens are not worth a span."""
_REMEMBERED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One agent's prompt.

    Attributes:
        part: the agent, as results name it.
        hop: see `Case.hop`.
        messages: the prompt.
        keys: for each message the name of its text, None for what no other agent reads. A reply's name is
            `reply_source(step)`.
        reply: what the agent said in truth; None lets it decode.
        max_tokens: most tokens of a reply that is decoded.
    """

    part: str
    hop: int
    messages: tuple[ChatMessage, ...]
    keys: tuple[str | None, ...]
    reply: str | None = None
    max_tokens: int = 256


Script = Callable[[Sequence[str]], Turn | None]
"""The turn after these replies; None at the end of the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spoken:
    """A text whose KV is kept: its tokens, and where it stood: `position` is that of its first token in `trail`."""

    token_ids: tuple[int, ...]
    trail: Trail
    position: int


@dataclass(slots=True, kw_only=True)
class _State:
    """A conversation after some replies."""

    case: Case | None = None
    trail: Trail | None = None
    spoken: dict[str, _Spoken] = field(default_factory=dict)
    generated: dict[str, GeneratedText] = field(default_factory=dict)
    said: tuple[str, ...] = ()


class Chats:
    """Makes the cases of conversations with one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._states: OrderedDict[tuple[Cell, int, Replies], _State] = OrderedDict()

    def case(self, cell: Cell, seed: int, script: Script, replies: Replies) -> Case | None:
        """The prompt after these replies; see `Task.case`."""
        return self._state(cell, seed, script, replies).case

    def _state(self, cell: Cell, seed: int, script: Script, replies: Replies) -> _State:
        key = (cell, seed, replies)
        if key in self._states:
            self._states.move_to_end(key)
            return self._states[key]
        state = self._after(self._state(cell, seed, script, replies[:-1]), replies[-1]) if replies else _State()
        if not replies or state.case is not None:
            self._ask(state, cell, seed, script)
        self._states[key] = state
        if len(self._states) > _REMEMBERED:
            self._states.popitem(last=False)
        return state

    def _after(self, before: _State, reply: tuple[int, ...]) -> _State:
        """The conversation with one more reply, before anybody is asked again."""
        case, trail = before.case, before.trail
        if case is None or trail is None:
            return _State()
        spoken, generated = dict(before.spoken), dict(before.generated)
        for kept in case.kept:
            spoken[kept.source] = _Spoken(
                token_ids=case.prompt[kept.start : kept.end], trail=trail, position=kept.start
            )
        content, end = reply[:-1], len(case.prompt)
        text = self._tokenizer.decode(reply).strip()
        if content:
            spoken[reply_source(case.step)] = _Spoken(
                token_ids=content, trail=Trail((*case.prompt, *content), [end]), position=end
            )
        if text and (found := self._tokenizer.generated(text, reply)) is not None:
            generated[text] = found
        return _State(case=case, trail=trail, spoken=spoken, generated=generated, said=(*before.said, text))

    def _ask(self, state: _State, cell: Cell, seed: int, script: Script) -> None:
        """Put the next prompt into the state, or None where nobody is asked any more."""
        turn = script(state.said)
        state.case, state.trail = None, None
        if turn is None:
            return
        prompt = self._tokenizer.prompt(turn.messages, splicer=_splicer(state.generated))
        state.trail = trail_of(prompt)
        named = [(m, key) for m, key in zip(prompt.messages, turn.keys, strict=True) if key is not None]
        read = [_placed(m, key, state.spoken[key], prompt, state.trail) for m, key in named if key in state.spoken]
        state.case = Case(
            cell=cell,
            seed=seed,
            step=len(state.said) + 1,
            part=turn.part,
            hop=turn.hop,
            prompt=prompt.token_ids,
            messages=tuple(message for message in read if message is not None),
            kept=tuple(
                Kept(source=key, start=m.start, end=m.end)
                for m, key in named
                if key not in state.spoken and m.num_tokens > 0
            ),
            reply=None if turn.reply is None else reply_ids(self._tokenizer, turn.reply),
            max_tokens=turn.max_tokens,
            stop_ids=self._tokenizer.stop_token_ids,
        )


def reply_ids(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    """A reply's tokens with its end token."""
    end = tokenizer.end_of_turn_id
    return (*tokenizer.encode(text), *(() if end is None else (end,)))


def trail_of(prompt: Prompt) -> Trail:
    """What a reader of this prompt has before it."""
    return Trail(prompt.token_ids, [edge for message in prompt.messages for edge in (message.start, message.end)])


def _splicer(generated: Mapping[str, GeneratedText]) -> Splicer:
    """Gives whole messages that were generated the tokens with which they were."""

    def splices(texts: Sequence[str]) -> list[list[Splice]]:
        found = ((text, generated.get(text)) for text in texts)
        return [[] if each is None else [Splice(start=0, end=len(text), generated=each)] for text, each in found]

    return splices


def _placed(message: PromptMessage, key: str, spoken: _Spoken, prompt: Prompt, trail: Trail) -> Message | None:
    """The longest run of the message that is kept."""
    begin, first, length = longest_run(prompt.token_ids[message.start : message.end], spoken.token_ids)
    if length < _FEWEST:
        return None
    start = message.start + begin
    change = Comparison(spoken.trail, trail).at(spoken.position + first, start)
    return Message(
        source=key,
        content=prompt.token_ids[start : start + length],
        start=start,
        first=first,
        unseen=change.unseen,
        num_gone=change.num_gone,
    )


def longest_run(reader: Sequence[int], kept: Sequence[int]) -> tuple[int, int, int]:
    """Begin in the reader, begin in what is kept, and length of the longest run of equal tokens, nearly in place."""
    return max((_run(reader, kept, shift) for shift in _SHIFTS), key=lambda run: run[2])


def _run(reader: Sequence[int], kept: Sequence[int], shift: int) -> tuple[int, int, int]:
    ours, theirs = max(-shift, 0), max(shift, 0)
    size = min(len(reader) - ours, len(kept) - theirs)
    if size <= 0:
        return 0, 0, 0
    same = np.asarray(reader[ours : ours + size]) == np.asarray(kept[theirs : theirs + size])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
    if not len(edges):
        return 0, 0, 0
    starts, ends = edges[::2], edges[1::2]
    widest = int(np.argmax(ends - starts))
    return ours + int(starts[widest]), theirs + int(starts[widest]), int(ends[widest] - starts[widest])


def chat(*messages: tuple[str, str] | tuple[str, str, str | None]) -> tuple[ChatMessage, ...]:
    """Messages from (role, content) or (role, content, name)."""
    return tuple(
        ChatMessage(role=each[0], content=each[1], name=each[2] if len(each) > 2 else None) for each in messages
    )


def numbered(cells: Iterable[Cell], num_items: int, first: int) -> list[tuple[Cell, int]]:
    """So many seeds of each cell."""
    return [(cell, first + n) for cell in cells for n in range(num_items)]
