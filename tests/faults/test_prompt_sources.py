"""Prompts from things that are no files with an end: each is refused at once, and what ends is read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

import hsd
from hsd.prompts import source
from hsd.prompts.files import read_prompts

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == "nt", reason="pipes with names and devices")]

LIST = [sys.executable, "-c", "import hsd, sys; print(hsd.read_prompts(sys.argv[1]).prompts)"]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/full"])
def test_devices(device):
    started = time.monotonic()
    with pytest.raises(hsd.PromptError, match=f"from {device}: it is a device, which has no end"):
        read_prompts(device)
    assert time.monotonic() - started < 2


def test_a_device_as_standard_input():
    with open("/dev/zero", "rb") as zero:
        run = subprocess.run([*LIST, "-"], stdin=zero, capture_output=True, text=True, timeout=60)
    assert "standard input: it is a device, which has no end" in run.stderr
    run = subprocess.run([*LIST, "-"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "standard input has no prompts" in run.stderr


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_standard_input(source):
    run = subprocess.run([*LIST, source], input="a cat\na dog\n", capture_output=True, text=True, timeout=60)
    assert run.stdout == "['a cat', 'a dog']\n", run.stderr


def test_process_substitution():
    code = f"{LIST[0]} -c '{LIST[2]}' <(sleep 0.3; echo a cat; sleep 0.3; echo a dog)"
    run = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "['a cat', 'a dog']\n", run.stderr


def test_a_pipe_with_a_name(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write():
        time.sleep(0.2)  # it is opened after the reader
        with open(path, "w") as pipe:
            pipe.write("a cat\n")
            pipe.flush()
            time.sleep(0.2)
            pipe.write("a dog\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_prompts(path).prompts == ["a cat", "a dog"]
    finally:
        writer.join()


def test_a_pipe_that_nothing_writes_to(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_WAIT", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(hsd.PromptError, match="it is a pipe that nothing writes to: start what writes to it first"):
        read_prompts(path)


def test_a_pipe_without_end(monkeypatch):
    monkeypatch.setattr(source, "MAX_BYTES", 10_000)
    with subprocess.Popen(["yes", "a cat"], stdout=subprocess.PIPE) as endless:
        try:
            with pytest.raises(hsd.PromptError, match="more than 10,000 bytes, which is no list of prompts"):
                read_prompts(f"/dev/fd/{endless.stdout.fileno()}")
        finally:
            endless.kill()


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(source.MAX_BYTES + 1)  # takes no space
    with pytest.raises(hsd.PromptError, match="it has 1,073,741,825 bytes, which is no list of prompts"):
        read_prompts(path)


def test_sockets_folders_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
        with pytest.raises(hsd.PromptError, match="from socket: it is a socket"):
            read_prompts("socket")
    with pytest.raises(hsd.PromptError, match="cannot read .* as a data set"):
        read_prompts(tmp_path)
    for name in ("a\0b", "x" * 5000, "no/such/file", "~nobody-has-this-name/p.txt"):
        with pytest.raises(hsd.PromptError, match="cannot read prompts"):
            read_prompts(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a cat\n")
    assert read_prompts("~/p.txt").prompts == ["a cat"]
