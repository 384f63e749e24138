"""What a test of a model family needs to know: the stock pipeline, and its denoiser written out a second time.

Nothing here uses HSD's adapters, only the pipelines themselves and their networks. So an error in an adapter is only
missed if the same error is made here too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

Evaluate = Callable[[Tensor, Tensor, Any], Tensor]
"""(latent (1, ...), timestep (), conditioning) to the guided model output, with the variance channels if it has any."""


class Family(ABC):
    """One pipeline class in miniature.

    To add one, put a subclass into a new module of this package. Nothing else lists the families: the tests find it,
    and ``python tests/pipeline_table.py`` writes it into docs/pipelines.md and docs/models.md. Its tiny pipeline may be
    built in :meth:`build`, or in tests/tiny where other tests need it too.
    """

    name: ClassVar[str]
    shipped: ClassVar[bool] = True
    """Whether the adapter is part of HSD."""
    title: ClassVar[str]
    """The pipelines, as docs/models.md lists them."""
    clustered_by: ClassVar[str]
    """What the vectors of :class:`hsd.models.Encoded` are, for docs/models.md."""
    twin: ClassVar[bool] = False
    """Whether another family runs the same code, so that tests that take long leave this one out."""
    steps: ClassVar[int] = 4
    size: ClassVar[tuple[int, int]] = (64, 64)
    """Height and width in pixels."""
    oblong: ClassVar[tuple[int, int] | None] = (64, 32)
    """Another size; None if the pipeline has only one."""
    guided: ClassVar[dict[str, Any]]
    """Settings with guidance, for both pipeline and adapter."""
    unguided: ClassVar[dict[str, Any]]
    """Settings without guidance."""
    negative: ClassVar[dict[str, Any] | None] = {"negative_prompt": "blurry, dull"}
    """What is added to ``guided`` for a negative prompt; None if the pipeline takes none."""
    schedulers: ClassVar[tuple[str, ...]] = ("dpm++2m", "euler-ancestral")
    """Schedulers besides the default, by their names in :func:`swap`; none if the pipeline can only step its own."""
    scheduler: ClassVar[str] = "scheduler"
    """Name under which the pipeline holds its denoiser's scheduler."""
    scales_input: ClassVar[bool] = True
    tolerance: ClassVar[float] = 2e-5
    """Largest error of a latent in float32, as a share of its range."""
    lane_tolerance: ClassVar[float] = 2e-5
    """Largest difference of an evaluation in calls of several and of one lane, in float32; guidance multiplies it."""
    parity_seeds: ClassVar[list[int]] = [11, 5, 42]
    """Seeds of the prompts that are compared with the pipeline."""
    cuts: ClassVar[bool] = True
    """Whether the end of a very long prompt is left out."""
    rounding: ClassVar[float] = 0.05
    """Largest relative error of latents in bfloat16, as root mean square: the pipeline rounds after every step."""

    @abstractmethod
    def build(self) -> Any:
        """A fresh pipeline with its default scheduler."""

    @abstractmethod
    def denoiser(self, pipe: Any) -> nn.Module:
        """The network whose evaluations the plan counts."""

    def loadable(self, pipe: Any) -> Any:
        """The first argument of ``hsd.load``."""
        return pipe

    def to(self, pipe: Any, dtype: torch.dtype) -> Any:
        """The pipeline in another dtype."""
        return pipe.to(dtype)

    def settings(self, settings: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """The other arguments of ``hsd.load``."""
        return {"height": size[0], "width": size[1], **settings}

    def call(
        self,
        pipe: Any,
        prompts: list[str],
        generators: list[torch.Generator],
        settings: dict[str, Any],
        size: tuple[int, int],
        steps: int,
        output_type: str,
        **options: Any,
    ) -> Any:
        """The stock pipeline's images, or its latents for ``output_type="latent"``.

        Where decoding draws too, ``generators`` are then in the state before decoding.
        """
        settings = dict(settings)
        if "negative_prompt" in settings:
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
        return pipe(
            prompts,
            generator=generators,
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            output_type=output_type,
            **settings,
            **options,
        ).images

    # -- the denoiser, one row at a time, for the plain Algorithm 1

    @abstractmethod
    def conditioning(self, pipe: Any, prompts: list[str]) -> list[dict[str, Tensor]]:
        """Conditioning of each prompt by itself, as the pipeline encodes it: tensors (1, ...) by name."""

    @abstractmethod
    def evaluate(self, pipe: Any, settings: dict[str, Any], size: tuple[int, int]) -> Evaluate:
        """One evaluation, on means of what :meth:`conditioning` gives; guidance as two calls, not one."""

    def generator(self, pipe: Any, seed: int) -> torch.Generator:
        """The generator of a prompt, in the state in which denoising starts to draw from it."""
        return torch.Generator().manual_seed(seed)

    @abstractmethod
    def first_noise(self, pipe: Any, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(1, ...) the noise a latent starts from, before the scheduler scales it."""

    def begin(self, steps: int) -> int:
        """How many first steps are left out, as in pipelines that begin from an image."""
        return 0

    first_latent: ClassVar[Callable[..., Tensor] | None] = None
    """``first_latent(pipe, size, generator, scheduler, timestep)``: (1, ...) what denoising begins with there."""

    def mean(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The mean of a cluster, tensor by tensor."""
        return {name: torch.cat([row[name] for row in rows]).float().mean(0, keepdim=True) for name in rows[0]}

    def set_timesteps(self, scheduler: Any, steps: int, size: tuple[int, int]) -> None:
        """Set the timesteps as the pipeline does."""
        scheduler.set_timesteps(steps)

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """More arguments of the scheduler's step."""
        return {}


def masked_mean(rows: list[Tensor]) -> Tensor:
    """Mean of tokens (1, L_i, D) over those that have each position, (1, max L_i, D), as a plain loop."""
    out = []
    for position in range(max(row.shape[1] for row in rows)):
        out.append(torch.stack([row[0, position] for row in rows if row.shape[1] > position]).float().mean(0))
    return torch.stack(out)[None]


def one_by_one(
    call: Callable[..., Any],
    pipe: Any,
    prompts: list[str],
    generators: list[torch.Generator],
    *args: Any,
    scheduler: Any = None,
    num_images_per_prompt: int = 1,
    **options: Any,
) -> Any:
    """What ``call``, :meth:`Family.call`, gives for each prompt by itself; the ``scheduler`` is handed its generators.

    For pipelines in which an image depends on the length of the longest prompt of its batch.
    """
    found: list[Any] = []
    for i, prompt in enumerate(prompts):
        own = generators[i * num_images_per_prompt : (i + 1) * num_images_per_prompt]
        more = {} if num_images_per_prompt == 1 else {"num_images_per_prompt": num_images_per_prompt}
        with handing_generators(scheduler, own):
            found += call(pipe, [prompt], own, *args, **more, **options)
    return torch.stack(found) if isinstance(found[0], Tensor) else found


@contextlib.contextmanager
def handing_generators(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """Give ``generators`` to a scheduler that draws: some pipelines do not, and it draws from the global one."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        scheduler.step = functools.partial(scheduler.step, generator=generators)
    try:
        yield
    finally:
        vars(scheduler).pop("step", None)


_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


def swap(name: str, pipe: Any) -> Any:
    """The scheduler ``name`` with the betas, the prediction type or the flow shifts of the one that ``pipe`` has."""
    config = pipe.scheduler.config
    classes: dict[str, type] = {
        "ddim": DDIMScheduler,
        "dpm++2m": DPMSolverMultistepScheduler,
        "euler-ancestral": EulerAncestralDiscreteScheduler,
        "unipc": UniPCMultistepScheduler,
        "flow-dpm++2m": DPMSolverMultistepScheduler,
        "flow-euler-dynamic": FlowMatchEulerDiscreteScheduler,
        "flow-heun": FlowMatchHeunDiscreteScheduler,
        "flow-lcm": FlowMatchLCMScheduler,
        "flow-unipc": UniPCMultistepScheduler,
    }
    cls = classes[name]
    if name in ("flow-unipc", "flow-dpm++2m"):
        shift = config.get("shift", config.get("flow_shift"))
        shifts = {"flow_shift": shift, "use_dynamic_shifting": config["use_dynamic_shifting"]}
        return cls(prediction_type="flow_prediction", use_flow_sigmas=True, **shifts)
    if name.startswith("flow-"):
        accepted = inspect.signature(cls).parameters
        options = {key: config[key] for key in config if key in accepted and not key.startswith("_")}
        if name == "flow-euler-dynamic":
            options["use_dynamic_shifting"] = True
        return cls(**options)
    options = {key: config[key] for key in _BETAS if key in config}
    if name == "ddim":
        options["clip_sample"] = False
    return cls(**options)
