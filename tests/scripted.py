"""Scripts for `FakeService`: what a model says that thinks, answers, and calls tools."""

from agentkv.api import ChatDelta, ChatRequest, ToolCallDelta


def thinks_answers_and_calls(_: ChatRequest) -> list[ChatDelta]:
    """Thoughts, content, and two calls whose arguments come in pieces."""

    def call(index: int, arguments: str, **fields: str) -> ChatDelta:
        return ChatDelta(tool_calls=(ToolCallDelta(index=index, arguments=arguments, **fields),), token_ids=(1,))

    return [
        ChatDelta(reasoning="Which ", token_ids=(1,)),
        ChatDelta(reasoning="tool?", token_ids=(1,)),
        ChatDelta(text="I ", token_ids=(1,)),
        ChatDelta(text="look.", token_ids=(1,)),
        call(0, "", call_id="call_1", name="level"),
        call(0, '{"year": '),
        call(0, "1912}"),
        call(1, '{"year": 1948}', call_id="call_2", name="level"),
    ]


def calls(_: ChatRequest) -> list[ChatDelta]:
    """One call and nothing else."""
    call = ToolCallDelta(index=0, call_id="call_1", name="level", arguments='{"year": 1912}')
    return [ChatDelta(tool_calls=(call,), token_ids=(1,))]


def writes_json(_: ChatRequest) -> list[str]:
    """An answer of the schema {year, unit}."""
    return ['{"year": 19', '12, "unit": "inches"}']
