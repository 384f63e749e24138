"""A model by name, from a folder or from a diffusers pipeline: :func:`load` finds its adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline

from .. import demo
from ..calibration import Calibration
from ..calibration.store import find
from ..errors import Error, Notice, UnknownModel, UnsupportedPipeline
from ..sampler.named import scheduler_named
from ..work.paths import user_path
from ..work.progress import ProgressOption, of_stage
from ..work.quiet import quiet
from ..work.text import shortened
from .arguments import why_no_setting
from .base import Adapter
from .caches import tell_of_replaced_forwards
from .generic import Generic
from .hub import of_hub
from .identity import family_and_networks, identity_of
from .quantised import mix_rows
from .refusals import check_pipeline
from .registry import MODELS, adapter_class, adapter_named
from .setting_types import check_made, typed_settings
from .shared_image import refuse_images, sized_by_image, with_images


def load(
    model: Any,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scheduler: str | None = None,
    progress: ProgressOption = False,
    **settings: Any,
) -> Adapter:
    """A model that can generate, from a name, a folder, or a diffusers pipeline.

    Parameters
    ----------
    model
        ``"demo"`` (bundled), ``"demo-sd"`` (in the repository), a short name (``"kandinsky-2.2"``, ``"sdxl"``,
        ``"flux-dev"``...: the keys of ``MODELS``),
        a hub id (``"org/name"``), a local folder with a ``model_index.json`` or, of a modular pipeline, a
        ``modular_model_index.json``, a diffusers pipeline object, the pair
        ``(KandinskyV22PriorPipeline, KandinskyV22Pipeline)``, or a model that was loaded before.
    device, dtype
        Device and dtype of a model that is loaded by name. By default CUDA, if there is a device, in the half precision
        that the family was released in; else the CPU in float32. Pipeline objects are not changed.
    scheduler
        Another scheduler by name, with the noise schedule of the model's own: ``deterministic`` or ``stochastic`` (DDIM
        or DDPM; for flow matching, Euler steps without or with noise), or the class name of a diffusers scheduler. For
        a scheduler object there is :meth:`Adapter.with_scheduler`.
    progress
        See :data:`hsd.ProgressOption`. The stage is ``load``. True shows the bars of downloads.
    settings
        The family's settings: ``height``, ``width``, ``guidance_scale``, ``negative_prompt``...

    Raises
    ------
    UnknownModel
        For a name that is none of the above, and for a model of the hub that is not in the cache, at once, if the hub
        cannot be reached: it says so, and what to do.
    UnsupportedPipeline
        For a pipeline class without an adapter, and for a pipeline that cannot be driven as it is: it lacks a part or
        its weights, or it has an IP-Adapter or a network that needs an image, and there is none.
    TypeError
        For a setting that the family does not have; says what to use instead.
    ValueError
        For a value that a setting cannot have, for a device that this machine does not have, and if there is no image
        for a family that needs one.
    NoSuchSampler
        For a scheduler that does not exist or does not fit.
    """
    if isinstance(model, Adapter):  # its pipeline may have been changed since it was loaded
        image = settings.get("ip_adapter_image", getattr(model, "ip_adapter_image", None))
        check_pipeline(model.pipes(), model.needs, image)
    tell = of_stage(progress, "load") or (lambda fraction: None)
    tell(0.0)
    with quiet(downloads=progress is True):
        adapter = _load(model, device, dtype, settings)
    tell_of_replaced_forwards(adapter.modules())
    tell(1.0)
    return adapter if scheduler is None else adapter.with_scheduler(scheduler_named(scheduler, adapter.scheduler()))


def _load(
    model: Any, device: str | torch.device | None, dtype: torch.dtype | None, settings: dict[str, Any]
) -> Adapter:
    if isinstance(model, Adapter):
        settings = _checked(type(model), settings)
        if not settings:
            return model
        changed = dataclasses.replace(model, **sized_by_image(model, settings))
        check_made(changed, settings)
        return changed
    if isinstance(model, (str, os.PathLike)):
        _check_device(device)  # before anything is downloaded
        name, folder = str(model), user_path(model)
        source: str | Path
        if name in demo.MODELS:
            return _demo(demo.MODELS[name], device, dtype, settings)
        if any((folder / index).is_file() for index in ("model_index.json", ModularPipeline.config_name)):
            source = folder
            if str(folder) not in (*demo.MODELS, *MODELS):
                name = str(folder)  # without "~" and without a slash at the end: one folder has one name
        elif name and folder.is_dir() and name not in MODELS:
            raise UnknownModel(
                f"the folder {folder} has no model_index.json, so it is not a diffusers pipeline: give the folder that "
                "save_pretrained wrote, or that was downloaded, with all of its sub-folders"
            )
        elif name not in MODELS and folder.suffix.lower() in (".safetensors", ".ckpt", ".gguf", ".bin", ".pt"):
            raise UnknownModel(
                f"{name} is one file of weights, which does not say all of a pipeline. Load it with diffusers' "
                "from_single_file, of a class such as StableDiffusionXLPipeline, and give the pipeline; for the "
                "command line, write it once with pipe.save_pretrained(FOLDER), and give the folder"
            )
        elif name in MODELS or _looks_like_hub_id(name):
            source = MODELS.get(name, name)
        else:
            near = difflib.get_close_matches(name, [*demo.MODELS, *MODELS], n=1)
            raise UnknownModel(
                f"unknown model {name!r}{f': did you mean {near[0]!r}?' if near else '.'} Known: "
                f"{', '.join([*demo.present(), *MODELS])}; or a hub id (org/name), a folder with a model_index.json, "
                "or a pipeline object"
            )
        with of_hub(source):
            family = _adapter_of(source)
            if family is not None:  # what is wrong or missing is said before anything is downloaded
                settings = with_images(family, _checked(family, settings))
            pipe = _from_pretrained(source, device, dtype, family)
        return _wrap(pipe, name=name, settings=settings)
    if isinstance(model, type):
        raise UnsupportedPipeline(
            f"{model.__name__} is a class: give a pipeline object, such as {model.__name__}.from_pretrained(...), not "
            "the class"
        )
    if model is None or isinstance(model, (bool, int, float, bytes, dict)):
        raise UnsupportedPipeline(f"{shortened(repr(model))} is no model: give a name, a folder or a pipeline object")
    if device is not None or dtype is not None:
        raise TypeError("device= and dtype= are for models loaded by name; move the pipeline itself with .to(...)")
    return _wrap(model, name=None, settings=settings)


def _check_device(device: str | torch.device | None) -> None:
    if device is None:
        return
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device}, which torch does not know: write cpu, cuda, or cuda:1") from None
    if asked.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"device is {device}, and torch finds no CUDA device on this machine: leave device= (--device) out to run "
            "on the CPU, or check the driver and that torch is a CUDA build"
        )
    count = torch.cuda.device_count()
    if asked.index is not None and asked.index >= count:
        raise ValueError(
            f"device is {device}, and torch finds {count} CUDA device{'' if count == 1 else 's'}, counted from 0: the "
            f"last is cuda:{count - 1}"
        )


def _demo(
    model: demo.DemoModel, device: str | torch.device | None, dtype: torch.dtype | None, settings: dict[str, Any]
) -> Adapter:
    pipe = _from_pretrained(model.folder, device, dtype, _adapter_of(model.folder))
    adapter = _wrap(pipe, name=model.name, settings={**model.settings, **settings})
    calibration = adapter.calibration  # of the user's folder
    if calibration is None and model.calibration_file.is_file():
        calibration = Calibration.load(model.calibration_file)
    return dataclasses.replace(adapter, default_tau=model.tau, calibration=calibration)


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).exists()


def _adapter_of(source: str | Path) -> type[Adapter] | None:
    """The adapter of the pipeline class that a folder or a hub id names; None if there is none for this class."""
    try:
        return adapter_named(_class_of(str(source)))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"cannot load {source}: {error}") from error


def _from_pretrained(source: str | Path, device: Any, dtype: torch.dtype | None, adapter: type[Adapter] | None) -> Any:
    from diffusers import AutoPipelineForText2Image

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        # A pipeline class that has an adapter is loaded as that class. Others are loaded as diffusers' text-to-image
        # class for them: for Kandinsky 2.2's decoder this is the combined pipeline, with the prior. Where diffusers has
        # none, the class itself may still be driven by the generic adapter.
        half = (adapter or _unknown(str(source))).half_dtype
        dtype = dtype or (half if device.type == "cuda" else torch.float32)
        if adapter is None:
            try:
                pipe = AutoPipelineForText2Image.from_pretrained(str(source), dtype=dtype)
            except ValueError as error:
                if "AutoPipeline can't find a pipeline" not in str(error):
                    raise
                pipe = DiffusionPipeline.from_pretrained(str(source), dtype=dtype)
        else:
            pipe = adapter.load_pipeline(str(source), dtype)
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # quantised ones may need a package or a GPU
        raise UnknownModel(f"cannot load {source}: {error}") from error
    try:
        return pipe.to(device)
    except NotImplementedError as error:
        if "meta tensor" not in str(error):
            raise
        raise UnknownModel(
            f"weights are missing from {source}, or have other names than in the model. If a LoRA was loaded when it "
            "was saved, call fuse_lora() and unload_lora_weights() before save_pretrained"
        ) from None


def _class_of(source: str) -> str:
    """The pipeline class that a folder or a hub id names; modular pipelines have an index of another name."""
    try:
        return str(DiffusionPipeline.load_config(source).get("_class_name"))
    except OSError:
        with contextlib.suppress(OSError):
            ModularPipeline.load_config(source)
            return ModularPipeline.__name__
        raise


def _unknown(source: str) -> type[Adapter]:
    """Whose half precision a class without an adapter is loaded in: that of transformers is bfloat16."""
    return Generic if "transformer" in DiffusionPipeline.load_config(source) else Adapter


def _wrap(pipe: Any, *, name: str | None, settings: dict[str, Any]) -> Adapter:
    adapter = adapter_class(pipe)
    check_pipeline(adapter.pipes_of(pipe), adapter.needs, settings.get("ip_adapter_image"))
    settings = with_images(adapter, _checked(adapter, settings))
    options: dict[str, Any] = {**settings, **({"name": name} if name else {})}
    made = adapter(pipe, **options)
    check_made(made, settings)
    _tell_of_mixed_rows(made)
    return _calibrated(made)


def _tell_of_mixed_rows(adapter: Adapter) -> None:
    """A notice if the lanes of a call have some influence on each other."""
    kinds = [type(network).__name__ for network in adapter.modules() if mix_rows(network)]
    if kinds:
        warnings.warn(
            f"{', '.join(kinds)} is quantised so that all rows of a call are rounded together: which images share a "
            "call changes them a little. batch_size=1 avoids that, and so do llm_int8_threshold=0 (bitsandbytes) and "
            "the granularity PerRow (torchao), see docs/quantised.md",
            Notice,
            stacklevel=5,
        )


def _calibrated(adapter: Adapter) -> Adapter:
    """``adapter`` with the calibration that the user's folder has of exactly its networks, if there is one."""
    calibration = find(family_and_networks(adapter).key, lambda: identity_of(adapter))
    return adapter if calibration is None else adapter.with_calibration(calibration)


def variants_of(
    adapter: Adapter, settings: Sequence[Mapping[str, Any]], places: Sequence[str] | None = None
) -> list[Adapter]:
    """Copies of ``adapter``, one with each of the ``settings`` that single prompts of a plan have.

    ``places`` say for messages where each of the settings first occurs: "prompt 3", or a line of a file.

    Raises
    ------
    TypeError, ValueError
        For a setting that the family does not have, or a value that it refuses.
    """
    out = []
    for i, own in enumerate(settings):
        try:
            refuse_images(adapter, own)
            out.append(_load(adapter, None, None, dict(own)))
        except (TypeError, ValueError) as error:
            where = f"settings {dict(own)!r} of {'a prompt' if places is None else places[i]}"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise (type(error) if isinstance(error, Error) else kind)(f"{where}: {error}") from None
    return out


def _checked(adapter: type[Adapter], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as their types; ``TypeError`` or ``ValueError`` for one that there is not, or for another value."""
    accepted = adapter.setting_names()
    for name in settings:
        if name not in accepted:
            why = why_no_setting(adapter, name)
            end = "" if why.endswith("?") else "."
            raise TypeError(f"{adapter.__name__} has no setting {name!r}: {why}{end} It has: {', '.join(accepted)}")
    return typed_settings(adapter, settings)
