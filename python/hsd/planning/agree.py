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
from typing import Protocol

from ..errors import Error, OutputError, PlanMismatch
from ..work import files
from ..work.files import IDENTITY, RUN, make_folder, regular
from ..work.objects import Objects
from ..work.text import listed
from ..work.urls import below, filesystem_of, is_local, is_url
from .differences import plan_differences
from .plan import PLAN_COPY, PLAN_FILE, Plan
from .plan_file import encoded
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
        The folder of the images, or a URL; created if it does not exist.
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
    place = _place(out)
    try:
        found = _first(place, plan)
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise OutputError(f"cannot write to {place.folder}: {error.strerror or error}") from None
    if found is not None and found.fingerprint in plan.grown_from:
        place.replace(plan)
        with contextlib.suppress(FileNotFoundError):
            found = _read(place)  # of another process, if that was later
    return plan if found is None else _checked(place, found, plan, exactly)


def _place(out: str | os.PathLike[str]) -> _Place:
    if not is_url(out):
        return _Disk(make_folder(out).absolute())
    system, path = filesystem_of(str(out))
    return _Disk(make_folder(path)) if is_local(system) else _Store(str(out))


def _first(place: _Place, plan: Plan) -> Plan | None:
    """The plan that is there, after ``plan`` was put there if none was; None if it cannot be read."""
    for _ in range(_TRIES):
        if place.exists():
            with contextlib.suppress(FileNotFoundError):
                return _read(place)
        with contextlib.suppress(FileNotFoundError):  # a run that begins removes what it takes for leftovers
            place.put(plan)
    raise OSError(errno.EBUSY, "it changes all the time")


def _read(place: _Place) -> Plan | None:
    try:
        return Plan.load(place.plan)
    except Error as error:
        if place.begun():
            return None  # a run checks it by its record, and writes it again
        raise PlanMismatch(f"{error}; or choose another folder") from None


class _Place(Protocol):
    """Where the plan is."""

    folder: str
    plan: str

    def exists(self) -> bool: ...

    def begun(self) -> bool:
        """Whether a run has left its record."""

    def put(self, plan: Plan) -> None:
        """Write the plan, unless another process has, or does."""

    def replace(self, plan: Plan) -> None:
        """Write the plan in place of the one that it has grown from."""


class _Store:
    """An object store. It decides itself who is first, where it can."""

    def __init__(self, url: str) -> None:
        self.folder, self.plan = url, below(url, PLAN_FILE)
        self._objects = Objects(url)

    def exists(self) -> bool:
        return self._objects.has(PLAN_FILE)

    def begun(self) -> bool:
        return self._objects.has(RUN) or self._objects.has(IDENTITY)

    def put(self, plan: Plan) -> None:
        self._objects.create(PLAN_FILE, encoded(plan._core, plan.prompts, plan.seeds, plan.request))

    def replace(self, plan: Plan) -> None:
        self._objects.put(PLAN_FILE, encoded(plan._core, plan.prompts, plan.seeds, plan.request))


class _Disk:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self._plan = folder / PLAN_FILE
        self.folder, self.plan = str(folder), str(self._plan)

    def exists(self) -> bool:
        return os.path.lexists(self._plan)

    def begun(self) -> bool:
        return any(regular(self._plan.parent / name) is not None for name in (RUN, IDENTITY))

    def replace(self, plan: Plan) -> None:
        plan.save(files.cleared(self._plan.parent, PLAN_COPY))
        plan.save(self._plan)

    def put(self, plan: Plan) -> None:
        temporary = self._plan.parent / f".{PLAN_FILE}.{os.urandom(8).hex()}.tmp"
        plan.save(temporary)
        try:
            os.link(temporary, self._plan)
            files.sync_folder(self._plan.parent)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._put_without_links(temporary)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _put_without_links(self, temporary: Path) -> None:
        """Rename, which replaces what is there: so one process alone may, the one that has created the ticket."""
        ticket = self._plan.parent / TICKET
        try:
            os.close(os.open(ticket, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            self._wait(ticket)
            return
        if not self.exists():  # else the last owner was quicker than this look at the folder
            files.rename(temporary, self._plan)
            files.sync_folder(self._plan.parent)

    def _wait(self, ticket: Path) -> None:
        """Until another process has written the plan; one that died on the way loses its ticket."""
        end = time.monotonic() + _PATIENCE
        while not self.exists():
            if time.monotonic() > end:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(ticket)
                return
            time.sleep(0.1)


def _checked(place: _Place, found: Plan, plan: Plan, exactly: bool) -> Plan:
    """``found``, if it is what ``plan`` is."""
    same = found.fingerprint == plan.fingerprint
    if not same and (exactly or not same_arguments(found, plan.request, plan.n_steps, plan.prompts, plan.seeds)):
        raise PlanMismatch(
            f"{place.folder} has another plan ({listed(plan_differences(found, plan))}): give every process the same "
            "prompts, seeds and settings, or choose another folder"
        )
    if not same:
        _LOG.info(
            "%s of %s is used, which another process computed from the same prompts and arguments: %s evaluations, "
            "here %s by other rounding",
            PLAN_FILE,
            place.folder,
            f"{found.node_steps:,}",
            f"{plan.node_steps:,}",
        )
    agreed_on = with_columns(found.whole(), plan.request)
    return agreed_on.with_vectors(plan.vectors) if same else agreed_on
