"""What mkdocs does besides, for the site of the documentation (``mkdocs build``, see ``mkdocs.yml``).

- Two pages are generated: the command line, in its own words, and the Python API, from docstrings.
- Links to files outside of ``docs/``: Markdown files become pages, other files are copied beside them, and a link to a
  folder becomes plain text.
- Blocks of ``math`` become MathML, and roles of Sphinx in docstrings become links: no page needs the network.
- A page that Python-Markdown reads in another way than CommonMark (as code hosts do) is a warning.
"""

from __future__ import annotations

import html
import logging
import re
import subprocess
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

log = logging.getLogger("mkdocs.hooks.hsd")  # its warnings end `mkdocs build --strict`

NAMES = {
    "Plans": ["compile", "Plan", "cost", "build_tree", "Tree", "Program", "calibrate", "Calibration"],
    "Prompts": ["read_prompts", "PromptFile", "expand_template"],
    "Models": ["load", "models.check"],
    "Images": ["generate", "stream", "Image", "Run", "Failure", "write_shards", "report", "distributed.generate"],
    "Quality": ["evaluate", "Evaluation", "tune", "Choice", "Settings", "load_settings", "reproduce"],
    "Errors and warnings": [
        *("Error", "DeviceFailed", "FailedImages", "OtherVersions", "OutOfMemory", "OutputError", "PlanMismatch"),
        *("PromptError", "UnknownModel", "UnsupportedPipeline", "UnsupportedScheduler", "WorkersFailed", "Notice"),
    ],
    "Progress": ["ProgressOption"],
    "Version": ["__version__"],
}
"""The headings of the page of the Python API, and the names below each."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCED = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)


def python_api() -> str:
    """The page of the Python API, for mkdocstrings."""
    parts = ["# Python API", "All public names of `hsd`, with shapes, dtypes, units and errors."]
    for heading, names in NAMES.items():
        parts += [f"## {heading}", *(f"::: hsd.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """The page of the command line, as Typer describes it."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "hsd.cli", "utils", "docs", "--name", "hsd", "--title", "Command line"],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    text = html.unescape(made.stdout)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)  # their texts are cut short
    text = re.sub(r"^\* `--help`: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*Options\*\*:\n\n(?!\*)", "", text)
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else escaped(part) for i, part in enumerate(parts))


def escaped(text: str) -> str:
    """Text in which Markdown finds no emphasis, no HTML and no table; lists and headings stay."""
    return re.sub(r"(?<!\*)\*(?![* ])|[_<>|~]", lambda found: "\\" + found[0] if found[0] != "<" else "&lt;", text)


def source_of(uri: str) -> str:
    """The path in the repository of a page or file of the site."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def uri_of(path: str) -> str:
    """The place on the site of a file of the repository."""
    return path.removeprefix("docs/")


def targets(path: str) -> set[str]:
    """The files of the repository that a page links to."""
    text = FENCED.sub("", (ROOT / path).read_text(encoding="utf-8"))
    linked = {normpath(join(dirname(path), found["target"].partition("#")[0])) for found in LINK.finditer(text)}
    return {target for target in linked if (ROOT / target).is_file()}


def outside() -> set[str]:
    """Files outside of ``docs/`` that pages link to, and pages among them."""
    waiting = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} | {"CHANGELOG.md", "CONTRIBUTING.md"}
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= {path for path in targets(path) if path.endswith(".md")} - seen
        seen |= {path for path in targets(path) if not path.endswith(".md")}
    return {path for path in seen if not path.startswith("docs/") and path != "README.md"}


def on_config(config: MkDocsConfig) -> None:
    """Blocks of ``math``, and headings with the anchors that code hosts give them."""
    from latex2mathml.converter import convert
    from pymdownx.slugs import slugify

    def math(source: str, *_: Any, **__: Any) -> str:
        return f'<div class="math">{convert(source, display="block")}</div>'

    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": math}
    ]
    config["mdx_configs"].setdefault("toc", {})["slugify"] = slugify(case="lower")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """The pages that are generated, those outside of ``docs/``, and the files of the site itself."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "cli.md", content=command_line()))
    files.append(File.generated(config, "api.md", content=python_api()))
    for path in sorted(outside()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for name in ("extra.css", "favicon.svg", "iframe-worker.js"):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(HERE / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between the repository's files become links between pages of the site."""
    uri = page.file.src_uri
    if uri in ("api.md", "cli.md"):
        return markdown
    source = source_of(uri)

    def linked(found: re.Match[str]) -> str:
        target, hash_, anchor = found["target"].partition("#")
        if not target or ":" in target:
            return found[0]
        path = normpath(join(dirname(source), target))
        if (ROOT / path).is_dir():
            return found["text"]
        there = relpath(uri_of("docs/index.md" if path == "README.md" else path), dirname(uri) or ".")
        return f"{found['image']}[{found['text']}]({there}{hash_}{anchor})"

    parts = FENCED.split(markdown)
    return "".join(part if i % 2 else LINK.sub(linked, part) for i, part in enumerate(parts))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Roles of Sphinx become links, and both readers of Markdown have to agree."""
    if page.file.src_uri == "api.md":
        return with_roles(content)
    if page.file.src_uri != "cli.md":
        compare(content, source_of(page.file.src_uri))
    return content


def with_roles(content: str) -> str:
    """``:func:`name``` as a link to the name, where the page has it."""
    known = set(re.findall(r'id="(hsd\.[\w.]+)"', content))
    within = ""

    def replaced(found: re.Match[str]) -> str:
        nonlocal within
        if found["id"]:
            within = found["id"]
            return found[0]
        name = found["name"].removeprefix("~")
        scopes = [within, within.rpartition(".")[0], "hsd", "hsd.Plan"]
        path = next((path for path in (name, *(f"{scope}.{name}" for scope in scopes)) if path in known), None)
        shown = f"<code>{name}</code>"
        return shown if path is None else f'<a href="#{path}">{shown}</a>'

    return re.sub(r'id="(?P<id>hsd\.[\w.]+)"|:[a-z]+:<code>(?P<name>~?[\w.]+)</code>', replaced, content)


COMPARED = ("li", "table", "pre", "h2", "h3", "blockquote", "img")


def compare(content: str, path: str) -> None:
    """Warn where a page has other lists, tables or blocks than by CommonMark, which the repository's readers see."""
    from markdown_it import MarkdownIt

    text = re.sub(r"^```math\n.*?^```$", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    common = MarkdownIt("commonmark").enable("table").render(text)
    for tag in COMPARED:
        mine, theirs = (len(re.findall(rf"<{tag}[ >/]", text)) for text in (content, common))
        if mine != theirs:
            log.warning("%s has %d <%s> on the site and %d by CommonMark", path, mine, tag, theirs)
