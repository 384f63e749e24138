"""The same images on CUDA, to float tolerance. Skipped, loudly, where there is no such device."""

from __future__ import annotations

import copy

import pytest
import torch

import hsd
import tiny
from families import FAMILIES, Family
from helpers import SCHEDULERS, latents_of, make_scheduler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: no CUDA device on this machine"),
]

PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_cuda_equals_cpu(name):
    pipe = tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config))
    cpu = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=cpu, steps=6)
    expected = latents_of(plan, cpu, batch_size=3)
    cuda = hsd.load(copy.deepcopy(pipe).to("cuda"), height=32, width=32)
    for i, latent in latents_of(plan, cuda, batch_size=3).items():
        assert (latent.cpu() - expected[i]).abs().max() < 1e-2 * expected[i].abs().max()


def test_demo_on_cuda_in_half_precision(tmp_path):
    model = hsd.load("demo", device="cuda")
    plan = hsd.compile(["a red star", "a blue star", "a green ring"], 1.0, model=model, steps=10)
    run = hsd.generate(plan, model, tmp_path, progress=False)
    assert run.images == 3


def on_cuda(pipe):
    return tuple(part.to("cuda") for part in pipe) if isinstance(pipe, tuple) else pipe.to("cuda")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_on_cuda(family: Family):
    """The latents of the CPU, and images; then in bfloat16."""
    settings = family.settings(family.guided, family.size)
    cpu = hsd.load(family.loadable(family.build()), **settings)
    plan = hsd.compile(PROMPTS, 0.8, model=cpu, steps=family.steps)
    expected = latents_of(plan, cpu, batch_size=3)
    cuda = hsd.load(family.loadable(on_cuda(family.build())), **settings)
    for i, latent in latents_of(plan, cuda, batch_size=3).items():
        assert (latent.cpu() - expected[i]).norm() < 1e-2 * expected[i].norm()
    half = hsd.load(family.loadable(family.to(on_cuda(family.build()), torch.bfloat16)), **settings)
    assert len(list(hsd.stream(plan, half, batch_size=3))) == len(PROMPTS)


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_cpu_offload(how):
    """Modules come to the device when they are called, and go back when the run is over."""
    plain = hsd.load(tiny.stable_diffusion().to("cuda"), height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=plain, steps=6)
    expected = latents_of(plan, plain, batch_size=3)
    pipe = tiny.stable_diffusion()
    getattr(pipe, f"enable_{how}_cpu_offload")()
    offloaded = hsd.load(pipe, height=32, width=32)
    assert offloaded.device.type == "cuda"
    for i, latent in latents_of(plan, offloaded, batch_size=3).items():
        assert (latent - expected[i]).abs().max() < 1e-3 * expected[i].abs().max()
    assert len(list(hsd.stream(plan, offloaded, batch_size=3))) == len(PROMPTS)
    assert {p.device.type for p in pipe.unet.parameters()} <= {"cpu", "meta"}


def test_a_compiled_denoiser():
    pipe = tiny.stable_diffusion().to("cuda")
    model = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=model, steps=6)
    expected = latents_of(plan, model, batch_size=3)
    pipe.unet = torch.compile(pipe.unet)
    for i, latent in latents_of(plan, hsd.load(pipe, height=32, width=32), batch_size=3).items():
        assert (latent - expected[i]).norm() < 1e-2 * expected[i].norm()
