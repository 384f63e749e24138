"""What the sampler table cannot express is refused, by name and with a reason; it is never approximated."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from hsd.errors import Error, UnsupportedScheduler
from hsd.sampler import compile_sampler
from sampler_cases import SD, N


def ready(scheduler: Any, n: int = N) -> Any:
    """Return the scheduler with its timesteps set."""
    scheduler.set_timesteps(n)
    return scheduler


# -------------------------------------------------------------------------------- diffusers' own schedulers
def unipc_nan() -> Any:
    return ready(diffusers.UniPCMultistepScheduler(**SD, solver_type="bh1"))


def learned() -> Any:
    return ready(DDPMScheduler(**SD, variance_type="learned"))


def ddim_of_kandinsky() -> Any:
    return ready(DDIMScheduler.from_config({**SD, "variance_type": "learned_range", "clip_sample": False}))


def amused() -> Any:
    return ready(diffusers.AmusedScheduler(mask_token_id=7))


def vq_diffusion() -> Any:
    return ready(diffusers.VQDiffusionScheduler(num_vec_classes=8))


def repaint() -> Any:
    return ready(diffusers.RePaintScheduler())


def score_sde() -> Any:
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_timesteps(N)
    return scheduler


def cogvideox() -> Any:
    return ready(diffusers.CogVideoXDPMScheduler())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unipc_nan, ["UniPCMultistepScheduler", f"step {N - 1}", "inf or nan", "sigma_min"]),
        (learned, ["DDPMScheduler", 'variance_type="learned"', "fixed_small"]),
        (ddim_of_kandinsky, ["DDIMScheduler", "step 0", "RuntimeError", "config.pop('variance_type')"]),
        (amused, ["AmusedScheduler"]),
        (vq_diffusion, ["VQDiffusionScheduler"]),
        (repaint, ["RePaintScheduler", "original_image"]),
        (score_sde, ["ScoreSdeVeScheduler", "no step()"]),
        (cogvideox, ["CogVideoXDPMScheduler", "old_pred_original_sample"]),
    ],
)
def test_refused_by_name(make: Any, says: list[str]) -> None:
    with pytest.raises(UnsupportedScheduler) as error:
        compile_sampler(make())
    for text in [*says, "from_config" if "sigma_min" not in says else ""]:
        assert text in str(error.value)
    assert isinstance(error.value, Error)


def test_brownian_trees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DPMSolverSDE asks torchsde for its noise.  A stand-in draws as torchsde does, from generators of its own."""

    class Tree:
        def __init__(self, t0: Any, w0: Tensor, t1: Any, entropy: int, **_: Any) -> None:
            self.like, self.generator = w0, torch.Generator().manual_seed(entropy)

        def __call__(self, ta: Any, tb: Any) -> Tensor:
            return torch.randn(self.like.shape, generator=self.generator, dtype=self.like.dtype)

    stand_in = types.ModuleType("torchsde")
    stand_in.BrownianTree = Tree  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchsde", stand_in)
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)  # it holds the stand-in: the next import shall not find it
    scheduler = ready(module.DPMSolverSDEScheduler(**SD))
    with pytest.raises(UnsupportedScheduler, match=r"DPMSolverSDEScheduler .*generator|DPMSolverSDEScheduler .*noise"):
        compile_sampler(scheduler)


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
    """Remembers in an object of its own, where the probe does not look."""

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
    """Overrides a method that the table has its own version of."""

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
def test_set_timesteps_must_have_been_called() -> None:
    for scheduler in (DDIMScheduler(), DDPMScheduler(), diffusers.UnCLIPScheduler()):
        with pytest.raises(ValueError, match="set_timesteps"):
            compile_sampler(scheduler)


@pytest.mark.parametrize("kwargs", [{"etta": 1.0}, {"generator": torch.Generator()}, {"return_dict": True}])
def test_unknown_step_arguments_are_errors(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(kwargs))):
        compile_sampler(ready(DDIMScheduler(clip_sample=False)), step_kwargs=kwargs)
