"""Objects of a schema are closed where that only takes away what nobody reads."""

from typing import Any

import pytest

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
        {"enum": [{"properties": {"a": 1}}]},
        {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "required": [{}]},
        {"properties": 5, "items": 7, "anyOf": "x", "$defs": [1]},
    ],
)
def test_what_stays_open_or_is_wrong_is_left_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema
