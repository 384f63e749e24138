"""A run on CUDA in which something fails: memory, a capture, one lane, the decoder, the device itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import PIL.Image
import pytest
import torch

import gpu_cases
import hsd
import tiny
from gpu_cases import EAGER, PROMPTS, ddpm, eager_latents, images_of, many, near, needs_gpu, reserved
from helpers import latents_of, mean_difference, share_apart

pytestmark = [pytest.mark.gpu, needs_gpu]

MIB = 1 << 20


@pytest.fixture
def patched(monkeypatch):
    """Replaces ``denoise`` of a model's class by ``change(own, self, latents, timestep, rows)``, for one test."""

    def patch(model, change):
        own = type(model).denoise
        monkeypatch.setattr(type(model), "denoise", lambda self, *args: change(own, self, *args))

    return patch


# ------------------------------------------------------------------------------- captures


def reading(own, self, latents, timestep, rows):
    """A denoiser that reads a value back, which no capture may do."""
    assert float(latents.square().sum()) >= 0
    return own(self, latents, timestep, rows)


def test_a_capture_that_fails():
    """One warning with its cause, then calls run eagerly; and torch's allocator is as it was before."""
    model = ddpm()
    plan = many(model)
    expected = eager_latents(plan, model)
    with pytest.MonkeyPatch.context() as patch:
        own = type(model).denoise
        patch.setattr(type(model), "denoise", lambda self, *args: reading(own, self, *args))
        with pytest.warns(hsd.Notice, match="one kernel at a time: .*not permitted when stream is capturing") as warned:
            latents = latents_of(plan, model, batch_size=6)
    assert sum(issubclass(warning.category, hsd.Notice) for warning in warned) == 1
    assert near(latents, expected)
    torch.rand(2, device=gpu_cases.DEVICE)  # the generator has left the capture too
    # Memory that another stream has used: while the allocator believes that it captures, it never takes it back.
    before = reserved()
    stream = torch.cuda.Stream()
    block = torch.empty(64 * MIB, dtype=torch.uint8, device=gpu_cases.DEVICE)
    block.record_stream(stream)
    assert torch.cuda.memory_reserved() >= before + 64 * MIB
    del block
    assert reserved() <= before
    # And another model's calls are captured.
    with gpu_cases.counted_captures() as count:
        assert near(latents_of(plan, ddpm(), batch_size=6), expected)
    assert count[0] > 0


# ------------------------------------------------------------------------------- memory


def more_than_three(own, self, latents, timestep, rows):
    """A denoiser that needs more memory than any device has for more than three lanes."""
    if len(latents) > 3:
        torch.empty(1 << 50, dtype=torch.uint8, device=gpu_cases.DEVICE)
    return own(self, latents, timestep, rows)


def test_out_of_memory_cuts_calls(patched):
    model = ddpm()
    plan = many(model)
    expected = eager_latents(plan, model)
    patched(model, more_than_three)
    with pytest.warns(UserWarning, match="out of memory with [456] latents"):
        assert near(latents_of(plan, model, batch_size=6), expected)


@pytest.fixture
def limit():
    """``limit(n)``: from now on torch may allocate only n bytes more."""

    def set_to(n_bytes):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((reserved() + n_bytes) / total)

    yield set_to
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("mib", [4, 16, 48])
def test_little_memory(limit, mib):
    """The same images, in smaller calls, or an error that says that the memory is too small."""
    model = ddpm()
    plan = many(model, steps=4)
    expected = images_of(plan, model, cuda_graphs=False)
    limit(mib * MIB)
    images = None
    with warnings.catch_warnings(), contextlib.suppress(hsd.OutOfMemory):
        warnings.simplefilter("ignore", hsd.Notice)
        images = images_of(plan, model, batch_size=40)
    if images is not None:
        assert sorted(images) == sorted(expected)
        assert all(mean_difference(images[i], expected[i]) < 0.5 for i in expected)


def test_memory_does_not_grow_with_the_prompts():
    """In depth-first order, slots are bounded by batch size and steps."""
    model, peaks, counts = ddpm(), [], (20, 100)
    for n in counts:
        plan = hsd.compile([f"{prompt} {i}" for i in range(n) for prompt in PROMPTS], 0.6, steps=12)
        before = reserved()
        torch.cuda.reset_peak_memory_stats()
        kept = latents_of(plan, model, EAGER, batch_size=6)
        assert len(kept) == n * len(PROMPTS)
        peaks.append(torch.cuda.max_memory_allocated())
        assert before < peaks[-1]
        del kept
    more = (counts[1] - counts[0]) * len(PROMPTS)
    assert peaks[1] < 1.1 * peaks[0] + 512 * more  # besides the latents that the test keeps, each in a block of 512


# ------------------------------------------------------------------------------- one image


def test_a_lane_of_nan_loses_its_own_image_only(tmp_path, monkeypatch):
    model = ddpm()
    plan = hsd.compile(PROMPTS * 4, 0.0, model=model, steps=12, seeds=50)  # nothing is shared
    good = images_of(plan, model)
    own = type(model).first_noise

    def first_noise(self, generator):
        noise = own(self, generator)
        return noise * float("nan") if generator.initial_seed() == 57 else noise

    monkeypatch.setattr(type(model), "first_noise", first_noise)
    with pytest.warns(hsd.Notice, match="1 of 20 images failed"):
        run = hsd.generate(plan, model, tmp_path, batch_size=6, progress=False)
    assert [(failure.index, failure.stage) for failure in run.failed] == [(7, "denoise")]
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == [i for i in range(20) if i != 7]
    for line in lines:
        with PIL.Image.open(tmp_path / line["file_name"]) as picture:
            assert share_apart(picture, good[line["index"]]) == 0


def test_a_decoder_that_overflows_in_half_precision():
    """Its first layer gives more than float16 holds, which the layers after it take away again."""
    pipe = tiny.stable_diffusion().to(gpu_cases.DEVICE)
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight *= 3e4
        pipe.vae.decoder.conv_in.bias *= 3e4
    settings = {"height": 32, "width": 32}
    plan = hsd.compile(PROMPTS, 0.0, steps=4)
    pipe.vae.half()
    half = [weight.clone() for weight in pipe.vae.parameters()]
    model = hsd.load(pipe, **settings)
    with pytest.warns(hsd.Notice, match="overflows in half precision"):
        images = list(hsd.stream(plan, model, batch_size=4))
    assert all(image.upcast for image in images)
    assert all(torch.equal(a, b) for a, b in zip(pipe.vae.parameters(), half, strict=True))
    pipe.vae.float()
    expected = images_of(plan, hsd.load(pipe, **settings), batch_size=4)
    assert sorted(expected) == list(range(len(PROMPTS)))
    assert all(mean_difference(image.pil, expected[image.index]) < 0.5 for image in images)


# ------------------------------------------------------------------------------- the device

DIES = """
    import itertools, os, sys
    import torch
    import hsd
    import gpu_cases

    def out_of_bounds():
        torch.zeros(2, device=gpu_cases.DEVICE).index_select(0, torch.tensor([7], device=gpu_cases.DEVICE))

    torch.set_num_threads(1)
    model, calls = gpu_cases.ddpm(), itertools.count()
    plan, own = hsd.compile(gpu_cases.MANY, 0.6, steps=12, seeds=3), type(model).denoise

    def denoise(self, *args):
        if next(calls) == 25:
            out_of_bounds()
        return own(self, *args)

    type(model).denoise = denoise
    try:
        hsd.generate(plan, model, sys.argv[1], batch_size=6, cuda_graphs=False, progress=False)
        print("no error")
    except Exception as error:
        print(type(error).__name__, type(error.__cause__).__name__, str(error), sep="\\n")
    sys.stdout.flush()
    os._exit(0)  # what torch frees at the end would abort: nothing in this process can use the device any more
"""


def test_a_device_that_fails(tmp_path):
    """An assertion in a kernel ends that process' use of the device; a new process makes what is missing."""
    folder = tmp_path / "images"
    script = textwrap.dedent(DIES)
    paths = [str(Path(__file__).parent), *sys.path]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}", str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    kind, _, message = run.stdout.strip().split("\n", 2)
    assert kind == "DeviceFailed", run.stdout + run.stderr
    assert "in a new process" in message
    for path in folder.glob("*.png"):
        with PIL.Image.open(path) as picture:
            picture.load()  # whole
    model = ddpm()
    plan = hsd.compile(gpu_cases.MANY, 0.6, steps=12, seeds=3)
    rest = hsd.generate(plan, model, folder, batch_size=6, cuda_graphs=False, progress=False)
    assert rest.existing + rest.images == len(gpu_cases.MANY)
    assert rest.existing < len(gpu_cases.MANY)
    assert (rest.failed, rest.repaired) == ((), ())
