"""Each input that depends on the prompt has by itself a visible effect on the latents of the tiny pipelines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from tiny import BIG_WIDTH, T5_WIDTH, WIDTH

CAT, BIRDS = "a cat", "two birds on a wire"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}
VISIBLE = 0.05  # relative to the latent

schnell = partial(tiny.flux, guidance_embeds=False)
CLIPS = WIDTH + BIG_WIDTH  # the width of both CLIPs' tokens, or of both pooled embeddings, side by side

# What `encode_prompt` returns, by the names under which the pipeline takes it.
ENCODED = {
    tiny.sdxl: ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"],
    tiny.sd3: ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"],
    tiny.flux: ["prompt_embeds", "pooled_prompt_embeds"],
    schnell: ["prompt_embeds", "pooled_prompt_embeds"],
    tiny.pixart_sigma: [
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ],
    tiny.flux2: ["prompt_embeds"],
    tiny.qwen_image: ["prompt_embeds"],  # and no mask for one prompt
    tiny.flux2_klein: ["prompt_embeds"],
    tiny.krea2: ["prompt_embeds", "prompt_embeds_mask"],
    tiny.ernie_image: ["prompt_embeds"],
    tiny.z_image: ["prompt_embeds", "negative_prompt_embeds"],
}
OTHER_PROMPTS = {
    tiny.sd3: {"prompt_2": None, "prompt_3": None},
    tiny.flux: {"prompt_2": None},
    schnell: {"prompt_2": None},
}

Build = Callable[[], Any]


def encoded(build: Build, pipeline: Any, prompt: str) -> dict[str, Any]:
    if build is tiny.ernie_image:
        return {"prompt_embeds": pipeline.encode_prompt(prompt, "cpu")}
    tensors = pipeline.encode_prompt(prompt, **OTHER_PROMPTS.get(build, {}))
    return dict(zip(ENCODED[build], tensors, strict=False))  # FLUX also returns the positions of the tokens


def replaced(tokens: Any, token: int, by: Any) -> Any:
    """Encoded tokens (1, L, D), or a list of one (L, D), of which one is another prompt's."""
    if isinstance(tokens, list):
        return [replaced(tokens[0][None], token, by[0][None])[0]]
    mixed = tokens.clone()
    mixed[:, token] = by[:, token]
    return mixed


def run(build: Build, pipeline: Any, **arguments: Any) -> Tensor:
    if build is tiny.pixart_sigma:
        arguments |= {"negative_prompt": None, "use_resolution_binning": False}
    return pipeline(generator=torch.Generator().manual_seed(0), **SMALL, **arguments).images


def difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / left.norm())


@pytest.mark.parametrize(
    ("build", "name", "where"),
    [
        (tiny.sdxl, "prompt_embeds", (..., slice(None, WIDTH))),
        (tiny.sdxl, "prompt_embeds", (..., slice(WIDTH, None))),
        (tiny.sdxl, "pooled_prompt_embeds", ...),
        (tiny.sd3, "prompt_embeds", (..., slice(77), slice(None, WIDTH))),
        (tiny.sd3, "prompt_embeds", (..., slice(77), slice(WIDTH, CLIPS))),
        (tiny.sd3, "prompt_embeds", (..., slice(77, None), slice(None))),
        (tiny.sd3, "pooled_prompt_embeds", (..., slice(None, WIDTH))),
        (tiny.sd3, "pooled_prompt_embeds", (..., slice(WIDTH, None))),
        (tiny.flux, "prompt_embeds", ...),
        (tiny.flux, "pooled_prompt_embeds", ...),
        (schnell, "prompt_embeds", ...),
        (schnell, "pooled_prompt_embeds", ...),
        (tiny.pixart_sigma, "prompt_embeds", ...),
        (tiny.qwen_image, "prompt_embeds", (..., slice(5), slice(None))),
        *((tiny.flux2, "prompt_embeds", (..., slice(16 * i, 16 * i + 16))) for i in range(3)),
        *((tiny.flux2_klein, "prompt_embeds", (..., slice(16 * i, 16 * i + 16))) for i in range(3)),
        *((tiny.krea2, "prompt_embeds", (..., i, slice(None))) for i in range(3)),
        (tiny.pixart_sigma, "prompt_attention_mask", ...),
    ],
    ids=[
        "sdxl-clip",
        "sdxl-big-clip",
        "sdxl-pooled",
        "sd3-clip",
        "sd3-big-clip",
        "sd3-t5",
        "sd3-pooled",
        "sd3-big-pooled",
        "dev-t5",
        "dev-pooled",
        "schnell-t5",
        "schnell-pooled",
        "pixart-t5",
        "qwen-image-tokens",
        *("flux2-layer-10", "flux2-layer-20", "flux2-layer-30"),
        *("flux2-klein-layer-9", "flux2-klein-layer-18", "flux2-klein-layer-27"),
        *("krea2-layer-1", "krea2-layer-2", "krea2-layer-3"),
        "pixart-mask",
    ],
)
def test_each_part_of_the_encoding_matters(build: Build, name: str, where: Any) -> None:
    pipeline = build()
    cat, birds = (encoded(build, pipeline, prompt) for prompt in (CAT, BIRDS))
    mixed = cat[name].clone()
    mixed[where] = birds[name][where]
    assert difference(run(build, pipeline, **cat), run(build, pipeline, **cat | {name: mixed})) > VISIBLE


@pytest.mark.parametrize(
    ("build", "tokens"),
    [
        pytest.param(tiny.sdxl, range(1, 7), id="sdxl"),  # token 0 begins every prompt, and is causally the same
        pytest.param(tiny.sd3, range(1, 7), id="sd3-clip"),
        pytest.param(tiny.sd3, range(77, 77 + 6), id="sd3-t5"),
        pytest.param(tiny.flux, range(6), id="dev"),
        pytest.param(schnell, range(6), id="schnell"),
        pytest.param(tiny.pixart_sigma, range(6), id="pixart"),
        pytest.param(tiny.qwen_image, range(5), id="qwen-image"),
        pytest.param(tiny.flux2, range(512 - 6, 512), id="flux2"),  # padded on the left
        pytest.param(tiny.flux2_klein, range(6, 11), id="flux2-klein"),
        pytest.param(tiny.krea2, range(5), id="krea2"),
        pytest.param(tiny.ernie_image, range(1, 6), id="ernie-image"),
        pytest.param(tiny.z_image, range(6, 13), id="z-image"),  # the chat template's before are the same
    ],
)
def test_each_token_matters(build: Build, tokens: range) -> None:
    pipeline = build()
    cat, birds = (encoded(build, pipeline, prompt) for prompt in (CAT, BIRDS))
    whole = run(build, pipeline, **cat)
    changes = []
    for token in tokens:
        mixed = replaced(cat["prompt_embeds"], token, birds["prompt_embeds"])
        changes.append(difference(whole, run(build, pipeline, **cat | {"prompt_embeds": mixed})))
    assert max(changes) > VISIBLE
    assert min(changes) > VISIBLE / 5, "a token among hundreds may do less, but not nothing"


@pytest.mark.parametrize(
    "build",
    ENCODED,
    ids=[
        *("sdxl", "sd3", "dev", "schnell", "pixart", "flux2", "qwen-image"),
        *("flux2-klein", "krea2", "ernie-image", "z-image"),
    ],
)
def test_the_time_matters(build: Build) -> None:
    pipeline = build()
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    cat = encoded(build, pipeline, CAT)
    whole = run(build, pipeline, **cat)

    def earlier(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "timestep" in kwargs:
            return args, kwargs | {"timestep": kwargs["timestep"] * 0.9}
        if build is tiny.z_image:  # whose time runs from 0 to 1
            return (args[0], 1 - (1 - args[1]) * 0.9, *args[2:]), kwargs
        return (args[0], args[1] * 0.9, *args[2:]), kwargs

    with denoiser.register_forward_pre_hook(earlier, with_kwargs=True):
        assert difference(whole, run(build, pipeline, **cat)) > VISIBLE


@pytest.mark.parametrize(
    "sizes",
    [{"original_size": (32, 32)}, {"crops_coords_top_left": (8, 0)}, {"target_size": (128, 64)}],
    ids=["original", "crop", "target"],
)
def test_each_size_given_to_sdxl_matters(sizes: dict[str, tuple[int, int]]) -> None:
    pipeline = tiny.sdxl()
    whole, other = (run(tiny.sdxl, pipeline, prompt=CAT, **given) for given in ({}, sizes))
    assert difference(whole, other) > VISIBLE


@pytest.mark.parametrize("build", [tiny.sdxl, tiny.sd3, tiny.pixart_sigma, tiny.z_image])
def test_guidance_and_the_negative_prompt_matter(build: Build) -> None:
    pipeline = build()
    cat, birds = (encoded(build, pipeline, prompt) for prompt in (CAT, BIRDS))
    whole = run(build, pipeline, **cat)
    assert difference(whole, run(build, pipeline, guidance_scale=2.0, **cat)) > VISIBLE
    for name in ENCODED[build]:
        if name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
            negated = cat | {name: birds[name.removeprefix("negative_")]}
            assert difference(whole, run(build, pipeline, **negated)) > VISIBLE


def test_dev_is_told_its_guidance_and_schnell_is_not() -> None:
    for build, told in ((tiny.flux, True), (schnell, False)):
        pipeline = build()
        low, high = (run(build, pipeline, prompt=CAT, guidance_scale=scale) for scale in (3.5, 4.5))
        assert difference(low, high) > VISIBLE if told else torch.equal(low, high)


def test_flux2_is_told_its_guidance() -> None:
    low, high = (run(tiny.flux2, tiny.flux2(), prompt=CAT, guidance_scale=scale) for scale in (3.5, 4.5))
    assert difference(low, high) > VISIBLE


def test_both_clips_are_padded_with_zeros_to_the_width_of_t5() -> None:
    assert CLIPS < T5_WIDTH
    tokens = encoded(tiny.sd3, tiny.sd3(), CAT)["prompt_embeds"]
    assert tokens.shape == (1, 77 + 256, T5_WIDTH)
    assert not tokens[:, :77, CLIPS:].any()
