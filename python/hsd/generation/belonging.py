"""Whose a folder is: its plan, its model and the format of its images, compared with those of a run."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from ..errors import Error, OutputError, PlanMismatch
from ..planning.differences import plan_differences
from ..planning.plan import PLAN_COPY, PLAN_FILE, Plan
from ..planning.vectors import VECTORS_FILE, write_vectors
from ..work import files
from ..work.files import IDENTITY, METADATA, RUN
from .differences import warn_of_rounding
from .identity_check import Identity, foreign, identity_differences, identity_of, mismatch, not_begun
from .present import holds_images
from .record import Record

_BEGINNING = 5.0
"""Seconds for which a run that lives may take to say whose the folder is, after it has claimed images there."""


class Belonging:
    """What decides the images of a run, and what a folder's files say about that.

    Parameters
    ----------
    folder
        The folder.
    plan
        Of the run.
    model
        What its images depend on besides (``models/identity.py``).
    image_format
        The ending of the images' names.
    """

    def __init__(self, folder: Path, plan: Plan, model: dict[str, Any], image_format: str) -> None:
        self.identity = identity_of(plan, model, image_format)
        self.model: dict[str, Any] = self.identity["model"]
        self.repaired: list[str] = []
        """What was not as an earlier run had left it, one text each."""
        self.record = Record(folder)
        self.folder = folder
        self._plan = plan
        self._seen: Any = None

    def check(self) -> None:
        """Raise ``PlanMismatch`` unless a run has taken the folder for these images."""
        document, _ = self.record.read()
        before = document.get("identity")
        if before is None:
            raise not_begun(self.folder)
        differing = self._differences({"image_format": self.identity["image_format"], **before})
        if differing:
            raise mismatch(self.folder, differing)

    def look(self) -> None:
        """See whose the folder is, before this run claims images there: what changes later, runs beside it do."""
        self._seen = self.record.read()[0].get("identity")

    def claim(self, metadata_format: str | None, *, taken: bool, others: bool) -> None:
        """Record the plan as the folder's, or check that it is the one recorded.

        While a claim of this run is there, and the folder's lock is held, which may not reach others. Of runs that
        begin at one moment, those that see another give way: they wait until that has said whose the folder is.

        Parameters
        ----------
        metadata_format
            The format of the images by their lines, which earlier versions did not record.
        taken
            Whether there are images, so that a folder without a record is someone else's.
        others
            Whether other runs live.
        """
        end = time.monotonic() + (_BEGINNING if others else 0.0)
        while not self._claimed(metadata_format, taken, others, last=time.monotonic() >= end):
            time.sleep(0.01)

    def _claimed(self, metadata_format: str | None, taken: bool, others: bool, *, last: bool) -> bool:
        """:meth:`claim`; False if it has to be tried again, which is not waited for at the ``last`` time."""
        document, damaged = self.record.read()
        before = document.get("identity")
        others = others or before != self._seen
        if before is not None and "image_format" not in before:  # of an earlier version
            found = metadata_format or self.identity["image_format"]
            before = {**before, "plan": self._known_plan(before["plan"]), "image_format": found}
        differing = {} if before is None else self._differences(before)
        grown = before is not None and bool(differing) and self._has_grown_from(before)
        if before is not None and grown and not others:
            self._save_plan()  # before the record says that it is the folder's
            before, differing = {**before, "plan": self.identity["plan"]}, {}
        if not last and (before is None or differing):
            return False
        copy = self.record.copy()
        if differing and copy is not None and copy != before and not self._differences(copy):
            self.repaired.append(f"{RUN} does not say what {IDENTITY} says, which is right")
            before, differing = copy, {}
        if before is not None and not differing:
            self._continue(document, before, damaged)
            return True
        made = taken or holds_images(self.folder)
        if before is None and (made or not self.record.begin(self.identity)) and self.has_begun():
            return False  # another run was quicker
        if grown:  # and others live
            raise OutputError(
                f"{self.folder} cannot grow while another run makes images there: wait until that has ended"
            )
        if made or (differing and others):
            raise self._foreign(damaged) if before is None else mismatch(self.folder, differing)
        # Nothing was made yet: another plan, or another model, may have the folder.
        self._save_plan()
        self.write({"identity": self.identity, "request": self._plan.request, "runs": document.get("runs", [])})
        return True

    def _continue(self, document: dict[str, Any], before: dict[str, Any], damaged: str | None) -> None:
        """Go on in a folder whose identity is ``before``, which is that of this run."""
        warn_of_rounding(self.folder, before["model"], self.model)
        if "networks" in before["model"]:  # else it is of an earlier version, which did not record them
            # With the versions that the first images were made with.
            self.identity = {**before, "plan": self.identity["plan"]}
        begun = self.record.files() == 2
        if document.get("identity") != self.identity or damaged is not None or not begun:
            grown = {"request": self._plan.request} if self._plan.extensions else {}
            document = {"request": self._plan.request, "runs": [], **document, **grown}
            self.write({**document, "identity": self.identity})
        self._check_plan_file(begun)

    def document(self) -> dict[str, Any]:
        """What ``run.json`` says, with the identity, the arguments of the plan, and a list of runs."""
        document, _ = self.record.read()
        return {"identity": self.identity, "request": self._plan.request, "runs": [], **document}

    def write(self, document: dict[str, Any]) -> None:
        """Write ``run.json``."""
        finding = self.record.write(document)
        if finding is not None:
            self.repaired.append(finding)

    def has_begun(self) -> bool:
        """Whether the folder has a record, of whatever plan."""
        return self.record.read()[0].get("identity") is not None

    def _known_plan(self, fingerprint: str) -> str:
        """The fingerprint of this plan, if the folder's plan file has it: earlier versions computed another one."""
        if fingerprint == self.identity["plan"] or self._stored_fingerprint() != self.identity["plan"]:
            return fingerprint
        return str(self.identity["plan"])

    def _stored_fingerprint(self, name: str = PLAN_FILE) -> str | None:
        stored = self._stored(name)
        return None if stored is None else stored.fingerprint

    def _stored(self, name: str) -> Plan | None:
        if files.regular(self.folder / name) is None:
            return None
        try:
            return Plan.load(self.folder / name)
        except (Error, OSError):
            return None

    def _check_plan_file(self, begun: bool) -> None:
        """The plan is known to be the folder's: a file that is damaged or missing is written again, the copy too."""
        stored, columns = self._stored(PLAN_FILE), self._plan.columns
        if stored is None or stored.fingerprint != self.identity["plan"]:
            if begun or os.path.lexists(self.folder / PLAN_FILE):  # else the first run has come no further
                self.repaired.append(f"{PLAN_FILE} was damaged or missing, and is written again")
            self._save_plan()
        elif columns and stored.columns != columns:  # edited in the list, and nothing else of it
            self._save_plan()
        elif self._plan.extensions and self._stored_fingerprint(PLAN_COPY) != self.identity["plan"]:
            self._plan.whole().save(files.cleared(self.folder, PLAN_COPY))

    def _has_grown_from(self, before: Identity) -> bool:
        """Whether the plan is that of the folder with more prompts, and nothing else differs."""
        grown = before["plan"] in self._plan.grown_from
        return grown and not self._differences({**before, "plan": self.identity["plan"]})

    def _save_plan(self) -> None:
        """Write the plan; if it has grown, a copy first; and what is known of the vectors that it was clustered by."""
        whole = self._plan.whole()
        if whole.extensions:
            whole.save(files.cleared(self.folder, PLAN_COPY))
        whole.save(files.cleared(self.folder, PLAN_FILE))
        if whole.vectors is not None:
            with contextlib.suppress(OSError):  # nothing depends on them
                write_vectors(files.cleared(self.folder, VECTORS_FILE), whole.vectors, whole.fingerprint)

    def _differences(self, before: Identity) -> dict[str, list[str]]:
        return identity_differences(before, self.identity, self._plan_differences)

    def _plan_differences(self) -> list[str]:
        try:
            return plan_differences(Plan.load(self.folder / PLAN_FILE), self._plan.whole())
        except (Error, OSError):
            return [f"its {PLAN_FILE} cannot be read"]

    def _foreign(self, damaged: str | None) -> PlanMismatch:
        """Images of which nothing says who made them."""
        if damaged is not None:
            return PlanMismatch(
                f"{self.folder / RUN} cannot be used ({damaged}), and nothing else says which model made the images "
                "there: choose another folder"
            )
        return foreign(self.folder, METADATA if os.path.lexists(self.folder / METADATA) else "images")
