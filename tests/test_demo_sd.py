"""The demo model in Stable Diffusion's format: its folder, its pictures, and what it shares with the first one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

import hsd
from hsd import demo
from hsd.demo.evaluator import DemoEvaluator
from hsd.errors import UnknownModel

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tools" / "models" / "demo-sd"
sys.path.insert(0, str(ROOT / "tools"))

from demo_model.language import describe  # noqa: E402
from demo_model.scenes import Scene, sample  # noqa: E402
from demo_model.token_unet import Texts, make_token_unet  # noqa: E402
from demo_model.token_vae import vae_like  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return hsd.load("demo-sd", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def described(rng, n, split):
    return [describe(Scene.from_row(row), rng) for row in sample(rng, n, split=split)]


def test_the_folder_is_small_and_complete():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (FOLDER / "tokenizer").iterdir()}


def test_it_is_loaded_by_name_with_its_own_settings(model, pipe):
    assert model.name == "demo-sd"
    assert type(model.pipe) is StableDiffusionPipeline
    assert model.default_tau == demo.MODELS["demo-sd"].tau
    assert model.settings["guidance_scale"] == demo.MODELS["demo-sd"].settings["guidance_scale"]
    assert hsd.load("demo-sd", guidance_scale=3.0).settings["guidance_scale"] == 3.0
    assert make_token_unet().config.block_out_channels == tuple(pipe.unet.config.block_out_channels)
    assert model.calibration is not None


@pytest.mark.parametrize("scheduler", [None, DDPMScheduler, EulerDiscreteScheduler], ids=["its own", "ddpm", "euler"])
def test_images_are_those_of_the_pipeline(model, pipe, scheduler):
    """With trained weights: at tau = 0 the images of StableDiffusionPipeline, for the same seeds."""
    prompts = described(np.random.default_rng(1), 3, "all")
    own = model.scheduler()
    other = own if scheduler is None else scheduler.from_config(own.config)
    ours = hsd.stream(
        hsd.compile(prompts, 0.0, model=model.with_scheduler(other), steps=5, seeds=7),
        model.with_scheduler(other),
        batch_size=2,
    )
    pipe.scheduler = type(other).from_config(other.config)
    theirs = pipe(
        prompts,
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=model.settings["guidance_scale"],
        generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
        output_type="np",
    ).images
    pipe.scheduler = type(own).from_config(own.config)
    found = {image.index: np.asarray(image.pil) / 255.0 for image in ours}
    assert max(np.abs(found[i] - theirs[i]).max() for i in range(3)) < 0.01


def test_pictures_show_what_held_out_prompts_describe(model):
    """At least nine in ten attributes, as for the first model; with shuffled prompts less than half."""
    prompts = described(np.random.default_rng(8), 24, "held-out")
    plan = hsd.compile(prompts, 0.0, model=model, steps=30, seeds=3)
    pictures = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=24)}
    shown = [pictures[i] for i in range(24)]
    judge = DemoEvaluator()
    assert np.nanmean(judge.marks(shown, prompts)) > 0.9
    assert np.nanmean(judge.marks(shown[1:] + shown[:1], prompts)) < 0.5


def test_its_latents_are_those_of_the_first_model(model):
    movq = hsd.load("demo", device="cpu", dtype=torch.float32).pipes()[-1].movq
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs, ours = movq.encode(x).latents, model.pipe.vae.encode(x).latent_dist
    assert (ours.mode() - theirs).abs().max() < 0.01 * theirs.abs().max()  # rounded to half precision in both
    assert ours.std.max() < 1e-5
    fresh = vae_like(movq)
    with torch.no_grad():
        assert torch.equal(fresh.encode(x).latent_dist.mode(), theirs)


def test_training_prompts_are_of_their_scenes():
    rng = np.random.default_rng(2)
    rows = sample(rng, 200)
    texts = Texts()
    ids = texts.of(rng, rows)
    assert ids.shape == (200, 32)
    words = texts.tokenizer.batch_decode(ids, skip_special_tokens=True)
    empty = [not text for text in words]
    assert 5 < sum(empty) < 40
    # What is named is what the scene has; some prompts name less.
    full = [describe(Scene.from_row(row)) for row in rows]
    assert all(len(text.split()) <= len(whole.split()) + 8 for text, whole in zip(words, full, strict=True))
    styles = [Scene.from_row(row).style for row in rows]
    named = [style in text.split() for style, text in zip(styles, words, strict=True)]
    assert 0.6 < np.mean(named) < 0.95
    others = {"flat", "outline", "shaded", "glowing"}
    for style, text in zip(styles, words, strict=True):
        assert not (others - {style}) & set(text.replace(",", " ").split())


def test_where_it_is_missing_the_error_says_where_it_is(monkeypatch, tmp_path):
    missing = demo.DemoModel("demo-sd", (tmp_path / "nowhere",), {}, 1.0, "none")
    monkeypatch.setitem(demo.MODELS, "demo-sd", missing)
    with pytest.raises(UnknownModel, match=r"demo-sd is not in the installed package: .*models/demo-sd.* clone"):
        hsd.load("demo-sd")
    with pytest.raises(UnknownModel, match=r"did you mean 'demo-sd'\? Known: demo, (?!demo-sd)"):
        hsd.load("demo-ds")
