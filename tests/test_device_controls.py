"""Controls: faults put into HSD that a real device would punish, now and then, and that the emulated one has to show.

Without them, equal results over many schedules would prove nothing.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace

import pytest
import torch

import hsd
import tiny
from device import DeviceTensor, Stream, emulated
from device.runs import PROMPTS, images_of, latents_of, on_the_device, padded, same
from helpers import make_scheduler
from hsd.errors import Notice
from hsd.generation.decoding import Decoder
from hsd.models.stable_diffusion import StableDiffusion
from hsd.replay.feed import Feeder

SEEDS = range(24)
"""Each fault is seen with one of them at the latest."""


@pytest.fixture(scope="module")
def pipe():
    """A tiny Stable Diffusion that draws noise at every step."""
    return tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))


@pytest.fixture(scope="module")
def expected(pipe):
    """The plan, and its latents and images on the CPU."""
    model = load(pipe)
    with padded():
        plan = hsd.compile([f"{prompt} {i}" for i in range(2) for prompt in PROMPTS[:3]], 0.8, model=model, steps=4)
        return plan, latents_of(plan, model, True), images_of(plan, model, True)


def load(pipe):
    return hsd.load(pipe, height=32, width=32)


def latents_differ(pipe, expected, seed, graphs=True):
    plan, latents, _ = expected
    with emulated(seed, (0.0, 0.3, 1.0)[seed % 3]) as device, on_the_device():
        device.adopt(pipe)
        return not same(latents_of(plan, load(pipe), graphs), latents)


def images_differ(pipe, expected, seed, graphs=True):
    """Whether a run from the plan to images gives something else; an image that cannot be made counts too."""
    plan, _, images = expected
    with emulated(seed, (0.0, 0.3, 1.0)[seed % 3]) as device, on_the_device():
        device.adopt(pipe)
        try:
            return not same(images_of(plan, load(pipe), graphs), images)
        except hsd.FailedImages:
            return True


def test_without_a_fault_nothing_is_seen(pipe, expected):
    assert not any(latents_differ(pipe, expected, seed) for seed in SEEDS[:3])
    assert not any(images_differ(pipe, expected, seed) for seed in SEEDS[:3])


def test_a_pinned_buffer_that_is_used_again_too_early(pipe, expected, monkeypatch):
    """The noise of every call is drawn into one buffer, which the device has not read yet."""
    drawn, buffers = Feeder._noise, {}

    def noise(self, representative, steps):
        fresh = drawn(self, representative, steps)
        buffer = buffers.setdefault(fresh.shape, fresh)
        buffer.copy_(fresh)
        return buffer

    monkeypatch.setattr(Feeder, "_noise", noise)
    assert any(latents_differ(pipe, expected, seed) for seed in SEEDS)


def test_a_missing_wait_event(pipe, expected, monkeypatch):
    """The decoder begins before the latents are finished."""
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    assert any(images_differ(pipe, expected, seed) for seed in SEEDS)


@pytest.mark.parametrize("records", [False, True])
def test_a_block_that_is_freed_early(pipe, expected, monkeypatch, records):
    """The decoder keeps copies of the latents and lets go of them, while its stream has yet to make the copies."""
    decode = Decoder._decode_in_thread

    def lets_go(self, batch, event):
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(event)
            for finished in batch:
                finished.latent.record_stream(self._stream)
            batch[:] = [replace(finished, latent=finished.latent * 1) for finished in batch]
        del finished
        return decode(self, batch, event)

    monkeypatch.setattr(Decoder, "_decode_in_thread", lets_go)
    if not records:
        monkeypatch.setattr(DeviceTensor, "record_stream", lambda self, stream: None)
        assert any(images_differ(pipe, expected, seed) for seed in SEEDS)
    else:
        assert not any(images_differ(pipe, expected, seed) for seed in SEEDS[:6])


def test_a_capture_with_a_sync_in_it(pipe, expected, monkeypatch):
    """HSD says that calls are not captured, and runs them one kernel at a time."""
    whole = StableDiffusion.denoise

    def denoise(self, latents, timestep, rows):
        assert timestep.max().item() < 1000
        return whole(self, latents, timestep, rows)

    monkeypatch.setattr(StableDiffusion, "denoise", denoise)
    with pytest.warns(Notice, match="not captured as CUDA graphs"):
        assert not latents_differ(pipe, expected, 0)


def test_a_graph_that_reads_a_buffer_that_was_freed(pipe, expected, monkeypatch):
    """An adapter makes its table anew in every call: a replay reads the one that the captured call had read."""
    whole, tables = StableDiffusion.denoise, []

    def denoise(self, latents, timestep, rows):
        output, variance = whole(self, latents, timestep, rows)
        if tables:
            output = output + tables.pop()
        tables.append(torch.zeros_like(output[:1]))
        return output, variance

    monkeypatch.setattr(StableDiffusion, "denoise", denoise)
    plan, _, _ = expected
    with padded():
        assert same(latents_of(plan, load(pipe), True), expected[1])  # without a capture it is right
    tables.clear()
    assert latents_differ(pipe, expected, 0)


def test_a_capture_on_a_stream_of_another_device(pipe, expected, monkeypatch):
    """On torch's own stream, which is of the device that was used first, nothing is captured and nothing replayed."""
    begin = torch.cuda.graph.__init__

    def on_torchs_own_stream(self, graph, pool=None, stream=None, **options):
        begin(self, graph, pool=pool, **options)

    monkeypatch.setattr(torch.cuda.graph, "__init__", on_torchs_own_stream)
    plan, latents, _ = expected
    for index in (0, 1):
        with emulated() as device, on_the_device(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            with contextlib.suppress(RuntimeError):
                torch.cuda.graph(torch.cuda.CUDAGraph())  # torch makes its stream on cuda:0
            device.adopt(pipe, index)
            found = same(latents_of(plan, load(pipe), True), latents)
            assert found == (index == 0)
