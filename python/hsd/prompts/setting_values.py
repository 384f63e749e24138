"""A value of a setting, checked against a type such as ``int | None`` or ``tuple[float, float]``, and converted to it.

Numbers are taken as they come from tables and JSON: 64.0 is the whole number 64, 5 is the number 5.0, and a list is a
tuple. Text is never a number in Python; in a file of prompts it is where it can be meant as nothing else (``"42"``).
"""

from __future__ import annotations

import collections.abc
import math
import numbers
import reprlib
import types
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from .characters import unusable

EXACT = 2**53
"""Whole floats up to here are the number that was written; above it, neighbours are the same float."""

_SEQUENCES = (tuple, list, collections.abc.Sequence)
_LARGEST = 2**63 - 1


class _Misfit(Exception):
    """A value that is not of the type. The text is a hint, often empty."""


class _Outside(Exception):
    """A value of the type that is not allowed all the same: infinite, or too large."""


def whole_number(value: Any, from_file: bool = False) -> int | None:
    """The integer that ``value`` is: an integer, a float such as 3.0, or in a file text such as "42". Else None."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if from_file and isinstance(value, str):
        value = _number_in(value)
        if isinstance(value, int):
            return value
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return int(number) if abs(number) <= EXACT and number.is_integer() else None


def check_value(name: str, value: Any, kind: Any, from_file: bool = False) -> Any:
    """``value`` as the type ``kind``; as it is, where the type is one that is not understood here.

    Parameters
    ----------
    name
        The setting, for the message.
    kind
        ``int``, ``float``, ``bool``, ``str``, ``None``, ``Any``, a ``Literal``, and unions, tuples, lists and mappings
        of them.
    from_file
        Whether it comes from a file of prompts, where a number may be written as text.

    Raises
    ------
    TypeError
        For a value of another type.
    ValueError
        For NaN, infinity, and integers beyond 64 bits.
    """
    if not _understood(kind):
        return value
    try:
        return _fitted(value, kind, from_file)
    except _Misfit as misfit:
        raise TypeError(f"{name} is {_shown(value)}: it has to be {_described(kind)}{misfit}") from None
    except _Outside as outside:
        raise ValueError(f"{name} is {_shown(value)}: {outside}") from None


def takes_text(kind: Any) -> bool:
    """Whether a text is a value of the type."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(takes_text(one) for one in get_args(kind))
    return kind in (str, Any) or get_origin(kind) is Literal or not _understood(kind)


def _understood(kind: Any) -> bool:
    if kind in (int, float, bool, str, None, type(None), Any, dict, list, tuple):
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, dict, collections.abc.Mapping, *_SEQUENCES):
        return all(one is Ellipsis or _understood(one) for one in inner)
    return False


def _fitted(value: Any, kind: Any, from_file: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind is None or kind is type(None):
        if value is None:
            return None
        raise _Misfit("")
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, from_file)
    if origin is Literal:
        if value in inner:
            return value
        raise _Misfit("")
    if kind is bool:
        return _truth(value, from_file)
    if kind is int:
        return _whole(value, from_file)
    if kind is float:
        return _real(value, from_file)
    if kind is str:
        return _text(value)
    if kind is dict or origin in (dict, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            raise _Misfit("")
        names, values = inner or (Any, Any)
        return {_fitted(name, names, False): _fitted(one, values, from_file) for name, one in value.items()}
    return _several(value, kind, origin, inner, from_file)


def _one_of(value: Any, kinds: tuple[Any, ...], from_file: bool) -> Any:
    """The first type that fits without taking text for a number, else the first that fits at all."""
    hint = ""
    for loose in (False, True) if from_file else (False,):
        for kind in kinds:
            try:
                return _fitted(value, kind, loose)
            except _Misfit as misfit:
                hint = str(misfit) or hint
    raise _Misfit(hint)


def _truth(value: Any, from_file: bool) -> bool:
    if isinstance(value, bool):
        return value
    if from_file and str(value).lower() in ("true", "1", "1.0"):
        return True
    if from_file and str(value).lower() in ("false", "0", "0.0"):
        return False
    raise _Misfit("")


def _whole(value: Any, from_file: bool) -> int:
    number = whole_number(value, from_file)
    if number is None:
        _check_finite(value)
        raise _Misfit(_hint(value))
    if abs(number) > _LARGEST:
        raise _Outside("it is too large")
    return number


def _real(value: Any, from_file: bool) -> float:
    if from_file and isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _Misfit(_hint(value))
    try:
        number = float(value)
    except OverflowError:
        raise _Outside("it is too large") from None
    _check_finite(number)
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Misfit("")
    wrong = unusable(value)
    if wrong is not None:
        raise _Outside(f"it {wrong}")
    return str.__str__(value)


def _several(value: Any, kind: Any, origin: Any, inner: tuple[Any, ...], from_file: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _Misfit("")
    out: type = tuple if tuple in (kind, origin) else list
    if not inner:
        return out(value)
    if out is list or Ellipsis in inner:
        return out(_fitted(one, inner[0], from_file) for one in value)
    if len(value) != len(inner):
        raise _Misfit("")
    return tuple(_fitted(one, own, from_file) for one, own in zip(value, inner, strict=True))


def _number_in(text: str) -> Any:
    """The number that a text is, or the text."""
    plain = text.strip()
    if not plain.isascii() or "_" in plain or len(plain) > 40:
        return text
    for read in (int, float):
        try:
            number = read(plain)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text


def _check_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _Outside("it has to be a finite number")


def _hint(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    with_point = _number_in(value.replace(",", "."))
    if value.count(",") == 1 and not isinstance(with_point, str):
        return f"; write {with_point} with a point"
    return "" if isinstance(_number_in(value), str) else f"; write {value.strip()} without quotes"


def _shown(value: Any) -> str:
    """A value in a message, short, with its type where that is not plain."""
    if isinstance(value, np.generic):
        value = value.item()
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    kind = "" if value is None or isinstance(value, (bool, float)) else f" ({type(value).__name__})"
    try:
        return short.repr(value) + kind
    except ValueError:  # an integer with too many digits to print
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def _described(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", None: "None"}
    if kind in (*names, type(None)):
        return names.get(kind, "None")
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(one) for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(one) for one in inner))
    if origin is tuple and Ellipsis not in inner:
        return f"{len(inner)} values, each {' or '.join(dict.fromkeys(_described(one) for one in inner))}"
    if origin in _SEQUENCES:
        return f"a list of values, each {_described(inner[0])}"
    return "an object of names and values" if kind is dict or origin is not None else "a list"
