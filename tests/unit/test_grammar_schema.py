"""Objects of a schema are closed where that only takes away what nobody reads."""

import time
from typing import Any, cast

import pytest

from agentkv.api import ChatRequest, ResponseFormat
from agentkv.errors import InvalidRequest
from agentkv.grammar import GrammarCompiler
from agentkv.grammar.schema import closed


def test_listed_properties_are_all_there_are() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "one": {"anyOf": [inner, {"type": "null"}]}},
        "$defs": {"named": inner},
    }
    shut = {**inner, "additionalProperties": False}
    assert closed(schema) == {
        "type": "object",
        "properties": {"list": {"type": "array", "items": shut}, "one": {"anyOf": [shut, {"type": "null"}]}},
        "$defs": {"named": shut},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {}}, "required": ["a", "unlisted"]},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]},
        {"$ref": "#/$defs/a", "required": ["b"], "$defs": {"a": {"properties": {"a": {}}}}},
        {"properties": {"a": {}}, "minProperties": 2},
        {"enum": [{"properties": {"a": 1}}]},
        {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "required": [{}]},
        {"properties": 5, "items": 7, "anyOf": "x", "$defs": [1]},
    ],
)
def test_what_stays_open_or_is_wrong_is_left_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_annotations_beside_a_reference_leave_its_target_closed() -> None:
    target = {"properties": {"a": {}}}
    schema = {"$ref": "#/$defs/a", "title": "A", "$defs": {"a": target}}
    assert closed(schema)["$defs"]["a"] == {**target, "additionalProperties": False}


def test_many_properties_are_closed_in_no_time() -> None:
    names = [f"property_{index}" for index in range(10_000)]
    started = time.perf_counter()
    shut = closed({"properties": {name: {} for name in names}, "required": names})
    assert time.perf_counter() - started < 1, "the square of 10000 takes longer"
    assert shut["additionalProperties"] is False


@pytest.mark.parametrize("wide", [True, False])
def test_a_schema_that_is_too_large_is_refused(wide: bool) -> None:
    schema: dict[str, Any] = {"enum": ["x" * 1000] * 300}
    if not wide:
        for _ in range(100_000):
            schema = {"items": schema}
    request = ChatRequest(messages=(), response_format=ResponseFormat(schema=schema))
    compiler = GrammarCompiler(cast("Any", None), cast("Any", None))
    with pytest.raises(InvalidRequest, match="shorten" if wide else "flatter") as caught:
        compiler.constraint(request, cast("Any", None))
    assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_schema")
