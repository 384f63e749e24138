"""What several families have in common: sizes, limits, padding, shifts."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ..errors import Notice
from ..work.device import to_host

Bins = dict[str, list[float]]
"""(height, width) by aspect ratio."""

Pair = tuple[int, int]


@functools.cache
def say_once(text: str) -> None:
    """Warn of something about a model when it is loaded, once: an adapter is made again for each change of settings."""
    warnings.warn(text, Notice, stacklevel=7)  # the caller of hsd.load


def check_size(name: str, value: int, multiple: int) -> None:
    """``ValueError`` unless a side in pixels is positive and a multiple of ``multiple``."""
    if value < multiple or value % multiple:
        raise ValueError(f"{name} is {value}: it has to be a positive multiple of {multiple} pixels for this model")


def image_size(adapter: Any, native: int, multiple: int) -> tuple[int, int]:
    """An adapter's height and width in pixels: ``native`` where one is None; checked by :func:`check_size`."""
    height, width = adapter.height or native, adapter.width or native
    check_size("height", height, multiple)
    check_size("width", width, multiple)
    return height, width


def pair(name: str, value: Any) -> Pair:
    """Two integers; a list of two, as in JSON, is accepted too."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(side, int) for side in value):
        raise ValueError(f"{name} is {value!r}: it has to be a pair of integers, like (1024, 1024)")
    return (value[0], value[1])


def bins_for(pipe: Any, bins: dict[int, Bins]) -> Bins:
    """The image sizes that a model was trained with, of those in ``bins`` by the transformer's ``sample_size``.

    ``ValueError`` if there are none, as in the pipeline.
    """
    size = pipe.transformer.config.sample_size
    if size not in bins:
        *most, last = sorted(bins)
        raise ValueError(
            f"use_resolution_binning is on, but there are no bins for a model with sample_size={size} (there are for "
            f"{', '.join(map(str, most))} and {last}): set use_resolution_binning=False"
        )
    return bins[size]


def check_max_sequence_length(value: int, most: int) -> None:
    """``ValueError`` unless a text's longest length in tokens is within 1 and ``most``."""
    if not 1 <= value <= most:
        raise ValueError(f"max_sequence_length is {value}: it has to be within 1 and {most} tokens")


def own_tokens(ids: Sequence[int], empty: Sequence[int], limit: int) -> slice:
    """Which of a text's tokens are its own, and not of the template around it: at least one, if there are any.

    The template's are those at the beginning and at the end that an empty text has too.

    Parameters
    ----------
    ids, empty
        All tokens of the text, and of an empty one, both with the template and without padding.
    limit
        Number of tokens that are read: the others are cut off at the end.
    """
    shorter = min(len(ids), len(empty))
    before = next((i for i in range(shorter) if ids[i] != empty[i]), shorter)
    after = next((i for i in range(shorter - before) if ids[-1 - i] != empty[-1 - i]), shorter - before)
    stop = max(1, min(len(ids) - after, limit))
    return slice(min(before, stop - 1), stop)


def texts(setting: str | None, n: int) -> list[str] | None:
    """A text for another encoder (``prompt_2`` ...), once for each of ``n`` prompts; None where there is none.

    As in the pipelines, an empty text counts as none: the encoder then gets the prompt itself.
    """
    return [setting] * n if setting else None


def clip_tokens(pipe: Any, prompts: list[str], device: Any, clip_skip: int | None, **scale: float) -> Tensor:
    """(B, 77, D) tokens of a Stable Diffusion's text encoder, ``clip_skip`` layers before its last.

    ``scale`` is :func:`~hsd.models.lora_scale.encoder_scale`.
    """
    with _with_text_model(pipe.text_encoder):
        # 0 skips nothing. transformers 5 gives the last layer's output after the norm, which would be applied twice.
        return pipe.encode_prompt(prompts, device, 1, False, clip_skip=clip_skip or None, **scale)[0]


def check_clip_skip(value: int | None, encoders: Sequence[Any], most: int) -> None:
    """``ValueError`` unless ``clip_skip`` leaves something of every CLIP in ``encoders``.

    The pipelines read the tokens of the last layer (``most`` 0) or of the last but one (``most`` 1), and skip from it.
    """
    if value is None:
        return
    layers = min(encoder.config.num_hidden_layers for encoder in encoders) - most
    if not 0 <= value <= layers:
        raise ValueError(f"clip_skip is {value}: the text encoder has layers for 0 to {layers}")


@contextlib.contextmanager
def _with_text_model(encoder: Any) -> Iterator[None]:
    """Let a pipeline find the last norm of a ``CLIPTextModel`` for ``clip_skip``: it looks for it in ``text_model``.

    transformers 5 made ``CLIPTextModel`` itself what its ``text_model`` was, and diffusers 0.42 does not know that.
    """
    if hasattr(encoder, "text_model") or not hasattr(encoder, "final_layer_norm"):
        yield
        return
    vars(encoder)["text_model"] = encoder  # not as a submodule, which would contain itself
    try:
        yield
    finally:
        del vars(encoder)["text_model"]


def pad_tokens(tokens: Tensor, length: int) -> Tensor:
    """Tokens (B, L, ...), or their mask (B, L), padded with zeros to ``length``."""
    missing = length - tokens.shape[1]
    assert missing >= 0, (tokens.shape, length)
    return torch.nn.functional.pad(tokens, (0, 0) * (tokens.ndim - 2) + (0, missing)) if missing else tokens


def unet_latent(pipe: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(C, h, w) of a latent that the UNet of ``pipe`` denoises, for an image of ``height`` x ``width`` pixels."""
    assert height is not None
    assert width is not None
    return pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor


def packed_grid(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """(rows, columns) of an image's tokens, where 2 x 2 pixels of the VAE's latent make one token."""
    assert height is not None
    assert width is not None
    side = 2 * pipe.vae_scale_factor
    return height // side, width // side


def vae_decode(vae: Any, latents: Tensor, generators: list[torch.Generator], **options: Any) -> Tensor:
    """(B, 3, H, W) or (B, 3, 1, H, W): what ``vae`` decodes latents to, in its own dtype.

    It gets the images' ``generators`` if it takes any. Most decoders ignore them, but ``ConsistencyDecoderVAE`` samples
    the image from noise: without them it would draw from torch's global generator, and an image would depend on the
    others of its batch. (Of diffusers' pipelines only Stable Diffusion's hands its generators over.)
    """
    if "generator" in inspect.signature(vae.decode).parameters:
        options["generator"] = generators
    image: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False, **options)[0]
    return image


def decode_patches(pipe: Any, latents: Tensor, eps: float, generators: list[torch.Generator]) -> Tensor:
    """(B, 3, H, W): images of patches (B, 4 C, h, w) of 2 x 2 pixels, as FLUX.2's VAE has them.

    They are scaled by the statistics of the VAE's batch norm, whose variances are made larger by ``eps``.
    """
    statistics = pipe.vae.bn
    mean, variance = (
        each.float().view(1, -1, 1, 1).to(latents.device) for each in (statistics.running_mean, statistics.running_var)
    )
    return vae_decode(pipe.vae, pipe._unpatchify_latents(latents * torch.sqrt(variance + eps) + mean), generators)


def decode_frame(vae: Any, latents: Tensor, generators: list[torch.Generator]) -> Tensor:
    """(B, 3 or 4, H, W): images of latents (B, C, 1, h, w), videos of one frame as Qwen-Image's VAE has them.

    They are scaled channel by channel.
    """
    mean, std = (
        torch.tensor(each, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae_decode(vae, latents * std + mean, generators)[:, :, 0]


def eta_for(scheduler: Any, eta: float) -> dict[str, float]:
    """``eta`` for the schedulers that take it, as the pipelines decide it."""
    return {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}


def shift_for(scheduler: Any, tokens: int, most: float = 1.15, longest: int = 4096) -> float:
    """``mu``, by which schedulers with ``use_dynamic_shifting`` shift the noise levels of an image.

    ``tokens`` is how many tokens the image has; ``longest`` and ``most`` are the pipeline's own defaults for the
    longest sequence and its shift.
    """
    config = scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", longest),
        config.get("base_shift", 0.5),
        config.get("max_shift", most),
    )


def pictures(processor: Any, image: Tensor, do_denormalize: list[bool] | None = None) -> list[PIL.Image.Image]:
    """What ``processor.postprocess(image, output_type="pil", do_denormalize=...)`` gives, to the last bit.

    Pixels become numbers of 8 bits on the device, where that is the same, so that a quarter of the bytes is copied to
    the host.

    Parameters
    ----------
    processor
        The pipeline's ``image_processor``.
    image
        (B, C, H, W), on any device, in any floating dtype.
    do_denormalize
        For each image, whether its values are from -1 to 1. Default: as the processor is configured.
    """
    if not _is_diffusers(processor):
        return processor.postprocess(image, output_type="pil", do_denormalize=do_denormalize)
    unit: Tensor = processor.postprocess(image, output_type="pt", do_denormalize=do_denormalize)
    if all(do_denormalize) if do_denormalize is not None else processor.config.do_normalize:
        return unit_pictures(unit)
    # Values that were not clamped may be outside of 0 to 1, where a conversion to 8 bits is not defined.
    return processor.numpy_to_pil(processor.pt_to_numpy(to_host(unit)))


def _is_diffusers(processor: Any) -> bool:
    """Whether a processor does after decoding what that of diffusers does, and nothing of its own."""
    names = ("postprocess", "_denormalize_conditionally", "denormalize", "pt_to_numpy", "numpy_to_pil")
    own = [getattr(processor, name, None) for name in names]
    return [getattr(each, "__func__", each) for each in own] == [getattr(VaeImageProcessor, name) for name in names]


def unit_pictures(unit: Tensor) -> list[PIL.Image.Image]:
    """Images of (B, C, H, W) with values from 0 to 1: what diffusers' ``numpy_to_pil`` makes of them, to the last bit.

    Both multiply in float32 and round half to even. Each has one correct result, on every device. (Only of NaN, which
    is no pixel, they may make different numbers.)
    """
    pixels = (unit.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).contiguous()  # [B, H, W, C]
    # Grey images are copied, because Pillow would read from the array itself as long as they live.
    return [PIL.Image.fromarray(one[..., 0].copy() if one.shape[2] == 1 else one) for one in to_host(pixels).numpy()]
