"""Errors and warnings of HSD. Bad arguments are ``ValueError`` or ``TypeError`` too, so either base catches them."""

from __future__ import annotations

import sys
from typing import Any

from hsd_diffusion import refusal

if (_why := refusal(sys.modules["hsd"])) is not None:  # here, because nearly all modules import this one
    raise ImportError(_why)


class Error(Exception):
    """Base of HSD's own errors. ``str()`` says what happened and what to do about it."""


class PromptError(Error, ValueError):
    """A prompt, or a file of prompts, that cannot be used. Names the index or the line."""


class UnknownModel(Error, ValueError):
    """A model name that is neither known, nor a folder, nor a pipeline that has an adapter."""


class UnsupportedPipeline(Error, TypeError):
    """A diffusers pipeline that no adapter knows how to drive."""


class UnsupportedScheduler(Error, ValueError):
    """A diffusers scheduler that the sampler table cannot express exactly. It is never approximated."""


class PlanMismatch(Error, ValueError):
    """A plan that does not fit the model, the prompts, or the folder it is to be written to."""


class OutOfMemory(Error, RuntimeError):
    """Something does not fit into the device's memory, such as one latent by itself."""


class DeviceFailed(Error, RuntimeError):
    """The GPU reported an error, after which most often nothing in this process can use it any more.

    Start a new process. :func:`hsd.generate` continues with the images that are missing.
    """


class OutputError(Error, OSError):
    """An output folder that cannot be written to, or that holds something else."""


class FailedImages(Error, RuntimeError):
    """Images that could not be made. The others were; trying again makes the missing ones.

    Attributes
    ----------
    failures
        One :class:`hsd.Failure` for each image: its index, prompt, seed, the stage that failed, and the reason.
    """

    def __init__(self, message: str, failures: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def __reduce__(self) -> Any:
        """With the failures, so that it survives being sent between processes."""
        return type(self), (str(self), self.failures)


class WorkersFailed(Error, RuntimeError):
    """A run on several workers that cannot go on: no worker comes up, or all units end badly.

    What is made is in the folder; the same call makes the rest. The last error of a worker is its cause.
    """


class Notice(UserWarning):
    """What HSD warns of. The command line shows each as one line; in Python these are warnings like any other."""


class OtherVersions(Notice):
    """Images are continued with other versions of packages, or on another kind of device: rounding may differ."""
