"""What the tests on a GPU share: the device, tiny models on it, and what was captured."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

import hsd
import tiny
from helpers import latents_of, make_scheduler

DEVICE = "cuda"

PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day"]

MANY = [f"{prompt} {i}" for i in range(8) for prompt in PROMPTS]
"""Forty: enough calls for a capture to pay."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: no CUDA device on this machine")

EAGER = {"cuda_graphs": False}


def ddpm(device=None):
    """A tiny Stable Diffusion whose scheduler draws noise, on the device, with weights that are always the same."""
    pipe = tiny.stable_diffusion(make_scheduler("ddpm", tiny.sd_ddim().config))
    return hsd.load(pipe.to(device or DEVICE), height=32, width=32)


def many(model, **options):
    """A plan of many calls, clustered by the stand-in."""
    return hsd.compile(MANY, 0.6, model=model, **{"steps": 12, **options})


def near(latents, expected, tolerance=1e-3):
    """Whether finished latents are the same up to rounding; not if one of them is NaN."""
    pairs = [(latents[i].cpu(), expected[i].cpu()) for i in expected if i in latents]
    same = [bool((one - other).norm() < tolerance * other.norm()) for one, other in pairs]
    return sorted(latents) == sorted(expected) and all(same)


def sizes(executor):
    """The sizes of call that an executor has captured."""
    return set(executor._graphs._graphs)


@contextlib.contextmanager
def counted_captures():
    """The number of captures that begin inside, in a list of one."""
    count, begin = [0], torch.cuda.CUDAGraph.capture_begin

    def capture_begin(self, *args, **options):
        count[0] += 1
        return begin(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "capture_begin", capture_begin)
        yield count


@contextlib.contextmanager
def never_waiting():
    """Inside, torch raises where the host would wait for the device to read a value."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def images_of(plan, model, **options):
    """Images by prompt, as streamed."""
    return {image.index: image.pil for image in hsd.stream(plan, model, **{"batch_size": 6, **options})}


def reserved():
    """Bytes that torch keeps of the device after everything that it can give back was given back."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def eager_latents(plan, model):
    """What other ways of running are compared with."""
    return latents_of(plan, model, EAGER, batch_size=6)
