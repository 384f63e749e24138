"""Models for workers of Ray, and what goes wrong with them. Its functions are sent to the workers by name."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

import hsd
from hsd.demo import PROMPTS as DEMO_PROMPTS

PROMPTS = DEMO_PROMPTS.read_text(encoding="utf-8").splitlines()[:16]

BAD = PROMPTS[5]


def once(folder, name):
    """Whether this is the first process that asks."""
    try:
        os.close(os.open(Path(folder) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def demo(folder=None, *, load=None, image=None, pace=0.0, gate=None):
    """The bundled model. ``load`` happens when it is loaded, ``image`` when the bad prompt's image is written.

    Each batch of the denoiser takes ``pace`` seconds more, a number or ``slow`` for the first process that asks. With a
    ``gate`` a process stops after so many batches, until there is a file ``go``.
    """
    if load is not None:
        load(folder)
    model = hsd.load("demo")
    note = None if folder is None else Path(folder) / f"pid-{os.getpid()}"
    if note is not None:
        note.touch()
    if pace == "slow":
        pace = 0.5 if once(folder, "slow") else 0.02
    if image is not None:
        from hsd.generation.made import Made

        write = Made.write

        def writing(self, made, extra):
            if made.prompt == BAD:
                image()
            write(self, made, extra)

        Made.write = writing
    if pace or gate is not None:
        evaluate, calls = model.denoise, []

        def denoising(*args, **options):
            time.sleep(pace)
            calls.append(1)
            if note is not None:
                note.write_text("." * len(calls))  # its size tells how far this process is
            while gate is not None and len(calls) > gate and not (Path(folder) / "go").exists():
                time.sleep(0.05)
            return evaluate(*args, **options)

        object.__setattr__(model, "denoise", denoising)
    return model


def model_of(folder, **faults):
    """A function that loads the model, which can be sent."""
    Path(folder).mkdir(exist_ok=True)
    return partial(demo, str(folder), **faults)


def fails(_):
    raise RuntimeError("no such weights")


def fails_once(folder):
    if once(folder, "failed"):
        raise RuntimeError("no such weights, for now")


def dies(_=None):
    os.kill(os.getpid(), signal.SIGKILL)


def fails_on(node, folder):
    """Fail on this machine, and open the gate at which the others wait: else they may have made all images before."""
    import ray

    if ray.get_runtime_context().get_node_id() == node:
        (Path(folder) / "go").touch()
        raise RuntimeError("this machine has no weights")


def raises():
    raise hsd.Error("this image breaks its unit")


def hangs():
    time.sleep(1000)


def lines_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metadata.jsonl").read_bytes().split(b"\n") if line]


def assert_same_folder(folder, reference, without=()):
    """The folder has what an undisturbed run has: the same pixels to rounding, one line an image, in order."""
    entries, expected = lines_of(folder), lines_of(reference)
    expected = [entry for entry in expected if entry["index"] not in without]
    assert [entry["index"] for entry in entries] == [entry["index"] for entry in expected]
    files = {path.name for path in Path(folder).glob("*.png")}
    assert files == {entry["file_name"] for entry in entries}
    for entry, other in zip(entries, expected, strict=True):
        assert {k: v for k, v in entry.items() if k not in ("size", "digest")} == {
            k: v for k, v in other.items() if k not in ("size", "digest")
        }
        assert (Path(folder) / entry["file_name"]).stat().st_size == entry["size"]
        a, b = (np.asarray(PIL.Image.open(Path(f) / entry["file_name"])).astype(int) for f in (folder, reference))
        assert np.abs(a - b).max() <= 2, entry
