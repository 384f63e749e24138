"""Folders of plain pictures and a scorer for them, used by the tests of evaluation."""

from __future__ import annotations

import json
import math

import numpy as np
import PIL.Image

import hsd

PROMPTS = ["a red star", "a blue ring", "a green cross", "a pink heart", "a white square"]


class Brightness:
    """Mean of the pixels, less a little for each letter of the prompt; no score for prompts with a ``?``."""

    name, version = "brightness", "1"

    def __init__(self):
        self.scored, self.calls = 0, []

    def score(self, images, prompts):
        assert all(image.mode == "RGB" for image in images)
        self.scored += len(images)
        self.calls.append(len(images))
        values = [np.asarray(i).mean() / 255 - len(p) / 1e3 for i, p in zip(images, prompts, strict=True)]
        return [math.nan if "?" in p else v for v, p in zip(values, prompts, strict=True)]

    def embed(self, images):
        return np.array([[1.0, *np.asarray(image).mean(axis=(0, 1)) / 255] for image in images])


def write(folder, prompts=PROMPTS, *, shift=0, order=None, fields=("index", "seed"), **extra):
    """A folder of plain pictures; ``shift`` makes them brighter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, prompt in enumerate(prompts):
        level = (37 * i) % 180 + shift
        PIL.Image.new("RGB", (8, 6), (level, 255 - level, i % 256)).save(folder / f"{i:05d}.png")
        entry = {"file_name": f"{i:05d}.png", "text": prompt, "index": i, "seed": 100 + i, **extra}
        lines.append(json.dumps({k: v for k, v in entry.items() if k in ("file_name", "text", *fields, *extra)}))
    lines = lines if order is None else [lines[i] for i in order]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def measured(folder, scorer=None, **how):
    return hsd.evaluate(folder, scorer=scorer or Brightness(), progress=False, **how)


def lines(folder, name="brightness"):
    return [json.loads(line) for line in (folder / f"scores-{name}.jsonl").read_text().splitlines()]
