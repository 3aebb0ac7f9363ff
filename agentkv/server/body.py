"""Request bodies: read up to a limit, then parsed and checked in one go.

pydantic's own JSON parser is used on the raw bytes: it answers deep nesting, invalid UTF-8 and lone surrogates with a
validation error, where `json.loads` raises RecursionError or lets text through that no tokenizer can encode. It holds
the interpreter while it works, on whatever thread. So a body is bounded by its values, too: millions of keys would keep
all streams waiting.
"""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from agentkv.server.errors import ApiError, from_validation_error

Body = TypeVar("Body", bound=BaseModel)

MOST_SEPARATORS = 1 << 18
"""Commas and colons of a body, in its texts too: no JSON has many more values; five megabytes of prose have fewer."""


async def read_body(request: Request, model: type[Body], limit: int) -> Body:
    """The request's body as a `model`.

    Args:
        limit: most bytes that are read; the rest is left on the wire.

    Raises:
        ApiError: 413 for a body over the limit or of too many values, 400 for one that is no JSON or not of this shape.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    if (separators := body.count(b",") + body.count(b":")) > MOST_SEPARATORS:
        message = (
            f"the request body has {separators} commas and colons, and this server reads {MOST_SEPARATORS}: send less"
        )
        raise ApiError(413, message, code="request_too_large")
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise from_validation_error(error, bytes(body)) from None


def _too_large(limit: int) -> ApiError:
    message = f"the request body has more than {limit} bytes: send less, or raise max_body_bytes on the server"
    return ApiError(413, message, code="request_too_large")
