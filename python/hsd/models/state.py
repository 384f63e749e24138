"""The state of a pipeline's parts, as JSON: what its images depend on, and what the encoding of prompts depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers import ModularPipeline
from torch import nn

from .configuration import as_json, config_of, scheduler_of, tokenizer_of
from .networks import dtype_of, network_state

AFTER_DENOISER = ("vae", "movq", "safety", "super_res", "watermark")
"""Beginnings of the names of parts that run after the denoiser: the encoding of prompts does not depend on them."""

_NO_OPTIONS = frozenset({"requires_safety_checker"})
"""Scalars of a pipeline's configuration that change no image."""


def parts_of(pipes: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Names and parts of pipelines, without what is None. A name that two of them have gets a number."""
    seen: dict[str, list[Any]] = {}
    for pipe in pipes:
        for name, part in pipe.components.items():
            others = seen.setdefault(name, [])
            if part is None or any(part is other for other in others):
                continue
            others.append(part)
            yield name if len(others) == 1 else f"{name}_{len(others)}", part


def pipeline_state(pipes: tuple[Any, ...], stepped: Any) -> dict[str, Any]:
    """Everything that the images of pipelines depend on, except the scheduler that steps the denoiser.

    Parameters
    ----------
    pipes
        The pipeline objects.
    stepped
        The pipelines' own scheduler of the denoiser, which is left out.
    """
    parts = dict(parts_of(pipes))
    state: dict[str, Any] = {
        "networks": {name: network_state(part) for name, part in parts.items() if isinstance(part, nn.Module)},
        **_small_parts(parts, stepped),
        "options": _options(pipes),
    }
    for pipe in pipes:
        if hasattr(pipe, "watermark"):  # Stable Diffusion XL has one where a package for it is installed
            state["options"]["watermark"] = None if pipe.watermark is None else type(pipe.watermark).__name__
        if getattr(getattr(pipe, "image_processor", None), "config", None) is not None:
            state["options"]["image_processor"] = config_of(pipe.image_processor)
    if "safety_checker" in parts and "feature_extractor" in parts:
        state["options"]["feature_extractor"] = config_of(parts["feature_extractor"])
    state["options"] |= _readers(pipes)
    return state


def _readers(pipes: tuple[Any, ...]) -> dict[str, Any]:
    """What makes a given image into the input of a network: of a ControlNet, and of an IP-Adapter's encoder."""
    found = {}
    for pipe in pipes:
        if getattr(pipe, "controlnet", None) is not None and hasattr(pipe, "control_image_processor"):
            found["control_image_processor"] = config_of(pipe.control_image_processor)
        encoder, extractor = (getattr(pipe, name, None) for name in ("image_encoder", "feature_extractor"))
        if encoder is not None and extractor is not None:
            found["feature_extractor"] = config_of(extractor)
    return found


def encoding_digest(pipes: tuple[Any, ...], stepped: Any, denoisers: tuple[nn.Module, ...]) -> str:
    """Digest of everything that the encoding of prompts depends on, of this process.

    Parameters
    ----------
    pipes, stepped
        As for :func:`pipeline_state`.
    denoisers
        Networks of which only configuration and dtype count.
    """
    parts = {name: part for name, part in parts_of(pipes) if not name.startswith(AFTER_DENOISER)}
    networks: dict[str, Any] = {}
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        if any(part is denoiser for denoiser in denoisers):
            networks[name] = {"config": config_of(part), "dtype": dtype_of(part)}
            continue
        networks[name] = network_state(part)
        if networks[name]["weights"] is None:  # then at least the object has to be the same
            networks[name]["id"] = id(part)
    options = {**_options(pipes), **_readers(pipes)}
    state = {"networks": networks, **_small_parts(parts, stepped), "options": options}
    state["tables"] = {
        name: [as_json(getattr(part, kind, None)) for kind in ("betas", "alphas_cumprod")]
        for name, part in parts.items()
        if _is_scheduler(part) and part is not stepped
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _small_parts(parts: dict[str, Any], stepped: Any) -> dict[str, Any]:
    """The tokenizers, and all schedulers but the one of the denoiser."""
    schedulers = {name: part for name, part in parts.items() if _is_scheduler(part) and part is not stepped}
    return {
        "tokenizers": {
            name: tokenizer_of(_tokenizer(part), getattr(part, "chat_template", None))
            for name, part in parts.items()
            if _tokenizer(part) is not None
        },
        "schedulers": {name: scheduler_of(part) for name, part in schedulers.items()},
    }


def _tokenizer(part: Any) -> Any:
    """A tokenizer, or that of a processor, which has one beside what it has for images; None for other parts."""
    found = part if hasattr(part, "get_vocab") else getattr(part, "tokenizer", None)
    return found if hasattr(found, "get_vocab") else None


def _is_scheduler(part: Any) -> bool:
    return hasattr(part, "set_timesteps") and hasattr(part, "step")


def _options(pipes: tuple[Any, ...]) -> dict[str, Any]:
    """The scalars of the pipelines' configurations, such as ``force_zeros_for_empty_prompt``.

    Also guiders, which are components, and the blocks of modular pipelines.
    """
    found: dict[str, Any] = {}
    for pipe in pipes:
        for name, value in dict(getattr(pipe, "config", {})).items():
            scalar = isinstance(value, (bool, int, float, str))
            if scalar and not name.startswith("_") and name not in _NO_OPTIONS:
                found[name] = as_json(value)
        for name, part in pipe.components.items():
            if hasattr(part, "prepare_inputs_from_block_state"):  # a guider of diffusers
                # What is set now: the configuration is that of the beginning.
                now = {key: getattr(part, key, getattr(part, f"_{key}", was)) for key, was in config_of(part).items()}
                now = {key: as_json(value) for key, value in now.items()}
                found[name] = {"class": type(part).__name__, **now, "enabled": bool(part._enabled)}
        if isinstance(pipe, ModularPipeline):
            found["blocks"] = [type(block).__name__ for block in _leaves(pipe.blocks)]
    return found


def _leaves(block: Any) -> Iterator[Any]:
    """The blocks of a modular pipeline that have none inside them."""
    inside = list(getattr(block, "sub_blocks", {}).values())
    if not inside:
        yield block
    for each in inside:
        yield from _leaves(each)


def sampler_state(table: Any) -> dict[str, Any]:
    """A sampler table in a few numbers, which are compared with a tolerance: processors round differently.

    They find a scheduler that was changed in place, where no configuration says so.
    """
    k = torch.linspace(0, table.n_steps - 1, min(table.n_steps, _STEPS)).round().long()
    weights = 1 + torch.arange(table.out[0].numel()) / table.out[0].numel()
    out = (table.out.flatten(1).cpu().abs() * weights).sum(1) + table.scale.flatten(1).cpu().abs().sum(1)
    if table.node.numel():
        out = out + table.node.flatten(1).cpu().abs().sum(1)
    image = {"first_image": float(f"{table.init_image_scale:.6g}")} if table.init_image_scale else {}
    return {
        **image,
        "steps": table.n_steps,
        "draws": sum(table.noise_draws),
        "timesteps": [float(f"{t:.6g}") for t in table.timesteps.cpu()[k].double().tolist()],
        "coefficients": [float(f"{c:.6g}") for c in out.double()[k].tolist()],
        "first_noise": float(f"{float(table.init_noise_sigma):.6g}"),
    }


_STEPS = 12
"""Steps of a sampler table that are compared."""
