"""Stable Diffusion XL: its sizes, its negative prompt, its decoder in half precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

import hsd
import tiny
from helpers import fresh_generators, latents_of, share_apart

PROMPTS = ["a cat", "two birds on a wire"]
SEEDS = [3, 8]
STEPS = 3


def stock(pipe, prompts=PROMPTS, seeds=SEEDS, output_type="latent", **settings):
    if isinstance(settings.get("negative_prompt"), str):
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    generators = fresh_generators(seeds)
    return pipe(prompts, generator=generators, num_inference_steps=STEPS, output_type=output_type, **settings).images


def ours(pipe, prompts=PROMPTS, seeds=SEEDS, **settings):
    model = hsd.load(pipe, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=STEPS, seeds=seeds)
    latents = latents_of(plan, model)
    return torch.cat([latents[i] for i in range(len(prompts))])


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "settings",
    [
        {"original_size": (256, 128)},
        {"target_size": (128, 64)},
        {"crops_coords_top_left": (16, 48)},
        {"guidance_rescale": 0.7},
        {"clip_skip": 1},
        {"negative_prompt": ""},
        {"negative_prompt": "blurry"},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_each_setting_does_what_it_does_in_the_pipeline(settings):
    pipe = tiny.sdxl()
    plain, expected = stock(pipe), stock(pipe, **settings)
    assert apart(plain, expected) > 0.003  # the setting matters
    assert apart(ours(pipe, **settings), expected) < 2e-5


def test_eta():
    pipe = tiny.sdxl(DDIMScheduler(**tiny.SD_BETAS, clip_sample=False))
    plain, expected = stock(pipe), stock(pipe, eta=0.8)
    assert apart(plain, expected) > 0.05
    assert apart(ours(pipe, eta=0.8), expected) < 2e-5


def test_no_negative_prompt_is_zeros_unless_the_model_says_otherwise():
    pipe = tiny.sdxl()
    zeros = stock(pipe)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    encoded = stock(pipe)
    assert apart(zeros, encoded) > 0.05
    assert apart(ours(pipe), encoded) < 2e-5
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    assert apart(ours(pipe), zeros) < 2e-5


def test_negative_sizes_are_those_of_the_pipeline_given_one_prompt():
    """Given several, the pipeline interleaves the sizes where the rest of a batch is in two halves."""
    pipe = tiny.sdxl()
    settings = {"negative_original_size": (512, 512), "negative_target_size": (128, 256)}
    got = ours(pipe, **settings)
    alone = [stock(pipe, [prompt], [seed], **settings) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert apart(stock(pipe), torch.cat(alone)) > 0.003
    assert apart(got, torch.cat(alone)) < 2e-5


def test_settings_that_are_rows_differ_between_lanes_of_one_call():
    pipe = tiny.sdxl()
    own = [
        {"guidance_scale": 3.0},
        {"guidance_scale": 6.0, "original_size": (256, 256)},
        {"guidance_scale": 6.0, "negative_prompt": "dull", "target_size": [32, 64]},
    ]
    model = hsd.load(pipe)
    assert len({hsd.load(model, **settings).call_key() for settings in own}) == 1
    plan = hsd.compile(["a cat"] * 3, 0.0, model=model, steps=STEPS, seeds=[4, 4, 4], settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        [expected] = stock(pipe, ["a cat"], [4], "pil", **settings)
        assert share_apart(images[i], expected) < 0.01
        assert share_apart(images[(i + 1) % 3], expected) > 0.1


def test_a_size_of_its_own_moves_the_sizes_that_follow_it():
    pipe = tiny.sdxl()
    settings = {"height": 64, "width": 48}
    assert apart(latents_of_one(hsd.load(hsd.load(pipe), **settings)), stock(pipe, ["a cat"], [4], **settings)) < 2e-5


def latents_of_one(model):
    return latents_of(hsd.compile(["a cat"], 0.0, model=model, steps=STEPS, seeds=[4]), model)[0]


def test_a_half_precision_decoder_is_run_in_float32_and_left_as_it_was():
    pipe = tiny.sdxl()
    latents = stock(pipe)
    expected = stock(pipe, output_type="pil")
    pipe.vae.to(torch.float16)
    model = hsd.load(pipe)
    seen = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    images = model.decode(latents, fresh_generators(SEEDS))
    assert seen == [torch.float32]
    assert pipe.vae.dtype == torch.float16
    for image, other in zip(images, expected, strict=True):
        assert share_apart(image, other) < 0.2  # its weights were rounded
    pipe.vae.register_to_config(force_upcast=False)
    model.decode(latents, fresh_generators(SEEDS))
    assert seen[1:] == [torch.float16]


def test_a_decoder_with_statistics_of_its_latents():
    pipe = tiny.sdxl()
    plain = stock(pipe, output_type="pil")
    pipe.vae.register_to_config(latents_mean=[0.5, -1.0, 0.2, 1.5], latents_std=[2.0, 0.5, 1.0, 3.0])
    latents, expected = stock(pipe), stock(pipe, output_type="pil")
    images = hsd.load(pipe).decode(latents, fresh_generators(SEEDS))
    for i in range(len(PROMPTS)):
        assert share_apart(images[i], expected[i]) < 1e-3
        assert share_apart(plain[i], expected[i]) > 0.1


def test_the_watermark_is_applied():
    class Invert:
        def apply_watermark(self, images):
            return -images

    pipe = tiny.sdxl()
    latents = stock(pipe)
    pipe.watermark = Invert()
    expected = stock(pipe, output_type="pil")
    for image, other in zip(hsd.load(pipe).decode(latents, fresh_generators(SEEDS)), expected, strict=True):
        assert share_apart(image, other) < 1e-3


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"height": 100}, "height is 100"),
        ({"original_size": 1024}, "original_size is 1024"),
        ({"crops_coords_top_left": (0, 0.5)}, "crops_coords_top_left"),
        ({"negative_target_size": (64, 64)}, "give both or neither"),
    ],
)
def test_bad_settings(settings, error):
    with pytest.raises(ValueError, match=error):
        hsd.load(tiny.sdxl(), **settings)


def test_what_cannot_be_driven_is_refused():
    pipe = tiny.sdxl()
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 32, 2)])
    with pytest.raises(hsd.UnsupportedPipeline, match="unload_ip_adapter"):
        hsd.load(pipe)
    pipe = tiny.sdxl()
    pipe.text_encoder_2 = None
    with pytest.raises(hsd.UnsupportedPipeline, match="no text_encoder_2"):
        hsd.load(pipe)
