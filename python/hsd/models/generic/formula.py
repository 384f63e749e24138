"""How the outputs of a step become what ``scheduler.step`` is given: found from random outputs, then checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .unfit import Unfit
from .values import error_of, tolerance_of


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _per_lane(x: Tensor) -> tuple[int, ...]:
    return (-1, *(1,) * (x.ndim - 1))


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1).view(_per_lane(x))


RESCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda guided, conditional: guided,
    "norm": lambda guided, conditional: guided * (_norm(conditional) / _norm(guided)),
    "norm, at most": lambda guided, conditional: guided * (_norm(conditional) / (_norm(guided) + 1e-8)).clamp(max=1.0),
    "standard deviation": lambda guided, conditional: guided * (_std(conditional) / _std(guided)),
}
"""What is done to a guided output, by name: the norms are those of its last dimension."""


@dataclass(frozen=True)
class Formula:
    """The model's output is ``sign`` times the rescaled sum of the outputs, each with its weight."""

    weights: tuple[float, ...]
    """Of each output; 1 in sum."""
    sign: float
    rescale: str
    conditional: int
    """Which output is the conditional one."""

    def of(self, outputs: Sequence[Tensor]) -> Tensor:
        """(B, ...) from the outputs (B, ...) of one step."""
        conditional = outputs[self.conditional]
        if len(self.weights) == 1:
            return self.sign * conditional
        # u + w (c - u), as pipelines write it, and not (1 - w) u + w c, which rounds differently.
        [base] = [i for i in range(len(outputs)) if i != self.conditional][:1]
        guided = outputs[base]
        for i, output in enumerate(outputs):
            if i != base and self.weights[i]:
                guided = guided + self.weights[i] * (output - outputs[base])
        return self.sign * RESCALES[self.rescale](guided, conditional)

    def __str__(self) -> str:
        text = " + ".join(f"{weight:g} o{i}" for i, weight in enumerate(self.weights))
        return f"{'-' if self.sign < 0 else ''}({text}){'' if self.rescale == 'none' else f', {self.rescale}'}"


def formulas_of(outputs: Sequence[Tensor], given: Tensor, conditional: int, *known: Sequence[float]) -> list[Formula]:
    """The formulas by which ``given`` (B, ...) may follow from the ``outputs`` (B, ...), which have to be random.

    ``known`` are numbers that a weight may be, such as the guidance scale, those that are most likely first: in half
    precision weights are measured with an error.

    Raises
    ------
    Unfit
        If none of the known formulas gives it.
    """
    tolerance = tolerance_of(given.dtype)
    o, m = torch.stack([each.double() for each in outputs]), given.double()
    found = []
    for sign in (1.0, -1.0):
        for weights in _candidates(o, sign * m, tolerance, conditional, known):
            for rescale in RESCALES:
                formula = Formula(weights, sign, rescale, conditional)
                if error_of(formula.of(list(o)), m) <= tolerance:
                    found.append(formula)
                if len(weights) == 1:
                    break
    if not found:
        raise Unfit(
            f"gives scheduler.step something that no formula known here makes of the {len(outputs)} outputs of a step "
            "(guidance with a memory of earlier steps, or a formula of its own)"
        )
    return found


def _candidates(
    o: Tensor, m: Tensor, tolerance: float, conditional: int, known: Sequence[Sequence[float]]
) -> list[tuple[float, ...]]:
    """Weights that sum to 1 and may have made ``m`` of the outputs ``o`` (E, B, ...), up to a rescale of the result."""
    if len(o) == 1:
        return [(1.0,)]
    # A rescale changes the length of each last dimension: so the direction is fitted there, and the weights compared.
    rows = o.shape[-1] >= len(o)
    a = o.reshape(len(o), -1, o.shape[-1]).permute(1, 2, 0) if rows else o.reshape(len(o), 1, -1).permute(1, 2, 0)
    b = m.reshape(-1, o.shape[-1], 1) if rows else m.reshape(1, -1, 1)
    whole = torch.linalg.lstsq(o.reshape(len(o), -1).T, m.reshape(-1, 1)).solution[:, 0]
    fitted = torch.linalg.lstsq(a, b).solution[..., 0]  # [rows, E]
    total = fitted.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        return []
    shares = (fitted / total).median(0).values
    found = []
    for measured in (whole / whole.sum(), shares):
        weights = [_snapped(float(each), tolerance, known) for each in measured]
        weights[1 - conditional if len(weights) == 2 else 0] += 1.0 - sum(weights)
        found.append(tuple(weights))
    return list(dict.fromkeys(found))


def _snapped(weight: float, tolerance: float, known: Sequence[Sequence[float]]) -> float:
    """The weight that was meant: the nearest one of ``known``, or of those plus 1, or a short number."""
    for scales in known:
        meant = [each for scale in scales for each in (scale, 1.0 + scale, 1.0 - scale, -scale)]
        near = [each for each in meant if abs(weight - each) <= tolerance * max(1.0, abs(each)) / 4]
        if near:
            return min(near, key=lambda each: abs(weight - each))
    short = round(weight, 4 if tolerance < 1e-3 else 2)
    return short if abs(short - weight) <= tolerance / 4 else weight
