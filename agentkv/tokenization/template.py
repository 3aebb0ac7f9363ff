"""The model's chat template: messages in, text out, and where in that text each message's content stands.

The environment is the one in which `transformers.apply_chat_template` runs templates (a test holds them equal); it is
built here because importing transformers' costs more start-up time than a server may take.

Where a content stands is not searched for in the text, since a short content ("user") occurs in the wrappers too. The
template is rendered once more with a placeholder for each content; what stands between placeholders are the wrappers,
and with them the true rendering is taken apart, whatever the template trimmed from the contents.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentkv.api import ChatMessage, ToolCall
from agentkv.errors import ModelError, TemplateRefused
from agentkv.tokenization.template_files import read_template

Span = tuple[int, int]
NOTHING: Mapping[str, Any] = MappingProxyType({})
"""No further variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A rendered chat.

    Attributes:
        text: what the template wrote.
        contents: for each message the half-open character span of its content, or None where it could not be told
            (the template left the message out or changed its content beyond recognition).
    """

    text: str
    contents: tuple[Span | None, ...]


class _GenerationBlock(Extension):
    """Reads transformers' `{% generation %}` blocks, which mark what the assistant wrote, as if they were not there."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way of declaring them)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _inside(self, context: EvalContext, caller: Macro) -> str:  # noqa: ARG002 (jinja2's signature)
        return caller()


class ChatTemplate:
    """A chat template with the special tokens it may name.

    Args:
        source: the Jinja text.
        variables: what the template may read beside the messages, e.g. `bos_token`.

    Attributes:
        source: the Jinja text.
        reserved_names: variables that a request can't set.
    """

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"the chat template is not valid Jinja (line {error.lineno}): {error.message}") from error
        self._variables = variables
        self.source = source
        self.reserved_names = frozenset({"messages", "tools", "add_generation_prompt", *variables})

    @classmethod
    def from_directory(cls, path: Path) -> "ChatTemplate":
        """Read a Hugging Face directory's `chat_template.jinja`, else `tokenizer_config.json`'s `chat_template`."""
        config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
        return cls(read_template(path, config), special_token_names(config))

    def render(
        self,
        messages: Sequence[ChatMessage],
        variables: Mapping[str, Any] = NOTHING,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Write the messages as the model was trained to read them. Raises `TemplateRefused`.

        Args:
            messages: the chat.
            variables: what the template may read beside them: `tools`, and options of its own.
            add_generation_prompt: end with what stands before a reply.
        """
        return self._render([_as_dict(m, m.content) for m in messages], variables, add_generation_prompt)

    def render_located(self, messages: Sequence[ChatMessage], variables: Mapping[str, Any] = NOTHING) -> Rendered:
        """Like `render`, with the place of each content. Raises `TemplateRefused`."""
        text = self.render(messages, variables)
        mark = _unused_character(text, messages)
        # An empty content has no place, and templates ask whether there is one: it stays as it is.
        marked = [_as_dict(m, f"{mark}{i}{mark}" if m.content.strip() else m.content) for i, m in enumerate(messages)]
        try:
            skeleton = self._render(marked, variables, True)
        except TemplateRefused:
            return Rendered(text=text, contents=(None,) * len(messages))
        pieces = re.split(f"{mark}([0-9]+){mark}", skeleton)
        found = _take_apart(text, pieces[0::2], [(int(i), messages[int(i)].content) for i in pieces[1::2]])
        return Rendered(text=text, contents=tuple(found.get(i) for i in range(len(messages))))

    def _render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                **{"tools": None, **variables, **self._variables},
                messages=messages,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise TemplateRefused(f"the model's chat template refuses these messages: {error}") from error


def special_token_names(config: dict[str, Any]) -> dict[str, str]:
    """The `*_token` entries of tokenizer_config.json, e.g. {"eos_token": "<|im_end|>"}."""
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def read_json(path: Path) -> Any:
    """Contents of a JSON file. Raises `ModelError` when it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as JSON: {error}; download the model directory again") from error


def _as_dict(message: ChatMessage, content: str) -> dict[str, Any]:
    """The message as templates read it; they ask whether a field is there, so that unset ones must not be."""
    fields: dict[str, Any] = {"role": message.role, "content": content}
    if message.name:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [_call_as_dict(call) for call in message.tool_calls]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    return fields


def _call_as_dict(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "function",
        "id": call.call_id,
        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
    }


def _unused_character(text: str, messages: Sequence[ChatMessage]) -> str:
    """A private-use character that occurs neither in the rendering nor in what the messages say."""
    labels = "".join([m.role + (m.name or "") for m in messages])
    return next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in text and c not in labels)


def _take_apart(text: str, wrappers: Sequence[str], contents: Sequence[tuple[int, str]]) -> dict[int, Span]:
    """Spans of the contents in `text` = wrapper, content, wrapper, ..., wrapper, by message index.

    Each content is verified by the wrapper behind it; one that the template changed takes all up to the next place
    where that wrapper stands. Stops where the text no longer follows the wrappers. Linear in the text.
    """
    found: dict[int, Span] = {}
    if not text.startswith(wrappers[0]) or not text.endswith(wrappers[-1]):
        return found
    position, limit = len(wrappers[0]), len(text) - len(wrappers[-1])
    last = len(contents) - 1
    for rank, (index, content) in enumerate(contents):
        wrapper = wrappers[rank + 1]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        ends = [position + len(form) for form in forms if text.startswith(form, position)]
        if rank == last:
            end = limit
        else:
            end = next((end for end in ends if text.startswith(wrapper, end)), -1)
            end = text.find(wrapper, position, limit) if end < 0 else end
        if end < position:
            break
        found[index] = (position, end)
        position = end + len(wrapper)
    return found


def _raise(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
