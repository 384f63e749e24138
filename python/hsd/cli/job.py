"""What ``hsd generate`` runs: in this process, or on workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import options as opt
from .console import say, says, tell
from .recipe import Recipe

if TYPE_CHECKING:
    from ..generation import Failure, Run
    from .recorded import RecordedView


def _listed_later(_: Failure) -> None:
    """Failures are listed at the end of the command."""


@dataclass(frozen=True)
class Job:
    """A plan, a model that is still to be loaded, and how to run it.

    Parameters
    ----------
    loading
        Settings of the model; None is not given.
    settings
        Those of ``--set``, as typed.
    options
        The keywords that a run here and a run on workers have in common.
    """

    recipe: Recipe
    model: str
    out: str
    loading: dict[str, Any]
    settings: list[str] | None
    device: str | None
    options: dict[str, Any]

    def here(self, *, keep_forks: bool, keep_trunks: int = 0) -> Run:
        """Run it in this process."""
        from ..generation import cost
        from ..generation.run import generate

        with self._view() as view:
            view.stage("load")
            adapter = opt.load(self.model, self.device, self.settings, **self.loading)
            plan = self.recipe(adapter, view.stage)
            if says() and (view.started or self.recipe.plan is not None):  # else an earlier run has printed it
                names = ("order", "max_slots", "compile", "channels_last", "cuda_graphs")
                size = self.options["batch_size"]
                own = {name: self.options[name] for name in names}
                tell(str(cost(plan, adapter, None if size == "auto" else size, **own)))
            if self.recipe.shard is not None:
                say(f"part {self.recipe.shard}: {len(plan):,} of {plan.n_prompts:,} images")
            run = generate(
                plan,
                adapter,
                self.out,
                keep_forks=keep_forks,
                keep_trunks=keep_trunks,
                progress=view,
                failed=_listed_later,
                **self.options,
            )
        return run

    def on_workers(self, workers: int | None, address: str | None) -> Run:
        """Run it on Ray: the first worker that has loaded the model makes the plan."""
        from ..distributed import generate

        with self._view() as view:
            run = generate(
                self.recipe,
                self.model,
                self.out,
                workers=workers,
                address=address,
                device=self.device,
                progress=view,
                failed=_listed_later,
                **self.options,
                **opt.given(self.settings, **self.loading),
            )
        return run

    @contextmanager
    def _view(self) -> Iterator[RecordedView]:
        from .recorded import RecordedView

        images = self.recipe.images
        if self.recipe.shard is not None:
            self.recipe.shard.check(images)
        view = RecordedView(prompts=images)
        with view:
            yield view
