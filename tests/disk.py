"""A folder of images without a model: its plan, its pictures, and what has to be true of it after any fault."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image

import hsd
from hsd.generation.folder import ImageFolder
from hsd.work.files import digest_of

TEXTS = [
    "a cat",
    "a cat on a mat",
    "a dog",
    "a small dog",
    "the sea",
    "the sea by day",
    "ein Schloß im Grünen",
    "a cat",
]
MADE_BY = {"name": "painted", "settings": {"guidance_scale": 3.0}}
OWN = {
    ".hsd.lock",
    "identity.json",
    "metadata.jsonl",
    "plan.safetensors",
    "run.json",
    "vectors.safetensors",
}


def make_plan(texts=TEXTS, tau=0.9, **options):
    vectors = np.random.default_rng(0).normal(size=(len(texts), 6)) + 2.0
    return hsd.compile(list(texts), tau, embeddings=vectors, steps=6, **{"seeds": 100, **options})


def picture(plan, index):
    """What stands for the image of a prompt: the same for each call, and different for each prompt and seed."""
    pixels = np.random.default_rng(int(plan.seeds[index])).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def open_folder(path, plan, made_by=MADE_BY, image_format="png"):
    return ImageFolder(path, plan, made_by, image_format)


def fill(path, plan, made_by=MADE_BY, image_format="png", after=lambda index: None):
    """A run without a model: make what is missing; returns the indices that were made and what was repaired."""
    with open_folder(path, plan, made_by, image_format) as folder:
        missing = sorted(set(plan.kept.tolist()) - folder.done())
        for index in missing:
            folder.add(index, picture(plan, index), {})
            after(index)
        folder.record_run({"images": len(missing)})
        return missing, folder.repaired


def lines(path):
    return [json.loads(line) for line in (Path(path) / "metadata.jsonl").read_bytes().split(b"\n") if line]


def write_lines(path, entries):
    data = b"".join(e if isinstance(e, bytes) else json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in entries)
    (Path(path) / "metadata.jsonl").write_bytes(data)


def images(path):
    """The bytes of all files that have the name of an image."""
    return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir()) if p.suffix in (".png", ".jpg", ".webp")}


def check_lines(path, plan, *, complete=True):
    """Each line is what the plan says, its image is there with these bytes, and no image has two lines."""
    found = lines(path)
    indices = [entry["index"] for entry in found]
    assert len(indices) == len(set(indices))
    if complete:
        assert indices == list(range(plan.n_prompts)), "all, in the order of the index"
    for entry in found:
        data = (Path(path) / entry["file_name"]).read_bytes()
        assert entry["text"] == plan.prompts[entry["index"]]
        assert entry["seed"] == int(plan.seeds[entry["index"]])
        assert (entry["size"], entry["digest"]) == (len(data), digest_of(data))


def check_folder(path, plan, reference, *, extra=()):
    """The folder is what one run without any fault leaves, image for image; nothing else is in it."""
    check_lines(path, plan)
    assert images(path) == images(reference)
    assert set(os.listdir(path)) - OWN - set(extra) == set(images(reference))
    loaded = hsd.Plan.load(Path(path) / "plan.safetensors")
    assert loaded.fingerprint == plan.fingerprint
    record = json.loads((Path(path) / "run.json").read_bytes())
    assert record["identity"] == json.loads((Path(path) / "identity.json").read_bytes())
    assert record["identity"]["plan"] == plan.fingerprint


def copy_of(reference, path):
    shutil.copytree(reference, path, symlinks=True)
    return Path(path)


def check_pixels(path, reference, within=2):
    """The same images as another folder has, up to rounding: the batches in which they were made may differ."""
    assert images(path).keys() == images(reference).keys()
    for name in images(reference):
        pair = [np.asarray(PIL.Image.open(folder / name)).astype(int) for folder in (Path(path), Path(reference))]
        assert np.abs(pair[0] - pair[1]).max() <= within, name
