"""What else is stored between runs: damage costs the work of one file, and a failure never what was there before."""

from __future__ import annotations

import os

import numpy as np
import pytest

from disk import fill, make_plan
from hsd.calibration import store
from hsd.calibration.calibration import Calibration
from hsd.choice.trials import _read_embeddings, _write_embeddings
from hsd.evaluation.cache import ScoreCache
from hsd.evaluation.folder import read_folder
from hsd.generation.metadata import complete
from hsd.work import files

pytestmark = pytest.mark.faults

PLAN = make_plan()


def test_trials_count_only_images_that_hold(tmp_path):
    path = tmp_path / "images"
    assert complete(path, PLAN) == set()
    fill(path, PLAN)
    assert complete(path, PLAN) == set(range(8))
    os.truncate(path / "00002.png", 50)
    data = (path / "metadata.jsonl").read_bytes()
    (path / "metadata.jsonl").write_bytes(data.replace(b'"00005.png"', b'"../x.png"')[:-20])
    assert complete(path, PLAN) == {0, 1, 3, 4, 6}
    assert (path / "metadata.jsonl").read_bytes() != data  # reading repairs nothing


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.9, -1])
def test_stored_embeddings_that_are_damaged_are_computed_again(tmp_path, keep):
    path = tmp_path / "embeddings.npz"
    rows = {"a": np.arange(300.0), "b": np.ones(300)}
    _write_embeddings(path, "1", rows)
    assert _read_embeddings(path, "1").keys() == rows.keys()
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep % size)
    assert _read_embeddings(path, "1") == {}


def test_scores_that_cannot_be_written_leave_the_others(tmp_path, monkeypatch):
    fill(tmp_path / "images", PLAN)
    entries = read_folder(tmp_path / "images").entries
    cache = ScoreCache(tmp_path, "demo", "1")
    cache.add(entries[:3], np.array([0.1, 0.2, 0.3]))
    before = cache.path.read_bytes()

    def fails(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(files, "_sync", fails)
        with pytest.raises(OSError, match="No space left on device.*free some disk space"):
            cache.add(entries[3:], np.zeros(5))
    assert cache.path.read_bytes() == before
    again = ScoreCache(tmp_path, "demo", "1")
    assert again.missing(entries) == list(entries[3:])


def test_an_older_calibration_is_removed_only_when_the_new_one_is_there(monkeypatch, tmp_path):
    import hsd.demo

    calibration = Calibration.load(os.path.join(os.path.dirname(hsd.demo.__file__), "calibration.safetensors"))
    path = store.keep(calibration)
    before = path.read_bytes()

    def fails(self, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Calibration, "save", fails)
        with pytest.raises(OSError, match="No space left"):
            store.keep(calibration)
    assert path.read_bytes() == before
    assert store.keep(calibration) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]
