"""Joining in object stores: the lines, run records and failures of all writers, each in one file.

Why nothing is lost: see :mod:`.store_metadata`.
"""

from __future__ import annotations

from ..work.files import FAILED, PARTS
from ..work.objects import Objects
from .failures import updated
from .joining import joined_parts, new_runs
from .store_belonging import StoreBelonging
from .store_claims import StoreClaim
from .store_metadata import StoreMetadata


def join(objects: Objects, own: StoreBelonging, metadata: StoreMetadata, held: StoreClaim) -> None:
    """Join everything; remove the files that are joined, if nothing can be lost."""
    metadata.join()
    join_records(objects, own, metadata)
    if held.others() or not metadata.is_joined():
        return
    recorded = joined_parts(own.document())  # after the look at the claims, too
    objects.remove([*metadata.joined_files(), *(f"{PARTS}/{name}.json" for name in recorded)])


def join_records(objects: Objects, own: StoreBelonging, metadata: StoreMetadata) -> None:
    """Add the runs of all writers to ``run.json``, each once, and their failures to ``failed.jsonl``."""
    document = own.document()
    runs, failures = new_runs(document, metadata.records(joined_parts(document)), metadata.entries)
    if not runs:
        return
    # Failures first: a run that is in run.json is not looked at again.
    before = objects.get(FAILED)
    data = updated(before or b"", metadata.n_prompts, metadata.entries, failures)
    if data:
        objects.put(FAILED, data)
    elif before is not None:
        objects.remove([FAILED])
    own.write({**document, "runs": [*document["runs"], *runs]})
