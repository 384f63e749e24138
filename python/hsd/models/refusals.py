"""Pipeline objects that no adapter can drive are refused when they are loaded, and the message says what to do.

What a family needs of its pipeline it declares once, as :class:`Needs`; every family is checked by the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch import nn

from ..errors import UnsupportedPipeline


@dataclass(frozen=True)
class Needs:
    """What an adapter needs of its pipeline. The defaults ask for nothing, as suits an adapter that says nothing."""

    parts: tuple[str, ...] = ()
    """Components that may not be None."""

    channels: int | None = None
    """Input channels of the denoiser for each channel of the autoencoder's latent; None: not compared.

    1, or 4 where 2 x 2 pixels are packed into one token.
    """

    text_only: bool = False
    """Whether the denoiser is conditioned on text alone: a UNet may then have no class embedding, and a transformer no
    input for a guidance scale."""

    ip_adapter: bool = False
    """Whether the family has the setting ``ip_adapter_image``."""


CHANNELS_OF = {
    5: "depth-to-image",
    7: "upscaling",
    8: "InstructPix2Pix",
    9: "inpainting",
    128: "FLUX Control",
    384: "FLUX Fill",
}
"""What models with another number of input channels are for."""

_CONDITIONED_ON_IMAGES = ("controlnet", "adapter", "motion_adapter", "image_proj_model", "depth_estimator")
"""Components of pipelines that condition on more than text: a family that needs one names it in ``Needs.parts``."""

_OTHER_UNETS = ("UNetMotionModel", "UNetControlNetXSModel", "UNet3DConditionModel", "UNetSpatioTemporalConditionModel")
"""Networks that may stand in a UNet's place, and take more or other inputs: videos, or a control image."""


def check_pipeline(pipes: Sequence[Any], needs: Needs, ip_adapter_image: Any = None) -> None:
    """``UnsupportedPipeline`` if a model cannot be driven as it is.

    Parameters
    ----------
    pipes
        The pipelines that it consists of: one, or a prior's and a decoder's.
    needs
        What its family declares.
    ip_adapter_image
        The setting of this name; None if it is not given.
    """
    wrong = ((pipe, reason) for pipe in pipes for reason in _wrong(pipe, needs, ip_adapter_image is not None))
    for owner, reason in itertools.chain(_missing(pipes, needs.parts), wrong):
        raise UnsupportedPipeline(f"{type(owner).__name__} {reason}")


def _missing(pipes: Sequence[Any], parts: Sequence[str]) -> Iterator[tuple[Any, str]]:
    for part in parts:
        owners = [pipe for pipe in pipes if hasattr(pipe, part)] or pipes
        for pipe in owners:
            if getattr(pipe, part, None) is None:
                yield pipe, _load_with(part)


def _load_with(part: str) -> str:
    end = ", so that prompts can be encoded" if part.startswith(("text_encoder", "tokenizer")) else ""
    return f"has no {part}: load the pipeline with it{end}"


def _wrong(pipe: Any, needs: Needs, has_image: bool) -> Iterator[str]:
    for part in _CONDITIONED_ON_IMAGES:
        if getattr(pipe, part, None) is not None and part not in needs.parts:
            yield f"has a {part}, which needs an image for every prompt: pass a pipeline without it"
    yield from _not_loaded(pipe)
    yield from _in_float8(pipe)
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if denoiser is None:
        return
    if _has_ip_adapter(denoiser) and not needs.ip_adapter:
        yield "has an IP-Adapter, for which its family has no image: call pipe.unload_ip_adapter()"
    if _has_ip_adapter(denoiser) and needs.ip_adapter and not has_image:
        yield (
            "has an IP-Adapter, and there is no image to give it: set ip_adapter_image (a PIL image or a path, the "
            "same for all prompts), or call pipe.unload_ip_adapter()"
        )
    if has_image and needs.ip_adapter and not _has_ip_adapter(denoiser):
        yield "has no IP-Adapter to give ip_adapter_image to: call pipe.load_ip_adapter, or leave the setting out"
    yield from _another_network(pipe, denoiser, needs)


def _not_loaded(pipe: Any) -> Iterator[str]:
    """Networks without weights, unless a hook of accelerate fetches the weights for each call."""
    for name, part in getattr(pipe, "__dict__", {}).items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()) and not _fetches(part):
            yield (
                f"has a {name} on the meta device, which has no weights: load it with from_pretrained, or create it "
                "outside of torch.device('meta') and load its weights"
            )


def _in_float8(pipe: Any) -> Iterator[str]:
    """Networks that say their dtype is a float of 8 bits: nothing is computed in it, and no noise can be drawn in it.

    Networks of diffusers with layerwise casting say the dtype that they compute in, and quantised ones too. Text
    encoders with it do not, and pipelines take the dtype of embeddings and noise from them.
    """
    for name, part in getattr(pipe, "__dict__", {}).items():
        dtype = getattr(part, "dtype", None) if isinstance(part, nn.Module) else None
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize == 1:
            way_out = (
                f"load it in half precision, then call pipe.{name}.enable_layerwise_casting(storage_dtype=...)"
                if hasattr(part, "enable_layerwise_casting")
                else "load it in half precision, or quantise it"
            )
            kind = str(dtype).removeprefix("torch.")
            yield f"has a {name} in {kind}, in which nothing can be computed: {way_out} (docs/quantised.md)"


def _fetches(module: nn.Module) -> bool:
    """Whether hooks bring the weights from elsewhere; that of ``enable_model_cpu_offload`` only moves what is there."""
    hooks = [getattr(part, name, None) for part in module.modules() for name in ("_hf_hook", "_diffusers_hook")]
    return any(hook is not None and type(hook).__name__ != "CpuOffload" for hook in hooks)


def _has_ip_adapter(denoiser: Any) -> bool:
    in_sd3 = getattr(denoiser, "image_proj", None) is not None
    return ip_adapters(denoiser) > 0 or in_sd3


def ip_adapters(denoiser: Any) -> int:
    """How many IP-Adapters a UNet, or the transformer of FLUX, has."""
    projection = getattr(denoiser, "encoder_hid_proj", None)
    return len(projection.image_projection_layers) if isinstance(projection, MultiIPAdapterImageProjection) else 0


def _another_network(pipe: Any, denoiser: Any, needs: Needs) -> Iterator[str]:
    """Networks that were trained for something else than text to image."""
    config, kind = getattr(denoiser, "config", {}), type(denoiser).__name__
    if kind in _OTHER_UNETS:
        yield f"has a {kind}, which does not make images from text alone: pass a pipeline with a UNet2DConditionModel"
    given, latent = config.get("in_channels"), _latent_channels(pipe)
    if needs.channels is not None and given is not None and latent is not None and given != needs.channels * latent:
        use = f" ({CHANNELS_OF[given]} has that many)" if given in CHANNELS_OF else ""
        yield (
            f"has a {kind} with {given} input channels{use}, where text to image has {needs.channels * latent}: it "
            "needs an image for every prompt. Pass the model's text-to-image version"
        )
    if needs.text_only and getattr(denoiser, "class_embedding", None) is not None:
        yield f"has a {kind} with a class embedding, which needs more than text: pass a model conditioned on text alone"
    if needs.text_only and config.get("guidance_embeds"):
        yield (
            f"has a {kind} with guidance_embeds=True, a distilled model to which diffusers' pipeline of this class "
            "gives no guidance scale: pass the model that is not distilled"
        )
    if config.get("addition_embed_type") == "text_time":
        yield from _another_text_time(pipe, denoiser)


def _another_text_time(pipe: Any, unet: Any) -> Iterator[str]:
    """Refiners: their UNet reads an aesthetic score instead of a size, and the tokens of one text encoder only."""
    encoder = getattr(pipe, "text_encoder_2", None)
    if encoder is None:
        return
    numbers, rest = divmod(
        unet.add_embedding.linear_1.in_features - encoder.config.projection_dim, unet.config.addition_time_embed_dim
    )
    if numbers == 5 or pipe.config.get("requires_aesthetics_score"):
        yield "has a refiner's UNet, which starts from an image: pass the base model"
    elif (numbers, rest) != (6, 0):
        yield "has a UNet that does not take this text_encoder_2's output and six sizes: load both from one model"
    for part in ("text_encoder", "tokenizer"):  # a model may have the second one alone, with a narrower UNet
        if getattr(pipe, part, None) is None and unet.config.cross_attention_dim != encoder.config.hidden_size:
            yield _load_with(part)


def _latent_channels(pipe: Any) -> int | None:
    """Channels of the autoencoder's latent; None if it does not say."""
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    config = getattr(vae, "config", {})
    return config.get("latent_channels") or config.get("z_dim")
