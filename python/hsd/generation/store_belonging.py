"""Whose a folder in an object store is: its plan, its model and the format of its images. See :mod:`.belonging`.

There is no lock: of several runs that begin at one moment, the one whose ``identity.json`` is there first decides.
"""

from __future__ import annotations

from typing import Any

from ..errors import Error, PlanMismatch
from ..planning.differences import plan_differences
from ..planning.plan import PLAN_FILE, Plan
from ..planning.plan_file import encoded
from ..work.files import IDENTITY, RUN, as_json
from ..work.objects import Objects
from ..work.reading import parse_json
from ..work.urls import below
from .differences import warn_of_rounding
from .identity_check import Identity, foreign, identity_differences, identity_of, mismatch, not_begun
from .record import is_identity
from .store_metadata import StoreMetadata


class StoreBelonging:
    """What decides the images of a run, and what the files in a store say about that.

    Parameters
    ----------
    objects
        The folder.
    plan
        Of the run.
    model
        What its images depend on besides (``models/identity.py``).
    image_format
        The ending of the images' names.
    """

    def __init__(self, objects: Objects, plan: Plan, model: dict[str, Any], image_format: str) -> None:
        self.identity = identity_of(plan, model, image_format)
        self.model: dict[str, Any] = self.identity["model"]
        self.repaired: list[str] = []
        """What was not as an earlier run had left it, one text each."""
        self._objects, self._plan = objects, plan

    def check(self) -> None:
        """Raise ``PlanMismatch`` unless a run has taken the folder for these images."""
        before = self._recorded()
        if before is None:
            raise not_begun(self._objects.url)
        differing = self._differences(before)
        if differing:
            raise mismatch(self._objects.url, differing)

    def claim(self, metadata: StoreMetadata, *, others: bool) -> None:
        """Record the plan as the folder's, or check that it is the one recorded. While a claim of this run is there.

        Parameters
        ----------
        metadata
            What says whether there are images.
        others
            Whether other runs write there, so that the folder is theirs too.
        """
        before = self._recorded()
        if before is None:
            if metadata.says():
                raise foreign(self._objects.url, "images")
            if self._objects.create(IDENTITY, as_json(self.identity)):
                before = self.identity
            else:  # another run was quicker
                before = self._recorded() or self.identity
        differing = self._differences(before)
        if differing and not others and before["plan"] in self._plan.grown_from:
            grown = {**before, "plan": self.identity["plan"]}
            if not self._differences(grown):
                self._write_plan()  # before the record says that it is the folder's
                self._objects.put(IDENTITY, as_json(grown))
                self.write({**self.document(), "identity": grown, "request": self._plan.request})
                before, differing = grown, {}
        if differing and (others or metadata.says()):
            raise mismatch(self._objects.url, differing)
        if differing:  # nothing was made yet: another plan, or another model, may have the folder
            self._objects.put(IDENTITY, as_json(self.identity))
            self._objects.put(RUN, as_json(self._first()))
        else:
            warn_of_rounding(self._objects.url, before["model"], self.model)
            self.identity = before  # with the versions that the first images were made with
        self._put_plan()
        self._objects.create(RUN, as_json(self._first()))

    def document(self) -> dict[str, Any]:
        """What ``run.json`` says, with the identity, the arguments of the plan, and a list of runs."""
        document = self._object(RUN) or {}
        if not isinstance(document.get("runs", []), list):
            document = {}
        return {**self._first(), **document, "identity": self.identity}

    def write(self, document: dict[str, Any]) -> None:
        """Write ``run.json``."""
        self._objects.put(RUN, as_json(document))

    def _first(self) -> dict[str, Any]:
        return {"identity": self.identity, "request": self._plan.request, "runs": []}

    def _recorded(self) -> Identity | None:
        """The identity of the folder, from either file; None if there is none."""
        found = [self._object(IDENTITY), (self._object(RUN) or {}).get("identity")]
        whole = (one for one in found if one is not None and is_identity(one) and "image_format" in one)
        return next(whole, None)

    def _object(self, name: str) -> dict[str, Any] | None:
        data = self._objects.get(name)
        try:
            document = None if data is None else parse_json(data)
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    def _put_plan(self) -> None:
        """Write the plan, unless it is there. The identity, which came first, says which one it has to be."""
        stored, columns = self._stored_plan(), self._plan.columns
        if stored is not None and stored.fingerprint == self.identity["plan"] and columns in ({}, stored.columns):
            return
        self._write_plan()

    def _write_plan(self) -> None:
        plan = self._plan.whole()
        self._objects.put(PLAN_FILE, encoded(plan._core, plan.prompts, plan.seeds, plan.request))

    def _stored_plan(self) -> Plan | None:
        try:
            return Plan.load(below(self._objects.url, PLAN_FILE))
        except (FileNotFoundError, PlanMismatch):
            return None
        except Error as error:
            if isinstance(error, OSError):
                raise
            return None

    def _differences(self, before: Identity) -> dict[str, list[str]]:
        return identity_differences(before, self.identity, self._plan_differences)

    def _plan_differences(self) -> list[str]:
        stored = self._stored_plan()
        if stored is None:
            return [f"its {PLAN_FILE} cannot be read"]
        return plan_differences(stored, self._plan.whole())
