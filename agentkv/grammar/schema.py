"""JSON schemas as replies are held to them: what a schema leaves open about an object's properties is closed."""

from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_COMBINING = ("allOf", "anyOf", "oneOf", "$ref", "not", "if", "patternProperties", "dependentSchemas")
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment")
_BESIDE_REF = {"$ref", "$schema", "$id", "$defs", "definitions", "x-guidance", *_ANNOTATIONS}
"""Keywords beside `$ref` that say nothing of what an object holds."""


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with objects that hold no more than the properties they list.

    A schema that lists properties and says nothing of `additionalProperties` allows any. Nobody reads these, and a
    model that may always add one may never come to an end; xgrammar's strict mode closes them too. Every reply of
    the closed schema is one of the given. A schema that makes an object of several parts, or asks for a number of
    properties, is left as it is: closing one part would forbid the others' properties.
    """
    return schema if any(_combines(each) for each in _walk(schema)) else _closed(schema)


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    changed: dict[str, Any] = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            changed[key] = {name: _closed_value(each) for name, each in value.items()}
        elif key in _LISTED and isinstance(value, list):
            changed[key] = [_closed_value(each) for each in value]
        elif key in _SINGLE:
            changed[key] = _closed_value(value)
    properties, required = schema.get("properties"), schema.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
    ):
        changed.setdefault("additionalProperties", False)
    return changed


def _closed_value(value: Any) -> Any:
    return _closed(value) if isinstance(value, Mapping) else value


def _combines(schema: Mapping[str, Any]) -> bool:
    if "allOf" in schema or "minProperties" in schema or ("$ref" in schema and not schema.keys() <= _BESIDE_REF):
        return True
    return "properties" in schema and any(key in schema for key in _COMBINING)


def _walk(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas in it."""
    yield schema
    for key, value in schema.items():
        inside: Any = ()
        if key in _NAMED and isinstance(value, Mapping):
            inside = value.values()
        elif key in _LISTED and isinstance(value, list):
            inside = value
        elif key in _SINGLE:
            inside = (value,)
        for each in inside:
            if isinstance(each, Mapping):
                yield from _walk(each)
