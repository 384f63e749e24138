"""Options that several commands have, as one parameter of their functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any


def with_group(
    command: Callable[..., None],
    group: str,
    kinds: Mapping[str, Any],
    defaults: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """A command whose parameter ``group`` is typed as one option for each of ``kinds``, at its place in the help.

    Parameters
    ----------
    kinds, defaults
        The type, as typer reads it, and the default of each option, by its name.
    make
        What the command gets, from the values by name.
    """

    @wraps(command)
    def run(**typed: Any) -> None:
        given = {name: typed.pop(name) for name in kinds}
        command(**{group: make(given)}, **typed)

    own = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for name, parameter in own.parameters.items():
        if name == group:
            added = kinds.items()
            parameters += [inspect.Parameter(n, keyword, default=defaults[n], annotation=kind) for n, kind in added]
        else:
            parameters.append(parameter.replace(kind=keyword))
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
