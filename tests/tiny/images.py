"""Pipelines that read an image: tiny ControlNets, IP-Adapters and pipelines from image to image."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from .parts import WIDTH, listen, quiet, seeded
from .sdxl import sdxl
from .stable_diffusion import stable_diffusion


def picture(size: tuple[int, int], seed: int = 0) -> PIL.Image.Image:
    """Return an image of (height, width): a few large squares of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(colours).resize((size[1], size[0]), PIL.Image.Resampling.NEAREST)


def controlnet(unet: Any, seed: int = 0) -> ControlNetModel:
    """Return a ControlNet for a UNet, whose last layers are not 0, as those of a new one are."""

    def make() -> ControlNetModel:
        net = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 8, 8, 8), load_weights_from_unet=False
        )
        for name, parameter in net.named_parameters():
            if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
                torch.nn.init.normal_(parameter.data, std=0.2)
        return net

    return seeded(make, seed)


def _with_controlnet(cls: Any, pipe: Any, n: int) -> Any:
    nets = [controlnet(pipe.unet, seed) for seed in range(n)]
    return quiet(cls.from_pipe(pipe, controlnet=nets[0] if n == 1 else MultiControlNetModel(nets)))


def sd_control(scheduler: Any = None, n: int = 1) -> StableDiffusionControlNetPipeline:
    """Return a tiny Stable Diffusion with `n` ControlNets."""
    return _with_controlnet(StableDiffusionControlNetPipeline, stable_diffusion(scheduler), n)


def sdxl_control(scheduler: Any = None, n: int = 1) -> StableDiffusionXLControlNetPipeline:
    """Return a tiny Stable Diffusion XL with `n` ControlNets."""
    return _with_controlnet(StableDiffusionXLControlNetPipeline, sdxl(scheduler), n)


def sd_from_image(scheduler: Any = None) -> StableDiffusionImg2ImgPipeline:
    """Return a tiny Stable Diffusion from image to image."""
    return quiet(StableDiffusionImg2ImgPipeline.from_pipe(stable_diffusion(scheduler)))


def sdxl_from_image(scheduler: Any = None) -> StableDiffusionXLImg2ImgPipeline:
    """Return a tiny Stable Diffusion XL from image to image."""
    return quiet(StableDiffusionXLImg2ImgPipeline.from_pipe(sdxl(scheduler)))


@cache
def _image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        image_size=32,
        patch_size=8,
    )
    model = seeded(lambda: CLIPVisionModelWithProjection(config))
    listen(model, ("visual_projection", "patch_embedding"), 8.0)
    return model


def with_ip_adapter(pipe: Any, *, plus: bool = False, n: int = 1) -> Any:
    """Return the pipeline after it has loaded `n` IP-Adapters; `plus`: of the kind that reads the image's patches."""
    pipe.image_encoder = copy.deepcopy(_image_encoder())
    size = {"height": 32, "width": 32}
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    states = [_ip_adapter(pipe.unet, plus, seed) for seed in range(n)]
    pipe.load_ip_adapter(states, subfolder=[""] * n, weight_name=[""] * n)
    return pipe


def _ip_adapter(unet: Any, plus: bool, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter, by the names that they have in its files."""
    width = unet.config.cross_attention_dim
    if plus:
        projection = seeded(
            lambda: IPAdapterPlusImageProjection(
                embed_dims=WIDTH, output_dims=width, hidden_dims=WIDTH, heads=1, num_queries=4
            ),
            seed,
        )
    else:
        projection = seeded(lambda: ImageProjection(WIDTH, width, num_image_text_embeds=4), seed)
    names = (("image_embeds", "proj"), ("to_out.0", "to_out"))  # diffusers', and those of the files
    state = {}
    for name, value in projection.state_dict().items():
        for own, in_file in names:
            name = name.replace(own, in_file)
        state[name] = value
    generator = torch.Generator().manual_seed(seed)
    attention = {}
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            own = unet.get_submodule(name.removesuffix(".processor"))
            for key in ("to_k", "to_v"):
                shape = getattr(own, key).weight.shape
                attention[f"{i}.{key}_ip.weight"] = 4.0 * torch.randn(shape, generator=generator) / width**0.5
    return {"image_proj": state, "ip_adapter": attention}
