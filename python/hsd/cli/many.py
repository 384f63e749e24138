"""Options of ``hsd generate`` for more than one GPU, and what does not go together with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import Error
from ..work.paths import refuse_url, user_path
from ..work.urls import is_url
from .console import say
from .recipe import Shard

_PANEL = "More than one GPU (docs/many-gpus.md)"

Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Run on N GPUs of this machine, a worker each; without GPUs, N processes. With --ray: N GPUs of the "
        "cluster. Needs Ray: pip install 'hsd-diffusion\\[distributed]'.",
        show_default="this process alone; with --ray all GPUs of the cluster",
        rich_help_panel=_PANEL,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run on this Ray cluster: auto on a machine of it, HOST:PORT, or ray://HOST:10001 from elsewhere. All its "
        "machines need HSD, the model, and OUT in a shared folder or an object store.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make part I of N, counted from 1. Run the same command once for each part, on any machines that share "
        "OUT, at any time: all of them use one plan. For job arrays and plain shells; does not need Ray.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


def is_many(workers: int | None, ray: str | None) -> bool:
    """Whether the images are made by workers, and not by this process."""
    return workers is not None or ray is not None


def is_afar(ray: str | None) -> bool:
    """Whether the folder of images is on machines of which this one is none."""
    return ray is not None and ray.startswith("ray://")


def for_workers(out: str, ray: str | None) -> str:
    """The folder by a name that holds in their working folders too."""
    if is_url(out):
        return out
    path = user_path(out)
    if is_afar(ray) and not path.is_absolute():
        raise ValueError(
            f"--out {out} with --ray {ray}: the folder is one of the cluster's machines, so give its whole name, such "
            f"as /shared/{path.name}, or a URL"
        )
    return str(path.absolute())


def check(
    workers: int | None,
    ray: str | None,
    shard: Shard | None,
    *,
    device: str | None,
    keep_forks: bool,
    tar: Path | None,
    by_time: Iterable[str],
) -> None:
    """Raise ``ValueError`` for options that do not go together, before anything is loaded.

    ``by_time``: options given that count the time of one device; it is said what they mean for many.
    """
    if shard is not None and tar is not None:
        raise ValueError(
            f"--tar with --shard {shard}: the other parts may not be made yet. When all are, run the same command "
            "without --shard: it makes what is missing, and then the shards for training"
        )
    if not is_many(workers, ray):
        return
    option = "--ray" if workers is None else "--workers"
    if device is not None and ":" in device:
        kind = device.partition(":")[0]
        raise ValueError(
            f"--device {device} names one device, and {option} gives each worker its own: write --device {kind}, or "
            "leave it out. CUDA_VISIBLE_DEVICES=0,1 says which GPUs of a machine are used"
        )
    if tar is not None and is_afar(ray):
        raise ValueError(f"--tar with --ray {ray}: the images are not on this machine. Write the shards where they are")
    if keep_forks:
        raise ValueError(f"--keep-forks is for a run of one process: leave out {option}, or --keep-forks")
    for name in by_time:
        say(f"{name} is the time of one device: several make the same images sooner")


def check_tar(tar: Path, out: str | None) -> None:
    """Raise ``ValueError`` for ``--tar`` with a URL, on either side."""
    try:
        refuse_url(tar)
        if out is not None:
            refuse_url(out)
    except Error as error:
        raise ValueError(f"--tar: {error}") from None


def check_trunks(workers: int | None, ray: str | None, shard: Shard | None, kept: int, preview: int | None) -> None:
    """Raise ``ValueError`` where trunks are to be kept, or clusters named, by a run of several processes."""
    if shard is not None and (kept or preview):
        name = "--keep-trunks" if kept else "--preview"
        raise ValueError(f"{name} is for a run of one process: leave out --shard {shard}, or {name}")
    if not is_many(workers, ray):
        return
    option = "--ray" if workers is None else "--workers"
    for given, name in ((kept, "--keep-trunks"), (preview, "--preview")):
        if given:
            raise ValueError(f"{name} is for a run of one process: leave out {option}, or {name}")
