"""``./try``: what it installs, from where, and that a second run installs nothing. pip and Python are played."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPU = "https://download.pytorch.org/whl/cpu"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a bash script")

# Answers what ./try asks Python, and writes down what it has Python do.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"pip --version") [ "$0" = .venv/bin/python ] ;;
  *"pip --disable"*)
    said="$*"; echo "pip ${said#*version-check }" >> "$LOG"
    case "$*" in *" .") cp "$HSD" .venv/bin/hsd ;; esac ;;
  *find_spec*) [ -n "$TORCH" ] ;;
  *urlopen*) [ -n "$REACHED" ] ;;
  *version_info*) ;;
  *) echo "not expected: $*" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def attempt(tmp_path):
    """Run ./try in a copy of the repository's outline, from elsewhere: its calls of pip and hsd, and its output."""
    folder, tools = tmp_path / "a clone", tmp_path / "tools"
    for name in ("python", "rust"):
        (folder / name).mkdir(parents=True)
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "python/a.py"):
        (folder / name).touch()
    shutil.copy(ROOT / "try", folder)
    tools.mkdir()
    log = tmp_path / "log"

    def tool(name, text):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
        return str(tools / name)

    tool("cargo", "#!/bin/sh\n")
    hsd = tool("hsd", '#!/bin/sh\necho "hsd $*" >> "$LOG"\n')
    python = tool("python", PYTHON)

    def run(*args, system="Linux", gpu=False, **environment):
        tool("uname", f"#!/bin/sh\necho {system}\n")
        tool("nvidia-smi", f"#!/bin/sh\nexit {int(not gpu)}\n")
        log.unlink(missing_ok=True)
        path = f"{tools}:{os.environ['PATH']}"
        known = {"LOG": str(log), "HSD": hsd, "PYTHON": python, "PATH": path, "TORCH": "", "REACHED": ""}
        outer = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"}
        made = subprocess.run(
            [folder / "try", *args], cwd=tmp_path, env=outer | known | environment, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        return log.read_text().splitlines(), made.stdout + made.stderr

    run.folder = folder
    return run


HSD = "pip install --upgrade-strategy only-if-needed ."
MADE = "hsd generate demo --out images"


@pytest.mark.parametrize(
    ("settings", "torch"),
    [
        ({"REACHED": "1"}, [f"pip install --index-url {CPU} torch"]),
        ({}, ["pip install torch"]),
        ({"REACHED": "1", "gpu": True}, ["pip install torch"]),
        ({"REACHED": "1", "system": "Darwin"}, ["pip install torch"]),
        ({"REACHED": "1", "TORCH": "1"}, []),
        ({"REACHED": "1", "TORCH_INDEX": ""}, ["pip install torch"]),
        ({"REACHED": "1", "TORCH_INDEX": "https://x/rocm"}, ["pip install --index-url https://x/rocm torch"]),
    ],
    ids=["no GPU", "not reached", "GPU", "macOS", "torch is there", "usual index", "own index"],
)
def test_where_torch_comes_from(attempt, settings, torch):
    calls, said = attempt(**settings)
    assert calls == [*torch, HSD, MADE]
    assert (f"{CPU} cannot be reached: PyTorch comes from PyPI, with CUDA: about 3 GB" in said) == (settings == {})
    assert f"{attempt.folder}/images" in said


def test_again(attempt):
    attempt(TORCH="1")
    assert attempt("--steps", "4")[0] == [f"{MADE} --steps 4"]  # nothing is installed
    newer = attempt.folder / "python" / "a.py"
    os.utime(newer, (2**31, 2**31))
    assert attempt(TORCH="1")[0] == [HSD, MADE]

    record = attempt.folder / ".venv" / "lib" / "python3.11" / "site-packages" / "hsd_diffusion-1.dist-info"
    record.mkdir(parents=True)
    (record / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///clone"}')
    assert attempt(TORCH="1")[0] == [MADE]  # ./check has installed it, as editable
