"""A plan as a file: written whole, and read with the checks that a file from anywhere needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._core import MOST_HEADER
from .._core import Plan as CorePlan
from ..errors import Error
from ..work.files import write_atomically
from ..work.objects import write_url
from ..work.paths import user_path
from ..work.reading import open_file
from ..work.urls import is_url, open_url
from .columns import check_columns


def write(
    path: str | os.PathLike[str],
    core: CorePlan,
    prompts: list[str],
    seeds: NDArray[np.int64],
    request: dict[str, Any],
) -> None:
    """See :meth:`hsd.Plan.save`."""
    data = encoded(core, prompts, seeds, request)
    if is_url(path):
        write_url(str(path), data)
    else:
        write_atomically(user_path(path), data)


def encoded(core: CorePlan, prompts: list[str], seeds: NDArray[np.int64], request: dict[str, Any]) -> bytes:
    """The bytes of a plan's file."""
    return core.to_bytes(prompts, seeds, json.dumps(request, sort_keys=True))


def read(path: str | os.PathLike[str]) -> tuple[CorePlan, list[str], NDArray[np.int64], dict[str, Any]]:
    """What a plan is built from, see :meth:`hsd.Plan.load`.

    Raises
    ------
    Error
        If the file is not a valid plan.
    OSError
        If it cannot be read, or is a folder, a device or a pipe.
    """
    with _opened(path) as (file, size):
        try:
            core, prompts, seeds, metadata = CorePlan.from_bytes(_whole(file, size))
            request = json.loads(metadata)
            check_columns(request.get("columns"), core.n_prompts)
            return core, prompts, seeds, request
        except MemoryError:
            why = "it does not fit into the memory"
        except (TypeError, ValueError) as error:
            why = str(error)
    raise Error(
        f"{path} is not a plan that can be used: {why}. Compile it again: delete this file, and run what wrote it"
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The file, for reading, and its size in bytes."""
    if is_url(path):
        with open_url(str(path)) as opened:
            yield opened
    else:
        with open_file(path) as file:
            yield file, os.fstat(file.fileno()).st_size


def _whole(file: BinaryIO, size: int) -> bytes:
    """The bytes of a plan's file. Its header comes first, so that a large file that is no plan is not read.

    Raises
    ------
    ValueError
        If the header is not that of a plan, or tells of another size.
    """
    begin = file.read(8)
    expected = CorePlan.file_size(begin + file.read(min(int.from_bytes(begin, "little"), size, MOST_HEADER)))
    if expected != size:
        raise ValueError(f"it has {size:,} bytes, but its header tells of {expected:,}: it was cut, or is another file")
    file.seek(0)
    return file.read(size)
