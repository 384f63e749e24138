"""The same images on CUDA, to float tolerance. Skipped, with a message, without such a device."""

from __future__ import annotations

import copy
import importlib.util
from functools import partial

import pytest
import torch

import gpu_cases
import hsd
import tiny
from families import FAMILIES, Family
from gpu_cases import EAGER, PROMPTS, ddpm, eager_latents, images_of, many, near, needs_gpu, never_waiting, sizes
from helpers import SCHEDULERS, executor_of, finished_by, latents_of, make_scheduler, mean_difference, share_apart
from hsd.bench import bench
from hsd.generation.decoding import Decoder
from hsd.models.weights import digest, weights_of

pytestmark = [pytest.mark.gpu, needs_gpu]


@pytest.fixture(scope="session")
def long_run():
    """A plan of many calls, its model, and the latents of its eager run."""
    model = ddpm()
    plan = many(model)
    return plan, model, eager_latents(plan, model)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_cuda_equals_cpu(name):
    pipe = tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config))
    cpu = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=cpu, steps=6)
    expected = latents_of(plan, cpu, batch_size=3)
    cuda = hsd.load(copy.deepcopy(pipe).to(gpu_cases.DEVICE), height=32, width=32)
    assert near(latents_of(plan, cuda, batch_size=3), expected, 1e-2)


def test_demo_on_cuda_in_half_precision(tmp_path):
    model = hsd.load("demo", device=gpu_cases.DEVICE)
    plan = hsd.compile(["a red star", "a blue star", "a green ring"], 1.0, model=model, steps=10)
    run = hsd.generate(plan, model, tmp_path, progress=False)
    assert run.images == 3


def on_device(pipe):
    parts = pipe if isinstance(pipe, tuple) else (pipe,)
    moved = tuple(part.to(gpu_cases.DEVICE) for part in parts)
    return moved if isinstance(pipe, tuple) else moved[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_on_cuda(family: Family):
    """The latents of the CPU; then images in bfloat16."""
    settings = family.settings(family.guided, family.size)
    cpu = hsd.load(family.loadable(family.build()), **settings)
    plan = hsd.compile(PROMPTS, 0.8, model=cpu, steps=family.steps)
    expected = latents_of(plan, cpu, batch_size=3)
    cuda = hsd.load(family.loadable(on_device(family.build())), **settings)
    assert near(latents_of(plan, cuda, batch_size=3), expected, 1e-2)
    half = hsd.load(family.loadable(family.to(on_device(family.build()), torch.bfloat16)), **settings)
    assert len(list(hsd.stream(plan, half, batch_size=3))) == len(PROMPTS)


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_cpu_offload(how):
    """Modules come to the device when they are called, and go back when the run is over."""
    plain = hsd.load(tiny.stable_diffusion().to(gpu_cases.DEVICE), height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=plain, steps=6)
    expected = latents_of(plan, plain, batch_size=3)
    pipe = tiny.stable_diffusion()
    getattr(pipe, f"enable_{how}_cpu_offload")()
    offloaded = hsd.load(pipe, height=32, width=32)
    assert offloaded.device.type == gpu_cases.DEVICE
    assert near(latents_of(plan, offloaded, batch_size=3), expected)
    assert len(list(hsd.stream(plan, offloaded, batch_size=3))) == len(PROMPTS)
    assert {p.device.type for p in pipe.unet.parameters()} <= {"cpu", "meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_catch_up_on_cuda(dtype):
    """The latents of the CPU, one kernel at a time and as graphs; ragged tokens too."""
    settings = {"height": 32, "width": 32, "use_resolution_binning": False}
    prompts = [f"{prompt}{', in oil' * (i % 3)}" for i in range(8) for prompt in PROMPTS]
    cpu = hsd.load(tiny.pixart_sigma().to(dtype), **settings)  # noise differs between dtypes
    plan = hsd.compile(prompts, 0.6, steps=12)
    expected, off = (latents_of(plan, cpu, {"catch_up": gamma}, batch_size=6) for gamma in (1.0, 0.0))
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    assert not near(off, expected, tolerance)  # so that the comparison below can see whether it is on
    cuda = hsd.load(tiny.pixart_sigma().to(gpu_cases.DEVICE, dtype), **settings)
    eager, graphs = (executor_of(plan, cuda, {"catch_up": 1.0, **how}, batch_size=6) for how in (EAGER, {}))
    assert near(finished_by(eager), expected, tolerance)
    assert near(finished_by(graphs), expected, tolerance)
    assert 6 in sizes(graphs)


# ------------------------------------------------------------------------------- graphs


def test_graphs_are_the_calls_that_they_replace(long_run):
    plan, model, eager = long_run
    executor = executor_of(plan, model, batch_size=6)
    assert near(finished_by(executor), eager)
    assert 6 in sizes(executor)  # it was captured, without a fallback


def test_a_second_run_captures_nothing():
    """The calls that the first run of a loaded model captured are replayed by the second."""
    model = ddpm()
    plan = many(model)
    with gpu_cases.counted_captures() as first:
        expected = latents_of(plan, model, batch_size=6)
    with gpu_cases.counted_captures() as second:
        again = latents_of(plan, model, batch_size=6)
    assert first[0] > 0 == second[0]
    assert near(again, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT TESTED: there is only one CUDA device")
def test_graphs_on_a_second_device(long_run):
    """torch's own stream for captures belongs to the device that was current at its first use."""
    plan, model, _ = long_run
    executor = executor_of(plan, model, batch_size=6)
    finished_by(executor)
    assert 6 in sizes(executor)
    other = ddpm("cuda:1")
    expected = eager_latents(plan, other)
    executor = executor_of(plan, other, batch_size=6)
    assert near(finished_by(executor), expected)
    assert 6 in sizes(executor)
    first, second = images_of(plan, model), images_of(plan, other)  # decoded in a thread
    assert all(mean_difference(first[i], second[i]) < 0.5 for i in first)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("catch_up", [0.0, 1.0])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_loop_never_waits_for_the_device(long_run, cuda_graphs, catch_up):
    """torch raises where a call would wait for the device; the first calls may, which warm up and capture."""
    plan, model, _ = long_run
    executor = executor_of(plan, model, {"cuda_graphs": cuda_graphs, "catch_up": catch_up}, batch_size=6)
    calls, half = executor.run(), executor.program.n_calls // 2
    assert sum(1 for _, _ in zip(range(half), calls, strict=False)) == half
    with never_waiting():
        rest = sum(1 for _ in calls)
    assert half + rest == executor.program.n_calls


@pytest.mark.parametrize("execution", [EAGER, {}], ids=["eager", "graphs"])
def test_guidance_in_a_part_of_the_run(long_run, execution):
    """Calls of guided and unguided lanes are captured as one size in rows; the latents are those of single lanes."""
    plan, model, whole = long_run
    part = hsd.load(model, guidance_interval=(0.2, 0.6))
    executor = executor_of(plan, part, execution, batch_size=6)
    latents = finished_by(executor)
    assert near(latents, latents_of(plan, part, EAGER, batch_size=1))
    assert not near(latents, whole)
    if not execution:
        assert 12 in sizes(executor)  # it was captured, without a fallback
        again = executor_of(plan, part, batch_size=6)
        calls, half = again.run(), again.program.n_calls // 2
        assert sum(1 for _, _ in zip(range(half), calls, strict=False)) == half
        with never_waiting():
            assert sum(1 for _ in calls) == again.program.n_calls - half


# ------------------------------------------------------------------------------- compiled


@pytest.mark.filterwarnings("ignore::UserWarning")  # hints of torch's compiler about speed; they differ by version
def test_a_compiled_denoiser():
    """One that the user has compiled: captured as it is. Without code generation, which would take a minute."""
    pipe = tiny.stable_diffusion().to(gpu_cases.DEVICE)
    model = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(PROMPTS, 0.8, model=model, steps=6)
    expected = latents_of(plan, model, batch_size=3)
    try:
        pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
        assert near(latents_of(plan, hsd.load(pipe, height=32, width=32), batch_size=3), expected)
    finally:
        torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_calls(long_run):
    plan, _, expected = long_run
    model = ddpm()
    executor = executor_of(plan, model, {"compile": True}, batch_size=6)
    try:
        assert near(finished_by(executor), expected)
        assert 6 in sizes(executor)
    finally:
        torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
def test_changed_networks_are_captured(long_run):
    """Fused projections, and weights in int8 where torchao is installed: timed as CUDA graphs, then undone."""
    plan, model, eager = long_run
    kinds = ["int8"] if importlib.util.find_spec("torchao") else []
    report = bench(model, PROMPTS, tau=0.5, steps=4, seconds=4.0, compile=False, fuse_qkv=True, quantize=kinds)
    assert list(report.alone.tried) == ["fuse-qkv", *kinds]
    for one in report.alone.tried.values():
        assert (one.failed, one.not_captured) == (None, None)
        assert 0 <= one.difference <= one.tolerance
        assert one.seconds_per_lane > 0
    assert near(latents_of(plan, model, batch_size=6), eager)


# ------------------------------------------------------------------------------- images


def test_images_are_decoded_beside_the_denoiser(long_run):
    plan, model, _ = long_run
    graphs, eager = images_of(plan, model), images_of(plan, model, cuda_graphs=False)
    assert sorted(graphs) == sorted(eager) == list(range(plan.n_prompts))
    assert all(mean_difference(graphs[i], eager[i]) < 0.5 for i in graphs)


def test_two_runs_give_equal_images():
    """Another process with the same model and seeds gives the same; here two models that are made anew."""
    runs = []
    for _ in range(2):
        model = ddpm()
        images = list(hsd.stream(many(model, seeds=7), model, batch_size=6))
        runs.append({image.index: (image.seed, image.pil) for image in images})
    first, second = runs
    assert sorted(first) == sorted(second)
    assert [first[i][0] for i in sorted(first)] == [7 + i for i in sorted(first)]
    for i, (seed, picture) in first.items():
        assert seed == second[i][0]
        assert share_apart(picture, second[i][1]) == 0


def test_the_batch_size_is_measured(long_run, tmp_path):
    plan, model, _ = long_run
    run = hsd.generate(plan, model, tmp_path, batch_size="auto", progress=False)
    assert run.images == plan.n_prompts


def test_a_decoder_that_is_upcast_beside_the_denoiser(monkeypatch):
    """SDXL decodes in float32: the same images as without a thread, and the half weights are there again afterwards."""
    pipe = tiny.sdxl().to(gpu_cases.DEVICE, torch.float16)
    assert pipe.vae.config.force_upcast
    weights = [weight.clone() for weight in pipe.vae.parameters()]
    model = hsd.load(pipe, height=64, width=64)
    plan = hsd.compile(gpu_cases.MANY[:20], 0.6, model=model, steps=6)
    beside = images_of(plan, model)
    after = list(pipe.vae.parameters())
    assert all(a.dtype == w.dtype and torch.equal(a, w) for a, w in zip(after, weights, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr("hsd.generation.session.Decoder", partial(Decoder, threaded=False))
        alone = images_of(plan, model)
    assert sorted(beside) == sorted(alone) == list(range(20))
    assert all(share_apart(beside[i], alone[i]) == 0 for i in alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_digest_of_weights_is_the_cpu_s(dtype):
    pipe = tiny.stable_diffusion().to(dtype)
    networks = [pipe.unet, pipe.vae, pipe.text_encoder]
    expected = [digest(weights_of(network)) for network in networks]
    pipe.to(gpu_cases.DEVICE)
    assert [digest(weights_of(network)) for network in networks] == expected
    with torch.no_grad():
        next(networks[0].parameters()).view(-1)[:1].neg_()
    assert digest(weights_of(networks[0])) != expected[0]
    odd = [torch.arange(n, dtype=torch.uint8) for n in (1, 7, 9, (1 << 18) + 3)]
    assert digest(part.to(gpu_cases.DEVICE) for part in odd) == digest(odd)
