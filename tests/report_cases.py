"""Folders as ``hsd.generate`` leaves them, made without a model, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image

import hsd
from hsd.generation.lines import Lines, encode
from hsd.work.files import digest_of

STYLES = ["oil", "watercolour", "ink"]

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"quotes\" and 'quotes' & <b>tags</b>",
    "line\u2028separator\u2029paragraph\u0085next",
    "emoji 👩‍🚀🏽 and flags 🇩🇪",
    "مرحبا بالعالم, שלום",
    "long " * 2000,
    "{{ 7 * 7 }} {% raw %}",
    "null \x00 bell \x07 escape \x1b[31m",
    "-->]]><!--",
    "half \ud83d of a pair",
]
"""Prompts that pages may break on."""

AWKWARD = [
    "with space",
    "a#b",
    "100%",
    "what?",
    "naïve 日本",
    "a&b=c;d",
    "quote'\"",
    "[x]*",
    "a:b",
    "%41",
    "a+b",
    "<x>",
]
"""Names of folders and files with characters that have a meaning in URLs."""


def prompts_of(n: int) -> list[str]:
    """Texts of a template with two blanks."""
    return [f"a {STYLES[i % 3]} painting of animal {i // 3}" for i in range(n)]


def write_folder(
    folder: Path, n: int = 12, *, prompts=None, side=24, made=None, steps=8, tau=1.0, columns=True, shift=0, **compiled
) -> hsd.Plan:
    """A folder with a plan, its images and their metadata.

    Parameters
    ----------
    made
        Indices of the images that exist; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prompts_of(n) if prompts is None else prompts
    if columns:
        columns = {"style": [STYLES[i % 3] for i in range(len(prompts))]}
        columns["animal"] = [str(i // 3) for i in range(len(prompts))]
    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((-(-len(prompts) // 3), 8)), 3, axis=0)[: len(prompts)]
    points = points + 0.3 * rng.standard_normal(points.shape)
    plan = hsd.compile(
        prompts, tau, embeddings=points, steps=steps, seeds=100, columns=columns or None, metric="cosine", **compiled
    )
    plan.save(folder / "plan.safetensors")
    lines = Lines(folder, plan, "png")
    with open(folder / "metadata.jsonl", "wb") as metadata:
        for index in range(len(prompts)) if made is None else made:
            name = lines.name(index)
            colour = ((37 * index + shift) % 256, (91 * index) % 256, index % 256)
            PIL.Image.new("RGB", (side, side), colour).save(folder / name, compress_level=1)
            data = (folder / name).read_bytes()
            metadata.write(encode({**lines.expected(index), "size": len(data), "digest": digest_of(data)}))
    write_record(folder, plan)
    return plan


def write_record(folder: Path, plan: hsd.Plan, **run) -> None:
    """A ``run.json`` with one run."""
    last = {
        "finished": "2026-11-27T07:16:45+00:00",
        "outcome": "finished",
        "images": len(plan),
        "existing": 0,
        "failed": 0,
        "node_steps": plan.node_steps,
        "standard_node_steps": plan.standard_node_steps,
        "savings": plan.savings,
        "seconds": {"encode": 1.0, "measure": 0.0, "denoise": 60.0, "decode": 5.0, "total": 70.0},
        "scheduler": "DDIMScheduler",
        "device": "cpu (x86_64)",
        "dtype": "float32",
        "versions": {"hsd": "0.1.0"},
        **run,
    }
    model = {"name": "demo", "settings": {"height": 64, "negative_prompt": None}, "pipeline": ["Kandinsky"]}
    document = {"identity": {"plan": plan.fingerprint, "model": model}, "runs": [last]}
    (folder / "run.json").write_text(json.dumps(document))


def write_forks(folder: Path, plan: hsd.Plan) -> int:
    """A picture for each segment that forks, as ``keep_forks`` keeps them; returns how many."""
    forks = folder / "__forks__"
    forks.mkdir()
    lines = []
    for segment in plan.segments[plan.segments["end_step"] < plan.n_steps]:
        end, begin, stop = (int(segment[name]) for name in ("end_step", "leaf_begin", "leaf_end"))
        name = f"s{end:03d}-{begin:06d}-{stop:06d}.webp"
        PIL.Image.new("RGB", (32, 32), (end * 9, 80, 120)).save(forks / name)
        data = (forks / name).read_bytes()
        line = {"end_step": end, "leaf_begin": begin, "leaf_end": stop, "file_name": name}
        line |= {"first_step": int(segment["first_step"]), "representative": int(segment["representative"])}
        lines.append(json.dumps({**line, "size": len(data), "digest": digest_of(data)}))
    (forks / "forks.jsonl").write_text("\n".join(lines) + "\n")
    return len(lines)


def value_of(folder: Path, name: str):
    """What a file of data hands over."""
    text = (folder / "__report__" / "data" / f"{name}.js").read_text(encoding="ascii")
    begin = f"hsd.put({json.dumps(name)},"
    assert text.startswith(begin)
    assert text.endswith(");\n")
    return json.loads(text[len(begin) : -3])


def images_of(folder: Path) -> list[dict]:
    """All images of a report, as its pages read them."""
    names = ("url", "text", "seed", "width", "height", "thumb", "colour", "alone", "settings", "codes", "problem")
    found = []
    number = 0
    while (folder / "__report__" / "data" / f"images-{number}.js").exists():
        page = value_of(folder, f"images-{number}")
        for row in page["rows"]:
            one = dict(zip(names, row, strict=True))
            found.append({**one, "text": page["texts"][one["text"]]})
        number += 1
    return found
