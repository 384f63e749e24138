"""Folders are layers: a Python module imports from lower ones only. Neither Python nor Rust has a circle of imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / "python" / "hsd"
RUST = ROOT / "rust" / "hsd-core" / "src"

LAYERS = [
    {"_core"},
    {"errors", "names"},
    {"work"},
    {"calibration"},
    {"prompts"},
    {"planning"},
    {"sampler"},
    {"conditioning"},
    {"replay"},
    {"demo"},
    {"models"},
    {"probing"},
    {"tuning"},
    {"generation"},
    {"distributed"},
    {"bench"},
    {"evaluation"},
    {"choice"},
    {"reproduction"},
    {"reporting"},
    {"cli"},
    {""},  # hsd itself
]
"""From the lowest to the highest. A module may import from its own folder and from lower layers."""

EXCEPTIONS = {
    # Inside a function, so that torch is imported only for a plan that is clustered by a model's own embeddings.
    ("planning.compile", "conditioning.twins"),
    ("planning.compile", "models"),
    ("planning.compile", "models.base"),  # the type of an argument
    ("planning.compile", "models.encode"),
    ("planning.compile", "probing.direct"),
    ("planning.compile", "tuning.time_goal"),
    ("planning.extend", "conditioning.twins"),
    ("planning.extend", "models"),
    ("planning.extend", "models.base"),  # the type of an argument
    ("planning.extend", "models.encode"),
    ("planning.metric", "models.identity"),
    ("planning.metric", "models.base"),  # the type of an argument
}


# ------------------------------------------------------------------------------- Python


def module_name(path: Path) -> str:
    """The name of a module below hsd: ``planning.plan``, ``planning`` for its ``__init__``, ``""`` for hsd itself."""
    parts = path.relative_to(PYTHON).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PYTHON.rglob("*.py"))} | {"_core": PYTHON / "_core.pyi"}


def python_imports(name: str) -> Iterator[tuple[str, str]]:
    """Pairs (importing module, imported module) of one module; imports inside functions and for types alone too."""
    path = MODULES[name]
    package = ["hsd", *path.relative_to(PYTHON).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from .folder import module` names a module, `from .module import name` a name that it defines.
            found = []
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                found.append(inner if inner.removeprefix("hsd.") in MODULES else origin)
        else:
            continue
        for imported in found:
            if imported == "hsd" or imported.startswith("hsd."):
                target = imported.removeprefix("hsd").removeprefix(".")
                assert target in MODULES, f"{name} imports {imported}, which is no module"
                yield name, target


def python_graph() -> set[tuple[str, str]]:
    return {edge for name in MODULES if name != "_core" for edge in python_imports(name)}


def layer(name: str) -> int:
    folder = name.split(".")[0]
    (found,) = [number for number, folders in enumerate(LAYERS) if folder in folders]
    return found


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that can all reach each other, by Tarjan's algorithm; a single node counts if it names itself."""
    following: dict[str, list[str]] = {}
    for source, target in sorted(edges):
        following.setdefault(source, []).append(target)
        following.setdefault(target, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in following[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in following[node]:
                found.append(sorted(group))

    for node in following:
        if node not in index:
            visit(node)
    return found


def test_every_module_is_in_one_layer():
    for name in MODULES:
        layer(name)


def test_imports_go_down():
    upwards = {
        (source, target)
        for source, target in python_graph()
        if source.split(".")[0] != target.split(".")[0] and layer(target) >= layer(source)
    }
    assert upwards - EXCEPTIONS == set()
    assert upwards >= EXCEPTIONS, "an exception that nothing needs any more"


def test_no_circle_of_imports():
    assert circles(python_graph() - EXCEPTIONS) == []


def test_models_are_imported_inside_a_function():
    """The one exception would bring torch into planning if it were at the top of the file."""
    tree = ast.parse(MODULES["planning.compile"].read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("models"):
            for_types = any(
                isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING" and node in block.body
                for block in tree.body
            )
            assert id(node) in inside or for_types


@pytest.mark.parametrize(
    "code",
    [
        "import hsd; hsd.compile(['a red star', 'a blue star', 'a green ring'], 1.0)",
        "from hsd.cli import app; app('plan prompts.txt --model stand-in --budget 0.3'.split(), standalone_mode=False)",
    ],
    ids=["library", "command line"],
)
def test_planning_needs_no_torch(code, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\na blue star\na green ring\n")
    code += (
        "; import sys; loaded = {'torch', 'diffusers', 'transformers'} & set(sys.modules); assert not loaded, loaded"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_list_of_commands_needs_no_numpy_and_no_command():
    code = (
        "from hsd.cli import app; app(['--help'], standalone_mode=False); import sys\n"
        "assert not {'numpy', 'hsd.cli.generate', 'hsd.planning'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_evaluation_needs_no_torch_until_a_scorer_does(tmp_path):
    """An external scorer runs in another process, and errors about folders come at once and without notices."""
    code = (
        "import hsd, sys\n"
        "try:\n    hsd.evaluate('no such folder')\n"
        "except hsd.Error:\n"
        "    loaded = {'torch', 'diffusers', 'transformers'} & set(sys.modules); assert not loaded, loaded\n"
        "else:\n    raise AssertionError('no error')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_circles_of_a_graph():
    """The check can fail."""
    edges = {("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "e"), ("d", "f")}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["e"]]
    assert circles({("a", "b"), ("b", "c"), ("a", "c")}) == []


# ------------------------------------------------------------------------------- Rust


def rust_module(path: Path) -> str:
    """The module of a file: ``cluster::linkage``, ``cluster`` for its mod.rs, ``""`` for lib.rs."""
    parts = path.relative_to(RUST).with_suffix("").parts
    return "::".join(part for part in parts if part not in ("mod", "lib"))


def rust_code(text: str) -> str:
    """The code without comments and without the tests at its end."""
    return re.sub(r"//[^\n]*", "", text).split("#[cfg(test)]\nmod ")[0]


RUST_MODULES = {rust_module(path): rust_code(path.read_text(encoding="utf-8")) for path in sorted(RUST.rglob("*.rs"))}


def used_paths(tree: str) -> list[str]:
    """The paths in a use tree: ``a::{b, c::{d, self}}`` has ``a::b``, ``a::c::d`` and ``a::c``."""
    paths, prefixes, path = [], [""], ""
    for token in re.findall(r"::|\w+|[{},*]", re.sub(r"\bas\s+\w+", "", tree) + ","):
        if token == "{":
            prefixes.append(prefixes[-1] + path)
            path = ""
        elif token in ",}":
            if path:
                paths.append((prefixes[-1] + path).removesuffix("::self"))
            path = ""
            if token == "}":
                prefixes.pop()
        else:
            path += token
    return paths


def absolute(module: str, path: str) -> str | None:
    """A path as seen from the crate's root, without ``crate``; None if it is another crate's."""
    at, parts = module.split("::") if module else [], path.split("::")
    if parts[0] not in ("crate", "super", "self") and "::".join([*at, parts[0]]) not in RUST_MODULES:
        return None
    while parts and parts[0] in ("crate", "super", "self"):
        step = parts.pop(0)
        at = [] if step == "crate" else at[:-1] if step == "super" else at
    return "::".join([*at, *parts])


def rust_uses(module: str, exported: bool) -> list[str]:
    """Absolute paths that a module uses, or that it exports from others under its own name."""
    found = []
    for public, tree in re.findall(r"(?m)^\s*(pub(?:\([^)]*\))? )?use ([^;]+);", RUST_MODULES[module]):
        if bool(public) == exported:
            found += used_paths(tree)
    if not exported:
        rest = re.sub(r"(?m)^.*\buse [^;]+;", "", RUST_MODULES[module])
        found += re.findall(r"(?<!\$)\b(?:crate|super|self)(?:::\w+)+", rest)
    return [path for path in (absolute(module, path) for path in found) if path is not None]


def defining_module(path: str) -> str:
    """The module that a path leads to, through ``pub use`` to where the name is defined."""
    parts = path.split("::")
    length = next(n for n in range(len(parts), -1, -1) if "::".join(parts[:n]) in RUST_MODULES)
    module, name = "::".join(parts[:length]), parts[length : length + 1]
    for origin in rust_uses(module, exported=True) if name else []:
        if origin.split("::")[-1:] == name and origin != path:
            return defining_module(origin)
    return module


def rust_graph() -> set[tuple[str, str]]:
    """Which file uses which; what a mod.rs or lib.rs only re-exports is used by the files that name it."""
    edges = {(module, defining_module(path)) for module in RUST_MODULES for path in rust_uses(module, exported=False)}
    return {(source, target) for source, target in edges if source != target}


def test_no_circle_of_rust_modules():
    assert circles(rust_graph()) == []


def test_the_uses_of_rust_are_found():
    """The check can fail."""
    assert used_paths("crate::a::{self, b, c::{d as e, f}}") == [
        "crate::a",
        "crate::a::b",
        "crate::a::c::d",
        "crate::a::c::f",
    ]
    assert used_paths("super::super::a::B") == ["super::super::a::B"]
    assert absolute("x::y", "super::a::B") == "x::a::B"
    assert absolute("x::y", "super::super::B") == "B"
    assert absolute("x", "std::fmt") is None
    graph = rust_graph()
    assert len(graph) > 2 * len(RUST_MODULES) - 10
    assert any(target == "error" for _, target in graph)
