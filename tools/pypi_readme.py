"""Prepare README.md and pyproject.toml for a package on PyPI, whose page does not resolve relative links.

``python tools/pypi_readme.py https://github.com/OWNER/NAME COMMIT`` changes both files in place: links lead to the
files of that commit, and the page gets the address of the repository. ``.github/workflows/wheels.yml`` runs it before
it builds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?://|mailto:|#)(?P<target>[^)\s]+)\)")


def with_absolute_links(readme: str, repository: str, commit: str) -> str:
    """README.md, whose relative links lead to the files of a commit, and whose pictures are those files themselves."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}{link['text']}({repository}/{kind}/{commit}/{link['target']})"

    return LINK.sub(absolute, readme)


def with_urls(pyproject: str, repository: str, commit: str) -> str:
    """pyproject.toml with the addresses that PyPI shows beside the page."""
    urls = f'[project.urls]\nRepository = "{repository}"\nChangelog = "{repository}/blob/{commit}/CHANGELOG.md"\n\n'
    before, scripts, after = pyproject.partition("[project.scripts]\n")
    return before + urls + scripts + after


if __name__ == "__main__":
    for name, changed in ("README.md", with_absolute_links), ("pyproject.toml", with_urls):
        path = ROOT / name
        path.write_text(changed(path.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8", newline="\n")
