"""The settings of an adapter, checked against the types that its fields are annotated with."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from ..prompts.known_settings import check_limits
from ..prompts.setting_values import check_value
from .base import Adapter


@functools.cache
def setting_types(adapter: type[Adapter]) -> dict[str, Any]:
    """The type of each setting, by name. Those without an annotation that can be evaluated are left out.

    Each is evaluated by itself: an adapter from elsewhere may import the types of some of them for type checkers only.
    """
    found: dict[str, Any] = {}
    names = adapter.setting_names()
    for base in reversed(adapter.__mro__):
        home = vars(sys.modules.get(base.__module__, sys))
        try:
            annotations = inspect.get_annotations(base)
        except Exception:  # Python 3.14 evaluates them here
            continue
        for name in names:
            if name not in annotations:
                continue
            kind = annotations[name]
            if isinstance(kind, str):
                try:
                    kind = eval(kind, dict(home), dict(vars(base)))  # of the adapter's own source
                except Exception:
                    found.pop(name, None)
                    continue
            found[name] = kind
    return found


def typed_settings(adapter: type[Adapter], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each converted to the type of its field: 64.0 to 64, a list to a tuple.

    What has several values and is of another type is left as it is: an adapter says more about its own, when it is
    made. :func:`check_made` looks at the others.

    Raises
    ------
    TypeError
        For a single value of another type.
    ValueError
        For a number that is infinite or too large.
    """
    kinds, out = setting_types(adapter), dict(settings)
    for name, value in settings.items():
        if name not in kinds:
            continue
        try:
            out[name] = check_value(name, value, kinds[name])
        except (TypeError, ValueError):
            if not _is_structured(kinds[name]):
                raise
    return out


def check_made(adapter: Adapter, settings: Mapping[str, Any]) -> None:
    """Raise for the ``settings`` that an adapter was made with, and that it should have refused.

    Raises
    ------
    TypeError
        For several values of another type.
    ValueError
        For a number outside of what the setting can be in any model.
    """
    kinds = setting_types(type(adapter))
    for name, value in settings.items():
        if name in kinds:
            check_value(name, getattr(adapter, name), kinds[name])
            check_limits(name, value)


def _is_structured(kind: Any) -> bool:
    """Tuples, lists and mappings, also where None is allowed."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return any(get_origin(one) not in (None, Literal) or one in (dict, list, tuple) for one in kinds)
