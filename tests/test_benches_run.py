"""``benches/gpu/run.sh``: its parts and calls, what it finds missing, and the tests that it continues."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benches" / "gpu"
sys.path[:0] = [str(GPU.parent), str(GPU)]

import executor  # noqa: E402
import gpu_tests  # noqa: E402
import ledger  # noqa: E402
import parts  # noqa: E402
import preflight  # noqa: E402
import run_parts  # noqa: E402
from preflight import Lack, Requirement  # noqa: E402


def arguments(words: str):
    return run_parts._arguments(words.split())


# ------------------------------------------------------------------------------- parts


def test_every_call_fits_and_every_part_is_in_one():
    calls = parts.calls(parts.PARTS)
    assert sorted(part.name for call in calls for part in call) == sorted(parts.NAMES)
    assert all(parts.seconds(call) <= parts.CALL < 600 for call in calls)
    assert parts.seconds(parts.PARTS) < 28 * 60  # all that a machine is lent for, and its start
    assert len(calls) == 3


@pytest.mark.parametrize("part", [part for part in parts.PARTS if part.words], ids=lambda part: part.name)
def test_every_part_is_a_command_of_the_benchmark(part, tmp_path):
    line = part.command("python3", tmp_path, 100, small=True, data=tmp_path)
    args = executor._arguments(line[2:])
    assert args.limit == 95
    assert args.json == tmp_path / f"gpu-{part.name}.json"
    assert set(args.sections) == set(executor.SECTIONS) & set(part.words)


def test_every_section_is_in_a_part():
    assert {word for part in parts.PARTS for word in part.words} >= set(executor.SECTIONS)


@pytest.mark.parametrize(
    ("seconds", "left", "expected"),
    [
        ([100, 50], None, parts.CALL),  # no limit in all: as much as a call has
        ([100, 50], 99.9, None),
        ([100, 50], 100.0, 100),  # the second will not start, and nothing is kept for it
        ([100, 50], 149.0, 149),
        ([100, 50], 170.9, 120),  # all but what the second needs
        ([100, 400, 50], 170.0, 120),  # the third fits though the second does not
        ([100], 575.0, 575),
    ],
)
def test_a_part_gets_what_the_others_leave(seconds, left, expected):
    first, *behind = (parts.Part(str(i), "", n) for i, n in enumerate(seconds))
    assert parts.allowed(first, behind, left) == expected


def test_the_list_shows_what_was_measured(tmp_path):
    (tmp_path / "gpu-loop.json").write_text(json.dumps({"finished": True, "seconds": 49.6}))
    (tmp_path / "gpu-flux.json").write_text(json.dumps({"finished": False}))
    rows = {line.split()[0]: line for line in parts.listed(tmp_path).splitlines() if line.strip()}
    assert "50 s  waits" in rows["loop"]
    assert "cut  efficiency" in rows["flux"]
    assert "-  the tests" in rows["tests"]


def test_documented_commands_are_commands():
    text = "".join((ROOT / name).read_text() for name in ("benches/results/README.md", "CONTRIBUTING.md", "README.md"))
    found = re.findall(r"`benches/gpu/run\.sh([^`]*)`", text)
    assert len(found) >= 4
    calls = re.findall(r"benches/gpu/run\.sh(.*)", parts.listed(run_parts.MEASURED))
    assert len(calls) == 3
    for words in [*found, *calls]:
        arguments(words)


@pytest.mark.parametrize("words", ["--parts nothing", "--parts tests,no", "--seconds ten", "--no-such"])
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        arguments(words)
    assert stopped.value.code == 2
    if words == "--parts nothing":
        assert "no part nothing: there are tests," in capsys.readouterr().err


def test_the_script_from_any_folder(tmp_path):
    line = ["bash", str(GPU / "run.sh"), "--list"]
    done = subprocess.run(line, cwd=tmp_path, env={"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in parts.NAMES)


# ------------------------------------------------------------------------------- what is missing


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes packages that are only metadata; of these, ``hsd`` is another than the real one."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(preflight, "_extension", lambda: None)
    preflight.version.cache_clear()

    def made(name, version, *needs, python=">=3.10"):
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n")

    yield made
    preflight.version.cache_clear()


def test_all_that_is_missing_is_named_at_once(install):
    install("hsd-diffusion", "9", "old-one>=2", "absent>=3", "there", "wordllama", 'only-tested; extra == "test"')
    install("old-one", "1.5", "not-looked-for")
    install("there", "1", "below>=4", 'elsewhere; python_version < "3"', 'an-extra; extra == "x"')
    install("wordllama", "1", "of-its-loader")
    assert [str(lack) for lack in preflight.of_hsd()] == [
        "old-one>=2 (there is 1.5)",
        "absent>=3 (not there)",
        "below>=4 (not there; there requires it)",
    ]
    assert [requirement.name for requirement in preflight.requirements("hsd-diffusion", "test")] == ["only-tested"]


def test_what_comes_with_a_missing_package_is_named_too(install, monkeypatch):
    install("hsd-diffusion", "9", "no-diffusers-here>=1")
    monkeypatch.setitem(preflight.NEEDS, "no-diffusers-here", ("numpy", "some-backport"))
    assert [lack.requirement for lack in preflight.of_hsd()] == ["no-diffusers-here>=1", "some-backport"]


def test_another_python_and_another_platform(install, monkeypatch):
    install("hsd-diffusion", "9", python=">=3.99")
    monkeypatch.undo()  # the extension, too
    monkeypatch.setattr(preflight.metadata, "metadata", lambda name: {"Requires-Python": ">=3.99"})
    assert preflight._python().requirement == "python>=3.99"

    def cannot_be_loaded(name):
        raise ImportError("wrong ELF class")

    monkeypatch.setattr(preflight.importlib, "import_module", cannot_be_loaded)
    assert "wrong ELF class" in str(preflight._extension())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_without_hsd_its_requirements_are_those_of_the_source(monkeypatch):
    """All of them can be carried at once, hsd and what it needs."""

    def none(name):
        raise preflight.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(preflight.metadata, "requires", none)
    assert {"torch", "diffusers", "platformdirs"} <= {r.name for r in preflight.requirements("hsd-diffusion")}
    assert {"pytest", "peft"} <= {r.name for r in preflight.requirements("hsd-diffusion", "test")}
    assert preflight.requirements("no-such-package") == []


def test_this_environment_lacks_nothing():
    assert preflight.of_hsd() == preflight.of_pytest() == []
    assert preflight.of_tests(preflight.gpu_files()) == {}


def below(names, seen):
    for name in names:
        if (plain := preflight._plain(name)) not in seen:
            seen.add(plain)
            below([requirement.name for requirement in preflight.requirements(name)], seen)
    return seen


def test_what_diffusers_needs_is_known():
    """The list in the code is what diffusers' metadata says, without what hsd's other requirements bring."""
    others = [
        r.name for r in preflight.requirements("hsd-diffusion") if r.name not in {"diffusers", *preflight.ONLY_READ}
    ]
    needs = below(["diffusers"], set()) - below(others, set()) - {"diffusers"}
    assert needs <= {preflight._plain(name) for name in preflight.NEEDS["diffusers"]}


def test_files_and_tests_that_lack_a_package(tmp_path):
    tests = tmp_path / "tests"
    (tests / "inner").mkdir(parents=True)
    (tests / "helper.py").write_text("import no_such_package.part\n")
    (tests / "inner" / "__init__.py").write_text("from .module import x\n")
    (tests / "inner" / "module.py").write_text("import json, bs4_not_there\n")
    files = {
        "test_fine.py": "import torch\ndef test_a(): pass\n",
        "test_through_helper.py": "import helper\n",
        "test_through_package.py": "from inner import x\n",
        "test_inside.py": (
            "import json\ndef make():\n    import not_looked_at\ndef test_a():\n    from peft_not_there import x\n"
            "def test_b():\n    import helper\n"
        ),
    }
    for name, text in files.items():
        (tests / name).write_text(text)
    found = preflight.of_tests(sorted(tests.glob("test_*.py")), tests)
    assert {name: [lack.requirement for lack in lacks] for name, lacks in found.items()} == {
        "tests/test_inside.py::test_a": ["peft_not_there"],
        "tests/test_through_helper.py": ["no_such_package"],
        "tests/test_through_package.py": ["bs4_not_there"],
    }


def test_files_with_a_test_for_a_gpu(tmp_path):
    (tmp_path / "test_a.py").write_text("@pytest.mark.gpu\ndef test_a(): pass\n")
    (tmp_path / "test_b.py").write_text("def test_b(): pass\n")
    assert preflight.gpu_files(tmp_path) == [tmp_path / "test_a.py"]
    assert ROOT / "tests" / "test_gpu.py" in preflight.gpu_files()


def test_the_command_that_downloads_what_is_missing(monkeypatch):
    lacks = [
        Lack("hsd-diffusion", None),
        Lack("diffusers>=0.41", None),
        Lack("python>=3.99", "3.12"),
        Lack("zipp", None, by="x"),
    ]
    lines = preflight.how_to_get(lacks).splitlines()
    assert lines[1].split()[0] == "maturin"
    words = shlex.split(lines[2])
    assert words[:4] == ["python3", "-m", "pip", "download"]
    assert words[-2:] == ["diffusers>=0.41", "zipp"]
    assert words[words.index("--python-version") + 1] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert preflight.how_to_get([Lack("python>=3.99", "3.12")]) == ""
    assert preflight._platforms("x86_64", "2.28") == [
        *("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64"),
        *("manylinux2014_x86_64", "any"),
    ]


def test_the_carried_wheels_are_what_the_script_says():
    text = (GPU / "run.sh").read_text().replace("\\\n#", "")
    (line,) = re.findall(r"pip download (.*)", text)
    carried = {Requirement(word).name for word in line.split() if re.match(r"[a-z]", word)} - {"cp", "cp312", "abi3"}
    assert {"diffusers", "importlib-metadata", "lazy-importer", "platformdirs", "wordllama"} <= carried


# ------------------------------------------------------------------------------- which parts run


@pytest.fixture
def lacks(monkeypatch):
    """What a machine lacks, to be filled."""
    found = {"hsd": [], "pytest": [], "tests": {}, "imports": None}
    monkeypatch.setattr(preflight, "of_hsd", lambda: found["hsd"])
    monkeypatch.setattr(preflight, "of_pytest", lambda: found["pytest"])
    monkeypatch.setattr(preflight, "of_tests", lambda files: found["tests"])
    monkeypatch.setattr(preflight, "import_error", lambda python: found["imports"])
    monkeypatch.setattr(preflight, "gpu", lambda python: ("some GPU", None))
    return found


CHOSEN = [part for part in parts.PARTS if part.name in ("tests", "loop")]


def checked(data):
    runnable, why = run_parts.check(CHOSEN, data)
    return [part.name for part in runnable], sorted(why)


def test_without_a_dependency_nothing_runs(lacks, tmp_path, capsys):
    lacks["hsd"] = [Lack("diffusers>=0.41", "0.30")]
    assert checked(tmp_path) == ([], ["loop", "tests"])
    printed = capsys.readouterr().out
    assert "MISSING: diffusers>=0.41 (there is 0.30)\n" in printed
    assert "pip download" in printed
    assert "NOT RUN: tests, loop: lacks diffusers>=0.41" in printed


def test_without_pytest_the_benchmarks_run(lacks, tmp_path, capsys):
    lacks["pytest"] = [Lack("pytest-timeout>=2.3", None)]
    assert checked(tmp_path) == (["loop"], ["tests"])
    lacks["pytest"], lacks["tests"] = [], {"tests/test_gpu.py::test_a": [Lack("peft>=0.18", None)]}
    capsys.readouterr()
    assert checked(tmp_path) == (["tests", "loop"], [])
    printed = capsys.readouterr().out
    assert "MISSING: peft>=0.18 (not there)" in printed
    assert "NOT RUN: tests/test_gpu.py::test_a: lacks peft>=0.18" in printed


def test_the_default_encoder_is_needed_for_bundled_prompts_alone(lacks, tmp_path):
    lacks["hsd"] = [Lack("wordllama>=0.4.0", None)]
    assert checked(tmp_path) == (["tests"], ["loop"])
    (tmp_path / "prompts").mkdir()
    assert checked(tmp_path) == (["tests", "loop"], [])


def test_what_a_package_requires_counts_if_imports_fail(lacks, tmp_path, capsys):
    lacks["hsd"] = [Lack("zipp", None, by="importlib-metadata")]
    assert checked(tmp_path) == (["tests", "loop"], [])
    assert "MISSING: zipp (not there; importlib-metadata requires it)" in capsys.readouterr().out
    lacks["imports"] = "ModuleNotFoundError: No module named 'zipp'"
    assert checked(tmp_path) == ([], ["loop", "tests"])


def test_without_a_gpu_nothing_runs(lacks, monkeypatch, tmp_path, capsys):
    assert run_parts.main(["--check", "--parts", "loop,sdxl"]) == 0
    assert capsys.readouterr().out == "nothing is missing for loop, sdxl\nGPU: some GPU\n"
    monkeypatch.setattr(preflight, "gpu", lambda python: ("", "torch 2.4 finds no GPU"))
    monkeypatch.setattr(run_parts.shutil, "which", lambda name: None)
    for words in ([str(tmp_path / "out")], ["--check"]):
        assert run_parts.main(words) == 1
        printed = capsys.readouterr().out
        assert "GPU: torch 2.4 finds no GPU\nNOT RUN: all parts need a GPU" in printed
    assert not (tmp_path / "out").exists()
    assert run_parts.main(["--check", "--small"]) == 0


def test_the_gpu_is_the_one_that_torch_finds(monkeypatch, tmp_path):
    torch = tmp_path / "torch.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    text = "class cuda:\n  is_available = lambda: {}\n  get_device_name = lambda: 'A100'\n__version__ = '2.4'\n"
    torch.write_text(text.format(True))
    assert preflight.gpu(sys.executable) == ("A100 with torch 2.4", None)
    torch.write_text(text.format(False))
    assert preflight.gpu(sys.executable) == ("", "torch 2.4 finds no GPU")
    torch.write_text("import sys; print('an old driver', file=sys.stderr)\n" + text.format(False))
    assert preflight.gpu(sys.executable) == ("", "an old driver torch 2.4 finds no GPU")
    torch.write_text("raise OSError('no libcuda')")
    assert preflight.gpu(sys.executable) == ("", "OSError: no libcuda")


def script(monkeypatch, text):
    """Every part is this program; the command's arguments come after it."""
    monkeypatch.setattr(parts.Part, "command", lambda *args, **how: [sys.executable, "-c", text])


def test_a_part_that_takes_too_long_ends_with_its_processes(monkeypatch, tmp_path):
    """The child would write its file after two seconds."""
    file = tmp_path / "child"
    child = f"import time; time.sleep(2); open({str(file)!r}, 'w')"
    script(monkeypatch, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    began = time.monotonic()
    assert run_parts.run(CHOSEN[1], 1, arguments(str(tmp_path))) == "stopped at its limit"
    assert time.monotonic() - began < 1.9
    time.sleep(max(0.0, began + 2.5 - time.monotonic()))
    assert not file.exists()


def test_parts_that_fail_or_have_no_time_are_named(monkeypatch, tmp_path, capfd, lacks):
    script(monkeypatch, "import sys; sys.exit('oil' in 'turmoil')")
    monkeypatch.setattr(run_parts, "STARTED", time.monotonic())  # the import, which other tests came after
    words = ["--seconds", "100", "--parts", "loop,denoiser,sdxl", "-k", "x", str(tmp_path)]
    assert run_parts.main(words) == 1
    printed = capfd.readouterr().out
    assert "FAILED: loop (exit status 1), denoiser (exit status 1), sdxl (" in printed
    assert "s were left, and it may need 120)" in printed
    assert f"once more: benches/gpu/run.sh --seconds 100 --parts loop,denoiser,sdxl {tmp_path}" in printed
    script(monkeypatch, "")
    assert run_parts.main(["--parts", "loop", str(tmp_path)]) == 0


def test_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_parts, "HERE", tmp_path)
    monkeypatch.setattr(run_parts, "ROOT", tmp_path)
    assert run_parts.main(["--report", str(tmp_path)]) == 2
    assert "no paper.py here" in capsys.readouterr().err
    (tmp_path / "paper.py").write_text("import sys; open('words', 'w').write('\\n'.join(sys.argv[1:])); sys.exit(3)")
    assert run_parts.main(["--report", str(tmp_path)]) == 2
    assert "no gpu-*.json in" in capsys.readouterr().err
    (tmp_path / "gpu-loop.json").write_text("{}")
    assert run_parts.main(["--report", str(tmp_path)]) == 3
    words = (tmp_path / "words").read_text().split("\n")
    assert words == ["--results", str(tmp_path), "--write", str(tmp_path / "docs" / "gpu.md")]


# ------------------------------------------------------------------------------- the tests that are continued

SUITE = """
import importlib, pathlib, time
import pytest

pytestmark = pytest.mark.gpu
HERE = pathlib.Path(__file__).parent

@pytest.fixture(autouse=True)
def counted(request):
    with open(HERE / "ran.txt", "a") as file:
        file.write(request.node.name + "\\n")

@pytest.mark.parametrize("n", [1, 11])
def test_passes(n):
    time.sleep(0.01)

def test_passes_too():
    pass

def test_mend():  # the beginning of the next name
    pass

def test_mended():
    assert (HERE / "mended").exists(), "not yet"

def test_lacks():
    importlib.import_module("no_such_package")

def test_lacks_in_hsd():
    raise RuntimeError("the default encoder needs the package no_such_encoder: pip install no_such_encoder")

def test_skipped():
    pytest.skip("no such device")
"""


class Suite:
    """A folder with tests, and what a call did with them."""

    def __init__(self, folder, monkeypatch):
        self.file = folder / "tests" / "test_of_a_gpu_run.py"
        self.json = folder / "out" / "gpu-tests.json"
        self.file.parent.mkdir()
        self.file.write_text(SUITE)
        ini = folder / "pytest.ini"
        ini.write_text("[pytest]\nmarkers = gpu\n")
        monkeypatch.setattr(gpu_tests, "ROOT", folder)

        def here(line, env, **how):
            monkeypatch.setattr("xdist.workermanage._sys_path", [env["PYTHONPATH"].split(os.pathsep)[0], *sys.path])
            return pytest.main([*line[3:], "-c", str(ini)])

        monkeypatch.setattr(gpu_tests, "subprocess", SimpleNamespace(run=here))

    def call(self, *words):
        """The status, and the names of the tests that ran. pytest runs in this process, which has imported torch."""
        ran = self.file.parent / "ran.txt"
        ran.write_text("")
        sys.modules.pop(self.file.stem, None)
        status = gpu_tests.main(["--json", str(self.json), *words, str(self.file)])
        return status, sorted(ran.read_text().split())

    @property
    def results(self):
        tests = json.loads(self.json.read_text())["sections"]["tests"]
        return {name.split("::")[1]: test for name, test in tests["tests"].items()}

    @property
    def section(self):
        return json.loads(self.json.read_text())["sections"]["tests"]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    return Suite(tmp_path, monkeypatch)


PASSES = ["test_passes[11]", "test_passes[1]", "test_passes_too"]  # as names are sorted
ALL = ["test_lacks", "test_lacks_in_hsd", "test_mend", "test_mended", *PASSES, "test_skipped"]
LEFT = ["test_lacks", "test_lacks_in_hsd", "test_mended", "test_skipped"]


def test_a_later_call_runs_what_has_not_passed(suite, capfd):
    """Whole names count: passed tests whose names others begin with are no reason to leave these out."""
    status, ran = suite.call("--small")
    assert (status, ran) == (1, ALL)
    printed = capfd.readouterr().out
    assert "FAILED tests/test_of_a_gpu_run.py::test_mended: AssertionError: not yet" in printed
    assert "LACKS tests/test_of_a_gpu_run.py::test_lacks: lacks no_such_package" in printed
    assert "slowest 15 durations" in printed
    assert suite.section["outcomes"] == {"passed": 4, "failed": 1, "lacks": 2, "skipped": 1}
    assert suite.results["test_passes[1]"]["seconds"] >= 0.01
    assert suite.results["test_lacks_in_hsd"]["why"] == "lacks no_such_encoder"

    (suite.file.parent / "mended").touch()
    assert suite.call("--small", "--processes", "2") == (1, LEFT)
    assert suite.section["outcomes"] == {"passed": 5, "lacks": 2, "skipped": 1}
    assert suite.section["whole"]
    assert len(suite.results) == len(ALL)


def test_processes_that_all_die_at_once_are_no_success(suite, monkeypatch):
    suite.file.write_text(SUITE + "\nimport os\nif 'PYTEST_XDIST_WORKER' in os.environ: os._exit(3)\n")
    assert suite.call("--small", "--processes", "2") == (1, [])
    assert not suite.section["whole"]


def test_other_code_runs_all_again(suite, capfd):
    names = ["-k", "passes or skipped"]
    assert suite.call("--small", *names) == (0, [*PASSES, "test_skipped"])
    suite.file.write_text(SUITE + "\n# changed\n")
    assert suite.call("--small", *names) == (0, [*PASSES, "test_skipped"])
    assert "of other code or another device" in capfd.readouterr().out
    assert suite.call("--small", *names) == (0, ["test_skipped"])
    assert suite.call("--small", "--again", *names) == (0, [*PASSES, "test_skipped"])


def test_no_test_starts_that_may_end_too_late(suite, capfd):
    """The limit is over before the first one starts: it runs, and is kept."""
    status, ran = suite.call("--small", "--limit", "1", "-k", "passes or skipped")
    assert (status, ran) == (1, ["test_passes[1]"])
    assert not suite.section["whole"]
    assert "not all tests have run" in capfd.readouterr().out
    assert suite.call("--small", "-k", "passes or skipped") == (
        0,
        ["test_passes[11]", "test_passes_too", "test_skipped"],
    )
    assert suite.section["whole"]


def test_a_file_that_cannot_be_collected(suite, capfd):
    suite.file.write_text("raise ValueError('broken')")
    assert suite.call("--small") == (1, [])
    assert suite.section["not_collected"] == ["tests/test_of_a_gpu_run.py"]
    assert "NOT COLLECTED tests/test_of_a_gpu_run.py" in capfd.readouterr().out


def test_what_lacks_a_package_is_left_out_by_name(suite, capfd):
    """One test of a file that is run, and a whole other file."""
    suite.file.write_text(f"{SUITE}\ndef test_passes_and_more():\n    import no_such_package\n")
    other = suite.file.with_name("test_other.py")
    other.write_text("import no_such_package\n")
    assert suite.call("--small", "-k", "passes", str(other)) == (1, PASSES)
    assert "LEFT OUT tests/test_other.py: needs no_such_package (not there)" in capfd.readouterr().out
    assert {skipped["what"]: skipped["why"] for skipped in json.loads(suite.json.read_text())["skipped"]} == {
        "tests/test_of_a_gpu_run.py::test_passes_and_more": "needs no_such_package (not there)",
        "tests/test_other.py": "needs no_such_package (not there)",
    }


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("No module named 'a.b'", name="no_such.part"), "no_such"),
        (ModuleNotFoundError("No module named 'torch.nothing'", name="torch.nothing"), None),
        (ValueError("it needs the package no_such_one: pip install no_such_one"), "no_such_one"),
        (ValueError("it needs the package torch"), None),
        (ImportError("cannot import name x"), None),
    ],
)
def test_which_errors_are_a_missing_package(error, package):
    assert ledger.lacking(error) == package
