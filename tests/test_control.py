"""What is special about ControlNets: several of them, a part of the run, guess mode, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import hsd
import tiny
from families.measure import PROMPTS, SEEDS
from helpers import latents_of, mean_difference
from hsd.work.files import IDENTITY
from image_cases import NEAR, STEPS, apart, check, ours, stock

IMAGE, OTHER = tiny.picture((32, 32)), tiny.picture((32, 32), 1)
ONE = {"image": IMAGE}


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_schedulers(kind, scale):
    pipe = tiny.sd_control(kind(**tiny.SD_BETAS))
    check(pipe, {**ONE, "guidance_scale": scale}, {"image": OTHER})


@pytest.mark.parametrize("build", [tiny.sd_control, tiny.sdxl_control])
def test_a_part_of_the_run(build):
    """Steps 1 and 2 of 4 are controlled: lanes of one call differ in that."""
    settings = {**ONE, "control_guidance_start": 0.25, "control_guidance_end": 0.75}
    check(build(), settings, {"control_guidance_start": 0.0})


def test_borders_are_compared_as_the_pipeline_compares_them():
    """With 10 steps, 3 / 10 is not below 0.3 in Python, and would be in float32."""
    pipe = tiny.sd_control()
    settings = {**ONE, "control_guidance_start": 0.3, "control_guidance_end": 0.7}
    expected = stock(pipe, settings, steps=10)
    assert apart(ours(pipe, settings, steps=10), expected) < NEAR


@pytest.mark.parametrize("build", [tiny.sd_control, tiny.sdxl_control])
def test_several(build):
    settings = {
        "image": [IMAGE, OTHER],
        "controlnet_conditioning_scale": [0.5, 1.5],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.7, 1.0],
    }
    check(build(n=2), settings, {"image": [OTHER, IMAGE]})


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_guess_mode(scale):
    check(tiny.sd_control(), {**ONE, "guess_mode": True, "guidance_scale": scale}, {"guess_mode": False})


def test_a_controlnet_that_pools():
    pipe = tiny.sd_control()
    pipe.controlnet.register_to_config(global_pool_conditions=True)
    check(pipe, ONE, {"image": OTHER})


def test_guess_mode_where_some_steps_are_not_guided():
    """At steps without guidance a lane has one row, which the ControlNet reads as in the pipeline at scale 1."""
    pipe = tiny.sd_control()
    settings = {**ONE, "guess_mode": True, "guidance_interval": (0.0, 0.5)}
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    mixed, alone = (latents_of(plan, model, batch_size=size) for size in (3, 1))
    assert max(apart(mixed[i], alone[i]) for i in mixed) < NEAR


def test_scales_reach_their_lanes():
    """The strength is a row, so prompts of different strengths are lanes of one call."""
    pipe = tiny.sd_control()
    model = hsd.load(pipe, **ONE)
    own = [{"controlnet_conditioning_scale": scale} for scale in (0.0, 0.7, 1.5)]
    assert len({hsd.load(model, **each).call_key() for each in own}) == 1
    plan = hsd.compile(PROMPTS, 100.0, model=model, steps=STEPS, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        generator = torch.Generator().manual_seed(SEEDS[i])
        call = {"num_inference_steps": STEPS, "generator": generator, **ONE, **settings}
        [expected] = pipe(PROMPTS[i], **call).images
        assert mean_difference(images[i], expected) < 0.5


def test_size_of_the_image():
    model = hsd.load(tiny.sd_control(), image=tiny.picture((37, 50)))
    assert (model.height, model.width) == (32, 48)
    assert hsd.load(model, guidance_scale=3.0).image == model.image
    with pytest.raises(ValueError, match="5 x 64 pixels, and 8 x 8 are the least"):
        hsd.load(tiny.sd_control(), image=tiny.picture((64, 5)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "StableDiffusionControlNetPipeline needs an image.*setting image.*--set image=FILE"),
        ({"image": "no/such.png"}, "image is 'no/such.png': there is no such file"),
        ({"image": [IMAGE, OTHER]}, "image has 2 images, and 1 is needed.*one set for each"),
        ({"image": torch.zeros(3, 32, 32)}, "image is a Tensor: it has to be a PIL image, or the path"),
        ({**ONE, "control_guidance_start": 0.5, "control_guidance_end": 0.5}, "control_guidance_start is 0.5"),
        ({**ONE, "controlnet_conditioning_scale": [1.0, 2.0]}, "has 2 values, and the pipeline has 1 ControlNets"),
        ({**ONE, "controlnet_conditioning_scale": "high"}, "controlnet_conditioning_scale is 'high': it has to be a"),
    ],
)
def test_what_is_refused(settings, says):
    with pytest.raises((ValueError, TypeError), match=says):
        hsd.load(tiny.sd_control(), **settings)


def test_other_networks_are_refused():
    pipe = tiny.sd_control()
    pipe.controlnet = pipe.unet
    with pytest.raises(hsd.UnsupportedPipeline, match="has a UNet2DConditionModel.*ControlNetModel"):
        hsd.load(pipe, **ONE)


def test_images_of_single_prompts_are_refused(tmp_path):
    path = tmp_path / "edges.png"
    IMAGE.save(path)
    model = hsd.load(tiny.sd_control(), **ONE)
    with pytest.raises(TypeError, match="image is given for single prompts.*one set for each image"):
        hsd.compile(["a cat"], 1.0, model=model, settings=[{"image": str(path)}])


def test_an_image_enters_the_record_by_its_pixels(tmp_path):
    """The same pixels from a file and from memory are one model; other pixels are another."""
    path = tmp_path / "edges.png"
    IMAGE.save(path)
    pipe = tiny.sd_control()
    plan = hsd.compile(["a cat", "a dog"], 1.0, model=hsd.load(pipe, image=path), steps=2)
    out = tmp_path / "images"
    hsd.generate(plan, hsd.load(pipe, image=str(path)), out)
    recorded = json.loads((out / IDENTITY).read_text())["model"]
    assert recorded["settings"]["image"] == str(hsd.load(pipe, **ONE).image)
    assert str(path) not in json.dumps(recorded)
    hsd.generate(plan, hsd.load(pipe, **ONE), out)  # the folder is continued
    with pytest.raises(hsd.Error, match="image: .*sha256"):
        hsd.generate(plan, hsd.load(pipe, image=OTHER), out)


def test_a_missing_image_is_said_before_weights_are_read(tmp_path, monkeypatch):
    pipe = tiny.sd_control()
    pipe.save_pretrained(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(ControlNetModel, "from_pretrained", None)  # any use of it would fail otherwise
        for settings, says in (({}, "needs an image"), ({"image": tmp_path / "none.png"}, "there is no such file")):
            with pytest.raises(ValueError, match=says):
                hsd.load(tmp_path / "model", device="cpu", **settings)
    IMAGE.save(tmp_path / "edges.png")
    loaded = hsd.load(tmp_path / "model", device="cpu", image=tmp_path / "edges.png")
    plan = hsd.compile(PROMPTS, 0.0, model=loaded, steps=2, seeds=SEEDS)
    found = latents_of(plan, loaded)
    assert apart(torch.cat([found[i] for i in range(3)]), stock(pipe, ONE, steps=2)) < NEAR
