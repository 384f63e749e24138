"""The adapter of pipelines for which there is none: it runs the pipeline's own code around the network.

Nothing of a pipeline is written a second time here. Prompts are encoded, noise is drawn, timesteps are set and latents
are decoded by calls of the pipeline with stand-ins for its network and its scheduler
(:mod:`~hsd.models.generic.rehearsal`); what the network gets, and what becomes of its output, is learnt from such calls
(:mod:`~hsd.models.generic.learning`) and proven with the network itself (:mod:`~hsd.models.generic.proof`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import PIL.Image
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...errors import Error, PromptError, UnsupportedPipeline
from ...replay.denoiser import NEXT_TIMESTEP, Batch, Encoded
from ..base import LATER, Adapter, Pictures, batches
from .learning import PROMPTS, learn
from .proof import prove
from .recipe import Recipe, in_shape
from .rehearsal import Theatre
from .sources import Lanes
from .unfit import Unfit
from .values import stacked, unflattened

_CHUNK = 8
"""Prompts that one call of the pipeline encodes, where it encodes each as by itself."""

_IMAGES = ("strength", "mask_image", "control_image", "controlnet_conditioning_scale", "control_guidance_start")
"""Arguments of pipelines that start from an image."""

_learnt: WeakKeyDictionary[Any, dict[str, tuple[Recipe, list[ref[Any]]]]] = WeakKeyDictionary()
"""What was learnt of a pipeline object, and the parts that it was learnt with, by its settings and its parts.

The parts are held weakly: the key names them by ids, which are those of others when a part is no more.
"""


def why_not(pipe: Any) -> str | None:
    """What keeps an object from being tried at all, in words that follow its name; None if nothing does."""
    if not isinstance(pipe, DiffusionPipeline):
        return "is no diffusers pipeline"
    takes = inspect.signature(type(pipe).__call__).parameters
    images = [name for name in _IMAGES if name in takes]
    if images:
        return f"starts from an image ({', '.join(images)})"
    for name in ("prompt", "num_inference_steps", "generator", "output_type"):
        if name not in takes:
            return f"has a call without {name}"
    needed = [each.name for each in list(takes.values())[1:] if each.default is each.empty and each.name != "prompt"]
    needed = [name for name in needed if takes[name].kind not in (takes[name].VAR_KEYWORD, takes[name].VAR_POSITIONAL)]
    if needed:
        return f"cannot be called without {', '.join(needed)}"
    networks = [name for name, part in pipe.components.items() if part is not None and _is_denoiser(name)]
    if len(networks) != 1 or networks[0] not in ("transformer", "unet"):
        return f"has {' and '.join(networks) or 'no transformer or unet'}, where one network is expected"
    for part in ("scheduler", "vae"):
        if getattr(pipe, part, None) is None:
            return f"has no {part}"
    return None


def reads_image(pipe: Any) -> bool:
    """Whether a pipeline's call takes an image to start from, or to follow; it may do without."""
    takes = inspect.signature(type(pipe).__call__).parameters if isinstance(pipe, DiffusionPipeline) else {}
    return not takes.keys().isdisjoint({"image", *_IMAGES})


def _is_denoiser(name: str) -> bool:
    return "transformer" in name or "unet" in name


@dataclass(eq=False)
class Generic(Adapter):
    """Any pipeline of one network, one scheduler and one autoencoder that turns out to do what HSD can express.

    The settings are arguments of the pipeline's call, with its own defaults. Prompts are clustered by the mean of the
    tokens that the network reads, of its largest input that each prompt has its own of.
    """

    name: str = ""
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = field(default=None, metadata=LATER)
    negative_prompt: str | None = None
    max_sequence_length: int | None = field(default=None, metadata=LATER)

    capturable: ClassVar[bool] = False
    never_captured: ClassVar[str] = "a pipeline without an adapter of its own is called as its own code does it"
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    encode_batch: ClassVar[int] = _CHUNK
    denoising_settings: ClassVar[frozenset[str]] = frozenset()  # each may change what the network is given

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self.pipe)
        self.name = self.name or kind.__name__
        takes = inspect.signature(kind.__call__).parameters
        for setting in self.setting_names():
            if setting not in takes:
                if getattr(self, setting) is not None:
                    raise TypeError(f"{kind.__name__} has no setting {setting!r}: its call does not take it")
            elif getattr(self, setting) is None:
                default = takes[setting].default
                setattr(self, setting, default if isinstance(default, (int, float, str)) else None)
        self._timesteps: dict[Any, Any] = {}
        try:
            reason = why_not(self.pipe)
            if reason is not None:
                raise Unfit(reason)
            # What is learnt holds for the dtype that the network has: `check` does not try another one.
            vars(self)["half_dtype"] = self.modules()[0].dtype
            self._recipe = self._learnt()
        except Unfit as unfit:
            raise UnsupportedPipeline(self._refusal(str(unfit))) from unfit

    # -- learning

    def _refusal(self, reason: str) -> str:
        return (
            f"{type(self.pipe).__name__} has no adapter, and the generic one does not fit, because the pipeline "
            f"{reason.rstrip('.')}. An adapter of your own has the five methods of hsd.models.Adapter: encode, "
            "scheduler, latent_shape, denoise, decode; hsd.models.register makes it known (docs/adapters.md)"
        )

    def _theatre(self) -> Theatre:
        given = {name: value for name, value in self.settings.items() if value is not None}
        part = "transformer" if getattr(self.pipe, "transformer", None) is not None else "unet"
        theatre = Theatre(self.pipe, part, given)
        recipe = self.__dict__.get("_recipe")
        if recipe is not None:
            theatre.latents_name, theatre.form = recipe.latents_name, recipe.form
        return theatre

    def _key(self) -> str:
        parts = [(name, id(part), repr(getattr(part, "config", None))) for name, part in self.pipe.components.items()]
        guiders = [repr(vars(part)) for part in self.pipe.components.values() if hasattr(part, "prepare_inputs")]
        return repr((sorted(self.settings.items()), parts, guiders, self.modules()[0].dtype, self.device))

    def _learnt(self) -> Recipe:
        known, key = _learnt.setdefault(self.pipe, {}), self._key()
        if key not in known or any(part() is None for part in known[key][1]):
            parts = [ref(part) for part in self.pipe.components.values() if hasattr(part, "__weakref__")]
            known[key] = self._learn(), parts
        return known[key][0]

    def _learn(self) -> Recipe:
        """A recipe that is proven, with the pipeline's own scheduler: the pipeline's call is the witness."""
        other, self.other_scheduler = self.other_scheduler, None
        try:
            return self._proven()
        finally:
            self.other_scheduler = other

    def _proven(self) -> Recipe:
        """Of the first kind that holds: with tokens stored without their padding, or with it."""
        failed: Unfit | None = None
        for cut in (True, False):
            theatre = self._theatre()
            try:
                recipe = learn(theatre, cut=cut)
            except Unfit:
                raise
            except (Error, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:
                raise Unfit(f"cannot be called with one prompt ({type(error).__name__}: {error})") from error
            self._recipe = recipe
            try:
                self._recipe = prove(self, recipe)
            except Unfit as error:
                failed = failed or error
                if not recipe.is_cut:
                    break
            else:
                return self._recipe
        assert failed is not None
        raise failed

    # -- what the executor asks

    @property
    def mixed_timesteps(self) -> bool:  # type: ignore[override]
        """Whether lanes at different steps in one call gave the same as alone."""
        return self._recipe.mixed

    @property
    def one_length(self) -> bool:  # type: ignore[override]
        """Whether the pipeline gives the network tokens without a mask, as many as a prompt has."""
        return self._recipe.one_length

    @property
    def reads_steps(self) -> bool:  # type: ignore[override]
        """Whether the network is told the next timestep."""
        return self._recipe.reads_following

    @property
    def guided(self) -> bool:
        """Whether the network is evaluated more than once a step."""
        return len(self._recipe.formula.weights) > 1

    @property
    def scales_input(self) -> bool:
        """Whether the pipeline calls ``scale_model_input``."""
        return self._recipe.scales_input

    @property
    def noise_dtype(self) -> torch.dtype:
        """That of the first latents."""
        return self._recipe.dtype

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def latent_shape(self) -> tuple[int, ...]:
        """As the scheduler steps it."""
        return self._recipe.latent_shape

    def decoded_size(self) -> tuple[int, int] | None:
        """Height and width of the images, from those that the proof made."""
        return self._recipe.size

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """With the arguments that the pipeline gives for as many steps."""
        key = (type(scheduler), repr(scheduler.config), steps)
        if key not in self._timesteps:
            record = self._theatre().call(
                PROMPTS[:1], steps, [self.generator(0)], scheduler=scheduler, end_before_steps=True
            )
            self._timesteps[key] = record.timesteps_call
        if self._timesteps[key] is None:
            raise Error(f"{type(self.pipe).__name__} does not set the timesteps of a {type(scheduler).__name__}")
        args, kwargs = self._timesteps[key]
        given = inspect.signature(scheduler.set_timesteps).bind(*args, **kwargs)
        given.arguments["device"] = "cpu"  # which pipelines give by name or by position
        scheduler.set_timesteps(*given.args, **given.kwargs)

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """What the pipeline gives ``step``, as far as the scheduler takes it."""
        takes = inspect.signature(scheduler.step).parameters
        return {name: value for name, value in self._recipe.options.items() if name in takes}

    def first_noise(self, generator: torch.Generator) -> Tensor:
        """What the pipeline's ``prepare_latents`` draws."""
        recipe = self._recipe
        return self._theatre().noise(recipe.noise_record, recipe.noise_index, generator).cpu()

    def encode(self, batch: Batch) -> Encoded:
        """Rows of each prompt: what the pipeline gives the network at the first step of a call for it."""
        size = _CHUNK if self._recipe.batches else 1
        found: list[dict[str, Any]] = []
        for piece in batches(len(batch), size):
            texts, theatre = batch.prompts[piece], self._theatre()
            record = theatre.call(texts, 2, [self.generator(i) for i in range(len(texts))], end_at=1)
            try:
                self._recipe.check(record, len(texts))
            except Unfit as reason:
                raise PromptError(
                    f"{type(self.pipe).__name__} {reason}, so that this prompt cannot be run with others"
                ) from None
            found.append(self._recipe.rows(record, len(texts), own=True))
        rows: dict[str, Any] = {}
        for name in found[0]:
            parts = [each[name] for each in found]
            rows[name] = [row for part in parts for row in part] if isinstance(parts[0], list) else torch.cat(parts)
        return Encoded(rows, vectors=self._vectors(rows))

    def _vectors(self, rows: dict[str, Any]) -> Tensor:
        """(B, D) the mean of the tokens of the largest tensor; of those under its mask, where it has one."""
        main, mask = rows[self._recipe.main], rows.get(self._recipe.main_mask or "")
        out = []
        for i, tokens in enumerate(main):
            tokens = tokens.float()
            if mask is not None and bool(mask[i].any()):
                tokens = tokens[mask[i].bool()]
            out.append(tokens.flatten(0, -2).mean(0) if tokens.ndim > 1 else tokens)
        return torch.stack(out)

    def shared(self) -> dict[str, Tensor | Sequence[Tensor]]:
        """Rows that do not depend on the prompt. What the network is given besides is looked up again, too."""
        record = self._theatre().call(PROMPTS[:1], 2, [self.generator(0)], end_at=1)
        self._recipe = self._recipe.refreshed(record)
        return self._recipe.rows(record, 1, own=False)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The calls of the network of one step, and the formula that the pipeline makes of their outputs.

        A copy that is probed without guidance has ``guided = False``: it gives the conditional output.
        """
        recipe = self._recipe if self.guided else self._recipe.unguided()
        lanes = Lanes(latents, timestep, rows.get(NEXT_TIMESTEP), rows)
        [network] = self.modules()
        outputs: list[Tensor] = []
        for arguments in recipe.calls:
            given = {name: argument.of(lanes) for name, argument in arguments.items()}
            output = stacked(network(**unflattened(given))).float()
            times = len(output) // len(latents)
            outputs += [in_shape(part, latents.shape) for part in output.chunk(times)]
        return recipe.formula.of(outputs), None

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """The pipeline's own code after the loop: each step of the scheduler's stand-in gives the finished latents."""
        recipe, theatre = self._recipe, self._theatre()
        last = latents.to(recipe.dtype)
        record = theatre.call([PROMPTS[0]] * len(latents), 2, generators, output_type="pil", last=last)
        images = getattr(record.result, "images", None)
        if images is None:
            images = record.result[0]
        flags = getattr(record.result, "nsfw_content_detected", None)
        return list(images) if flags is None else Pictures(images, nsfw=flags)
