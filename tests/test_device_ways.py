"""Other ways to run than the plain one, on the emulated device: offload, two devices, compile, catch-up, upcast."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

import hsd
import tiny
from device import emulated
from device.runs import case, images_of, on_the_device, padded, run_of, same, same_images
from device.schedules import EAGERNESS, SCHEDULES
from families import FAMILIES
from helpers import executor_of, finished_by, make_scheduler
from hsd.replay import kept

PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night"]

SEEDS = range(SCHEDULES)

of_name = {family.name: family for family in FAMILIES}


def stable_diffusion():
    return tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))


def load(pipe, **settings):
    return hsd.load(pipe, height=32, width=32, **settings)


def latents(plan, model, **execution):
    found = finished_by(executor_of(plan, model, execution, batch_size=2))
    return {i: latent.cpu() for i, latent in found.items()}


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offload(how):
    """Weights come for a call and go again; nothing is captured, and images are decoded in the main thread."""
    plain = stable_diffusion()
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(plain), steps=3)
        expected = run_of(plan, load(plain), False)
    for seed in SEEDS:
        pipe = stable_diffusion()
        with emulated(seed, EAGERNESS[seed % len(EAGERNESS)]) as device, on_the_device():
            getattr(pipe, f"enable_{how}_cpu_offload")(device="cuda")
            model = load(pipe)
            assert model.offloads
            assert model.device.type == "cuda"
            held = device.memory[0].allocated
            found = run_of(plan, model, True)
            assert same(found[0], expected[0])
            assert same_images(found[1], expected[1])
            assert {p.device.type for p in pipe.unet.parameters()} <= {"cpu", "meta"}
            assert device.counts["captures"] == 0
            gc.collect()
            assert device.memory[0].allocated <= held + 4096  # nothing of the networks is left there


@pytest.mark.parametrize("graphs", [False, True])
def test_two_devices_one_after_the_other(graphs):
    """Each model runs and captures on its own device, whichever was first."""
    pipe = stable_diffusion()
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=4)
        expected = run_of(plan, load(pipe), graphs)
    for seed in SEEDS[:2]:
        with emulated(seed, EAGERNESS[seed % len(EAGERNESS)]) as device, on_the_device():
            for index in (0, 1, 0):
                replays = device.counts["replays"]
                device.adopt(pipe, index)
                model = load(pipe)
                assert model.device == torch.device("cuda", index)
                found = run_of(plan, model, graphs)
                assert same(found[0], expected[0])
                assert same_images(found[1], expected[1])
                assert (device.counts["replays"] > replays) == graphs
                assert torch.cuda.current_device() == 0
                device.release()


def test_weights_that_are_upcast_for_decoding():
    """SDXL's decoder runs in float32. Its weights are the same afterwards, on every stream."""
    family = of_name["stable-diffusion-xl"]
    pipe = family.build()
    pipe.vae.to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)

    def loaded():
        return hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))

    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=loaded(), steps=1)  # decoding is what this is about
        expected = images_of(plan, loaded(), True)
    weights = {name: weight.clone() for name, weight in pipe.vae.state_dict().items()}
    for seed in range(12):
        with emulated(seed, 1.0) as device, on_the_device():
            device.adopt(pipe)
            assert same_images(images_of(plan, loaded(), True), expected), seed
            torch.cuda.synchronize()
            for name, weight in pipe.vae.state_dict().items():
                assert weight.cpu().equal(weights[name]), (seed, name)


@pytest.mark.parametrize("settings", [{"guidance_interval": (0.2, 0.6)}, {}])
def test_rows_and_catch_up(settings):
    """Calls that are filled by rows of the network, and conditioning that is added to."""
    pipe, catch_up = stable_diffusion(), 0.0 if settings else 1.0
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=5)
        expected = latents(plan, load(pipe, **settings), catch_up=catch_up)
    for seed in SEEDS:
        with emulated(seed, EAGERNESS[seed % len(EAGERNESS)]) as device, on_the_device():
            device.adopt(pipe)
            assert same(latents(plan, load(pipe, **settings), catch_up=catch_up), expected)
            assert device.counts["replays"] > 0


def test_the_batch_size_is_measured():
    """It calls the denoiser and the functions of memory; the images are those of the size that it finds."""
    pipe = stable_diffusion()
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=4)
    with emulated() as device, on_the_device():
        device.adopt(pipe)
        images = list(hsd.stream(plan, load(pipe), batch_size="auto"))
        assert sorted(image.index for image in images) == list(range(len(PROMPTS)))


def test_a_second_run_of_one_model():
    """Whatever a model keeps from its first run is still right in later ones, with other plans too."""
    pipe = stable_diffusion()
    with padded():
        plans = [hsd.compile(PROMPTS[:n], 0.8, model=load(pipe), steps=4) for n in (4, 3, 4)]
        expected = [images_of(plan, load(pipe), True) for plan in plans]
    for seed in SEEDS:
        with emulated(seed, EAGERNESS[seed % len(EAGERNESS)]) as device, on_the_device():
            device.adopt(pipe)
            model = load(pipe)
            for plan, images in zip(plans, expected, strict=True):
                assert same_images(images_of(plan, model, True), images)


def test_sizes_of_single_prompts_keep_memory_one_after_the_other():
    """A pass of another size begins without what the model and the passes before keep for later runs."""
    pipe = stable_diffusion()
    sizes = [{"height": height} for height in (32, 16) for _ in PROMPTS]
    with padded():
        alike = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=4)
        plan = hsd.compile(2 * PROMPTS, 0.8, model=load(pipe), steps=4, settings=sizes)
        expected = images_of(plan, load(pipe), True)
    with emulated(0, 1.0) as device, on_the_device():
        device.adopt(pipe)
        model, images = load(pipe), {}
        images_of(alike, model, True)
        gc.collect()  # the models of other tests
        assert len(everything_kept()) == 1
        for image in hsd.stream(plan, model, batch_size=2):
            images[image.index] = np.array(image.pil)
            assert len(everything_kept()) <= 1
        assert same_images(images, expected)


def everything_kept():
    return [place for place in list(kept._everywhere) if place._kept is not None]


def test_memory_that_captured_calls_hold_is_there_for_encoding():
    """Texts are encoded before the next run could take what the one before has kept."""
    pipe = stable_diffusion()
    other = [f"{prompt}, in oil" for prompt in PROMPTS]
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=4)
        expected = hsd.compile(other, 0.8, model=load(pipe), steps=4)
    with emulated(0, 1.0) as device, on_the_device():
        device.adopt(pipe)
        model, memory = load(pipe), device.memory[0]
        weights = memory.allocated
        memory.reset_peak()
        hsd.compile(other, 0.8, model=model, steps=4)
        needed = memory.peak_allocated - weights
        for _ in range(2):
            images_of(plan, model, True)
        del plan
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        memory.limit = weights + needed + (memory.reserved - weights) // 2
        again = hsd.compile(other, 0.8, model=model, steps=4)
        assert again.tree.leaf_order.tolist() == expected.tree.leaf_order.tolist()
        assert not model.free_graphs()


def test_step_caches_are_refused():
    expected = case(of_name["flux"])
    expected.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with emulated() as device, on_the_device():
        device.adopt(expected.pipe)
        with pytest.raises(hsd.UnsupportedPipeline, match="step cache"):
            next(hsd.stream(expected.plan, expected.load()))


def test_compile_runs_uncompiled_here():
    """torch.compile leaves functions alone while a dispatch mode is on: what this shows is only that nothing breaks."""
    pipe = stable_diffusion()
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=load(pipe), steps=4)
        expected = latents(plan, load(pipe))
    with emulated() as device, on_the_device():
        device.adopt(pipe)
        assert same(latents(plan, load(pipe), compile=True), expected)
