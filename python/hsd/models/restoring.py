"""Objects and what hangs on them, put back as they were: attributes, lists, dictionaries; and caches of functions.

For code that runs a model in another way than usual and must not leave a trace in it. Tensors are not copied: what is
put back is which tensor is where.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

_PLAIN = (str, bytes, int, float, complex, bool, type(None), Tensor, type, ModuleType)
"""Nothing hangs on these."""

_LIBRARY = ("torch.", "builtins", "collections", "typing", "functools")
"""Classes of these modules keep no cache of a model in their module."""


@contextlib.contextmanager
def restored(roots: Iterable[Any], owners: Sequence[Any] = ()) -> Iterator[None]:
    """Afterwards, also after an error, everything that can be reached from ``roots`` holds the same objects as before.

    Reached are: attributes of objects, items of containers, variables of closures, and the containers that are
    variables of a class on the way or of the module that defines it.

    Parameters
    ----------
    roots
        Objects.
    owners
        Objects whose attributes are put back, and the items of those that are containers, but no more.
    """
    before = _Snapshot(roots, owners)
    try:
        yield
    finally:
        before.restore()


_cleared = 0


def caches_cleared() -> int:
    """How many caches :func:`clear_caches` has emptied: memory that a captured call reads may have been in one."""
    return _cleared


def clear_caches(is_foreign: Callable[[Any], bool]) -> None:
    """Empty every cache of :func:`functools.lru_cache` in the process that holds a foreign object.

    There is no access to single entries.
    """
    global _cleared
    for item in gc.get_objects():
        if type(item) is functools._lru_cache_wrapper and _holds(item, is_foreign):
            item.cache_clear()
            _cleared += 1


class _Snapshot:
    """The items of all containers that can be reached from some objects."""

    def __init__(self, roots: Iterable[Any], owners: Sequence[Any]) -> None:
        self._seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is used twice
        self._held: list[tuple[Any, Any]] = []  # container, copy
        self._classes = {type(owner) for owner in owners}
        self._visit(list(roots), follow=True)
        self._held += [(vars(owner), dict(vars(owner))) for owner in owners]
        for namespace in (*map(vars, owners), *self._namespaces()):
            found = [value for value in list(namespace.values()) if isinstance(value, (dict, list, set))]
            data = [getattr(value, "data", None) for value in list(namespace.values()) if _is_weak(value)]
            self._visit([*found, *data], follow=False)

    def restore(self) -> None:
        for container, items in self._held:
            if isinstance(container, dict):
                if not _same_items(container, items):
                    own = _plain(container)
                    own.clear(container)
                    for key, value in items.items():
                        own.__setitem__(container, key, value)
            elif isinstance(container, list):
                if len(container) != len(items) or any(a is not b for a, b in zip(container, items, strict=True)):
                    container[:] = items
            elif container != items:
                container.clear()
                container.update(items)

    def _visit(self, found: list[Any], follow: bool) -> None:
        """Record containers; ``follow`` attributes and closures too, not only the items of containers."""
        while found:
            item = found.pop()
            if isinstance(item, _PLAIN) or id(item) in self._seen:
                continue
            self._seen[id(item)] = item
            if isinstance(item, dict):
                items = dict(_plain(item).items(item))
                self._held.append((item, items))
                found += items.values()
            elif isinstance(item, list):
                self._held.append((item, list(item)))
                found += item
            elif isinstance(item, set):
                self._held.append((item, set(item)))
            elif isinstance(item, tuple):
                found += item
            elif follow:
                found += self._hanging_on(item)

    def _hanging_on(self, item: Any) -> Iterator[Any]:
        if isinstance(item, FunctionType):
            for cell in item.__closure__ or ():
                with contextlib.suppress(ValueError):  # a variable without a value
                    yield cell.cell_contents
        elif isinstance(item, MethodType):
            yield item.__self__
        elif isinstance(item, functools.partial):
            yield from (item.func, item.args, item.keywords)
        own = getattr(item, "__dict__", None)
        if isinstance(own, dict):
            self._classes.add(type(item))
            yield own

    def _namespaces(self) -> Iterator[dict[str, Any]]:
        """The variables of the classes of what was visited, and of their modules."""
        bases = {base for cls in self._classes for base in cls.__mro__ if not base.__module__.startswith(_LIBRARY)}
        modules = {base.__module__ for base in bases}
        yield from (dict(vars(base)) for base in bases)
        yield from (vars(sys.modules[name]) for name in modules if name in sys.modules)


def _is_weak(value: Any) -> bool:
    return type(value).__module__ == "weakref" and isinstance(getattr(value, "data", None), dict)


def _same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether two dictionaries have the same objects under the same keys in the same order."""
    mine = list(_plain(a).items(a))
    return len(mine) == len(b) and all(k is m and v is w for (k, v), (m, w) in zip(mine, b.items(), strict=True))


def _plain(container: dict[Any, Any]) -> type[dict[Any, Any]]:
    """Whose methods read and set just the items of a dictionary.

    Those of a subclass may do more: transformers has dictionaries whose ``values()`` import every model. And the order
    of an ``OrderedDict`` is not in its ``dict``, whose methods would leave it damaged.
    """
    return OrderedDict if isinstance(container, OrderedDict) else dict


def _holds(cache: Any, is_foreign: Callable[[Any], bool]) -> bool:
    """Whether a cache holds a foreign object: among its keys or values, or in their tuples, lists and dictionaries."""
    found, seen = [cache], set()
    while found:
        for item in gc.get_referents(found.pop()):
            if is_foreign(item):
                return True
            if isinstance(item, (tuple, list, dict)) and id(item) not in seen:
                seen.add(id(item))
                found.append(item)
    return False
