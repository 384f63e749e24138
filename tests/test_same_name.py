"""The other distribution with a package named ``hsd``: where both are installed, it is said, with the way out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hsd
import hsd_diffusion

OURS = Path(hsd.__file__).parent
COMMAND = "import sys; sys.argv = ['hsd', '--version']; from hsd_diffusion import main; main()"


@pytest.fixture
def site(tmp_path):
    """A folder as pip leaves it: the files of both distributions in one package, and the command's package beside."""
    (tmp_path / "hsd").mkdir()
    for path in OURS.iterdir():
        (tmp_path / "hsd" / path.name).symlink_to(path)
    (tmp_path / "hsd_diffusion").symlink_to(Path(hsd_diffusion.__file__).parent)
    (tmp_path / "hsd" / "eventhandler.py").touch()
    return tmp_path


def python(site, code):
    """Exit code, output and errors of a process that finds no other hsd than that folder's."""
    others = "[path for path in sys.path if not os.path.exists(os.path.join(path, 'hsd', '_core.pyi'))]"
    code = f"import os, sys; sys.path = [{str(site)!r}, *{others}]; {code}"
    run = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


def test_the_other_one_installed_first(site):
    code, out, err = python(site, "import hsd; print(hsd.compile.__module__)")
    assert (code, out) == (0, "hsd.planning.compile\n")
    assert "Notice: the distribution hsd (a format of structured data, by the DFTB+ developers) is installed" in err
    assert f"folder as hsd-diffusion, {site}/hsd." in err
    assert "pip uninstall hsd hsd-diffusion" in err

    code, out, err = python(site, COMMAND)
    assert (code, out) == (0, f"hsd {hsd.__version__}\n")
    assert err.startswith("hsd: the distribution hsd (")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["__init__.py", None], ids=["installed last", "uninstalled"])
def test_the_other_one_installed_last_and_uninstalled(site, name):
    """It has replaced ``__init__.py``, and pip removes it with the other distribution."""
    (site / "hsd" / "__init__.py").unlink()
    if name:
        (site / "hsd" / name).write_text("class HsdParser: ...\n")
    told = (
        f"`import hsd` finds {site}/hsd/__init__.py, which is not hsd-diffusion's: the distribution hsd ("
        if name
        else f"the package hsd in {site}/hsd has no __init__.py. Uninstalling the distribution hsd ("
    )
    way_out = "`pip uninstall hsd hsd-diffusion`" if name else "`pip install --force-reinstall --no-deps hsd-diffusion`"

    code, out, err = python(site, COMMAND)
    assert (code, out) == (1, "")
    assert err.startswith(f"hsd: {told}")
    assert way_out in err
    assert err.count("\n") == 1

    for module in ("hsd.planning.plan", "hsd.cli"):
        code, _, err = python(site, f"import {module}")
        assert code == 1
        assert f"ImportError: {told}" in err
        assert way_out in err


def test_any_other_file_of_that_name():
    package = ModuleType("hsd")
    package.__file__ = "/home/me/hsd.py"
    why = hsd_diffusion.refusal(package)
    assert why == (
        "`import hsd` finds /home/me/hsd.py, which is not hsd-diffusion's. "
        "Rename or remove it, or take its folder out of PYTHONPATH."
    )


def test_ours_alone_says_nothing():
    assert hsd_diffusion.refusal(hsd) is None
    assert hsd_diffusion.mixed(str(OURS)) is None  # also: none of our files has the name that is looked for
