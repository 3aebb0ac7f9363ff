"""Message content that may be a text or a list of parts."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError


def join_parts(content: Any, *, kinds: tuple[str, ...] = ("text",)) -> Any:
    """Content as one string: null is empty, parts of text are joined; other types are left to the validator.

    Args:
        content: as the client sent it.
        kinds: types of parts that are text.
    """
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in kinds else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PydanticCustomError(
                "content_part",
                "a content part of type {kind} can't be read; send text parts only",
                {"kind": repr(kind)},
            )
        texts.append(text)
    return "".join(texts)


class TextPart(BaseModel):
    """A part of text."""

    type: Literal["text"]
    text: str


Text = Annotated[str, BeforeValidator(join_parts, json_schema_input_type=str | list[TextPart] | None)]
"""Text, or parts of it."""
