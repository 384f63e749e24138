"""What the sampler table cannot express is refused, by name and with a reason; it is never approximated."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from hsd.errors import Error, UnsupportedScheduler
from hsd.sampler import compile_sampler
from sampler_cases import CASES, SD, N
from sampler_refused import REFUSED, Refusal

DOCS = Path(__file__).parents[1] / "docs" / "samplers.md"


def ready(scheduler: Any, n: int = N) -> Any:
    """Return the scheduler with its timesteps set."""
    scheduler.set_timesteps(n)
    return scheduler


# -------------------------------------------------------------------------------- diffusers' own schedulers
every_refusal = pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(
            refusal,
            id=refusal.name,
            marks=pytest.mark.skipif(
                not hasattr(diffusers, refusal.scheduler),
                reason=f"diffusers {diffusers.__version__} has no {refusal.scheduler}",
            ),
        )
        for refusal in REFUSED
    ],
)


@every_refusal
def test_refused_by_name(refusal: Refusal) -> None:
    error = refusal.error()
    assert isinstance(error, Error)
    assert str(error).startswith(refusal.opening)
    for text in refusal.says:
        assert text in str(error)
    assert "from_config" in str(error) or "Change the configuration" in str(error), "the text has no way out"


@every_refusal
def test_the_documentation_has_the_refusal(refusal: Refusal) -> None:
    """The row of the documentation is the error's text; only the important part where torch's own text differs."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| {refusal.name} | ")]
    assert len(rows) == 1, f"run python tests/sampler_cases.py: docs/samplers.md has {len(rows)} rows of {refusal.name}"
    reason = refusal.row()
    for text in refusal.says:
        assert (text in rows[0]) == (text in reason), f"run python tests/sampler_cases.py: the text is now {reason}"


def test_the_documentation_refuses_nothing_else() -> None:
    rows = DOCS.read_text().partition("## Refused")[2].splitlines()
    assert sum(row.startswith("| ") for row in rows) == len(REFUSED) + 2  # the head of the table and its rule


def test_every_scheduler_of_diffusers_is_accounted_for() -> None:
    """New schedulers of a release fail here: each scheduler of diffusers is measured, or refused for a reason."""
    exported = {name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")}
    measured = {case.compiled.scheduler for case in CASES}
    missing = exported - measured - {refusal.scheduler for refusal in REFUSED}
    assert not missing, (
        f"diffusers {diffusers.__version__} exports {', '.join(sorted(missing))}, which no test knows: see whether "
        "compile_sampler takes it (its set_timesteps called as its pipelines do), then put it in CASES of "
        "tests/sampler_cases.py or in REFUSED of tests/sampler_refused.py, and run python tests/sampler_cases.py"
    )


# ------------------------------------------------------------------------------ users' own, a fault in each
class Plain(DDIMScheduler):
    """DDIM whose next latent is changed by `change`."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        latent = super().step(model_output, timestep, sample, return_dict=False)[0]
        return (self.change(latent),)

    def change(self, latent: Tensor) -> Tensor:
        return latent


class Tanh(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return torch.tanh(latent / 1000) * 1000


class Where(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return torch.where(latent > 3, latent * 0.9, latent)


class Constant(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent + 0.01


class AcrossTheBatch(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent - 0.1 * latent.mean(0, keepdim=True)


class AcrossSpace(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent - 0.1 * latent.mean((2, 3), keepdim=True)


class AcrossChannels(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)


class Branch(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent * 0.5 if latent.abs().max() > 20 else latent


class GlobalNoise(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent + 0.1 * torch.randn_like(latent)


class OwnNoise(Plain):
    def change(self, latent: Tensor) -> Tensor:
        return latent + 0.1 * torch.randn(latent.shape, dtype=latent.dtype)


class ClampByTensor(Plain):
    def change(self, latent: Tensor) -> Tensor:
        bound = latent.abs().amax((1, 2, 3), keepdim=True)
        return torch.clamp(latent, -bound.expand_as(latent), bound.expand_as(latent) * 0.5)


class HiddenMemory(Plain):
    """Remembers in a separate object, which the probe does not search."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.helper = types.SimpleNamespace(last=None)

    def change(self, latent: Tensor) -> Tensor:
        last, self.helper.last = self.helper.last, latent
        return latent if last is None else latent + 0.1 * (latent - last)


class StackedMemory(HiddenMemory):
    """Remembers in a tensor of another shape."""

    def change(self, latent: Tensor) -> Tensor:
        last = getattr(self, "both", None)
        self.both = torch.stack([latent, latent])
        return latent if last is None else latent + 0.1 * last.mean(0)


class OwnThreshold(DPMSolverMultistepScheduler):
    """Overrides a method that the table replaces with its own version."""

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1.5, 1.5)


FAULTS = [
    (Tanh, "not linear|amplitude"),
    (Where, "amplitude"),
    (Constant, "constant"),
    (AcrossTheBatch, "differs"),
    (AcrossSpace, "differs|constant"),
    (AcrossChannels, "channels"),
    (Branch, "differs"),
    (GlobalNoise, "randn_like"),
    (OwnNoise, "torch.randn"),
    (ClampByTensor, "bounds"),
    (HiddenMemory, "remembers"),
    (StackedMemory, "remembers"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=lambda item: getattr(item, "__name__", ""))
def test_a_users_scheduler_is_refused(fault: type, reason: str) -> None:
    scheduler = ready(fault(**SD, clip_sample=False))
    with pytest.raises(UnsupportedScheduler, match=reason) as error:
        compile_sampler(scheduler)
    assert f"{fault.__name__} cannot be compiled at step " in str(error.value)


def test_an_overridden_threshold_is_refused() -> None:
    scheduler = ready(OwnThreshold(**SD, thresholding=True, sample_max_value=2.0))
    with pytest.raises(UnsupportedScheduler, match="OwnThreshold .*differs"):
        compile_sampler(scheduler)


def test_a_users_linear_scheduler_is_compiled() -> None:
    """The refusals above are for their faults, not for being subclasses."""

    class Halved(Plain):
        def change(self, latent: Tensor) -> Tensor:
            return latent * 0.5

    ours, theirs = (compile_sampler(ready(cls(**SD, clip_sample=False))) for cls in (Halved, DDIMScheduler))
    torch.testing.assert_close(ours.out, theirs.out * 0.5, rtol=1e-15, atol=0)


def test_a_users_clamp_in_place_is_a_node() -> None:
    class Clamped(Plain):
        def change(self, latent: Tensor) -> Tensor:
            return latent.clamp_(max=2.0)

    table = compile_sampler(ready(Clamped(**SD, clip_sample=False)))
    assert (table.high == 2.0).all()
    assert (table.low == -float("inf")).all()


# ---------------------------------------------------------------------------------------------- wrong calls
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler", "DDPMScheduler", "UnCLIPScheduler", "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeliosScheduler", "LTXEulerAncestralRFScheduler",
        "MiniMaxH3Scheduler", "DDPMWuerstchenScheduler",
    ],
)  # fmt: skip
def test_set_timesteps_must_have_been_called(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no timesteps yet.*set_timesteps"):
        compile_sampler(getattr(diffusers, name)())


@pytest.mark.parametrize("kwargs", [{"etta": 1.0}, {"generator": torch.Generator()}, {"return_dict": True}])
def test_unknown_step_arguments_are_errors(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(kwargs))):
        compile_sampler(ready(DDIMScheduler(clip_sample=False)), step_kwargs=kwargs)
