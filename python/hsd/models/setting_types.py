"""The settings of an adapter, checked against the types that its fields are annotated with."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any

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
    types, out = setting_types(adapter), dict(settings)
    for name, value in settings.items():
        if name in types:
            out[name] = check_value(name, value, types[name])
            check_limits(name, out[name])
    return out
