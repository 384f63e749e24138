"""What fails for one item of a batch, and what fails for everything."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ..errors import DeviceFailed, Error, OutOfMemory, PromptError

T = TypeVar("T")
R = TypeVar("R")

NOT_FINITE = "NaN or infinite values"

HOPELESS = 16
"""If the first so many items all fail in one way, what they have in common is at fault, and the work ends."""

_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV}
"""The disk is full, read-only or broken, or the process has no files or memory left."""

_DEVICE = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)( driver)? error|device-side assert|CUBLAS_STATUS|CUDNN_STATUS|CUSOLVER_STATUS|NCCL|"
    r"Triton Error|out of memory|can't allocate memory",
    re.IGNORECASE,
)

_MEMORY = re.compile(r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED", re.IGNORECASE)

_ACCELERATOR: tuple[type[Exception], ...] = tuple(
    getattr(torch, name) for name in ("AcceleratorError", "OutOfMemoryError") if hasattr(torch, name)
)


def ends_run(error: Exception) -> bool:
    """Whether an error concerns everything that would come after it, and not one item: memory, the device, the disk.

    HSD's own errors are of this kind too, except those about a prompt. After an error of the GPU every later call
    fails as well: to go on would report all prompts as failed.
    """
    if isinstance(error, (MemoryError, *_ACCELERATOR)):
        return True
    if isinstance(error, Error):
        return not isinstance(error, PromptError)
    if isinstance(error, OSError):
        return error.errno in _SYSTEM
    return _is_of_device(error)


def _is_of_device(error: BaseException) -> bool:
    """Whether an error of torch is about the device, or about its memory."""
    return isinstance(error, _ACCELERATOR) or (
        isinstance(error, RuntimeError) and not isinstance(error, Error) and _DEVICE.search(str(error)) is not None
    )


@contextlib.contextmanager
def device_errors(doing: Callable[[], str]) -> Iterator[None]:
    """Inside, what torch raises because the device failed, or has no memory left, is raised as an error of HSD.

    Parameters
    ----------
    doing
        What was being done, for the message: "denoising".

    Raises
    ------
    hsd.OutOfMemory
        If the memory has run out.
    hsd.DeviceFailed
        If the device has failed in another way.
    """
    try:
        yield
    except Exception as error:
        told = told_of_device(error, doing())
        if told is None:
            raise
        raise told from error


LESS_MEMORY = (
    "Smaller images need less, and so does a model whose weights are offloaded; other programs may use the memory too"
)
"""What to do where nothing can be made smaller by itself."""


def told_of_device(error: Exception, doing: str) -> Error | None:
    """An error of torch about the device as one of HSD, which says what to do; None if it is about something else."""
    if not _is_of_device(error):
        return None
    cause, kept = first_line(error), "Images that are finished are kept, and hsd.generate makes only the others"
    if isinstance(error, torch.OutOfMemoryError) or _MEMORY.search(str(error)):
        return OutOfMemory(
            f"out of memory while {doing}: {cause}. {kept}: try again with a smaller batch_size= or max_slots=. "
            f"{LESS_MEMORY}"
        )
    return DeviceFailed(
        f"the device failed while {doing}, or shortly before: {cause}. {kept}: start again, in a new "
        "process, since nothing in this one can use the device after such an error"
    )


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message, without its full stop; its type if it has none.

    Torch's errors go on with advice about debugging.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:most]
    return "".join(c if c.isprintable() else "?" for c in line).rstrip(" .")


def described(error: BaseException, most: int = 300) -> str:
    """Type and message of an error in one line of about ``most`` characters."""
    text = " ".join(str(error).split())[:most]
    text = "".join(c if c.isprintable() else "?" for c in text)  # it is printed, and kept in files
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_by_one(
    items: Sequence[T], work: Callable[[list[T]], R]
) -> tuple[list[tuple[list[int], R]], dict[int, Exception]]:
    """Results of ``work`` for a batch; a batch that raises is taken apart, to find the items that fail by themselves.

    Then the batch is tried once more, with another item in the place of each that failed: a batch of another size may
    be rounded differently, and what belongs to the other items is to be the same as without the failure.

    Parameters
    ----------
    items
        The batch.
    work
        Called with the batch or parts of it, several times.

    Returns
    -------
    tuple
        Pairs of positions in ``items`` and the result for them, where results at failed positions mean nothing; and
        the error of each position that fails by itself.

    Raises
    ------
    Exception
        What ``work`` raised, if it concerns everything: see :func:`ends_run`.
    """

    def attempt(at: list[int]) -> tuple[list[tuple[list[int], R]], dict[int, Exception]]:
        try:
            return [(at, work([items[i] for i in at]))], {}
        except Exception as error:
            if ends_run(error):
                raise
            if len(at) == 1:
                return [], {at[0]: error}
        half = (len(at) + 1) // 2
        (done, failed), (more, others) = attempt(at[:half]), attempt(at[half:])
        return done + more, failed | others

    everything = list(range(len(items)))
    done, failed = attempt(everything)
    if failed and done:
        instead = next(i for at, _ in done for i in at)
        try:
            done = [(everything, work([items[instead if i in failed else i] for i in everything]))]
        except Exception as error:
            if ends_run(error):
                raise  # else the results of the parts stand
    return done, failed
