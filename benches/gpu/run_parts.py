"""``run.sh``: the parts one after the other, each a process with a limit of its own. Only the standard library is used.

What a part lacks is found before the first one starts: what can run, runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import parts  # noqa: E402
import preflight  # noqa: E402
from parts import PARTS, Part  # noqa: E402
from preflight import Lack  # noqa: E402

MEASURED = ROOT / "benches" / "results" / "h200"
"""The results that ``--list`` shows times of."""

DATA = ROOT.parent / "shared" / "data"
"""The default of ``--data``, as in plans.py."""

KILL_AFTER = 15
"""Seconds that a process has to end when it is told to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen parts. 0 if all of them ran to their end and found nothing wrong."""
    args = _arguments(argv)
    if args.list:
        print(parts.listed(MEASURED))
        return 0
    if args.report:
        return report(args.out)
    runnable, why = check(args.parts, args.data or DATA)
    if args.check and not why:
        print(f"nothing is missing for {', '.join(part.name for part in runnable)}", flush=True)
    smi = shutil.which("nvidia-smi")
    if runnable and not args.small and (args.check or not smi):  # it takes seconds, which a run has planned for parts
        device, without = preflight.gpu(sys.executable)
        print(f"GPU: {device or without}", flush=True)
        if without:
            print("NOT RUN: all parts need a GPU; with --small they try the code on a CPU")
            return 1
    if args.check:
        return int(bool(why))
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if smi and not args.small:
        subprocess.run([smi, "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"], check=False)
    args.out.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(runnable):
        left = None if args.seconds is None else args.seconds - (time.monotonic() - STARTED)
        limit = parts.SMALL if args.small else parts.allowed(part, runnable[i + 1 :], left)
        if limit is None:
            why[part.name] = f"{left:.0f} s were left, and it may need {part.seconds}"
            print(f"== {part.name}: NOT RUN: {why[part.name]}", flush=True)
            continue
        if failed := run(part, limit, args):
            why[part.name] = failed
    return end(args, why)


def check(chosen: list[Part], data: Path) -> tuple[list[Part], dict[str, str]]:
    """The parts that can run here, and why the others cannot. Prints all that is missing, and how to get it."""
    lacks = preflight.of_hsd()
    certain = [lack for lack in lacks if not lack.by]
    if lacks and not certain:
        error = preflight.import_error(sys.executable)
        certain = lacks if error else []
        print(f"importing everything: {error or 'works'}", flush=True)
    # With the real prompts and their embeddings, no prompt is embedded. Tests that need it name it when they run.
    without_encoder = [lack for lack in certain if lack.name not in preflight.ONLY_READ]
    benches = without_encoder if (data / "prompts").is_dir() else certain
    of_pytest: list[Lack] = []
    of_tests: dict[str, list[Lack]] = {}
    if any(not part.words for part in chosen):
        of_pytest, of_tests = preflight.of_pytest(), preflight.of_tests(preflight.gpu_files())
    need = {part.name: benches if part.words else [*without_encoder, *of_pytest] for part in chosen}
    why = {name: f"lacks {', '.join(lack.requirement for lack in some)}" for name, some in need.items() if some}
    if missing := list(dict.fromkeys([*lacks, *of_pytest, *(lack for some in of_tests.values() for lack in some)])):
        print(f"MISSING: {', '.join(map(str, missing))}\n{preflight.how_to_get(missing)}")
        for reason in dict.fromkeys(why.values()):
            print(f"NOT RUN: {', '.join(name for name in why if why[name] == reason)}: {reason}")
        for name, some in of_tests.items() if "tests" not in why else ():
            print(f"NOT RUN: {name}: lacks {', '.join(lack.requirement for lack in some)}")
        sys.stdout.flush()
    return [part for part in chosen if part.name not in why], why


def run(part: Part, limit: int, args: argparse.Namespace) -> str | None:
    """Run one part, stopped after ``limit`` seconds. What went wrong, None if nothing did."""
    line = part.command(sys.executable, args.out, limit, small=args.small, data=args.data)
    if not part.words:
        line += [*(["-k", args.k] if args.k else []), *(["--again"] if args.again else [])]
    print(f"== {part.name}: at most {limit} s", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True)  # so that its own processes end with it
    try:
        status = process.wait(limit)
        failed = f"exit status {status}" if status else None
    except subprocess.TimeoutExpired:
        failed = "stopped at its limit"
    finally:
        stop(process)
    print(f"== {part.name}: {failed or 'done'}, {time.monotonic() - began:.0f} s", flush=True)
    return failed


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, if any is left."""
    for number, patience in ((signal.SIGTERM, KILL_AFTER), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def end(args: argparse.Namespace, why: dict[str, str]) -> int:
    """The last lines: where results are, what failed, and the command for what is left."""
    print(f"results in {args.out}; {time.monotonic() - STARTED:.0f} s in all")
    if not why:
        return 0
    print("FAILED: " + ", ".join(f"{name} ({reason})" for name, reason in why.items()))
    seconds = [] if args.seconds is None else ["--seconds", str(args.seconds)]
    small = ["--small"] if args.small else []
    print("once more: " + shlex.join(["benches/gpu/run.sh", *small, *seconds, "--parts", ",".join(why), str(args.out)]))
    return 1


def report(out: Path) -> int:
    """Write docs/gpu.md from the results of earlier calls."""
    script = HERE / "paper.py"
    if not script.is_file():
        print(f"no {script.relative_to(ROOT)} here: it writes the report", file=sys.stderr)
        return 2
    if not list(out.glob("gpu-*.json")):
        print(f"no gpu-*.json in {out}: give the folder that the parts wrote to", file=sys.stderr)
        return 2
    line = [sys.executable, str(script), "--results", str(out), "--write", str(ROOT / "docs" / "gpu.md")]
    status = subprocess.run(line, cwd=ROOT, check=False).returncode
    if status == 0:
        print("docs/gpu.md has the tables of these results; the text between them was written for benches/results/h200")
    return status


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/gpu/run.sh", description="See the top of run.sh.")
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help="folder of the results; default: benches/results"
    )
    parser.add_argument(
        "--list", action="store_true", help="print the parts, their seconds and the calls they fit into"
    )
    parser.add_argument("--check", action="store_true", help="print what is missing for the parts, and run nothing")
    parser.add_argument(
        "--report", action="store_true", help="write docs/gpu.md from the results in OUT, and run nothing"
    )
    parser.add_argument("--parts", help=f"of {','.join(parts.NAMES)}; default: all")
    parser.add_argument("--seconds", type=int, help=f"of the whole call; default: {parts.CALL} for each part")
    parser.add_argument("--data", type=Path, help="folder of the real prompt sets; default: ../shared/data")
    parser.add_argument("--small", action="store_true", help="on a CPU with tiny shapes, to test the code")
    parser.add_argument("-k", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--again", action="store_true", help="run tests that have passed in an earlier call, too")
    args = parser.parse_args(argv)
    names = args.parts.split(",") if args.parts else parts.NAMES
    for name in names:
        if name not in parts.NAMES:
            parser.error(f"no part {name}: there are {', '.join(parts.NAMES)}")
    args.parts = [part for part in PARTS if part.name in names]
    if args.out is None:
        args.out = Path(tempfile.mkdtemp()) if args.small else ROOT / "benches" / "results"
    args.out = args.out.resolve()
    args.data = args.data.resolve() if args.data else None
    return args


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the part ends with it
    sys.exit(main())
