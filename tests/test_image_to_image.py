"""What is special about image to image: where the steps begin, the draws, and what is refused."""

from __future__ import annotations

import json
import pickle
import shlex
import sys

import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from typer.testing import CliRunner

import hsd
import tiny
from families.measure import PROMPTS, SEEDS
from hsd import cli
from image_cases import NEAR, apart, check, ours, stock

IMAGE, OTHER = tiny.picture((32, 32)), tiny.picture((32, 32), 1)
ONE = {"image": IMAGE}
RUN = CliRunner()

SCHEDULERS = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

OPTIONS = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(kind):
    """Those of several orders, with memory, with noise of their own, and with repeated timesteps."""
    pipe = tiny.sd_from_image(kind(**tiny.SD_BETAS, **OPTIONS.get(kind, {})))
    check(pipe, {**ONE, "strength": 0.6, "guidance_scale": 1.0}, {"image": OTHER}, steps=6)


@pytest.mark.parametrize(("strength", "left"), [(0.3, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_strength(strength, left):
    pipe = tiny.sdxl_from_image()
    settings = {**ONE, "strength": strength}
    model = hsd.load(pipe, **settings)
    assert hsd.compile(PROMPTS, 0.0, model=model, steps=4).n_steps == left
    assert apart(ours(pipe, settings), stock(pipe, settings)) < 5 * NEAR  # as the other family of SDXL


def test_timesteps_of_the_user():
    """Their number is what strength counts from."""
    settings = {**ONE, "strength": 0.5, "timesteps": [800, 600, 300, 100]}
    pipe = tiny.sd_from_image(DPMSolverMultistepScheduler(**tiny.SD_BETAS))
    assert apart(ours(pipe, settings, steps=50), stock(pipe, settings)) < NEAR


def test_sizes_of_sdxl():
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (8, 0), "target_size": (32, 32)}
    negative = {"negative_original_size": (20, 20), "negative_target_size": (60, 60)}
    check(tiny.sdxl_from_image(), {**ONE, **sizes, **negative}, {"negative_original_size": (200, 20)})
    with pytest.raises(ValueError, match="negative_crops_coords_top_left is .*does not use it"):
        hsd.load(tiny.sdxl_from_image(), **ONE, negative_crops_coords_top_left=(1, 2))


def test_an_autoencoder_with_means():
    pipe = tiny.sdxl_from_image()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[0.8, 1.2, 0.9, 1.1])
    check(pipe, ONE, {"image": OTHER})


def test_an_autoencoder_without_a_distribution():
    """It draws nothing, so the noise is what the generator gives first."""
    pipe = tiny.sd_from_image()
    blocks = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1)).eval()
    pipe.vae.register_to_config(scaling_factor=20.0)  # random weights give latents near 0
    check(pipe, ONE, {"image": OTHER})


def test_one_first_latent_for_all():
    model = hsd.load(tiny.sd_from_image(), **ONE, guidance_scale=1.0)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=2, seeds=SEEDS, noise="shared")
    sampler = model.sampler(2)
    first = [model.first_latent(model.generator(seed), sampler) for seed in SEEDS]
    assert (first[0] - first[1]).abs().max() > 0.1
    from helpers import executor_of

    feeder = executor_of(plan, model)._feeder
    latents = [latent for feed in feeder for _, latent in feed.first]
    assert len(latents) == len(PROMPTS)
    assert all(torch.equal(latent, first[0][0]) for latent in latents)


def test_a_run_encodes_the_image_once(monkeypatch):
    pipe = tiny.sd_from_image()
    model = hsd.load(pipe, **ONE)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=2, seeds=SEEDS)
    seen, own = [], pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda pixels: seen.append(len(pixels)) or own(pixels))
    assert len(list(hsd.stream(plan, model))) == len(PROMPTS)
    assert seen == [1]


def test_another_image_needs_no_other_encoding():
    """Prompts are encoded without the image, so a plan goes on with another one, at another strength."""
    model = hsd.load(tiny.sd_from_image(), **ONE)
    assert hsd.load(model, image=OTHER, strength=0.3).encoding_key() == model.encoding_key()
    assert hsd.load(model, image=OTHER).call_key() != model.call_key()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "StableDiffusionImg2ImgPipeline needs an image"),
        ({"image": [IMAGE, OTHER]}, "image has 2 images, and 1 is needed"),
        ({**ONE, "strength": 0.0}, "strength is 0: it has to be above 0"),
        ({**ONE, "strength": 1.5}, "strength is 1.5"),
    ],
)
def test_what_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        hsd.load(tiny.sd_from_image(), **settings)


def test_too_few_steps():
    model = hsd.load(tiny.sd_from_image(), **ONE, strength=0.1)
    with pytest.raises(ValueError, match=r"strength is 0.1, and of 4 steps int\(4 x 0.1\) = 0 are left"):
        hsd.compile(PROMPTS, 1.0, model=model, steps=4)


def test_prompts_of_different_strengths_are_refused():
    model = hsd.load(tiny.sd_from_image(), **ONE)
    own = [{"strength": 0.5}, {"strength": 1.0}]
    with pytest.raises(ValueError, match="2 with strength 0.5, 4 with strength 1.*one strength"):
        hsd.compile(PROMPTS[:2], 1.0, model=model, steps=4, settings=own)


def test_images_as_values(tmp_path):
    """They are compared, copied and sent by their pixels."""
    image = hsd.load(tiny.sd_from_image(), **ONE).image
    assert pickle.loads(pickle.dumps(image)) == image
    assert pickle.loads(pickle.dumps(image)).pil.tobytes() == IMAGE.tobytes()
    turned = tmp_path / "turned.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    tiny.picture((32, 48)).save(turned, exif=exif)
    assert hsd.load(tiny.sd_from_image(), image=turned).image.pil.size == (32, 48)
    turned.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be used"):
        hsd.load(tiny.sd_from_image(), image=turned)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a pipeline in ``model``, an image and prompts."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.sd_from_image().save_pretrained(folder / "model")
    IMAGE.save(folder / "a photo.png")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def test_plan_on_the_command_line(saved):
    """The command that it prints has the settings too."""
    typed = ["--set", f"image={saved / 'a photo.png'}", "--set", "strength=0.5", "--device", "cpu"]
    command = ["plan", str(saved / "prompts.txt"), "--model", str(saved / "model"), "--steps", "4", "--tau", "0"]
    numbers = json.loads(RUN.invoke(cli.app, [*command, *typed, "--json"]).output)
    assert numbers["standard_node_steps"] == 2 * len(PROMPTS)
    words = shlex.split(numbers["command"])
    assert [words[i + 1] for i, word in enumerate(words) if word == "--set"] == [typed[1], typed[3]]
    assert "needs an image" in str(RUN.invoke(cli.app, command).exception)


def test_the_prompts_of_a_model_that_needs_an_image(saved):
    command = ["prompts", str(saved / "prompts.txt"), "--model", str(saved / "model"), "--device", "cpu"]
    run = RUN.invoke(cli.app, [*command, "--set", f"image={saved / 'a photo.png'}", "--json"])
    assert json.loads(run.output)["cut"] == []


@pytest.mark.parametrize("command", [["plan", "--model", "stand-in"], ["prompts"]], ids=" ".join)
def test_settings_without_a_model(command):
    run = RUN.invoke(cli.app, [*command, "demo", "--set", "strength=0.5"])
    assert str(run.exception) == "--set strength=0.5 is a setting of a model: name one with --model"


def test_another_strength_is_all_that_differs(tmp_path):
    models = [hsd.load(tiny.sd_from_image(), **ONE, strength=strength) for strength in (0.5, 0.75)]
    plans = [hsd.compile(["a cat", "a dog"], 0.0, model=model, steps=4) for model in models]
    hsd.generate(plans[0], models[0], tmp_path)
    with pytest.raises(hsd.PlanMismatch, match="strength: 0.5 before, 0.75 now") as refused:
        hsd.generate(plans[1], models[1], tmp_path)
    assert "changed in place" not in str(refused.value)


def test_check_of_a_small_strength(saved, monkeypatch):
    monkeypatch.setattr(sys.modules["hsd.models.check"], "_graphs", lambda *args: [])  # they take some seconds
    typed = ["--set", f"image={saved / 'a photo.png'}", "--set", "strength=0.2", "--device", "cpu"]
    run = RUN.invoke(cli.app, ["check", str(saved / "model"), *typed])
    assert run.exit_code == 0, run.exception
    assert "are correct" in run.output
