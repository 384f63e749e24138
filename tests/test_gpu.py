"""The same images on CUDA, to float tolerance. Skipped, loudly, where there is no such device."""

from __future__ import annotations

import copy

import pytest
import torch

import hsd
import tiny
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
