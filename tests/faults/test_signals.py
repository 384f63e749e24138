"""Ctrl-C, SIGTERM and SIGHUP end the command in order, whatever it is doing; in Python nothing is changed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import hsd
from hsd import cli

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")]

RUNNER = """
import json, os, signal, sys, time

for number in (signal.SIGTERM, signal.SIGHUP):  # the tests may run under nohup, which is inherited
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

def ended(arguments, before):
    # Runs the command in a fork, after the code \"before\": its exit code, and what it says.
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        exec(before, {"os": os, "signal": signal, "sys": sys, "time": time})
        sys.argv = ["hsd", *arguments]
        from hsd.cli import main
        main()
        os._exit(99)
    os.close(write)
    said = b""
    while some := os.read(read, 1 << 16):
        said += some
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()

import hsd.cli

starting, running = json.loads(sys.argv[1])
found = [ended(*case) for case in starting]
import hsd
import hsd.generation
hsd.load("demo")  # with all that it imports
found += [ended(*case) for case in running]
print(json.dumps(found))
"""
"""All cases in one process that imports torch once."""

AT_IMPORT = """
class Raise:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            signal.raise_signal({number})

sys.meta_path.insert(0, Raise())
"""

AFTER_IMAGES = """
from hsd.generation.folder import ImageFolder

add, added = ImageFolder.add, []

def add_and_more(self, index, *rest):
    path = add(self, index, *rest)
    added.append(index)
    {after}
    return path

ImageFolder.add = add_and_more
"""
"""Something in a thread after each image that is written."""

GENERATE = ["generate", "p.txt", "--steps", "3", "--batch-size", "1", "--tau", "0"]

COMMANDS = [
    [*GENERATE, "--out", "i"],
    ["calibrate", "demo"],
    ["bench", "demo"],
    ["check", "demo"],
    ["tune", "demo", "p.txt", "--out", "t"],
    ["reproduce", "--prompts", "p.txt", "r"],
    ["evaluate", "i", "--scorer", "clipscore"],
]

STARTING = {
    **{command[0]: (command, "torch", signal.SIGINT) for command in COMMANDS},
    "plan": (["plan", "p.txt", "--model", "stand-in"], "wordllama", signal.SIGINT),
    "SIGTERM": (COMMANDS[0], "torch", signal.SIGTERM),
    "SIGHUP": (COMMANDS[0], "torch", signal.SIGHUP),
}

RUNNING = {
    # SIGHUP is ignored at the start, so it changes nothing; SIGTERM does.
    "nohup": (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n",
        "os.kill(os.getpid(), signal.SIGHUP if len(added) == 1 else signal.SIGTERM) if len(added) < 3 else None",
    ),
    # Another signal during an end that does not end.
    "twice": (
        "",
        "os.kill(os.getpid(), signal.SIGHUP); time.sleep(1); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
    ),
    # The same signal, from a terminal and from a launcher.
    "same": ("", "for _ in range(2 if len(added) == 1 else 0): os.kill(os.getpid(), signal.SIGINT)"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    (folder / "p.txt").write_text("".join(f"a red star number {i}\n" for i in range(8)))
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """Exit code and output of each case."""
    starting = [
        (command, AT_IMPORT.format(module=module, number=int(number))) for command, module, number in STARTING.values()
    ]
    running = [
        ([*GENERATE, "--out", name], before + AFTER_IMAGES.format(after=after))
        for name, (before, after) in RUNNING.items()
    ]
    cases = json.dumps([starting, running])
    run = subprocess.run([sys.executable, "-c", RUNNER, cases], capture_output=True, text=True, cwd=folder, timeout=500)
    assert run.returncode == 0, run.stderr
    return dict(zip([*STARTING, *RUNNING], json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("case", STARTING)
def test_any_command_ends_quietly_while_it_starts(ended, case):
    code, said = ended[case]
    assert code == 128 + STARTING[case][2], said
    assert said.startswith("hsd: interrupted"), said
    assert said.count("\n") == 1, said


def test_sigterm_keeps_what_is_made_and_nohup_is_heard(ended, folder):
    code, said = ended["nohup"]
    assert code == 143, said
    assert said.strip().endswith("hsd: interrupted; run the same command again to continue")
    assert "Traceback" not in said
    out = folder / "nohup"
    made = len((out / "metadata.jsonl").read_text().splitlines())
    assert 2 <= made < 8
    record = json.loads((out / "run.json").read_text())["runs"][-1]
    assert (record["outcome"], record["error"]) == ("interrupted", "Stopped: SIGTERM")
    assert record["images"] == made == len(list(out.glob("*.png")))
    run = hsd.generate(hsd.Plan.load(out / "plan.safetensors"), "demo", out, batch_size=1, progress=False)
    assert (run.existing, run.images) == (made, 8 - made)


def test_a_second_signal_ends_the_command_at_once(ended):
    code, said = ended["twice"]
    assert code == 130, said
    assert "Traceback" not in said
    assert "interrupted" not in said


def test_a_signal_that_comes_twice_is_one(ended, folder):
    code, said = ended["same"]
    assert code == 130, said
    assert said.strip().endswith("hsd: interrupted; run the same command again to continue")
    record = json.loads((folder / "same" / "run.json").read_text())["runs"][-1]
    assert record["outcome"] == "interrupted"
    assert record["images"] == len((folder / "same" / "metadata.jsonl").read_text().splitlines()) > 0


def test_before_the_command_runs_it_is_quiet_too(tmp_path):
    script = tmp_path / "hsd"  # as installed
    script.write_text(
        "import signal, sys\n"
        "class Raise:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Raise())\n"
        "from hsd.cli import main\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert run.returncode in (130, -signal.SIGINT)
    assert run.stderr == ""


def test_python_programs_keep_their_handlers(model, plan, tmp_path):
    numbers, seen = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), []
    before = [signal.getsignal(number) for number in numbers]
    hsd.generate(
        plan.prune([0]), model, tmp_path, progress=lambda *_: seen.append([signal.getsignal(n) for n in numbers])
    )
    assert seen
    assert all(each == before for each in seen)


@pytest.mark.parametrize("error", [OSError("cannot load the weights"), ValueError("x"), SystemExit(130)])
def test_a_library_may_turn_the_interruption_into_an_error(error, monkeypatch, capsys):
    def app():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(cli, "app", app)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 143
    assert "cannot load" not in capsys.readouterr().err


def test_output_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    def app():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "hsd: cannot write the output: No space left on device\n"
