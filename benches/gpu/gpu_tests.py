"""The tests that need a GPU, continued where an earlier call stopped: those that passed are not run again.

    python benches/gpu/gpu_tests.py --json OUT/gpu-tests.json [-k EXPRESSION] [--limit SECONDS] [FILE ...]

The file has the outcome (``passed``, ``failed``, ``skipped``, or ``lacks`` for one whose package is not there), the
seconds and the reason of each test. It is written after every test, so that a run that is cut short loses nothing. It
is only continued by the same tests and the same hsd on the same device. Exit status 0: all have run, and none failed
or lacked a package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

STARTED = time.time()

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import preflight  # noqa: E402

PROCESSES = 8
"""They share the device: each test is small, and most of its time is spent on the host."""

LAST = 15
"""Seconds of a limit that are left for the last lines of pytest and the end of its processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not passed. 0 if nothing is left."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = _arguments(words)
    files = [file.resolve() for file in args.files] or preflight.gpu_files()
    lacks = preflight.of_tests(files, ROOT / "tests")
    left_out = {name: f"needs {', '.join(map(str, missing))}" for name, missing in lacks.items()}
    for name, why in left_out.items():
        print(f"LEFT OUT {name}: {why}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        line = _pytest(args, files, left_out)
        line += ["--passed-before", str(Path(folder) / "passed.txt")]
        line += ["--ledger", str(args.json.resolve()), "--ledger-command", _shown(words)]
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False)
    return int(bool(left_out) or not _fine(args.json))


def _pytest(args: argparse.Namespace, files: list[Path], left_out: dict[str, str]) -> list[str]:
    """The command. Where pytest-xdist is not there, the tests run in one process."""
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "ledger", "-p", "no:cacheprovider"]
    line.append("--durations=15")
    if args.limit is not None:
        line += ["--until", f"{STARTED + args.limit - LAST:.0f}"]
    if args.k:
        line += ["-k", args.k]
    if args.again:
        line.append("--again")
    processes = args.processes or (1 if args.small else PROCESSES)
    if processes > 1 and find_spec("xdist") is not None:
        line += ["-n", str(processes), "--dist", "worksteal", "-p", "no:benchmark"]
    for name, why in left_out.items():
        line += ["--left-out", f"{name}: {why}", *([f"--deselect={name}"] if "::" in name else [])]
    return [*line, *(str(file) for file in files if file.relative_to(ROOT).as_posix() not in left_out)]


def _fine(file: Path) -> bool:
    """Whether a run ended, all of its tests ran, and none failed or lacked a package."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"finished": False}
    if not content["finished"]:
        return False
    tests = content["sections"]["tests"]
    return bool(tests["whole"]) and set(tests["outcomes"]) <= {"passed", "skipped"}


def _shown(words: Sequence[str]) -> str:
    """The command line without folders, which belong to one machine."""
    return " ".join(["benches/gpu/gpu_tests.py", *(Path(word).name if "/" in word else word for word in words)])


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: those with a test for a GPU")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results, continued if they are there")
    parser.add_argument("--again", action="store_true", help="run those that have passed, too")
    parser.add_argument("-k", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--limit", type=float, help="seconds; no test starts that may end later")
    parser.add_argument("--processes", type=int, help=f"default: {PROCESSES}, or 1 with --small")
    parser.add_argument("--small", action="store_true", help="on a CPU, where they are skipped")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
