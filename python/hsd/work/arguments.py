"""Arguments of functions: what is said of a keyword that a function does not have, and of a function that is given."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def explains(
    name: str, known: Callable[[str], str | None] = lambda keyword: None, *, by_name: str = "them"
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function whose ``TypeError`` for arguments that it does not take says what to do; its signature stays as it is.

    Parameters
    ----------
    name
        Of the function, for messages.
    known
        What to do about a keyword, without a full stop; None: then the nearest of the function's own arguments is
        named.
    by_name
        What may be meant where there are too many arguments without a name: "the model as model=".
    """

    def of(work: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(work).parameters.values()
        own = [each.name for each in parameters]
        ordered = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

        @wraps(work)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            for keyword in kwargs:
                if keyword not in own:
                    near = difflib.get_close_matches(keyword, own, n=1)
                    guess = f"did you mean {near[0]}=?" if near else f"it has {', '.join(own)}"
                    raise TypeError(f"{name} has no argument {keyword!r}: {known(keyword) or guess}")
            if len(args) > len(ordered) or any(each in kwargs for each in ordered[: len(args)]):
                first = " and ".join(ordered)
                raise TypeError(f"{name} takes {first} in this order, and all else by name: give {by_name}")
            return work(*args, **kwargs)

        return run

    return of


def check_function(name: str, value: Any, *arguments: Any, takes: str, otherwise: str) -> None:
    """``TypeError`` unless ``value`` is a function that can be called with ``arguments``.

    Parameters
    ----------
    name
        Of the argument that it is given as.
    takes
        What it is called with, for the message.
    otherwise
        What else the argument can be, for the message.
    """
    if not callable(value) or isinstance(value, type):
        kind = " (a class)" if isinstance(value, type) else ""
        raise TypeError(
            f"{name} is {value!r}{kind}: it has to be {otherwise}, or a function that is called with {takes}"
        )
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some functions in C do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name}= is called with {takes}, and {value!r} cannot be: {error}") from None
