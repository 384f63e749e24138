"""One plan for all processes that fill a folder side by side: the plan of the one that puts it there first.

The processes of ``hsd generate --shard I/N`` start at any moments, on any hosts, and tell each other nothing. Each
computes the plan from the same inputs, and processors with other vector instructions may round a distance differently:
then two prompts merge in another order, and the shards of two such plans do not fit together. A link, which fails where
the name exists, decides whose plan it is; no lock is needed, which shared folders may not have.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from pathlib import Path

from ..errors import Error, PlanMismatch
from ..work import files
from ..work.files import IDENTITY, RUN, make_folder, regular
from ..work.text import listed
from .differences import plan_differences
from .plan import PLAN_FILE, Plan
from .reuse import same_arguments, with_columns

_LOG = logging.getLogger(__name__)

_TRIES = 100
"""Attempts, of which each fails only because another process changes the folder in that moment."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
"""What a file system without links answers."""

TICKET = ".hsd.plan"
"""Where there are no links: who creates this file writes the plan."""

_PATIENCE = 30.0
"""Seconds that the one who created it may take."""


def agreed(out: str | os.PathLike[str], plan: Plan, *, exactly: bool = False) -> Plan:
    """The plan of the folder ``out``: ``plan``, if there is none yet, which is written there.

    Parameters
    ----------
    out
        The folder of the images; created if it does not exist.
    plan
        A whole plan.
    exactly
        Whether the two have to be the same in every cluster, as with a plan that was read from a file. Otherwise the
        same prompts and arguments are enough, and a plan that was rounded differently gives way, which is logged.

    Returns
    -------
    Plan
        The one that all processes get, with the columns of ``plan``.

    Raises
    ------
    PlanMismatch
        If the folder's plan has other prompts or arguments.
    OutputError
        If the folder cannot be written to.
    """
    path = make_folder(out).absolute() / PLAN_FILE
    try:
        found = _first(path, plan)
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise files.unusable(path.parent, error) from None
    return plan if found is None else _checked(path, found, plan, exactly)


def _first(path: Path, plan: Plan) -> Plan | None:
    """The plan at ``path``, after ``plan`` was put there if nothing was; None if it cannot be read."""
    for _ in range(_TRIES):
        if os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError):
                return _read(path)
        with contextlib.suppress(FileNotFoundError):  # a run that begins removes what it takes for leftovers
            _put(path, plan)
    raise files.unusable(path.parent, OSError(errno.EBUSY, "it changes all the time"))


def _read(path: Path) -> Plan | None:
    try:
        return Plan.load(path)
    except Error as error:
        if any(regular(path.parent / name) is not None for name in (RUN, IDENTITY)):
            return None  # a run checks it by these, and writes it again
        raise PlanMismatch(f"{error}; or choose another folder") from None


def _put(path: Path, plan: Plan) -> None:
    """Write the plan, unless another process has, or does."""
    temporary = path.parent / f".{path.name}.{os.urandom(8).hex()}.tmp"
    try:
        plan.save(temporary)
        os.link(temporary, path)
        files.sync_folder(path.parent)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _put_without_links(path, temporary)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _put_without_links(path: Path, temporary: Path) -> None:
    """Rename, which replaces what is there: so one process alone may, the one that has created the ticket."""
    ticket = path.parent / TICKET
    try:
        os.close(os.open(ticket, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        _wait(path, ticket)
        return
    if not os.path.lexists(path):  # else the last owner was quicker than this look at the folder
        files.rename(temporary, path)
        files.sync_folder(path.parent)


def _wait(path: Path, ticket: Path) -> None:
    """Until another process has written the plan; one that died on the way loses its ticket."""
    end = time.monotonic() + _PATIENCE
    while not os.path.lexists(path):
        if time.monotonic() > end:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(ticket)
            return
        time.sleep(0.1)


def _checked(path: Path, found: Plan, plan: Plan, exactly: bool) -> Plan:
    """``found``, if it is what ``plan`` is."""
    same = found.fingerprint == plan.fingerprint
    if not same and (exactly or not same_arguments(found, plan.request, plan.n_steps, plan.prompts, plan.seeds)):
        raise PlanMismatch(
            f"{path.parent} has another plan ({listed(plan_differences(found, plan))}): give every process the same "
            "prompts, seeds and settings, or choose another folder"
        )
    if not same:
        _LOG.info(
            "%s of %s is used, which another process computed from the same prompts and arguments: %s evaluations, "
            "here %s by other rounding",
            path.name,
            path.parent,
            f"{found.node_steps:,}",
            f"{plan.node_steps:,}",
        )
    return with_columns(found.whole(), plan.request)
