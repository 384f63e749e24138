"""The settings of an adapter, checked against the types that its fields are annotated with."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from ..planning.known_settings import check_limits
from ..planning.setting_values import check_value
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


def checked_settings(adapter: type[Adapter], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each converted to the type of its field: 64.0 to 64, a list to a tuple.

    Raises
    ------
    TypeError
        For a value of another type.
    ValueError
        For a number that is infinite, too large, or outside of what the setting can be in any model.
    """
    kinds, out = setting_types(adapter), dict(settings)
    for name, value in settings.items():
        if name not in kinds:
            continue
        try:
            out[name] = check_value(name, value, kinds[name])
        except (TypeError, ValueError):
            if not _is_pair(kinds[name]):  # families say more about theirs: what the two values are
                raise
        check_limits(name, out[name])
    return out


def _is_pair(kind: Any) -> bool:
    """``tuple[float, float]`` and the like, also where None is allowed."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return any(get_origin(one) is tuple and Ellipsis not in get_args(one) for one in kinds)
