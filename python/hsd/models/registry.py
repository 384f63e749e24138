"""Which adapter drives a pipeline: one that is built in, that another package announces, or that was registered."""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import diffusers

from ..errors import Error, UnsupportedPipeline
from ..names import MODELS as MODELS
from .base import Adapter
from .generic import Generic, reads_image, why_not

GROUP = "hsd.adapters"
"""Entry points of this group are adapters: ``MyPipeline = my_package.adapters:MyAdapter``, named as the pipeline."""

BUILT_IN = {
    "CogView4Pipeline": "cogview4:CogView4",
    "ErnieImagePipeline": "ernie_image:ErnieImage",
    "FluxPipeline": "flux:Flux",
    "Flux2Pipeline": "flux2:Flux2",
    "Flux2KleinPipeline": "flux2_klein:Flux2Klein",
    "Kandinsky5T2IPipeline": "kandinsky5:Kandinsky5",
    "KandinskyV22CombinedPipeline": "kandinsky22:Kandinsky22",
    "Krea2Pipeline": "krea2:Krea2",
    "PixArtSigmaPipeline": "pixart_sigma:PixArtSigma",
    "QwenImagePipeline": "qwen_image:QwenImage",
    "QwenImage21Pipeline": "qwen_image_21:QwenImage21",
    "SanaPipeline": "sana:Sana",
    "StableDiffusionControlNetPipeline": "controlnet:StableDiffusionControlNet",
    "StableDiffusionImg2ImgPipeline": "image_to_image:StableDiffusionImageToImage",
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusion3Pipeline": "stable_diffusion_3:StableDiffusion3",
    "StableDiffusionXLControlNetPipeline": "controlnet:StableDiffusionXLControlNet",
    "StableDiffusionXLImg2ImgPipeline": "image_to_image:StableDiffusionXLImageToImage",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:StableDiffusionXL",
    "StableUnCLIPPipeline": "stable_unclip:StableUnCLIP",
    "UnCLIPPipeline": "karlo:Karlo",
    "ZImagePipeline": "z_image:ZImage",
}
"""Built-in adapters, by pipeline class: ``module:class``.

Each is imported when it is needed, so that a version of diffusers that lacks one pipeline can still run the others.
"""

_FROM_IMAGES = ("ControlNetPipeline", "Img2ImgPipeline")
"""Ends of the names of classes that need more than text."""

MODULAR = ("ModularPipeline", "modular:Modular")
"""The base class of modular pipelines, and the adapter that reads their blocks: for all that have none of their own."""

METHODS = ("encode", "scheduler", "latent_shape", "denoise", "decode")

PAIRS = {("KandinskyV22PriorPipeline", "KandinskyV22Pipeline"): "KandinskyV22CombinedPipeline"}
"""Pipelines that are used together, and the pipeline class whose adapter drives them."""

_registered: list[type[Adapter]] = []


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Make an adapter known in this process; usable as a decorator. It takes precedence over built-in adapters.

    Raises
    ------
    TypeError
        Unless it is a subclass of :class:`Adapter` with all five methods, and names its ``pipelines``.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"{adapter!r} is not a subclass of hsd.models.Adapter")
    missing = sorted(getattr(adapter, "__abstractmethods__", ()))
    if missing:
        raise TypeError(f"{adapter.__name__} lacks {', '.join(missing)}; an adapter implements {', '.join(METHODS)}")
    if not adapter.pipelines or isinstance(adapter.pipelines, str):
        raise TypeError(f"{adapter.__name__}.pipelines is {adapter.pipelines!r}: name the pipeline classes it drives")
    if adapter not in _registered:
        _registered.insert(0, adapter)
    return adapter


def adapter_class(pipe: Any) -> type[Adapter]:
    """The adapter for a pipeline object, or for a pair of them.

    The pipeline's class is looked up first, then its base classes; each among the registered adapters, then the
    built-in ones, then those that other packages announce. A pipeline that none of them drives gets the generic
    adapter, which proves itself when it is made; but one that takes an image, and has a relative that makes images from
    text alone with the same networks, is refused with the way to the relative.

    Raises
    ------
    UnsupportedPipeline
        If there is none, and the generic adapter cannot be tried; names the nearest pipeline that has one.
    Error
        If a package announces an adapter that cannot be loaded.
    """
    if isinstance(pipe, tuple):
        kinds = tuple(type(part).__name__ for part in pipe)
        if kinds not in PAIRS:
            first, second = next(iter(PAIRS))
            raise UnsupportedPipeline(
                f"a pair of ({', '.join(kinds)}): the pair that can be used is ({first}, {second}), in this order"
            )
        adapter = adapter_named(PAIRS[kinds])
        assert adapter is not None
        return adapter
    own = type(pipe)
    for cls in own.__mro__:
        adapter = adapter_named(cls.__name__)
        if adapter is None:
            continue
        if own.__call__ is cls.__call__:
            return adapter
        reason = why_not(pipe)
        if reason is not None:
            raise UnsupportedPipeline(
                f"{own.__name__} is a {cls.__name__} with its own __call__, which {cls.__name__}'s adapter would not "
                f"follow, and it {reason}: pass a {cls.__name__}, or write an adapter for it (docs/adapters.md)"
            )
        return Generic
    _check_halves(own.__name__)
    relative = _for_text_alone(own.__name__) if reads_image(pipe) else None
    reason = None if relative else why_not(pipe)
    if reason is None and relative is None:
        return Generic
    raise _no_adapter(own.__name__, relative, reason)


def adapter_named(pipeline: str) -> type[Adapter] | None:
    """The adapter of a pipeline class, by the name of the class; None if there is none."""
    for adapter in _registered:
        if pipeline in adapter.pipelines:
            return adapter
    if pipeline in BUILT_IN:
        return _built_in(pipeline, BUILT_IN[pipeline])
    if pipeline == MODULAR[0]:
        return _built_in(*MODULAR)
    return _load(pipeline) if pipeline in _announced() else None


def supported() -> list[str]:
    """Names of all pipeline classes that can be driven."""
    registered = [name for adapter in _registered for name in adapter.pipelines]
    return list(dict.fromkeys([*registered, *BUILT_IN, *_announced()]))


def _built_in(pipeline: str, place: str) -> type[Adapter]:
    module, name = place.split(":")
    try:
        adapter: type[Adapter] = getattr(import_module(f".{module}", __package__), name)
    except ImportError as error:
        raise Error(
            f"the adapter of {pipeline} cannot be loaded with diffusers {diffusers.__version__} ({error}): install the "
            "latest diffusers"
        ) from error
    return adapter


def _check_halves(name: str) -> None:
    for prior, decoder in PAIRS:
        if name in (prior, decoder):
            raise UnsupportedPipeline(
                f"{name} is half of Kandinsky 2.2: pass the pair (prior_pipeline, decoder_pipeline), or a "
                "KandinskyV22CombinedPipeline"
            )


def _no_adapter(name: str, relative: str | None, reason: str | None) -> UnsupportedPipeline:
    known = supported()
    near = relative or difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    how = f" (for images from text alone, pass diffusers.{near}.from_pipe(pipe))" if relative else ""
    why = f" The generic adapter is of no use: {name} {reason}." if reason else ""
    return UnsupportedPipeline(
        f"{name} has no adapter; the nearest that has is {near}{how}. Supported: {', '.join(known)}.{why} A new one has"
        f" the five methods of hsd.models.Adapter: {', '.join(METHODS)}; hsd.models.register makes it known "
        "(docs/adapters.md)"
    )


def _for_text_alone(name: str) -> str | None:
    """The supported class that makes images from text with the parts of a diffusers pipeline for another task.

    For ``StableDiffusionXLInpaintPipeline`` it is ``StableDiffusionXLPipeline``: the longest name that it begins with,
    of those that take the same networks.
    """
    own = _networks_of(name)
    relatives = [
        each
        for each in BUILT_IN
        if not each.endswith(_FROM_IMAGES)
        and name.startswith(each.removesuffix("CombinedPipeline").removesuffix("Pipeline"))
        and own
        and all(own.get(part, kind) == kind for part, kind in _networks_of(each).items())
    ]
    return max(relatives, key=len, default=None)


def _networks_of(name: str) -> dict[str, str]:
    """The networks that a pipeline class of diffusers takes, and their classes; none if there is no such class."""
    taken = inspect.signature(getattr(diffusers, name, object)).parameters
    return {part: str(taken[part].annotation) for part in ("text_encoder", "transformer", "unet") if part in taken}


@cache
def _announced() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(name: str) -> type[Adapter]:
    entry = _announced()[name]
    source = f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value
    try:
        adapter = entry.load()
    except Exception as error:
        raise Error(f"the adapter of {name} in {source} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        return register(adapter)
    except TypeError as error:
        raise Error(f"the adapter of {name} in {source} cannot be used: {error}") from None
