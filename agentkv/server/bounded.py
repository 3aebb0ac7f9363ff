"""Objects and lists of a body whose length callers choose: refused at the first thing that is wrong.

pydantic looks at every entry of a dictionary before it refuses any, and gathers an error for each; lists stop with
`Field(fail_fast=True)`.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

MOST_TOOLS = 1024
"""Of one request; OpenAI takes 128."""

MOST_OPTIONS = 64
"""Entries of an object of options or of metadata; OpenAI takes 16."""


def at_most(count: int) -> BeforeValidator:
    """Refuses larger objects before their entries are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise PydanticCustomError("too_long", "it has {given} entries: give at most {most}", _sizes(value, count))
        return value

    return BeforeValidator(check)


def _sizes(value: dict[Any, Any], most: int) -> dict[str, Any]:
    return {"given": len(value), "most": most}


Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16, fail_fast=True)]
"""Strings that end a reply."""

TemplateOptions = Annotated[
    dict[str, bool | int | float | str | None], Field(max_length=MOST_OPTIONS), at_most(MOST_OPTIONS)
]
"""Variables of the model's chat template."""

Metadata = Annotated[dict[str, str], Field(max_length=MOST_OPTIONS), at_most(MOST_OPTIONS)]
"""What a client wants to find again in the answer."""
