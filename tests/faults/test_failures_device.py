"""A device that fails, or has no memory left, ends the run with an error that says when, and what to do."""

from __future__ import annotations

import json
import sys

import PIL.Image
import pytest
import torch

import hsd
import tiny
from hsd import cli
from hsd.generation.decoding import Decoder
from hsd.replay.executor import Executor
from hsd.replay.feed import Feeder
from hsd.work.faults import device_errors, ends_run, first_line

pytestmark = pytest.mark.faults

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the documentation.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"


def failed():
    return torch.AcceleratorError(ILLEGAL)


@pytest.fixture(scope="module")
def sd():
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)


@pytest.fixture(scope="module")
def plan(sd):
    return hsd.compile([f"prompt {i}" for i in range(9)], 0.0, model=sd, steps=2)


def loaded(plan, folder):
    """The plan without the encodings that :func:`hsd.compile` has made."""
    plan.save(folder / "plan.safetensors")
    return hsd.Plan.load(folder / "plan.safetensors")


def dying(monkeypatch, kind, name, after, error, dead=False):
    """From the call number ``after`` on, a method raises ``error``; with ``dead``, all that follows does too."""
    own, calls = getattr(kind, name), []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            if dead:
                monkeypatch.setattr(hsd.models.Adapter, "free", lambda self: (_ for _ in ()).throw(failed()))
            raise error
        return own(*args, **kwargs)

    monkeypatch.setattr(kind, name, method)


PLACES = {
    "encode": ("encoding the prompts", lambda sd: (type(sd), "encode"), 0),
    "shared": ("encoding the prompts", lambda sd: (type(sd), "shared"), 0),
    "buffers": ("denoising", lambda sd: (Executor, "__init__"), 0),
    "pinned memory": ("denoising", lambda sd: (Feeder, "_feed"), 2),
    "copies": ("denoising", lambda sd: (Executor, "_place"), 2),
    "denoiser": ("denoising", lambda sd: (type(sd), "denoise"), 2),
    "end": ("denoising", lambda sd: (Executor, "wait"), 0),
    "prepared": ("decoding images", lambda sd: (type(sd), "decoding"), 0),
    "decoder": ("decoding images", lambda sd: (type(sd), "decode"), 1),
}


CASES = [(place, True, False) for place in PLACES]
CASES += [(place, dead, True) for place in ("denoiser", "prepared", "decoder") for dead in (False, True)]


@pytest.mark.parametrize(("place", "dead", "threaded"), CASES)
def test_wherever_a_device_fails_it_is_said_clearly(sd, plan, tmp_path, monkeypatch, place, dead, threaded):
    doing, where, after = PLACES[place]
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 2, threaded=threaded))
    plan, error = loaded(plan, tmp_path), failed()
    dying(monkeypatch, *where(sd), after, error, dead)
    with pytest.raises(hsd.DeviceFailed) as raised:
        hsd.generate(plan, sd, tmp_path / "images", batch_size=2, progress=False)
    assert raised.value.__cause__ is error
    assert raised.match(
        rf"^the device failed while {doing}, or shortly before: CUDA error: an illegal memory access was encountered\. "
        r"Images that are finished are kept, .*: start again, in a new process"
    )
    assert "\n" not in str(raised.value)
    (record,) = json.loads((tmp_path / "images" / "run.json").read_text())["runs"]
    assert record["outcome"] == "failed"
    assert record["error"].startswith("DeviceFailed: the device failed while")
    entries = tmp_path / "images" / "metadata.jsonl"
    made = [json.loads(line) for line in entries.read_text().splitlines()] if entries.exists() else []
    assert record["images"] == len(made)
    assert record["failed"] == 0
    assert not (tmp_path / "images" / "failed.jsonl").exists()
    for entry in made:
        PIL.Image.open(tmp_path / "images" / entry["file_name"]).load()  # nothing is half written
    monkeypatch.undo()
    run = hsd.generate(plan, sd, tmp_path / "images", batch_size=2, progress=False)  # in a new process
    assert (run.existing, run.images) == (len(made), len(plan) - len(made))


@pytest.mark.parametrize("place", ["encode", "buffers", "copies", "end", "prepared"])
def test_memory_that_runs_out_where_nothing_can_be_smaller(sd, plan, tmp_path, monkeypatch, place):
    doing, where, after = PLACES[place]
    error = torch.OutOfMemoryError(FULL)
    dying(monkeypatch, *where(sd), after, error)
    with pytest.raises(hsd.OutOfMemory, match=rf"^out of memory while {doing}: CUDA out of memory") as raised:
        list(hsd.stream(loaded(plan, tmp_path), sd, batch_size=2))
    assert raised.value.__cause__ is error
    assert raised.match(r"a smaller batch_size= or max_slots=\. Smaller images need less")


def test_a_single_latent_that_does_not_fit_has_a_way_out_too(sd, plan, monkeypatch):
    dying(monkeypatch, type(sd), "denoise", 0, torch.OutOfMemoryError(FULL))
    with (
        pytest.warns(hsd.errors.Notice, match="continuing with 1"),
        pytest.raises(hsd.OutOfMemory, match=r"a single one of the latents .*79\.10 GiB\. Smaller images need less"),
    ):
        list(hsd.stream(plan, sd, batch_size=2))


def test_a_plan_of_the_stand_in_is_encoded_under_the_same_watch(sd, tmp_path, monkeypatch):
    plan = hsd.compile([f"prompt {i}" for i in range(3)], 0.5, steps=2)
    dying(monkeypatch, type(sd), "encode", 0, failed())
    for run in (lambda: list(hsd.stream(plan, sd)), lambda: hsd.generate(plan, sd, tmp_path, progress=False)):
        with pytest.raises(hsd.DeviceFailed, match="while encoding the prompts"):
            run()


@pytest.mark.parametrize("run", ["stream", "generate"])
def test_a_model_that_does_not_fit(plan, tmp_path, monkeypatch, run):
    def load(*_, **__):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(f"hsd.generation.{'streaming' if run == 'stream' else 'run'}.load", load)
    with pytest.raises(hsd.OutOfMemory, match="while loading the model"):
        hsd.stream(plan, "x") if run == "stream" else hsd.generate(plan, "x", tmp_path)


# ------------------------------------------------------------------------------- which errors these are


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError(FULL), hsd.OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile with ..."), hsd.OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), hsd.OutOfMemory),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), hsd.OutOfMemory),
        (torch.AcceleratorError(ILLEGAL), hsd.DeviceFailed),
        (RuntimeError("CUDA error: device-side assert triggered"), hsd.DeviceFailed),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), hsd.DeviceFailed),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), hsd.DeviceFailed),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_errors_of_a_device(error, kind):
    assert ends_run(error)
    with pytest.raises(kind) as raised, device_errors(lambda: "working"):
        raise error
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert "while working" in str(raised.value)
    assert first_line(error) in str(raised.value)
    assert isinstance(raised.value, (hsd.Error, RuntimeError))


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), MemoryError(), hsd.OutOfMemory("out of memory"), KeyboardInterrupt()]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, device_errors(lambda: "working"):
        raise error
    assert raised.value is error
    assert raised.value.__cause__ is None


def test_one_line_of_a_long_message():
    assert first_line(RuntimeError(ILLEGAL)) == "CUDA error: an illegal memory access was encountered"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(RuntimeError("a\tb\x1b[31m.")) == "a?b?[31m"
    assert len(first_line(RuntimeError("x" * 1000))) == 300


@pytest.mark.parametrize(
    ("place", "doing"), [("running", "denoising"), ("encode", "encoding the prompts"), ("load", "running this command")]
)
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, place, doing):
    prompts, out, demo = tmp_path / "prompts.txt", tmp_path / "images", type(hsd.load("demo"))
    prompts.write_text("a red star\na blue star\n")
    monkeypatch.setattr(sys, "argv", f"hsd generate {prompts} --model demo --out {out} --steps 2".split())
    dying(monkeypatch, hsd.models if place == "load" else demo, place, 0, failed())
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"hsd: the device failed while {doing}, or shortly before: CUDA error: an illegal")
    assert not any("Traceback" in line for line in said)
    if place == "running":
        assert json.loads((out / "run.json").read_text())["runs"][-1]["outcome"] == "failed"
