"""Runs into a folder on a device whose memory runs out, or that dies: nothing is half-written, and a later run ends it.

The fault comes at a random allocation or call of one complete run: encoding, denoising, decoding, writing. 8 of each
kind here; ``HSD_FAULTS=200 pytest tests/test_device_faults.py`` tries any other number.
"""

from __future__ import annotations

import json
import os
import random

import numpy as np
import PIL.Image
import pytest

import hsd
import tiny
from device import emulated
from device.runs import on_the_device, padded
from helpers import make_scheduler

FAULTS = int(os.environ.get("HSD_FAULTS", "8"))

pytestmark = pytest.mark.filterwarnings("ignore::hsd.errors.Notice")  # that calls are cut, or not captured

OPTIONS = {"batch_size": 2, "progress": False}


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))


@pytest.fixture(scope="module")
def plain(pipe, tmp_path_factory):
    """A plan's file, and the folder that a run on the CPU made."""
    model = hsd.load(pipe, height=32, width=32)
    path, folder = (tmp_path_factory.mktemp(name) / "plain" for name in ("plan", "folder"))
    with padded():
        plan = hsd.compile(["a cat", "a cat on a mat", "a dog", "the sea"], 0.8, model=model, steps=3)
        plan.save(path)
        hsd.generate(hsd.Plan.load(path), model, folder, **OPTIONS)
    return path, folder


def run(pipe, plan, folder, seed=0, fault=None, **options):
    """One run on a new device; returns the device, and the error that ended the run."""
    with emulated(seed, (0.0, 0.3, 1.0)[seed % 3], **options) as device, on_the_device():
        device.adopt(pipe)
        model = hsd.load(pipe, height=32, width=32)
        if fault is not None:
            fault(device)
        try:
            hsd.generate(hsd.Plan.load(plan), model, folder, **OPTIONS)
        except Exception as error:
            return device, error
        return device, None


@pytest.fixture(scope="module")
def length(pipe, plain, tmp_path_factory):
    """Allocations and calls of a run without faults, after the networks are there."""
    begun = {}

    def note(device):
        begun.update(allocations=device.memory[0].allocations, calls=device.calls)

    folder = tmp_path_factory.mktemp("whole")
    device, error = run(pipe, plain[0], folder, fault=note)
    assert error is None
    assert images_in(folder) == images_in(plain[1])
    return {"allocations": device.memory[0].allocations, "calls": device.calls}, begun


def images_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def lines_of(folder):
    path = folder / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def close(ours, theirs):
    """Whether an image is that of a plain run. Calls of another size may be rounded differently, in single values."""
    a, b = (np.array(PIL.Image.open(path), dtype=np.int16) for path in (ours, theirs))
    return np.abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


def check_folder(folder, whole, exactly):
    """Every file is complete, and every image is that of a run without faults."""
    assert {path.name for path in folder.iterdir()} <= {path.name for path in whole.iterdir()}
    images, expected = images_in(folder), images_in(whole)
    for name, image in images.items():
        assert image == expected[name] if exactly else close(folder / name, whole / name)
    assert {line["file_name"] for line in lines_of(folder)} == images.keys()


def check_fault(pipe, plain, folder, seed, fault, kind):
    plan, whole = plain
    device, error = run(pipe, plan, folder, seed, fault)
    assert error is None or isinstance(error, kind), repr(error)
    if folder.exists():
        check_folder(folder, whole, exactly=error is not None)
    before = images_in(folder)
    if error is None:
        assert before.keys() == images_in(whole).keys()
    _, again = run(pipe, plan, folder, seed)
    assert again is None
    check_folder(folder, whole, exactly=False)
    after = images_in(folder)
    assert after.keys() == images_in(whole).keys()
    assert {name: after[name] for name in before} == before  # they were kept
    assert not (folder / "failed.jsonl").exists()
    return device, error


@pytest.mark.parametrize("seed", range(FAULTS))
def test_memory_that_runs_out_once(pipe, plain, length, tmp_path, seed):
    last, first = length

    def fault(device):
        device.memory[0].fails_at = random.Random(seed).randint(first["allocations"] + 1, last["allocations"])

    check_fault(pipe, plain, tmp_path / "images", seed, fault, hsd.OutOfMemory)


@pytest.mark.parametrize("seed", range(FAULTS))
def test_a_device_that_dies(pipe, plain, length, tmp_path, seed):
    last, first = length

    def fault(device):
        device.dies_at = random.Random(seed).randint(first["calls"] + 1, last["calls"])

    device, error = check_fault(pipe, plain, tmp_path / "images", seed, fault, hsd.Error)
    assert (error is None) == (not device.dead)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9])
def test_a_device_that_is_too_small(pipe, plain, tmp_path, share):
    """Calls are cut until they fit; or not even one fits, and the error says so."""
    plan, whole = plain
    at_first = {}
    device, _ = run(pipe, plan, tmp_path / "large", fault=lambda d: at_first.update(used=d.memory[0].allocated))
    limit = int(at_first["used"] + share * (device.memory[0].peak_allocated - at_first["used"]))
    _, error = run(pipe, plan, tmp_path / "small", limit=limit)
    assert error is None or isinstance(error, hsd.OutOfMemory), repr(error)
    check_folder(tmp_path / "small", whole, exactly=False)
    if error is None:
        assert len(images_in(tmp_path / "small")) == len(images_in(whole))
