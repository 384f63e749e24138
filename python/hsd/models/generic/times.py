"""How a network's timestep follows from the scheduler's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "t": lambda t, n: t,
    "t / n": lambda t, n: t / n,
    "1 - t / n": lambda t, n: 1 - t / n,
    "(n - t) / n": lambda t, n: (n - t) / n,
    "t - 1": lambda t, n: t - 1,
}
"""What is tried, by name; n is the scheduler's ``num_train_timesteps``."""


@dataclass(frozen=True)
class Time:
    """One form of the timestep."""

    form: str
    dtype: torch.dtype
    first: bool
    """Whether the scheduler's timestep takes this dtype before it is calculated with, not after."""
    n: float

    def of(self, timestep: Tensor) -> Tensor:
        """(B,) what the network gets at the scheduler's ``timestep`` (B,)."""
        t = timestep.to(self.dtype) if self.first else timestep
        return FORMS[self.form](t, self.n).to(self.dtype)


def as_times(value: Any) -> Tensor | None:
    """(rows,) the numbers of an argument that may be a timestep; None if it can be none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        return None
    tensor = torch.as_tensor(value)
    if tensor.ndim > 1 or tensor.dtype == torch.bool or tensor.is_complex() or not tensor.numel():
        return None
    return tensor.reshape(-1)


def time_of(given: Sequence[Any], timesteps: Sequence[Any], n: float) -> Time | None:
    """The form in which ``given``, an argument at each step, follows from the scheduler's ``timesteps``.

    None if there is none. Of several the first one that is equal to the last bit, else the first within rounding.
    """
    values = [as_times(each) for each in given]
    if any(each is None or not bool((each == each[0]).all()) for each in values):
        return None
    found = torch.stack([each[0] for each in values if each is not None]).cpu()
    t = torch.stack([torch.as_tensor(each).cpu().reshape(()) for each in timesteps])
    if not bool((found != found[0]).any()):
        return None
    near = None
    for form in FORMS:
        for first in (False, True):
            time = Time(form, found.dtype, first, n)
            made = time.of(t)
            if torch.equal(made, found):
                return time
            if near is None and found.is_floating_point():
                rounding = 4 * torch.finfo(found.dtype).eps
                if torch.allclose(made.double(), found.double(), rtol=rounding, atol=rounding):
                    near = time
    return near
