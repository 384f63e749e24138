"""HSD: images for large sets of prompts, paying once for the denoising steps that similar prompts share.

>>> import hsd
>>> pipe = hsd.load("demo")
>>> plan = hsd.compile(["a red star", "a blue star", "a green ring"], tau=1.0, model=pipe)
>>> print(plan)  # doctest: +SKIP
>>> hsd.generate(plan, pipe, out="images")  # doctest: +SKIP
>>> hsd.generate(["a red star", "a blue star"], pipe, out="more-images", tau=1.0)  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

__distribution__ = "hsd-diffusion"  # before the imports: errors.py looks for it, see hsd_diffusion
if os.path.basename(sys.argv[0] if sys.argv else "") in ("hsd", "hsd.exe"):
    # The command, which handles Ctrl-C once it runs. Before that, while modules are imported, it is to be quiet too.
    sys.excepthook = lambda kind, *rest: None if kind is KeyboardInterrupt else sys.__excepthook__(kind, *rest)

from hsd_diffusion import mixed

from ._core import Program, Tree, __version__
from .errors import (
    DeviceFailed,
    Error,
    FailedImages,
    Notice,
    OtherVersions,
    OutOfMemory,
    OutputError,
    PlanMismatch,
    PromptError,
    UnknownModel,
    UnsupportedPipeline,
    UnsupportedScheduler,
    WorkersFailed,
)

if TYPE_CHECKING:
    from .calibration import Calibration
    from .choice import Choice, tune
    from .evaluation import Evaluation, evaluate
    from .generation import Failure, Image, Run, cost, generate, stream, write_shards
    from .models import load
    from .planning.chosen import Settings, load_settings
    from .planning.clustering import build_tree
    from .planning.compile import compile
    from .planning.plan import Plan
    from .probing.measure import calibrate
    from .prompts.files import PromptFile, read_prompts
    from .prompts.templates import expand_template
    from .reporting import report
    from .reproduction import reproduce
    from .work.progress import ProgressOption

if (_told := mixed(__path__[0])) is not None:
    warnings.warn(_told, Notice, stacklevel=2)

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, unless a program wants to hear it

__all__ = [
    "Calibration",
    "Choice",
    "DeviceFailed",
    "Error",
    "Evaluation",
    "FailedImages",
    "Failure",
    "Image",
    "Notice",
    "OtherVersions",
    "OutOfMemory",
    "OutputError",
    "Plan",
    "PlanMismatch",
    "Program",
    "ProgressOption",
    "PromptError",
    "PromptFile",
    "Run",
    "Settings",
    "Tree",
    "UnknownModel",
    "UnsupportedPipeline",
    "UnsupportedScheduler",
    "WorkersFailed",
    "__version__",
    "build_tree",
    "calibrate",
    "compile",
    "cost",
    "evaluate",
    "expand_template",
    "generate",
    "load",
    "load_settings",
    "read_prompts",
    "report",
    "reproduce",
    "stream",
    "tune",
    "write_shards",
]

# Imported at first use: a program that plans needs no torch, and one that asks for help not even numpy.
_LAZY = {
    "Calibration": ".calibration",
    "Choice": ".choice",
    "tune": ".choice",
    "Evaluation": ".evaluation",
    "evaluate": ".evaluation",
    "cost": ".generation",
    "generate": ".generation",
    "stream": ".generation",
    "write_shards": ".generation",
    "Failure": ".generation",
    "Image": ".generation",
    "Run": ".generation",
    "load": ".models",
    "Settings": ".planning.chosen",
    "load_settings": ".planning.chosen",
    "build_tree": ".planning.clustering",
    "compile": ".planning.compile",
    "Plan": ".planning.plan",
    "calibrate": ".probing",
    "PromptFile": ".prompts.files",
    "read_prompts": ".prompts.files",
    "expand_template": ".prompts.templates",
    "report": ".reporting",
    "reproduce": ".reproduction",
    "ProgressOption": ".work.progress",
}


def __getattr__(name: str) -> Any:
    if name == "distributed":  # the package itself
        from importlib import import_module

        return import_module(".distributed", __name__)
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
