"""Documents for people who change HSD: every file, folder and name in them exists, every link and heading too."""

from __future__ import annotations

import dataclasses
import html
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

import hsd
from hsd.models.registry import BUILT_IN, adapter_named

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import pypi_readme  # noqa: E402
from docs_site import hooks  # noqa: E402

# Paths in the documents are relative to one of these.
BASES = [ROOT / below for below in ("", "python/hsd", "rust/hsd-core/src", "rust/hsd-core/src/cluster", "tests")]
GUIDES = ["docs/architecture.md", "CONTRIBUTING.md"]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
MADE = {"before.txt", "after.txt", "__forks__/", "__parts__/", "__report__/", "__trunks__/", "site/"}
"""Files and folders that a command in the documents writes."""

# `file.py`: `Name`, `other` - a file and names that it defines.
NAMED = re.compile(r"`(?P<file>[\w./]+\.(?:rs|py))`:? (?P<names>`[\w:.]+`(?:(?:, | and |; )`[\w:.]+`)*)")
DEFINED = r"(?:\b(?:def|class|fn|struct|enum|trait|impl|const|static) {0}\b|^ *(?:pub )?{0}(?:\(.*\))?(?::[^:]| =|,$))"


def found(path: str) -> list[Path]:
    return [base / path for base in BASES if (base / path).exists()]


def paths_of(text: str) -> set[str]:
    """Everything between backticks that looks like a path, without patterns and placeholders."""
    spans = [span for quoted in re.findall(r"`([^`\n]+)`", text) for span in quoted.split()]
    looks = re.compile(r"[\w./-]+(?:\.(?:rs|py|pyi|md|txt|toml|lock|yml|sh)|/)")
    return {span for span in spans if looks.fullmatch(span) and span not in MADE and not span.startswith("/")}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_exists(guide):
    paths = paths_of((ROOT / guide).read_text())
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not found(path)] == []


def test_every_name_is_defined_in_its_file():
    missing = []
    places = list(NAMED.finditer((ROOT / "docs" / "architecture.md").read_text()))
    assert len(places) > 20
    for place in places:
        sources = [path.read_text() for path in found(place["file"])]
        for name in re.findall(r"`([\w:.]+)`", place["names"]):
            for part in re.split(r"::|\.", name):
                if not any(re.search(DEFINED.format(part), source, re.MULTILINE) for source in sources):
                    missing.append(f"{place['file']}: {name}")
    assert missing == []


def test_the_fast_loop_names_every_test():
    """Each file of tests is in the table of what to run after which change, by its name or by a pattern."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## The fast loop")[1].split("**Snapshots.**")[0]
    patterns = {found.removeprefix("tests/") for found in re.findall(r"(?:tests/|faults/)*test_[\w*]*\.py", table)}
    written = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(patterns) > 50
    assert sorted(name for name in written if not any(fnmatchcase(name, pattern) for pattern in patterns)) == []
    assert sorted(pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in written)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_the_page_on_pypi_has_no_relative_link():
    from markdown_it import MarkdownIt

    at = "https://github.com/someone/hsd", "0a1b2c"
    page = pypi_readme.with_absolute_links((ROOT / "README.md").read_text(), *at)
    inline = [child for token in MarkdownIt("commonmark").parse(page) for child in token.children or ()]
    links = [str(child.attrs[name]) for child in inline for name in ("href", "src") if name in child.attrs]
    assert [link for link in links if not link.startswith("https://")] == []
    ours = [link.removeprefix(at[0]).split("/", 3)[1:] for link in links if link.startswith(at[0])]
    assert len(ours) > 20
    assert [path for kind, commit, path in ours if commit != at[1] or not (ROOT / path).exists()] == []
    assert [path for kind, _, path in ours if kind == "raw"] == ["docs/tree.webp"]


def test_the_page_on_pypi_names_the_repository():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    before = (ROOT / "pyproject.toml").read_text()
    after = tomllib.loads(pypi_readme.with_urls(before, "https://github.com/someone/hsd", "0a1b2c"))
    assert after["project"].pop("urls")["Repository"] == "https://github.com/someone/hsd"
    assert after == tomllib.loads(before)


def test_recipes_name_every_family():
    """docs/recipes.md has a row for each pipeline, with the dtype and the default guidance that its adapter has."""
    rows = dict(re.findall(r"^\| (\w+Pipeline) \| (.*) \|$", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE))
    others = re.compile("UnCLIP|ControlNet|Img2Img")  # models like Kandinsky 2.2, and others with an image besides
    assert set(rows) == {name for name in BUILT_IN if not others.search(name)}
    for name, row in rows.items():
        adapter = adapter_named(name)
        defaults = {field.name: field.default for field in dataclasses.fields(adapter)}
        assert row.split(" | ")[0] == str(adapter.half_dtype).removeprefix("torch."), name
        for setting, value in re.findall(r"`(guidance_scale|true_cfg_scale)` (\d[\d.]*)", row):
            assert float(value) == defaults[setting], (name, setting)


def pages_of(nav) -> list[str]:
    """Every page that the navigation of the site names."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_every_document_is_in_the_navigation_of_the_site():
    """``mkdocs build --strict``, which ./check runs, refuses a page that is not there; this is quicker."""
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    outside = {page for page in hooks.outside() if page.endswith(".md")} - {"fuzz/README.md"}
    assert sorted(named) == sorted(written | outside | {"cli.md", "api.md"})


def test_the_page_of_the_api_has_every_public_name():
    named = [name for names in hooks.NAMES.values() for name in names]
    assert sorted(name for name in named if "." not in name) == sorted(hsd.__all__)
    assert len(set(named)) == len(named)


def test_roles_of_docstrings_become_links():
    page = '<h3 id="hsd.Plan"></h3>:meth:<code>save</code>, :data:<code>hsd.x.Y</code><h4 id="hsd.Plan.save"></h4>'
    assert '<a href="#hsd.Plan.save"><code>save</code></a>, <code>hsd.x.Y</code>' in hooks.with_roles(page)


def test_help_texts_stay_as_they_are():
    from markdown_it import MarkdownIt

    told = "a {red|blue} __animal__, *all* of <name>, OUT/__forks__ [x>=1]"
    assert MarkdownIt("commonmark").render(hooks.escaped(told)) == f"<p>{html.escape(told)}</p>\n"


def test_a_page_that_two_readers_of_markdown_take_differently_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("text\n- a list without an empty line before it\n")
    hooks.compare("<p>text - a list without an empty line before it</p>", "page.md")
    assert "page.md has 0 <li> on the site and 1 by CommonMark" in caplog.text


def test_links_lead_to_pages_of_the_site_or_are_text():
    from types import SimpleNamespace

    def of(uri, text):
        return hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=uri)), None, None)

    assert of("run.md", "[a](../benches/results/README.md#b)") == "[a](benches/results/README.md#b)"
    assert of("benches/results/README.md", "[a](../../docs/grow.md)") == "[a](../../grow.md)"
    assert of("CONTRIBUTING.md", "[a](docs/gpu.md) [b](https://c.org)") == "[a](gpu.md) [b](https://c.org)"
    assert of("benches/results/README.md", "[a](h200/)") == "a"
    assert of("quantised.md", "[a](../README.md)") == "[a](index.md)"
