"""Commands whose options are dataclasses: the fields are declared once, and a command gets them as objects."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Any, get_type_hints


def takes(*options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a function of one argument for each of these classes for typer.

    Args:
        options: dataclasses whose fields are `Annotated[..., typer.Option(...)]`, each name once; those of
            arguments may lack defaults.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(*(kind(**{each.name: values[each.name] for each in fields(kind)}) for kind in options))

        run.__signature__ = Signature([each for kind in options for each in _parameters(kind)])  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return wrap


def _parameters(options: type[Any]) -> list[Parameter]:
    hints = get_type_hints(options, include_extras=True)
    return [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(options)
    ]
