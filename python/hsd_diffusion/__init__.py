"""The command ``hsd``, and what is said where ``import hsd`` does not find the package of hsd-diffusion.

The library is :mod:`hsd`. Another distribution of PyPI, hsd (a format of structured data, by the DFTB+ developers), has
a package of that name too. Installed into one folder, the files of both get mixed: ``hsd/__init__.py`` is that of the
last one, and ``pip uninstall hsd`` removes it. This package has a name of its own, so that the command can say so.
"""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType

__all__ = ["main", "mixed", "refusal"]

_OTHER = "the distribution hsd (a format of structured data, by the DFTB+ developers)"
_KEEP_ONE = (
    "Keep one of them: `pip uninstall hsd hsd-diffusion`, then install the one that you need. "
    "To use both, give each an environment of its own."
)


def mixed(folder: str) -> str | None:
    """What to warn of if the package in a folder, which is hsd-diffusion's, has files of the other distribution."""
    if not os.path.exists(os.path.join(folder, "eventhandler.py")):  # the other's; a look into all metadata costs more
        return None
    return (
        f"{_OTHER} is installed in the same folder as hsd-diffusion, {folder}. Programs that use it fail, because "
        f"__init__.py is now that of hsd-diffusion. {_KEEP_ONE}"
    )


def refusal(package: ModuleType) -> str | None:
    """Why this package, which ``import hsd`` has found, cannot be used as hsd-diffusion's; None if it is that one."""
    if getattr(package, "__distribution__", None) == "hsd-diffusion":
        return None
    if getattr(package, "__file__", None) is None:
        return (
            f"the package hsd in {', '.join(package.__path__)} has no __init__.py. Uninstalling {_OTHER} removes it. "
            "To repair hsd-diffusion: `pip install --force-reinstall --no-deps hsd-diffusion`."
        )
    found = f"`import hsd` finds {package.__file__}, which is not hsd-diffusion's"
    if hasattr(package, "HsdParser"):
        return f"{found}: {_OTHER} has a package of that name too. {_KEEP_ONE}"
    return f"{found}. Rename or remove it, or take its folder out of PYTHONPATH."


def main() -> None:
    """Entry point of the command ``hsd``, see :func:`hsd.cli.main`."""
    warnings.filterwarnings("ignore", "the distribution hsd ")  # a line of the command below, not a warning
    import hsd

    if (why := refusal(hsd)) is not None:
        sys.exit(f"hsd: {why}")
    if (why := mixed(hsd.__path__[0])) is not None:
        print(f"hsd: {why}", file=sys.stderr, flush=True)
    from hsd.cli import main

    main()
