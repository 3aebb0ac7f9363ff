"""Chats for templates that demand alternating roles, or know no system role.

Agents' chats are not made for them: several agents speak one after the other as `user`. Such a chat is written again
with what one role says in a row as one turn, the messages apart by an empty line; and if that is refused too, with
system messages as words of the user. Each message is still found in its turn, so that its tokens are its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from agentkv.api import ChatMessage
from agentkv.errors import TemplateRefused
from agentkv.tokenization.template import Rendered, Span

SEPARATOR = "\n\n"
_MERGED_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A message as the template gets it; `members` are the request's messages, with their spans in its content."""

    message: ChatMessage
    members: tuple[tuple[int, Span | None], ...]


def render_in_turns(messages: Sequence[ChatMessage], render: Callable[[Sequence[ChatMessage]], Rendered]) -> Rendered:
    """What `render` gives for the messages, or where it refuses them, for the turns that they can be put into.

    Raises:
        TemplateRefused: the template takes none of them; the message quotes what it said to the messages as they were.
    """
    try:
        return render(messages)
    except TemplateRefused:
        for system_role in ("system", "user"):
            turns = list(_turns(messages, system_role))
            if [turn.message for turn in turns] == list(messages):
                continue
            try:
                rendered = render([turn.message for turn in turns])
            except TemplateRefused:
                continue
            return Rendered(text=rendered.text, contents=_contents(turns, rendered, len(messages)))
        raise


def _turns(messages: Sequence[ChatMessage], system_role: str) -> Iterator[_Turn]:
    roles = [system_role if m.role == "system" else m.role for m in messages]
    numbered = list(enumerate(zip(roles, messages, strict=True)))

    def place(item: tuple[int, tuple[str, ChatMessage]]) -> tuple[str, int]:
        index, (role, message) = item
        is_words = role in _MERGED_ROLES and not (message.tool_calls or message.tool_call_id or message.reasoning)
        return role, -1 if is_words else index

    for (role, _), group in groupby(numbered, key=place):
        yield _merged(role, [(index, message) for index, (_, message) in group])


def _merged(role: str, members: Sequence[tuple[int, ChatMessage]]) -> _Turn:
    first = members[0][1]
    content, spans = "", []
    for index, message in members:
        if content and message.content:
            content += SEPARATOR
        start = len(content)
        content += message.content
        spans.append((index, (start, len(content)) if message.content else None))
    name = first.name if all(message.name == first.name for _, message in members) else None
    return _Turn(message=replace(first, role=role, content=content, name=name), members=tuple(spans))


def _contents(turns: Sequence[_Turn], rendered: Rendered, num_messages: int) -> tuple[Span | None, ...]:
    """Where each message's content stands in the text."""
    contents: list[Span | None] = [None] * num_messages
    for turn, span in zip(turns, rendered.contents, strict=True):
        if span is None:
            continue
        begin, end = span
        if len(turn.members) == 1:  # whatever the template made of it
            contents[turn.members[0][0]] = span
            continue
        trimmed = turn.message.content.find(rendered.text[begin:end])
        for index, place in turn.members if trimmed >= 0 else ():
            if place is not None:
                start, stop = (min(max(begin + edge - trimmed, begin), end) for edge in place)
                contents[index] = (start, stop)
    return tuple(contents)
