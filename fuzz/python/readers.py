"""Coverage-guided fuzzing of the readers written in Python, with atheris.

``python fuzz/python/readers.py [-max_total_time=SECONDS] [CORPUS]``. The first byte of an input chooses the reader, the
rest is its file. A reader may refuse a file by an error of its own; anything else is a find, and so is one that takes
longer than a few seconds. `fuzz/README.md` says how to install atheris.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["hsd", "json"]):
    from hsd.calibration.calibration import Calibration
    from hsd.errors import Error
    from hsd.evaluation.cache import ScoreCache
    from hsd.evaluation.folder import read_folder
    from hsd.planning.chosen import load_settings
    from hsd.planning.compile import compile as compile_plan
    from hsd.planning.plan import Plan
    from hsd.planning.settings import check_settings
    from hsd.prompts.files import read_prompts
    from hsd.work.files import METADATA, claim
    from hsd.work.reading import parse_json, read_array

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)
"""An image of one pixel."""

FOLDER = Path(tempfile.mkdtemp(prefix="hsd-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def written(name: str, data: bytes) -> Path:
    """The file with these bytes."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


def prompts(name: str) -> Callable[[bytes], None]:
    """Read as a file of prompts of this name, and take its settings."""

    def read(data: bytes) -> None:
        found = read_prompts(written(name, data))
        assert found.prompts
        assert all(prompt.strip() for prompt in found.prompts)
        check_settings(found.settings, len(found.prompts))

    return read


def metadata(data: bytes) -> None:
    """Read as lines of metadata of a folder with one image."""
    (FOLDER / "images").mkdir(exist_ok=True)
    (FOLDER / "images" / "0.png").write_bytes(PNG)
    (FOLDER / "images" / METADATA).write_bytes(data)
    read_folder(FOLDER / "images")


def scores(data: bytes) -> None:
    """Read as stored scores: a line that cannot be used is not an error."""
    (FOLDER / "scores").mkdir(exist_ok=True)
    (FOLDER / "scores" / "scores-any.jsonl").write_bytes(data)
    ScoreCache(FOLDER / "scores", "any", "1")


def again(data: bytes) -> None:
    """What is parsed can be written."""
    json.dumps(parse_json(data), ensure_ascii=False).encode()


def plan(data: bytes) -> None:
    """What is loaded can be used."""
    loaded = Plan.load(written("plan.safetensors", data))
    assert str(loaded)
    assert loaded.fingerprint


READERS: list[tuple[Callable[[bytes], object], tuple[type[Exception], ...]]] = [
    (prompts("prompts.txt"), (Error, TypeError, ValueError)),
    (prompts("prompts.jsonl"), (Error, TypeError, ValueError)),
    (lambda data: load_settings(written("settings.json", data)), (Error,)),
    (metadata, (Error,)),
    (scores, ()),
    (again, (ValueError,)),
    (plan, (Error,)),
    (lambda data: Calibration.load(written("calibration", data)), (Error,)),
    (lambda data: read_array(written("rows.npy", data)), (ValueError,)),
    (lambda data: claim(written("study.json", data), {"model": "a"}), (Error,)),
]


def one_input(data: bytes) -> None:
    """Give the file to the reader that its first byte names."""
    if not data:
        return
    read, refusals = READERS[data[0] % len(READERS)]
    with contextlib.suppress(*refusals):
        read(data[1:])


def seeds(folder: Path) -> None:
    """Files that the readers take: a start for the fuzzer."""
    own = Path(__file__).resolve().parents[1] / "seeds"
    line = json.dumps({"file_name": "0.png", "text": "a cat", "index": 0, "seed": 3}).encode()
    compiled = compile_plan(["a cat", "a dog"], 0.5, embeddings=np.eye(2), steps=2)
    compiled.save(FOLDER / "seed")
    score = json.dumps({"text": "a", "score": 0.5, "version": "1", "digest": "0"}).encode()
    numbers = json.dumps({"format": 1, "tau": 1.0, "levels": [0.5], "some_weights": [1.0]})
    header = json.dumps({"__metadata__": {"hsd_calibration": numbers}}).encode()
    array = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }".ljust(117) + b"\n"
    files = [
        [b"a cat\n# a dog\n\n\xef\xbb\xbf \xc3\xa9\n"],
        [b'{"prompt": "a cat", "seed": 3, "width": 64}\n{"prompt": "a dog"}\n'],
        [b'{"steps": 5, "tau": 0.7, "metric": "cosine", "guidance_interval": [0, 0.6], "evidence": {}}'],
        [line, line + b"\n" + line.replace(b"0", b"1")],
        [score + b"\n", score[:-9]],
        [b'{"a": [1, 1e5, "\\u00e9", null, true]}', b"[[[]]]"],
        [(FOLDER / "seed").read_bytes(), *(path.read_bytes() for path in sorted((own / "plan_file").iterdir()))],
        [len(header).to_bytes(8, "little") + header],
        [b"\x93NUMPY\x01\x00\x76\x00" + array + bytes(4)],
        [b'{"model": "a"}', b'{"model": "b"}'],
    ]
    for reader, contents in enumerate(files):
        for number, content in enumerate(contents):
            (folder / f"seed-{reader}-{number}").write_bytes(bytes([reader]) + content)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    corpus = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if corpus:
        corpus[0].mkdir(parents=True, exist_ok=True)
        seeds(corpus[0])
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
