"""How ``hsd generate`` comes to its plan, once a model is loaded: here, or on the first worker of many."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from ..errors import Error
from ..planning.agree import agreed
from ..planning.compile import add_missing
from ..planning.compile import compile as compile_plan
from ..planning.grow import what_grew
from ..planning.plan import Plan
from ..planning.reuse import begun_in
from ..planning.select import Cluster, clusters_at, selected, step_with
from ..prompts.files import PromptFile
from ..work.progress import StageReport
from ..work.text import shortened
from . import options as opt
from .console import print_result, say

_LOG = logging.getLogger(__name__)


DECIDED = (
    "prompts",
    "template",
    "tau",
    "budget",
    "images_per_hour",
    "gpu_hours",
    "steps",
    "seed",
    "images_per_prompt",
    "linkage",
    "metric",
    "schedule",
    "noise",
    "catch_up",
)
"""Options that a saved plan has decided."""


class NothingToDo(Error, ValueError):
    """A shard without images: there are more shards than the plan has parts."""


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``of``: what one process of several makes."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> Shard | None:
        """The value of ``--shard``."""
        if text is None:
            return None
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None:
            raise ValueError(f"--shard {text}: write I/N, such as 1/8 for the first of 8 parts")
        number, of = int(found[1]), int(found[2])
        if of < 1:
            raise ValueError(f"--shard {text}: there has to be at least one part, such as 1/1")
        if number == 0:
            raise ValueError(f"--shard {text}: parts are counted from 1, so the first is 1/{of}")
        if number > of:
            raise ValueError(
                f"--shard {text}: part {number} of {of} does not exist. In a job array write the number of parts "
                "itself: the number of tasks is smaller when some of them are started again"
            )
        return cls(number, of)

    def check(self, images: int) -> None:
        """Raise :class:`NothingToDo` if ``images`` cannot be cut into so many parts."""
        if self.number > images:
            raise NothingToDo(f"shard {self} has no images: there are {images:,}, in as many parts at most")

    def part(self, plan: Plan) -> Plan:
        """Its part of a whole plan: the same in every process that has the same plan."""
        parts = plan.shard(self.of)
        self.check(len(parts))
        return parts[self.number - 1]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def of_folder(out: str | None) -> Plan:
    """The plan of a folder in which there are images."""
    if out is None:
        raise ValueError("there are no prompts: name a file, PROMPTS, or the folder of the images, with --out FOLDER")
    plan = begun_in(out)
    if plan is None:
        raise Error(f"{out} has no images of which there could be more: make them first, with hsd generate PROMPTS")
    return plan.whole()


def tell_clusters(plan: Plan, clusters: list[Cluster]) -> None:
    """One line for each cluster of a preview."""
    width = max(len(cluster.name) for cluster in clusters)
    for cluster in clusters:
        image = f"image {cluster.medoid}: {shortened(plan.prompts[cluster.medoid])}"
        prompts = "prompt " if len(cluster.prompts) == 1 else "prompts"
        print_result(f"{cluster.name:<{width}}  {len(cluster.prompts):>7,} {prompts}  {image}")


def check_added(ctx: typer.Context, option: str, also: Collection[str] = ()) -> None:
    """Raise ``ValueError`` if something is given beside ``option`` that the folder's plan has decided, or that is one
    of ``also``.
    """
    options = {parameter.name: parameter for parameter in ctx.command.params}
    for name in (*DECIDED, "plan_file"):
        free = name in ("prompts", "template", "images_per_prompt") and name not in also
        if not free and opt.is_typed(ctx, name):
            raise ValueError(
                f"{options[name].opts[0]} is decided by the plan of the images in the folder, which {option} keeps: "
                "leave it out"
            )


def check_planned(ctx: typer.Context, but: str = "") -> None:
    """Raise ``ValueError`` if something is given beside ``--plan`` that the plan has decided; one option may be."""
    options = {parameter.name: parameter for parameter in ctx.command.params}
    for name in DECIDED:
        if name != but and opt.is_typed(ctx, name):
            option = "PROMPTS" if name == "prompts" else options[name].opts[0]
            raise ValueError(f"give --plan or {option}, not both: the plan says it. hsd plan --save writes another one")
    if ctx.params.get("settings_file") is not None:
        say("of --settings, only the settings of the model are used: the rest is in the plan")


def check_no_prompts(ctx: typer.Context, what: str) -> None:
    """Raise ``ValueError`` for an option that says how prompts are read or compared, where ``what`` has its own."""
    options = {parameter.name: parameter for parameter in ctx.command.params}
    for name in ("sample", "sample_seed", "wildcards", "column", "split", "embeddings"):
        if name in options and opt.is_typed(ctx, name):
            raise ValueError(
                f"{options[name].opts[0]} is for prompts that are read, and {what} has its own: leave it out"
            )


@dataclass(frozen=True)
class Recipe:
    """A plan that is still to be compiled, or was read from a file. Called with the loaded model; it can be pickled.

    Parameters
    ----------
    out
        The folder of the images, whose plan is used again if it was compiled from the same prompts and arguments; None
        where there is none yet.
    prompts, arguments
        What to compile, and the arguments of :func:`hsd.compile`.
    plan
        The one that was read, instead of both.
    shard
        The part that is wanted; then all processes agree on one plan.
    """

    out: str | None
    prompts: PromptFile | None
    arguments: dict[str, Any]
    plan: Plan | None = None
    shard: Shard | None = None
    adds: bool = False
    """Whether ``prompts`` are added to the folder's plan, whose arguments count."""
    only: tuple[str, ...] = ()
    """What is wanted of the plan, as ``--only`` takes it."""
    more: int | None = None
    """Variations that are wanted of each image."""
    depth: float = 0.7
    """How much of its steps a variation shares with the first image."""
    preview: int | None = None
    """Of how many clusters one image each is wanted."""

    @classmethod
    def read(cls, path: Path, out: str | None, shard: Shard | None) -> Recipe:
        """For a plan file."""
        try:
            plan = Plan.load(path)
        except OSError as error:
            raise Error(f"cannot read the plan {path}: {error.strerror or error}") from None
        return cls(out, None, {}, plan, shard)

    def wanted(self, adds: bool, only: tuple[str, ...], more: int | None, depth: float, preview: int | None) -> Recipe:
        """The same, of these images."""
        return replace(self, adds=adds, only=only, more=more, depth=depth, preview=preview)

    @property
    def images(self) -> int:
        """Their number, before there is a plan."""
        if self.plan is not None:
            return len(self.plan)
        return len(self.prompts.prompts if self.prompts else ()) * int(self.arguments.get("images_per_prompt", 1))

    def __call__(self, adapter: Any, report: StageReport | None = None) -> Plan:
        """The plan, or its part, which is written to the folder for those that make the other parts."""
        plan = self.predicted(adapter, report)
        if self.shard is None or self.out is None:
            return plan
        read = self.plan is not None and not self.plan.is_estimate  # else it was computed here
        whole = agreed(self.out, plan.whole(), exactly=read)
        return self.shard.part(whole if len(plan) == plan.n_prompts else whole.prune(plan.kept))

    def predicted(self, adapter: Any | None, report: StageReport | None = None) -> Plan:
        """The whole plan, of which nothing is written. ``adapter`` is None for the stand-in."""
        plan = self._compiled(adapter, report) if self.plan is None else self._clustered(self.plan, adapter, report)
        if self.only:
            plan = plan.prune(selected(plan, self.only))
        if self.more is not None:
            plan = plan.more(self.more, depth=self.depth)
        if self.preview is not None:
            clusters = clusters_at(plan, step_with(plan, self.preview))
            tell_clusters(plan, clusters)
            plan = plan.prune([cluster.medoid for cluster in clusters])
        return plan

    def _compiled(self, adapter: Any | None, report: StageReport | None) -> Plan:
        assert self.prompts is not None
        file = opt.fit(self.prompts, adapter)
        begun = begun_in(self.out)
        if self.adds:
            if begun is None:
                raise Error(f"{self.out} has no images whose plan could grow: begin it with --out in place of --extend")
            if adapter is None:
                raise ValueError("--extend needs the model that made the images: leave out --model stand-in")
            plan = add_missing(begun, file, adapter, self.arguments["images_per_prompt"], report)
        else:
            plan = compile_plan(file, model=adapter, reuse=self.out, extend=begun, progress=report, **self.arguments)
        for line in [] if begun is None else what_grew(begun, plan):
            say(line)
        return plan

    def _clustered(self, plan: Plan, adapter: Any | None, report: StageReport | None) -> Plan:
        """A plan of the stand-in is compiled again, before it is cut."""
        if not plan.is_estimate or adapter is None:
            return plan
        from ..generation.clustering import clustered_by_model, replaced  # here, because it imports torch

        found = clustered_by_model(plan, adapter, folder=self.out, report=report)
        if found is not plan:
            _LOG.info(replaced(plan, found))
        return found
