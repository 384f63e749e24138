"""The denoisers of released models, without storage, and one call of each: what a call costs is counted on them.

Only families whose configuration is public and whose number of parameters agrees with it. Kandinsky 2.2, SDXL and
FLUX.1 are called by their adapters, on the pipelines of ``shapes.py``; of the others only the network is called, on as
many rows as a guided lane has, so that the few operations of the guidance itself are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import shapes
import torch
from torch import Tensor, nn

from hsd.models import Adapter

Call = Callable[[], object]


@dataclass(frozen=True)
class Released:
    """A released denoiser."""

    title: str
    side: int
    """Pixels of the images' sides."""
    rows: int
    """Rows of the network in a lane: 2 where guidance evaluates it twice."""
    tokens: int
    """Text tokens of a row."""
    parameters: float
    """As published, to 1 %; with the stored table of positions where a model has one."""
    source: str
    """Who says so."""
    kind: str
    """``unet`` or ``transformer``."""
    make: Callable[[], tuple[nn.Module, Callable[[int], Call]]]
    """The network, and for a number of lanes one call of it."""

    def build(self) -> tuple[nn.Module, Callable[[int], Call]]:
        """As ``make``.

        Raises
        ------
        AssertionError
            If the network does not have the published number of parameters, to 1 %.
        """
        network, call = self.make()
        count = sum(tensor.numel() for tensor in network.state_dict().values())
        assert abs(count / self.parameters - 1) < 0.01, f"{self.title}: {count:,}, not {self.parameters:,.0f}"
        return network, call


def _pipeline(name: str) -> tuple[nn.Module, Callable[[int], Call]]:
    """A denoiser in its adapter, guidance included."""
    return _called(shapes.build(name, "meta"))


def _called(model: Adapter) -> tuple[nn.Module, Callable[[int], Call]]:
    """The network of an adapter, and its calls."""

    def call(lanes: int) -> Call:
        drawn = {key: row.to("meta") for key, row in shapes.rows(model, lanes).items()}
        latents, times = (torch.empty(lanes, *size, device="meta") for size in (model.latent_shape(), ()))
        return lambda: model.denoise(latents, times, drawn)

    return model.modules()[0], call


def _network(
    kind: type[nn.Module], config: dict[str, Any], rows: int, inputs: Callable[[int], dict[str, Any]]
) -> tuple[nn.Module, Callable[[int], Call]]:
    """A network by itself; ``inputs`` makes its arguments for a number of rows."""
    with torch.device("meta"):
        network = kind(**config).to(torch.bfloat16).eval().requires_grad_(False)

    def call(lanes: int) -> Call:
        given = inputs(rows * lanes)
        return lambda: network(**given, return_dict=False)

    return network, call


def _half(*size: int) -> Tensor:
    return torch.empty(*size, device="meta", dtype=torch.bfloat16)


def _sd15() -> tuple[nn.Module, Callable[[int], Call]]:
    config = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}

    def inputs(n: int) -> dict[str, Any]:
        return {"sample": _half(n, 4, 64, 64), "timestep": _half(n), "encoder_hidden_states": _half(n, 77, 768)}

    return _network(diffusers.UNet2DConditionModel, config, 2, inputs)


def _sd35_medium() -> tuple[nn.Module, Callable[[int], Call]]:
    config = {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    }

    def inputs(n: int) -> dict[str, Any]:
        return {
            "hidden_states": _half(n, 16, 128, 128),
            "timestep": _half(n),
            "encoder_hidden_states": _half(n, 333, 4096),
            "pooled_projections": _half(n, 2048),
        }

    return _network(diffusers.SD3Transformer2DModel, config, 2, inputs)


def _pixart_sigma() -> tuple[nn.Module, Callable[[int], Call]]:
    config = {"sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False}

    def inputs(n: int) -> dict[str, Any]:
        return {
            "hidden_states": _half(n, 4, 128, 128),
            "encoder_hidden_states": _half(n, 300, 4096),
            "encoder_attention_mask": torch.empty(n, 300, device="meta", dtype=torch.long),
            "timestep": _half(n),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    return _network(diffusers.PixArtTransformer2DModel, config, 2, inputs)


def _sana() -> tuple[nn.Module, Callable[[int], Call]]:
    def inputs(n: int) -> dict[str, Any]:
        return {
            "hidden_states": _half(n, 32, 32, 32),
            "encoder_hidden_states": _half(n, 300, 2304),
            "encoder_attention_mask": torch.empty(n, 300, device="meta", dtype=torch.long),
            "timestep": _half(n),
        }

    return _network(diffusers.SanaTransformer2DModel, {}, 2, inputs)


def _flux2() -> tuple[nn.Module, Callable[[int], Call]]:
    def inputs(n: int) -> dict[str, Any]:
        return {
            "hidden_states": _half(n, 4096, 128),
            "encoder_hidden_states": _half(n, 512, 15360),
            "timestep": _half(n),
            "guidance": _half(n),
            "img_ids": torch.empty(4096, 4, device="meta"),
            "txt_ids": torch.empty(512, 4, device="meta"),
        }

    return _network(diffusers.Flux2Transformer2DModel, {}, 1, inputs)


def _qwen_image() -> tuple[nn.Module, Callable[[int], Call]]:
    def inputs(n: int) -> dict[str, Any]:
        return {
            "hidden_states": _half(n, 4096, 64),
            "encoder_hidden_states": _half(n, 128, 3584),
            "encoder_hidden_states_mask": torch.empty(n, 128, device="meta", dtype=torch.bool),
            "timestep": _half(n),
            "img_shapes": [[(1, 64, 64)]] * n,
        }

    return _network(diffusers.QwenImageTransformer2DModel, {}, 2, inputs)


def _z_image() -> tuple[nn.Module, Callable[[int], Call]]:
    def inputs(n: int) -> dict[str, Any]:
        images, captions = [_half(16, 1, 128, 128) for _ in range(n)], [_half(128, 2560) for _ in range(n)]
        return {"x": images, "t": _half(n), "cap_feats": captions}

    return _network(diffusers.ZImageTransformer2DModel, {}, 1, inputs)


U, T = "unet", "transformer"
MODELS = {
    "sd15": Released("SD 1.5", 512, 2, 77, 0.860e9, "Rombach 2022: 860 M", U, _sd15),
    "kandinsky": Released("Kandinsky 2.2", 512, 2, 0, 1.253e9, "its weights", U, partial(_pipeline, "kandinsky")),
    "sdxl": Released("SDXL", 1024, 2, 77, 2.567e9, "its weights", U, partial(_pipeline, "sdxl")),
    "pixart": Released("PixArt-Sigma", 1024, 2, 300, 0.611e9, "its weights: 2.44 GB in float32", T, _pixart_sigma),
    "sana": Released("Sana 1.6B", 1024, 2, 300, 1.60e9, "its name", T, _sana),
    "sd35": Released("SD 3.5 medium", 1024, 2, 333, 2.47e9, "its weights: 4.94 GB", T, _sd35_medium),
    "z_image": Released("Z-Image turbo", 1024, 1, 128, 6.15e9, "arXiv 2511.22699", T, _z_image),
    "flux": Released("FLUX.1 dev", 1024, 1, 512, 11.90e9, "its weights", T, partial(_pipeline, "flux")),
    "qwen": Released("Qwen-Image", 1024, 2, 128, 20.43e9, "its weights: 40.9 GB", T, _qwen_image),
    "flux2": Released("FLUX.2 dev", 1024, 1, 512, 32.2e9, "its card: 32 B", T, _flux2),
}
