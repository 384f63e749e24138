"""Writes the tables of docs/gpu.md: what is predicted of the speed on a GPU, and beside it what was measured.

    python benches/gpu/paper.py --write docs/gpu.md --results benches/results/h200
    python benches/gpu/paper.py --check

The prose of the page is written by hand. What stands between ``<!-- table NAME -->`` and the next empty line is
replaced. Without ``--results`` nothing counts as measured, and those columns hold a dash. Predictions are made from
``counts.json``, ``fills.json`` and ``benches/results/h200``, the only device that was measured so far.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import tables
from results import Results

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpu.md"
SHOWN = "benches/results/h200"
RESULTS = ROOT / SHOWN
"""What predictions are calibrated by, and what the page in the repository shows as measured."""

_BLOCK = re.compile(r"(?P<head><!-- table (?P<name>[\w-]+) -->\n)(?:.+\n)*")
"""A marker, and all up to the next empty line."""


def page(text: str, measured: Results) -> str:
    """``text`` with its tables written anew.

    Raises
    ------
    KeyError
        If it names a table that does not exist.
    """
    paper = tables.Paper(Results.read(RESULTS), measured)
    return _BLOCK.sub(lambda block: f"{block['head']}{tables.TABLES[block['name']](paper)}\n", text)


def main(words: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="PAGE", help="write it; a new one gets the prose of docs/gpu.md")
    what.add_argument("--check", action="store_true", help="whether docs/gpu.md is what --write would write")
    parser.add_argument("--results", type=Path, help="a folder with gpu-*.json of one device")
    args = parser.parse_args(words)
    try:
        measured = Results.read(RESULTS if args.check and args.results is None else args.results)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if args.results and not measured.files:
        print(f"{args.results} holds no measurement of a GPU: only files of tests or of --small", file=sys.stderr)
        return 2
    if args.check:
        text = PAGE.read_text(encoding="utf-8")
        current = page(text, measured) == text
        if not current:
            print(f"docs/gpu.md is not current: python benches/gpu/paper.py --write docs/gpu.md --results {SHOWN}")
        return 0 if current else 1
    source = args.write if args.write.exists() else PAGE
    args.write.write_text(page(source.read_text(encoding="utf-8"), measured), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
