"""Which images are wanted, by which plan: the options that ``hsd generate`` and ``hsd plan`` have in common.

Both commands make their plan here, so that what one predicts is what the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..names import BatchSize
from ..prompts.files import PromptFile
from . import many
from . import options as opt
from .groups import with_group
from .recipe import Recipe, Shard, check_added, check_no_prompts, check_planned, of_folder
from .sources import Source

Out = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for the images, or a URL such as s3://bucket/images; an interrupted run continues here, and a "
        "longer list of prompts too.",
        show_default=False,
    ),
]
Extend = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Instead of --out: add PROMPTS to this folder, by its plan. What it has already is not made again.",
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHAT",
        help="Make these images only: prompts by number (3,10-20), or a cluster that --preview names "
        "(cluster:17@9). Can be given several times.",
        show_default=False,
    ),
]
More = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Make N variations of each image, or of those of --only: they share its first steps. Without PROMPTS, "
        "of the images of the folder.",
        show_default=False,
    ),
]
Depth = Annotated[
    float, typer.Option(help="With --more: the part of its steps that a variation shares, above 0 and below 1.")
]
Preview = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Make one image of each of at most N clusters, that of the prompt in the middle, and name the "
        "clusters. The images are those of the whole set.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Run the denoiser through torch.compile, which takes minutes to start.")
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Store the denoiser's weights in channels-last layout.")
]
CudaGraphs = Annotated[bool, typer.Option(help="On a GPU, replay calls as CUDA graphs where possible.")]


@dataclass(frozen=True)
class Wanted:
    """What was typed of the images that are wanted. Each field is an option of both commands."""

    out: Out = None
    extend: Extend = None
    only: Only = None
    more: More = None
    depth: Depth = 0.7
    preview: Preview = None
    model: opt.ModelOption = "demo"
    tau: opt.Tau = None
    budget: opt.Budget = None
    images_per_hour: opt.ImagesPerHour = None
    gpu_hours: opt.GpuHours = None
    steps: opt.Steps = 40
    batch_size: opt.BatchOrAuto = "16"
    seed: opt.Seed = 0
    images_per_prompt: opt.Images = 1
    linkage: opt.LinkageOption = "ward"
    metric: opt.MetricOption = "auto"
    schedule: opt.ScheduleOption = "linear"
    noise: opt.NoiseOption = "independent"
    catch_up: opt.CatchUp = None
    order: opt.OrderOption = "depth"
    max_slots: opt.MaxSlots = None
    guidance_scale: opt.Guidance = None
    guidance_interval: opt.GuidanceInterval = None
    negative_prompt: opt.Negative = None
    height: opt.Height = None
    width: opt.Width = None
    settings: opt.Settings = None
    settings_file: opt.SettingsFile = None
    plan_file: opt.PlanFile = None
    device: opt.Device = None
    compile: Compile = False
    channels_last: ChannelsLast = False
    cuda_graphs: CudaGraphs = True
    workers: many.Workers = None
    shard: many.ShardOption = None

    @property
    def folder(self) -> str | None:
        """The folder of the images."""
        return self.out or self.extend

    def size(self) -> BatchSize:
        """The value of ``--batch-size``."""
        return opt.parse_batch_size(self.batch_size)

    def saved(self, source: Source) -> Path | None:
        """The file of a plan: that of ``--plan``, or one that is given as PROMPTS."""
        if self.plan_file is None and source.prompts is not None and source.prompts.endswith(".safetensors"):
            return Path(source.prompts)
        return self.plan_file

    def of_model(self) -> dict[str, Any]:
        """The settings of the model that have an option of their own, by name."""
        names = ("guidance_scale", "guidance_interval", "negative_prompt", "height", "width")
        return {name: getattr(self, name) for name in names}

    def check(self, ctx: typer.Context) -> None:
        """``ValueError`` for options that do not go together, before anything is read."""
        if self.out is not None and self.extend is not None:
            raise ValueError("give --out or --extend, not both: --extend adds prompts to a folder, and writes there")
        if self.more is None and opt.is_typed(ctx, "depth"):
            raise ValueError("--depth is for --more, which is not given")
        if self.extend is not None:
            check_added(ctx, "--extend")

    def prepared(
        self, ctx: typer.Context, source: Source, out: str | None, model: str | None, **more: Any
    ) -> tuple[Recipe, dict[str, Any]]:
        """How the plan is made once the model is loaded, and the settings that the model is loaded with.

        Parameters
        ----------
        out
            The folder of the images; None where there is none yet.
        model
            Its name; None for the stand-in.
        more
            Further arguments of :func:`hsd.compile`.
        """
        names = ("tau", "budget", "images_per_hour", "gpu_hours", "steps", "catch_up", "metric", "schedule")
        own = {name: getattr(self, name) for name in names}
        planned, of_model = opt.with_file(ctx, self.settings_file, model, **own)
        part = Shard.parse(self.shard)
        plan_file = self.saved(source)
        of_folder_alone = self.more is not None and self.extend is None and not (source.prompts or source.template)
        if plan_file is not None or of_folder_alone:
            check_no_prompts(ctx, "the plan" if plan_file is not None else "--more without PROMPTS")
        elif self.extend is not None and more:
            raise ValueError("give --extend or --embeddings, not both: prompts are added by the model's own embeddings")
        if plan_file is not None:
            check_planned(ctx, but="" if plan_file is self.plan_file else "prompts")
            recipe = Recipe.read(plan_file, out, part)
        elif of_folder_alone:
            check_added(ctx, "--more without PROMPTS", ["images_per_prompt"])
            recipe = Recipe(out, None, {}, of_folder(out), part)
        else:
            file: PromptFile = opt.read(source)
            planned |= {"seeds": file.seeds_from(self.seed, self.images_per_prompt)}
            planned |= {"images_per_prompt": self.images_per_prompt, "linkage": self.linkage, "noise": self.noise}
            recipe = Recipe(out, file, {**planned, **more}, shard=part)
        recipe = recipe.wanted(self.extend is not None, tuple(self.only or ()), self.more, self.depth, self.preview)
        return recipe, {**self.of_model(), **of_model}


def takes_wanted(**others: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameter ``wanted`` is typed as the options of :class:`Wanted`.

    ``others`` are types of options that are explained otherwise in this command.
    """
    kinds: Mapping[str, Any] = {**get_type_hints(Wanted, include_extras=True), **others}
    defaults = {field.name: field.default for field in fields(Wanted)}
    return lambda command: with_group(command, "wanted", kinds, defaults, lambda given: Wanted(**given))
