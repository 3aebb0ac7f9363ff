"""`with_structured_output`: replies held to a schema, as JSON or as the arguments of a tool."""

from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Schema = dict[str, Any] | type
Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: BaseChatModel, schema: Schema, method: Method, *, include_raw: bool, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """A model whose answers are parsed; see `ChatAgentKV.with_structured_output`.

    Raises:
        ValueError: a method that is none.
    """
    match method:
        case "json_schema" | "json_mode":
            bound, parser = _as_json(model, schema, method, strict)
        case "function_calling":
            bound, parser = _as_call(model, schema, strict)
        case _:
            raise ValueError(f"method is {method!r}: give json_schema, function_calling or json_mode")
    return _with_raw(bound, parser) if include_raw else bound | parser


def _as_json(
    model: BaseChatModel, schema: Schema, method: str, strict: bool | None
) -> tuple[Runnable[LanguageModelInput, Any], Runnable[Any, Any]]:
    response_format: dict[str, Any] = {"type": "json_object"}
    if method == "json_schema":
        function = convert_to_openai_tool(schema, strict=strict)["function"]
        named = {"name": function["name"], "schema": function["parameters"], "strict": strict is not False}
        response_format = {"type": "json_schema", "json_schema": named}
    bound = model.bind(response_format=response_format, ls_structured_output_format=_trace(schema, method, strict))
    parser = (
        JsonOutputParser()
        if (pydantic := _pydantic(schema)) is None
        else PydanticOutputParser(pydantic_object=pydantic)
    )
    return bound, parser


def _as_call(
    model: BaseChatModel, schema: Schema, strict: bool | None
) -> tuple[Runnable[LanguageModelInput, Any], Runnable[Any, Any]]:
    name = convert_to_openai_tool(schema)["function"]["name"]
    bound = model.bind_tools(
        [schema],
        tool_choice=name,
        strict=strict,
        parallel_tool_calls=False,
        ls_structured_output_format=_trace(schema, "function_calling", strict),
    )
    if (pydantic := _pydantic(schema)) is None:
        return bound, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return bound, PydanticToolsParser(tools=[pydantic], first_tool_only=True)


def _with_raw(
    bound: Runnable[LanguageModelInput, Any], parser: Runnable[Any, Any]
) -> Runnable[LanguageModelInput, Any]:
    """`raw`, `parsed` and `parsing_error`, as LangChain's models give them."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _trace(schema: Schema, method: str, strict: bool | None) -> dict[str, Any]:
    """What LangSmith shows of the schema."""
    return {"kwargs": {"method": method, "strict": strict}, "schema": convert_to_json_schema(schema)}


def _pydantic(schema: Schema) -> Any:
    """The schema if it is a Pydantic class, of either version."""
    return schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
