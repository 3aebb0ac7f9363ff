"""`/openapi.json`: what the routes take and answer. FastAPI has to be told of bodies that `read_body` reads."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from agentkv.server.errors import ANTHROPIC_PATH

_SCHEMAS = "#/components/schemas/"
_KEYS = {
    "key": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str = Field(description="`invalid_request_error` for mistakes of the caller, `server_error` for ours.")
    param: str | None = Field(description="The field that is wrong, where one is.")
    code: str | None = Field(description="A short machine-readable word.")


class ErrorEnvelope(BaseModel):
    """OpenAI's shape of every answer that is no success."""

    error: ErrorDetail


class AnthropicError(BaseModel):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicErrorEnvelope(BaseModel):
    """Anthropic's shape of every answer that is no success."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


def describe(app: FastAPI, bodies: Mapping[str, type[BaseModel]], *, model_id: str, needs_key: bool) -> None:
    """Let `app` publish its schema.

    Args:
        app: with all its routes.
        bodies: of those that take one, by path.
        model_id: the model that is served, the only one to ask for.
        needs_key: API keys are set.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for theirs in ("HTTPValidationError", "ValidationError"):  # our shape of errors is another
                schemas.pop(theirs, None)
            for path, operation in _operations(schema):
                if path in bodies:
                    operation["requestBody"] = _body(bodies[path], model_id, schemas)
                errors = AnthropicErrorEnvelope if path.startswith(ANTHROPIC_PATH) else ErrorEnvelope
                _add_errors(operation, errors, schemas)
                if needs_key and (path.startswith("/v1/") or path in ("/metrics", "/tokenize", "/detokenize")):
                    operation["security"] = [{"key": []}, {"x_api_key": []}]
            schema["components"]["securitySchemes"] = _KEYS
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            yield path, operation


def _body(model: type[BaseModel], model_id: str, schemas: dict[str, Any]) -> dict[str, Any]:
    reference = _reference(model, schemas)
    properties = schemas[model.__name__]["properties"]
    if "model" in properties:
        unset = [] if model.model_fields["model"].is_required() else [None]
        properties["model"] = {"title": "Model", "enum": [model_id, *unset]}
    return {"required": True, "content": {"application/json": {"schema": reference}}}


def _add_errors(operation: dict[str, Any], envelope: type[BaseModel], schemas: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)
    content = {"application/json": {"schema": _reference(envelope, schemas)}}
    operation["responses"] |= {
        "4XX": {"description": "The caller's mistake, or a limit.", "content": content},
        "5XX": {"description": "The server's fault, or it is busy or about to end.", "content": content},
    }


def _reference(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    name = model.__name__
    if name not in schemas:  # parts of several models may have one name: theirs begin with the model's
        schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{name}.{{model}}")
        schemas |= {f"{name}.{part}": value for part, value in schema.pop("$defs", {}).items()}
        schemas[name] = schema
    return {"$ref": f"{_SCHEMAS}{name}"}
