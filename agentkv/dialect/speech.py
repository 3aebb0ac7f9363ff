"""How one model speaks: which dialect, whether it thinks first, and what its chat template has a place for.

All is asked of the template, which writes calls and tools as the model was trained to read them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from agentkv.api import ChatMessage, ChatRequest, Tool, ToolCall
from agentkv.dialect.hermes import OPEN, HermesDialect
from agentkv.dialect.llama import PYTHON_TAG, LlamaDialect
from agentkv.dialect.reply_reader import ReplyReader
from agentkv.dialect.thinking import CLOSE as THINK_CLOSE
from agentkv.dialect.thinking import OPEN as THINK_OPEN
from agentkv.dialect.tool_dialect import ToolDialect
from agentkv.dialect.tool_prompt import tool_definitions, with_tools_in_words
from agentkv.errors import InvalidRequest, TemplateRefused
from agentkv.tokenization import ChatTemplate, Prompt

_CALL = ToolCall(call_id="call00000", name="probe_tool", arguments='{"probe_argument": 1}')
_QUESTION = ChatMessage(role="user", content="question")
_TOOL = Tool(name="probe_tool", description="probes", parameters={"type": "object", "properties": {}})

Spoken = Callable[[ChatMessage], str | None]
"""The very words with which the model called these tools, where they are known."""


class Speech:
    """Writes chats for one model and reads its replies.

    Args:
        template: its chat template.

    Attributes:
        thinks: the model may think before it answers.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.thinks = THINK_CLOSE in template.source

    @cached_property
    def dialect(self) -> ToolDialect:
        """The dialect whose text is what the template writes for a call; else the one whose mark its source has; else
        Hermes', which a model without training in tools follows as well as any."""
        dialects: tuple[ToolDialect, ...] = (HermesDialect(), LlamaDialect())
        written = self._written(ChatMessage(role="assistant", content="", tool_calls=(_CALL,)))
        for dialect in dialects:
            called = ChatMessage(role="assistant", content=dialect.shape.write((_CALL,)))
            if written is not None and written == self._written(called):
                return dialect
        source = self._template.source
        return dialects[1] if PYTHON_TAG in source and OPEN not in source else dialects[0]

    def may_think(self, request: ChatRequest, prompt: Prompt) -> bool:
        """Whether thoughts may come before the answer: not where the prompt has closed them already."""
        return self.thinks and request.prompt is None and not prompt.tail.rstrip().endswith(THINK_CLOSE)

    def opens_thoughts(self, prompt: Prompt) -> bool:
        """Whether the prompt ends inside the model's thoughts."""
        return self.thinks and prompt.tail.rstrip().endswith(THINK_OPEN)

    def reader(self, request: ChatRequest, prompt: Prompt) -> ReplyReader:
        """A reader for the reply to a prompt."""
        calls = request.tools is not None and request.tools.choice != "none"
        return ReplyReader(
            thinks=self.may_think(request, prompt),
            opened=self.opens_thoughts(prompt),
            dialect=self.dialect if calls else None,
        )

    def write(self, request: ChatRequest, spoken: Spoken) -> tuple[tuple[ChatMessage, ...], Mapping[str, Any]]:
        """The chat as the template can read it: messages without calls, and its variables.

        Raises:
            InvalidRequest: a template option that can't be set.
        """
        messages = tuple(self._plain(message, spoken) for message in request.messages)
        variables = dict(request.template_options)
        if reserved := variables.keys() & self._template.reserved_names:
            name = min(reserved)
            raise InvalidRequest(
                f"chat_template_kwargs.{name} can't be set: give options of the template's own",
                param=f"chat_template_kwargs.{name}",
            )
        if request.tools is not None and request.tools.tools:
            if self._renders_tools:
                variables["tools"] = tool_definitions(request.tools.tools)
            else:
                messages = with_tools_in_words(messages, request.tools.tools, self.dialect)
        return messages, variables

    def _plain(self, message: ChatMessage, spoken: Spoken) -> ChatMessage:
        if message.role == "tool" and not self._takes_tool_messages:
            content = f"<tool_response>\n{message.content}\n</tool_response>"
            return replace(message, role="user", content=content, tool_call_id=None)
        if not message.tool_calls:
            return message
        words = spoken(message)
        if words is None:
            parts = (message.content.strip(), self.dialect.shape.write(message.tool_calls))
            words = "\n".join(part for part in parts if part)
        return replace(message, content=words, tool_calls=())

    @cached_property
    def _renders_tools(self) -> bool:
        try:
            with_tools = self._template.render((_QUESTION,), {"tools": tool_definitions((_TOOL,))})
        except TemplateRefused:
            return False
        return _TOOL.name in with_tools

    @cached_property
    def _takes_tool_messages(self) -> bool:
        """Whether the template has a place for what a tool answered, behind the assistant's words."""
        called = ChatMessage(role="assistant", content="called")
        answer = ChatMessage(role="tool", content="the answer", tool_call_id=_CALL.call_id)
        try:
            return "the answer" in self._template.render((_QUESTION, called, answer))
        except TemplateRefused:
            return False

    def _written(self, message: ChatMessage) -> str | None:
        try:
            return self._template.render((_QUESTION, message), add_generation_prompt=False)
        except TemplateRefused:
            return None
