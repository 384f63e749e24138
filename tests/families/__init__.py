"""The model families, each in miniature, for the tests that all of them have to pass.

A family is a module of this package with one subclass of :class:`Family`; it is found here automatically.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from families.base import Family, handing_generators, masked_mean, swap


def _found() -> list[Family]:
    """One of each family, in the order of the modules' names."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [
        value()
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
        if value is not Family
    ]


EVERY = _found()
"""The pipelines that HSD drives, and one with a denoiser that takes one timestep per call."""

FAMILIES = [family for family in EVERY if family.shipped]
"""The pipelines that HSD drives."""

__all__ = ["EVERY", "FAMILIES", "Family", "handing_generators", "masked_mean", "swap"]
