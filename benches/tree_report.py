"""The tables that `tree.py` prints, from its JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from tree_case import EXACT, TAUS, Case
from tree_results import Results


def is_exact(result: dict[str, Any] | None) -> bool:
    """Whether the tree is exact, as those of the libraries always are."""
    return bool(result and result.get("exact", True))


def in_words(found: dict[str, Any]) -> str:
    """One case as a line of text."""
    if found["status"] != "ok":
        return f"{found['status']} {found.get('message', '')}"
    kind = "" if found.get("exact", True) else "  approximate"
    return f"{found['seconds']:10.3f} s {amount(found['extra_bytes']):>10}{kind}"


def amount(size: float) -> str:
    """Bytes as readable text."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def side_by_side(results: Results, cases: list[Case]) -> None:
    """One block per problem: the sides, and by how much slower and larger each is than HSD's exact tree."""
    problems = dict.fromkeys(case.problem for case in cases)
    print(
        f"{'':26}{'seconds':>10}{'x hsd':>9}{'extra memory':>15}{'x hsd':>8}{'height error':>15}{'other clusters':>16}"
    )
    for problem in problems:
        sides = [case for case in cases if case.problem == problem]
        ours = next((results.of(case) for case in sides if case.side == "hsd"), None)
        data, n, dim, linkage = problem
        print(f"{linkage}, {data}, N = {n:,}, D = {dim}")
        for case in sides:
            result, check = results.of(case), results.checks.get(case.key)
            if result is None:
                print(f"  {label(case, None):24}{results.cases.get(case.key, {}).get('status', 'not measured'):>10}")
                continue
            line = f"  {label(case, result):24}{result['seconds']:10.3f}"
            line += ratio(result, ours, "seconds") + f"{amount(result['extra_bytes']):>15}"
            line += ratio(result, ours, "extra_bytes", 7)
            if check:
                line += f"{check['height_error']:15.1e}{check['clusters_that_differ']:16}"
            print(line)
    centroid_against_ward(results, cases)


NAMES_OF_SIDES = {
    "scipy": "scipy pdist + linkage",
    "fastcluster": "sklearn + fastcluster",
    "gram": "numpy + fastcluster",
}


def label(case: Case, result: dict[str, Any] | None) -> str:
    """The side, and for HSD whether the tree is exact."""
    if case.side != "hsd":
        return NAMES_OF_SIDES.get(case.side, case.side)
    return "hsd" if result is None or is_exact(result) else "hsd, approximate"


def ratio(result: dict[str, Any], base: dict[str, Any] | None, field: str, width: int = 8) -> str:
    """The ratio to the base, with a star if both are not from the same run."""
    if base is None or base[field] <= 0:
        return " " * (width + 1)
    return f"{result[field] / base[field]:{width}.2f}" + (" " if result["run"] == base["run"] else "*")


def centroid_against_ward(results: Results, cases: list[Case]) -> None:
    for case in cases:
        if case.side == "hsd" and case.linkage == "centroid":
            ward = next((other for other in cases if other == Case(**asdict(case) | {"linkage": "ward"})), None)
            both = results.of(case), ward and results.of(ward)
            if all(both):
                times = ratio(*both, "seconds", 0).strip()
                print(f"centroid takes {times} times the seconds of ward on {case.data}, N = {case.n:,}")


def scaling(results: Results, cases: list[Case]) -> None:
    """Seconds and memory by N, one column per side."""
    columns = dict.fromkeys((case.side, case.linkage, case.memory) for case in cases)
    names = {
        (side, linkage, memory): f"{side} {linkage}" + (f" {amount(memory)}" if memory not in (None, EXACT) else "")
        for side, linkage, memory in columns
    }
    print(f"{'N':>9}{'D':>6}" + "".join(f"{name:>26}" for name in names.values()))
    for n, dim in sorted({(case.n, case.dim) for case in cases}):
        line = f"{n:9,}{dim:6}"
        for column in columns:
            at = [
                case
                for case in cases
                if (case.n, case.dim) == (n, dim) and column == (case.side, case.linkage, case.memory)
            ]
            found = results.cases.get(at[0].key) if at else None
            line += f"{brief(found) if found else '':>26}"
        print(line)


def brief(found: dict[str, Any]) -> str:
    if found["status"] != "ok":
        return found["status"]
    return f"{found['seconds']:.3f} s {amount(found['extra_bytes']):>10}"


def quality(results: Results, cases: list[Case]) -> None:
    """Savings of the exact tree at each tau, and by how many points each approximate tree's are off."""
    taus = "".join(f"{f'tau {tau}':>9}" for tau in TAUS)
    print(f"{'':48}{taus}   and of the exact tree's:  seconds   memory")
    worst = float("nan")  # until a tree is approximate
    for case in cases:
        exact, result = results.of(Case(**asdict(case) | {"memory": EXACT})), results.of(case)
        found = results.cases.get(case.key, {})
        if exact is None or result is None:
            print(f"  {case.key:46} {found.get('status', 'not measured')} {found.get('message', '')}")
        elif case.memory == EXACT:
            print(f"{case.linkage}, {case.data}, N = {case.n:,}, D = {case.dim}")
            print(f"  {'exact, saves':46}" + "".join(f"{exact['savings'][str(tau)]:9.2%}" for tau in TAUS))
        else:
            points = [100 * (result["savings"][str(tau)] - exact["savings"][str(tau)]) for tau in TAUS]
            worst = np.nanmax([worst, *map(abs, points)])
            kind = f"within {amount(case.memory or 0)}" + (", but exact" if is_exact(result) else "")
            shares = ratio(result, exact, "seconds", 27) + ratio(result, exact, "extra_bytes", 8)
            print(f"  {kind + ', points':46}" + "".join(f"{point:+9.2f}" for point in points) + shares)
    print("worst difference: " + ("not measured" if np.isnan(worst) else f"{worst:.2f} points (target: within 1)"))


def large(results: Results, cases: list[Case]) -> None:
    for case in cases:
        result = results.of(case)
        where = f"{case.linkage}, {case.data}, N = {case.n:,}, D = {case.dim}, within {amount(case.memory or 0)}"
        print(f"{where:62}{in_words(results.cases.get(case.key, {'status': 'not measured'}))}")
        if result:
            print(
                " " * 4 + "saves " + ", ".join(f"{share:.1%} at tau {tau}" for tau, share in result["savings"].items())
            )


TABLES = {"table": side_by_side, "scaling": scaling, "quality": quality, "large": large, "million": large}
