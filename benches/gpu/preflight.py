"""What this machine lacks for a part, all of it at once and before anything expensive is started.

Requirements are those that hsd's own metadata states, with their bounds. Nothing is imported but what reads versions:
torch alone takes seconds.
"""

from __future__ import annotations

import ast
import importlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
except ImportError:  # a copy is in pip
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]

HSD = "hsd-diffusion"
"""The distribution whose module is hsd."""

_REQUESTS = ("requests", "certifi", "charset-normalizer", "idna", "urllib3")

NEEDS = {"diffusers": ("importlib-metadata", "lazy-importer", "zipp", *_REQUESTS)}
"""What comes with a package that is not there: its metadata cannot be read. What hsd needs anyway is left out."""

ONLY_READ = {"wordllama"}
"""Packages whose files are read (for the default encoder) and not imported: what they require is not needed."""

PYTEST = ("pytest", "pytest-timeout")
"""What any test needs: without the second, pytest refuses the settings in pyproject.toml."""

MODULES = {"bs4": "beautifulsoup4", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Packages that are not called like their module."""


@dataclass(frozen=True)
class Lack:
    """A requirement that is not met."""

    requirement: str
    """As pip takes it: ``diffusers>=0.41``."""
    found: str | None
    """The version that is there instead."""
    by: str = ""
    """The package that requires it, if hsd does not: it may do without, which only an import shows."""

    @property
    def name(self) -> str:
        """The package."""
        return Requirement(self.requirement).name

    def __str__(self) -> str:
        found = f"there is {self.found}" if self.found else "not there"
        return f"{self.requirement} ({found}{f'; {self.by} requires it' if self.by else ''})"


# ------------------------------------------------------------------------------- what is there


@cache
def version(name: str) -> str | None:
    """The installed version of a package, None without one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(name: str, extra: str = "") -> list[Requirement]:
    """What a package requires here, of one of its extras or without any; nothing if it is not there."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        lines = _stated() if name == HSD else []
    found = [Requirement(line) for line in lines]
    if extra:
        return [r for r in found if r.marker and r.marker.evaluate({"extra": extra}) and not _holds(r)]
    return [r for r in found if _holds(r)]


def _stated() -> list[str]:
    """What hsd's metadata will be, before it is built."""
    if sys.version_info < (3, 11):  # no tomllib
        return []
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return project["dependencies"] + [f'{line}; extra == "{extra}"' for extra, lines in extras for line in lines]


def _holds(requirement: Requirement) -> bool:
    """Whether it is required without an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def unmet(requirement: Requirement) -> Lack | None:
    """The requirement, if no version or one out of its bounds is there."""
    found = version(requirement.name)
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return None
    return Lack(f"{requirement.name}{requirement.specifier}", found)


# ------------------------------------------------------------------------------- of hsd


def of_hsd() -> list[Lack]:
    """What hsd lacks, from its metadata, and what the packages lack that it needs."""
    lacks = [Lack(HSD, None)] if version(HSD) is None else [lack for lack in (_python(), _extension()) if lack]
    for requirement in requirements(HSD):
        lack = unmet(requirement)
        if lack is None:
            lacks += () if requirement.name in ONLY_READ else _below(requirement.name)
            continue
        lacks.append(lack)
        with_it = NEEDS.get(requirement.name, ()) if lack.found is None else ()
        lacks += [Lack(name, None, by=requirement.name) for name in with_it if version(name) is None]
    return list(dict.fromkeys(lacks))


def _python() -> Lack | None:
    bounds = metadata.metadata(HSD).get("Requires-Python") or ""
    here = platform.python_version()
    return None if SpecifierSet(bounds).contains(here, prereleases=True) else Lack(f"python{bounds}", here)


def _extension() -> Lack | None:
    """A wheel of another platform, or a source tree that was not built."""
    try:
        importlib.import_module("hsd._core")
    except ImportError as error:
        return Lack(HSD, f"a version whose extension cannot be loaded: {error}")
    return None


def _below(name: str, seen: frozenset[str] = frozenset()) -> list[Lack]:
    """What is missing below an installed package, at any depth. Bounds are not compared: pip did, or was told not to.

    torch is left out: where it came with the machine, CUDA's libraries may have come with it, without metadata.
    """
    if name == "torch" or name in seen:
        return []
    lacks = []
    for requirement in requirements(name):
        if version(requirement.name) is None:
            lacks.append(Lack(f"{requirement.name}{requirement.specifier}", None, by=name))
            continue
        lacks += _below(requirement.name, seen | {name})
    return lacks


def import_error(python: str) -> str | None:
    """The last line of what importing everything that ``executor.py`` needs says, if it fails. It takes seconds."""
    line = [python, str(ROOT / "benches" / "gpu" / "executor.py"), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


_GPU = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), "with torch", torch.__version__)
else:
    raise SystemExit(f"torch {torch.__version__} finds no GPU")
"""


def gpu(python: str) -> tuple[str, str | None]:
    """The device that torch can use, and None; or nothing, and why there is none. It takes seconds."""
    done = subprocess.run([python, "-c", _GPU], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip(), None
    lines = done.stderr.strip().splitlines() or ["no message"]
    # Beside the last line there may be a warning of torch, such as that the driver is too old.
    return "", lines[-1] if lines[0].startswith("Traceback") else " ".join(lines)


# ------------------------------------------------------------------------------- of the tests


def gpu_files(tests: Path = ROOT / "tests") -> list[Path]:
    """Test files in which something is marked as needing a GPU."""
    return sorted(path for path in tests.rglob("test_*.py") if "pytest.mark.gpu" in path.read_text(encoding="utf-8"))


def of_pytest() -> list[Lack]:
    """What no test can do without."""
    wanted = {requirement.name: requirement for requirement in requirements(HSD, "test")}
    return [lack for name in PYTEST if (lack := unmet(wanted.get(name, Requirement(name)))) is not None]


def of_tests(files: Iterable[Path], tests: Path = ROOT / "tests") -> dict[str, list[Lack]]:
    """What tests lack, by path of a file or name of a test (``tests/test_a.py::test_b``), relative to the repository.

    Imports are read, not made: those at the top of a file and of our own modules that it imports, and those inside a
    test function.
    """
    found: dict[str, list[Lack]] = {}
    own = [tests, *sorted({path.parent for path in files} - {tests}), ROOT / "benches", ROOT / "benches" / "gpu"]
    for path in files:
        name = path.relative_to(tests.parent).as_posix()
        if lacks := _missing(_imports(path, own)):
            found[name] = lacks
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                inside = {module for part in ast.walk(node) for module in _modules(part)}
                if lacks := _missing(module for module in inside if not any(_files(folder, module) for folder in own)):
                    found[f"{name}::{node.name}"] = lacks
    return found


def _imports(path: Path, own: list[Path], seen: set[Path] | None = None) -> set[str]:
    """Top modules that a file imports when it is imported, through our own modules in the folders ``own``."""
    seen = set() if seen is None else seen
    seen.add(path)
    modules: set[str] = set()
    for node in _at_import(ast.parse(path.read_text(encoding="utf-8"))):
        for module in _modules(node):
            ours = [found for folder in own for found in _files(folder, module)]
            modules |= set() if ours else {module}
            for found in ours:
                if found not in seen:
                    modules |= _imports(found, own, seen)
    return modules


def _files(folder: Path, module: str) -> list[Path]:
    """The files of a module of ours: one, or all of a package, because it imports them."""
    if (file := folder / f"{module}.py").is_file():
        return [file]
    return sorted((folder / module).glob("*.py"))


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _at_import(node)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module.split(".")[0]]
    return []


def _missing(modules: Iterable[str]) -> list[Lack]:
    """The modules of no installed package, as requirements."""
    lacks = []
    stated = [*requirements(HSD, "test"), *requirements(HSD)]
    wanted = {_plain(requirement.name): requirement for requirement in stated}
    for module in sorted(modules):
        if module in sys.stdlib_module_names or find_spec(module) is not None:
            continue
        name = MODULES.get(module, module)
        requirement = wanted.get(_plain(name), Requirement(name))
        lacks.append(Lack(f"{name}{requirement.specifier}", None))
    return lacks


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------- what to do


def how_to_get(lacks: Iterable[Lack]) -> str:
    """The commands that fetch and install what is missing: elsewhere, and then here, where there may be no network."""
    wanted = [lack.requirement for lack in lacks]
    lines = []
    if HSD in wanted:
        lines.append("maturin build --release --compatibility manylinux_2_34 --out wheels")
    if others := [need for need in dict.fromkeys(wanted) if need != HSD and not need.startswith("python")]:
        lines.append(shlex.join([*_download(), *others]))
    if not lines:
        return ""
    install = "python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site"
    return "\n  ".join(["Where there is a network:", *lines, "and on this machine:", install])


def _download() -> list[str]:
    """pip's command for the wheels of this machine, without what they require, which is listed here."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    line = ["python3", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", "wheels"]
    line += ["--python-version", version, "--implementation", "cp"]
    for abi in (tag, "abi3", "none"):
        line += ["--abi", abi]
    for name in _platforms(platform.machine(), platform.libc_ver()[1]):
        line += ["--platform", name]
    return line


def _platforms(machine: str, glibc: str) -> list[str]:
    """Tags of the wheels that run here: pip takes each literally, older ones too."""
    minor = int(glibc.split(".")[1]) if glibc.startswith("2.") else 28
    tags = [f"manylinux_2_{n}_{machine}" for n in (39, 35, 34, 31, 28, 27, 24, 17) if n <= minor]
    return [*tags, f"manylinux2014_{machine}", "any"]
