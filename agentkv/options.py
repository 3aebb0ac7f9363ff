"""Commands whose options are a dataclass: the fields are declared once, and a command gets them as one object."""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Decorates a function of one argument for typer.

    Args:
        options: a dataclass whose fields are `Annotated[..., typer.Option(...)]` and have defaults.
    """

    def wrap(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
            for each in fields(options)  # type: ignore[arg-type]
        ]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return wrap
