"""The same images on CUDA, to float tolerance. Skipped, with a message, without such a device."""

from __future__ import annotations

import copy

import pytest
import torch

import hsd
import tiny
from families import FAMILIES, Family
from helpers import SCHEDULERS, executor_of, finished_by, latents_of, make_scheduler, mean_difference

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


@pytest.fixture(scope="module")
def long_run():
    """A model and a plan of enough calls for every size to be captured."""
    pipe = tiny.stable_diffusion(make_scheduler("ddpm", tiny.sd_ddim().config)).to("cuda")
    model = hsd.load(pipe, height=32, width=32)
    return hsd.compile([f"{prompt} {i}" for i in range(8) for prompt in PROMPTS], 0.6, model=model, steps=12), model


def near(latents, expected):
    assert sorted(latents) == sorted(expected)
    return all((latents[i] - expected[i]).norm() < 1e-3 * expected[i].norm() for i in expected)


def test_graphs_are_the_calls_that_they_replace(long_run):
    plan, model = long_run
    eager = latents_of(plan, model, {"cuda_graphs": False}, batch_size=6)
    executor = executor_of(plan, model, batch_size=6)
    assert near(finished_by(executor), eager)
    assert 6 in executor._graphs._graphs  # it was captured, without a fallback


@pytest.mark.parametrize("catch_up", [0.0, 1.0])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_loop_never_waits_for_the_device(long_run, cuda_graphs, catch_up):
    """torch raises where a call would wait for the device; the first calls may, which warm up and capture."""
    plan, model = long_run
    executor = executor_of(plan, model, {"cuda_graphs": cuda_graphs, "catch_up": catch_up}, batch_size=6)
    calls = executor.run()
    try:
        for call, _ in enumerate(calls):
            if call == executor.program.n_calls // 2:
                torch.cuda.set_sync_debug_mode("error")
        assert call + 1 == executor.program.n_calls
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_catch_up_on_cuda(dtype):
    """The latents of the CPU, one kernel at a time and as graphs; ragged tokens too."""
    settings = {"height": 32, "width": 32, "use_resolution_binning": False}
    prompts = [f"{prompt}{', in oil' * (i % 3)}" for i in range(8) for prompt in PROMPTS]
    cpu = hsd.load(tiny.pixart_sigma().to(dtype), **settings)  # noise differs between dtypes
    plan = hsd.compile(prompts, 0.6, steps=12)
    expected, off = (latents_of(plan, cpu, {"catch_up": gamma}, batch_size=6) for gamma in (1.0, 0.0))
    assert any((off[i] - expected[i]).norm() > 0.02 * expected[i].norm() for i in expected)
    cuda = hsd.load(tiny.pixart_sigma().to("cuda", dtype), **settings)
    executors = [
        executor_of(plan, cuda, {"catch_up": 1.0, "cuda_graphs": graphs}, batch_size=6) for graphs in (False, True)
    ]
    eager, graphs = (finished_by(executor) for executor in executors)
    assert 6 in executors[1]._graphs._graphs
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    for i, latent in expected.items():
        assert (eager[i].cpu() - latent).norm() < tolerance * latent.norm()
        assert (graphs[i] - eager[i]).norm() < tolerance * latent.norm()


def test_compiled_calls(long_run):
    plan, model = long_run
    expected = latents_of(plan, model, {"cuda_graphs": False}, batch_size=6)
    try:
        assert near(latents_of(plan, model, {"compile": True}, batch_size=6), expected)
    finally:
        model.modules()[0]._compiled_call_impl = None
        torch._dynamo.reset()


@pytest.mark.parametrize("execution", [{"cuda_graphs": False}, {}], ids=["eager", "graphs"])
def test_guidance_in_a_part_of_the_run(long_run, execution):
    """Calls of guided and unguided lanes are captured as one size in rows; the latents are those of single lanes."""
    plan, model = long_run
    part = hsd.load(model, guidance_interval=(0.2, 0.6))
    executor = executor_of(plan, part, execution, batch_size=6)
    latents = finished_by(executor)
    assert near(latents, latents_of(plan, part, {"cuda_graphs": False}, batch_size=1))
    assert not near(latents, latents_of(plan, model, {"cuda_graphs": False}, batch_size=6))
    if not execution:
        assert 12 in executor._graphs._graphs  # it was captured, without a fallback
        calls = executor_of(plan, part, batch_size=6).run()
        try:
            for call, _ in enumerate(calls):
                if call == executor.program.n_calls // 2:
                    torch.cuda.set_sync_debug_mode("error")  # no later call may wait for the device
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_out_of_memory_cuts_calls(long_run, monkeypatch):
    plan, model = long_run
    expected = latents_of(plan, model, batch_size=6)
    whole = type(model).denoise

    def denoise(self, latents, timestep, rows):
        if len(latents) > 3:  # more than any device has
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return whole(self, latents, timestep, rows)

    monkeypatch.setattr(type(model), "denoise", denoise)
    with pytest.warns(UserWarning, match="out of memory with [456] latents"):
        assert near(latents_of(plan, model, batch_size=6), expected)


def test_images_are_decoded_beside_the_denoiser(long_run):
    plan, model = long_run
    graphs = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=6)}
    eager = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=6, cuda_graphs=False)}
    assert sorted(graphs) == sorted(eager) == list(range(plan.n_prompts))
    assert all(mean_difference(graphs[i], eager[i]) < 0.5 for i in graphs)


def test_the_batch_size_is_measured(long_run, tmp_path):
    plan, model = long_run
    run = hsd.generate(plan, model, tmp_path, batch_size="auto", progress=False)
    assert run.images == plan.n_prompts


def test_memory_does_not_grow_with_the_prompts(long_run):
    """In depth-first order, slots are bounded by batch size and steps."""
    _, model = long_run
    peaks = []
    for n in (50, 500):
        plan = hsd.compile([f"{prompt} {i}" for i in range(n) for prompt in PROMPTS], 0.6, steps=12)
        executor = executor_of(plan, model, batch_size=6)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        finished_by(executor)
        peaks.append(torch.cuda.max_memory_allocated())
        del executor
    assert peaks[1] < 1.1 * peaks[0] + 500 * len(PROMPTS) * 4 * 4 * 4 * 4  # besides the latents that the test keeps
