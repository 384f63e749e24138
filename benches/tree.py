"""Clustering embeddings: HSD compared with libraries, in seconds, bytes and savings, all in one run.

    python benches/tree.py [--small] [--sections table scaling quality] [--large] [--million] [--json FILE]
    python benches/tree.py --plot FILE      # draw the scaling from the JSON; measures nothing
    python benches/tree.py --report         # print the tables from the JSON; measures nothing

table     N = 10,000: HSD's four linkages; `scipy` pdist + linkage (the authors' code); `sklearn` cosine distances +
          `fastcluster`; NumPy's Gram matrix + `fastcluster` (the best combination of libraries). No library has
          centroid linkage on cosine distances: it is compared with ward, and with its naive O(N^3) form at N = 1,000.
scaling   seconds and memory from N = 1,000 to the largest N that each side can do.
quality   savings of the approximate tree, forced by little memory, against the exact tree's. Target: within 1 point.
--large   N = 100,000, and --million N = 1,000,000, within a given memory.

Every measurement runs in its own process (`tree_case.py` describes what is measured), stopped at --time-limit seconds
or at --memory-limit GiB. Trees of one problem are compared with SciPy's (or the naive form's): the largest relative
difference of a height (for heights below 0.01: relative to 0.01), and the number of clusters that only one of the two
trees has, which ties and near ties can cause. HSD's exact trees have to agree within 1e-5, or the script fails. The
JSON is written after every case; a later run measures what is missing in it, or was made by another build of hsd. A
`*` marks a ratio whose sides are not from the same run.

Needs scipy, scikit-learn, fastcluster, dynamicprompts, psutil, platformdirs; matplotlib for --plot.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from prompt_sets import CACHE, EMBEDDINGS, NAMES, dimensions, recipe
from tree_case import EXACT, Case
from tree_report import TABLES, in_words, is_exact
from tree_results import Results

import hsd
from hsd._core import LINKAGES

HERE = Path(__file__).resolve().parent
SECTIONS = ("table", "scaling", "quality")
FINAL = ("ok", "time limit", "memory")  # a case with such a status is not measured again
REFERENCES = ("scipy", "naive")
HEIGHT_ERROR = 1e-5  # allowed
HEIGHT_FLOOR = 0.01  # heights below are compared absolutely: float32 rounds a cosine to about 1e-7


@dataclass(frozen=True)
class Sizes:
    """How much is measured. The defaults are the full benchmark; `SMALL` is a trial run in under a minute."""

    table: int = 10_000
    dim: int = 1280
    naive: int = 1_000
    hsd: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    scipy: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 20_000)
    fastcluster: tuple[int, ...] = (1_000, 2_000, 5_000, 10_000, 20_000, 30_000)
    quality: tuple[int, ...] = (20_000, 40_000)
    quality_linkages: tuple[str, ...] = LINKAGES
    quality_most: int = 20_000  # larger sets: ward and centroid only
    quality_memory: tuple[int, ...] = (16 << 20, 64 << 20, 256 << 20)
    large: int = 100_000
    million: int = 1_000_000
    million_dim: int = 384
    large_memory: int = 4 << 30


SMALL = Sizes(
    table=400,
    dim=384,
    naive=200,
    hsd=(200, 400, 800),
    scipy=(200, 400, 800),
    fastcluster=(200, 400, 800),
    quality=(2_000,),
    quality_linkages=("ward", "centroid"),
    quality_memory=(2 << 20,),
    large=4_000,
    million=6_000,
    large_memory=4 << 20,
)


def table_cases(sizes: Sizes, threads: int) -> Iterator[Case]:
    """Every side and linkage on the mixture; on the other sets HSD's linkages, and ward by the libraries."""
    for data in ("mixture", "templates", "noise"):
        shape = (data, sizes.table, dimensions(data, sizes.dim), threads)
        for linkage in LINKAGES:
            yield Case("hsd", linkage, *shape, EXACT)
            if linkage == "ward" or (data == "mixture" and linkage != "centroid"):
                yield Case("gram", linkage, *shape)
                yield Case("fastcluster", linkage, *shape)
                yield Case("scipy", linkage, *shape)
    for side, memory in (("hsd", EXACT), ("naive", None)):
        yield Case(side, "centroid", "mixture", sizes.naive, sizes.dim, threads, memory)


def scaling_cases(sizes: Sizes, threads: int) -> Iterator[Case]:
    """One set, the mixture, at growing N; the approximate tree where the exact one ends."""
    for n in sorted({*sizes.hsd, *sizes.scipy, *sizes.fastcluster}):
        shape = ("mixture", n, sizes.dim, threads)
        if n in sizes.hsd:
            yield Case("hsd", "ward", *shape, EXACT)
            yield Case("hsd", "centroid", *shape, EXACT)
        if n in sizes.fastcluster:
            yield Case("gram", "ward", *shape)
            yield Case("fastcluster", "ward", *shape)
        if n in sizes.scipy:
            yield Case("scipy", "ward", *shape)
    yield Case("hsd", "ward", "mixture", max(sizes.hsd), sizes.dim, threads, sizes.large_memory)


def quality_cases(sizes: Sizes, threads: int) -> Iterator[Case]:
    """The exact tree and approximate ones of the same rows."""
    for n in sizes.quality:
        for data in NAMES:
            for linkage in sizes.quality_linkages if n <= sizes.quality_most else ("ward", "centroid"):
                for memory in (EXACT, *sizes.quality_memory):
                    yield Case("hsd", linkage, data, n, dimensions(data, sizes.dim), threads, memory)


def large_cases(sizes: Sizes, threads: int) -> Iterator[Case]:
    """100,000 rows: all linkages on the mixture; ward on the others."""
    for data, linkages in (("mixture", LINKAGES), ("templates", ("ward",)), ("noise", ("ward",))):
        for linkage in linkages:
            shape = (data, sizes.large, dimensions(data, sizes.dim), threads)
            yield Case("hsd", linkage, *shape, sizes.large_memory)


def million_cases(sizes: Sizes, threads: int) -> Iterator[Case]:
    """1,000,000 rows."""
    for data, linkage in (("mixture", "ward"), ("templates", "centroid")):
        shape = (data, sizes.million, dimensions(data, sizes.million_dim), threads)
        yield Case("hsd", linkage, *shape, sizes.large_memory)


CASES = {
    "table": table_cases,
    "scaling": scaling_cases,
    "quality": quality_cases,
    "large": large_cases,
    "million": million_cases,
}


class Bench:
    """Measures cases and compares their trees; the results are saved after every case."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.core = hashlib.sha256(Path(hsd._core.__file__).read_bytes()).hexdigest()[:12]
        self.recipe = recipe()
        self.digests = args.cache / "digests"
        self.results = Results(args.json, machine())
        if not args.report and self.results.machine["cpu"] != machine()["cpu"]:
            raise SystemExit(f"{args.json.name} was made on a {self.results.machine['cpu']}: give another --json")

    def has(self, case: Case) -> bool:
        """Whether there is a result that need not be measured again."""
        found = self.results.cases.get(case.key)
        if self.args.again or not found or found["recipe"] != self.recipe or found["status"] not in FINAL:
            return False
        if case.side == "hsd" and found["core"] != self.core:
            return False
        return found["status"] == "ok" or self.args.time_limit <= found["time_limit"]

    def measure(self, cases: list[Case], once: set[Case]) -> None:
        """Measure what is missing, in this order; a side that reached a limit is not measured at a larger N."""
        ended: set[tuple[Any, ...]] = set()
        for number, case in enumerate(cases, 1):
            column = (case.side, case.linkage, case.data, case.dim, case.memory)
            if not self.has(case):
                print(f"[{number}/{len(cases)}] {case.key:64}", end="", flush=True)
                repeats = 1 if case in once else self.args.repeats
                found = {"status": "gave up at a smaller N"} if column in ended else self.repeated(case, repeats)
                origin = {"run": self.run, "core": self.core, "recipe": self.recipe, "time_limit": self.args.time_limit}
                self.results.cases[case.key] = asdict(case) | found | origin
                self.results.checks.pop(case.key, None)
                self.check(case)
                self.results.save()
                print(in_words(found), flush=True)
            if self.results.cases[case.key]["status"] in ("time limit", "memory"):
                ended.add(column)

    def repeated(self, case: Case, repeats: int) -> dict[str, Any]:
        """The fastest of a few runs, each in its own process, and the most memory; all seconds are recorded."""
        rows, runs = self.rows_of(case), []
        for _ in range(repeats):
            runs.append(self.once(case, rows))
            if runs[-1]["status"] != "ok" or runs[-1]["seconds"] > self.args.repeat_below:
                break
        finished = [run for run in runs if run["status"] == "ok"]
        if len(finished) < len(runs):
            return runs[-1]
        best = min(finished, key=lambda run: run["seconds"])
        most = max(run["extra_bytes"] for run in finished)
        return best | {"extra_bytes": most, "all_seconds": [run["seconds"] for run in finished]}

    def rows_of(self, case: Case) -> Path:
        """The file of the case's embeddings; if it is missing, another process creates it."""
        command = [sys.executable, str(HERE / "prompt_sets.py"), "--make", case.data, str(case.n), str(case.dim)]
        command += ["--cache", str(self.args.cache), "--embeddings", str(self.args.embeddings)]
        return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    def once(self, case: Case, rows: Path) -> dict[str, Any]:
        """One process, stopped when it runs too long or grows too large."""
        command = [sys.executable, str(HERE / "tree_case.py"), json.dumps(asdict(case)), str(rows)]
        command.append(str(self.digest(case)))
        names = ("OMP", "OPENBLAS", "MKL", "RAYON")
        threads = {f"{name}_NUM_THREADS": str(case.threads) for name in names}
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | threads)
            stopped = guard(child, self.args.time_limit, self.args.memory_limit * 2**30)
            out.seek(0), err.seek(0)
            lines, errors = out.read().splitlines(), err.read().splitlines()
        if stopped:
            return {"status": stopped}
        if child.returncode == 0 and lines:
            return json.loads(lines[-1])
        status = "memory" if any("MemoryError" in line or "bad_alloc" in line for line in errors) else "failed"
        return {"status": status, "message": "".join(errors[-1:]), "exit": child.returncode}

    def digest(self, case: Case) -> Path:
        return self.digests / (hashlib.sha256(f"{case.key} {self.recipe}".encode()).hexdigest()[:16] + ".npz")

    def check(self, case: Case) -> None:
        """Compare trees of the case's problem with the reference's, if both exist and are exact."""
        same = [other for other in map(of_fields, self.results.cases.values()) if other.problem == case.problem]
        same = [other for other in same if is_exact(self.results.of(other)) and self.digest(other).exists()]
        for reference in same:
            for other in same:
                if reference.side in REFERENCES and other.side not in REFERENCES and case in (reference, other):
                    found = compare(np.load(self.digest(other)), np.load(self.digest(reference)))
                    self.results.checks[other.key] = {"against": reference.side} | found

    def wrong(self) -> list[str]:
        """HSD's exact trees that are not the reference's."""
        checks = self.results.checks.items()
        return [name for name, check in checks if name.startswith("hsd") and not check["height_error"] <= HEIGHT_ERROR]


def guard(child: subprocess.Popen[str], seconds: float, limit: float) -> str | None:
    """Wait for a process; kill it when it exceeds a limit, and return which."""
    end, process = time.monotonic() + seconds, psutil.Process(child.pid)
    while True:
        try:
            child.wait(0.05)
            return None
        except subprocess.TimeoutExpired:
            reason = "time limit" if time.monotonic() > end else None
        try:
            if process.memory_info().rss > limit:
                reason = "memory"
        except psutil.NoSuchProcess:
            continue
        if reason:
            child.kill()
            child.wait()
            return reason


def compare(ours: Any, theirs: Any) -> dict[str, Any]:
    """Two trees: the worst relative difference of their sorted heights, and how many clusters only one of them has.

    For clusters that both have, heights are also compared cluster by cluster.
    """
    _, mine, other = np.intersect1d(ours["codes"], theirs["codes"], return_indices=True)
    sorted_heights = height_error(np.sort(ours["heights"]), np.sort(theirs["heights"]))
    common_heights = height_error(ours["heights"][mine], theirs["heights"][other])
    differ = len(ours["codes"]) - len(mine)
    return {"height_error": max(sorted_heights, common_heights), "clusters_that_differ": differ}


def height_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(ours - theirs) / np.maximum(theirs, HEIGHT_FLOOR), initial=0.0))


def of_fields(fields: dict[str, Any]) -> Case:
    return Case(**{name: fields[name] for name in Case.__dataclass_fields__})


def machine() -> dict[str, Any]:
    """The machine and versions that the figures belong to."""
    packages = ("numpy", "scipy", "scikit-learn", "fastcluster")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "hsd": hsd._core.build_info(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--large", action="store_true", help="also N = 100,000")
    parser.add_argument("--million", action="store_true", help="also N = 1,000,000")
    parser.add_argument("--small", action="store_true", help="a trial run with small sizes, in under a minute")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of a timed case; the fastest counts, on every side"
    )
    parser.add_argument("--repeat-below", type=float, default=30.0, help="seconds beyond which one run is enough")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds a case may take in all")
    free = 0.9 * psutil.virtual_memory().available / 2**30
    parser.add_argument("--memory-limit", type=float, default=free, help="GiB a case may hold (default: 0.9 of free)")
    parser.add_argument("--again", action="store_true", help="measure again what the JSON already has")
    parser.add_argument("--json", type=Path, help="default: benches/results/tree-cpu.json")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for embeddings, made once")
    parser.add_argument(
        "--embeddings", type=Path, default=EMBEDDINGS, help="folder of real prompts' embeddings (*.npy)"
    )
    parser.add_argument("--report", action="store_true", help="print the tables from the JSON, measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the scaling from the JSON, measure nothing")
    args = parser.parse_args()
    args.report = args.report or args.plot is not None
    if args.json is None:
        args.json = args.cache / "tree-small.json" if args.small else HERE / "results" / "tree-cpu.json"
    if args.small:
        args.repeats = 1
    return args


def main() -> None:
    args = options()
    sizes = SMALL if args.small else Sizes()
    sections = [*args.sections, *(["large"] if args.large else []), *(["million"] if args.million else [])]
    cases = {section: list(CASES[section](sizes, args.threads)) for section in sections}
    bench = Bench(args)
    if args.plot:
        from tree_plot import draw  # only here: measuring and printing need no matplotlib

        draw(bench.results.content, args.plot)
        return
    if not args.report:
        timed = {case for section in ("table", "scaling") for case in cases.get(section, [])}
        every = sorted(dict.fromkeys(chain.from_iterable(cases.values())), key=lambda case: (case.n, case.problem))
        bench.measure(every, once=set(every) - timed)
    host = bench.results.machine
    packages = ", ".join(f"{name} {version}" for name, version in host["packages"].items())
    print(f"\n{host['cpu']}, {args.threads} threads, {packages}, hsd {host['hsd']['profile']} build")
    for section, part in cases.items():
        print(f"\n== {section}")
        TABLES[section](bench.results, part)
    if wrong := bench.wrong():
        raise SystemExit(f"not the reference's tree: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
