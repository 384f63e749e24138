"""Compile a scheduler into a `SamplerTable`, and prove that the table does what the scheduler does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hsd.errors import UnsupportedScheduler
from hsd.sampler.probe import CHANNELS, INFINITE, StepMap, probe
from hsd.sampler.reduce import reduce
from hsd.sampler.stepping import Stepper, refuse, refuse_infinite
from hsd.sampler.table import SamplerTable, Terms

# Largest difference between table and scheduler, relative to the latent's largest value, over a whole run in
# float64.  The table is exact; the difference is the float32 rounding of schedulers that cast the latent (6e-8 per
# cast, adding up over the steps).  Over the configurations of docs/samplers.md it is up to 1e-6 at 150 steps and 2e-6
# at 1,000; 4e-6 where thresholding shrinks a latent after it was rounded at a hundred times its final size.  A real
# nonlinearity is far larger: tanh(x / 1000) gives 3e-3.
TOLERANCE = 2e-5

_CHECK_AMPLITUDES = (1.0, 100.0)
_CHECK_SHAPE = (CHANNELS, 6, 6)


def compile_sampler(scheduler: Any, *, step_kwargs: Mapping[str, Any] | None = None, begin: int = 0) -> SamplerTable:
    """Compile a scheduler, after ``set_timesteps``, into a table of coefficients.

    Parameters
    ----------
    scheduler
        Any diffusers scheduler object after ``set_timesteps``.  A copy is run; the object is not touched.
    step_kwargs
        Further arguments of its ``step``, the same at every step (``eta``, ``s_churn``, ...).  ``prev_timestep``, where
        ``step`` has it, is the next timestep and None at the end, as pipelines pass it, unless it is given here.
    begin
        Index of the timestep of the first step, in the scheduler's ``timesteps``. The earlier ones are left out, as in
        pipelines that begin from an image.

    Returns
    -------
    SamplerTable
        On the host, float64; use ``.to(device)``.

    Raises
    ------
    hsd.errors.UnsupportedScheduler
        The scheduler cannot be expressed exactly, or the table was run against it and differs.
    TypeError
        `step_kwargs` has a name that ``step`` does not take.
    ValueError
        ``set_timesteps`` was not called.
    """
    steps = reduce(probe(scheduler, step_kwargs, begin=begin))
    dtypes = _noise_dtypes(scheduler, step_kwargs, steps, begin)
    table = _pack(scheduler, steps, dtypes, begin)
    _prove(scheduler, step_kwargs, table, begin)
    return table


def _pack(
    scheduler: Any, steps: list[StepMap], noise_dtypes: tuple[tuple[torch.dtype | None, ...], ...], begin: int
) -> SamplerTable:
    """Pad the steps to common sizes: V columns are S state, 1 model output, Z noises, Y nodes."""
    n_steps = len(steps)
    n_state = max(step.n_state for step in steps)
    n_noise = max(step.n_noise for step in steps)
    n_nodes = max(len(step.nodes) for step in steps)
    n_columns = n_state + 1 + n_noise + n_nodes

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(n_steps, *shape, dtype=torch.float64)

    scale, out, node = zeros(n_state), zeros(n_state, n_columns), zeros(n_nodes, n_columns)
    divisor = zeros(n_nodes) + 1.0
    low, high = zeros(n_nodes) - float("inf"), zeros(n_nodes) + float("inf")
    kind = torch.zeros(n_steps, n_nodes, dtype=torch.int8)
    log_variance = zeros(2)
    for k, step in enumerate(steps):
        columns = [
            *range(step.n_state),
            n_state,
            *range(n_state + 1, n_state + 1 + step.n_noise),
            *range(n_state + 1 + n_noise, n_state + 1 + n_noise + len(step.nodes)),
        ]
        scale[k, : step.n_state] = step.scale
        out[k, : len(step.outputs), columns] = step.outputs
        for j, entry in enumerate(step.nodes):
            node[k, j, columns], divisor[k, j] = _divided(entry.coefficients)
            kind[k, j], low[k, j], high[k, j] = entry.kind, entry.low, entry.high
        if step.log_variance is not None:
            log_variance[k] = torch.tensor(step.log_variance, dtype=torch.float64)

    identity = torch.zeros_like(scale)
    identity[:, 0] = 1.0
    config = getattr(scheduler, "config", {})
    return SamplerTable(
        scheduler=type(scheduler).__name__,
        timesteps=scheduler.timesteps[begin : begin + n_steps].detach().cpu().clone(),
        init_noise_sigma=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        noise_draws=tuple(step.n_noise for step in steps),
        noise_dtypes=noise_dtypes,
        scale=scale,
        out=out,
        node=node,
        divisor=divisor,
        node_kind=kind,
        low=low,
        high=high,
        log_variance=log_variance,
        needs_variance=any(step.log_variance is not None for step in steps),
        threshold_ratio=float(config.get("dynamic_thresholding_ratio", 0.995)),
        threshold_max=float(config.get("sample_max_value", 1.0)),
        scale_terms=((),) if torch.equal(scale, identity) else _terms(scale[:, None]),
        out_terms=_terms(out, first=n_columns - n_nodes),
        node_terms=_terms(node),
        node_kinds=tuple(frozenset(kind[:, j].tolist()) - {0} for j in range(n_nodes)),
    )


def _divided(coefficients: Tensor) -> tuple[Tensor, float]:
    """Write a node's combination, whose first column is the latent, as a combination and its divisor.

    Schedulers predict an image as ``(latent - b output) / a``, with ``a`` up to 1, or as ``latent - b output``.
    """
    latent, largest = float(coefficients[0].abs()), float(coefficients.abs().max())
    if largest >= INFINITE:
        return coefficients / largest, 0.0
    return (coefficients / latent, 1.0 / latent) if latent > 1.0 else (coefficients, 1.0)


def _terms(coefficients: Tensor, first: int = 0) -> Terms:
    """Return, per output of (K, outputs, columns), the columns that are not 0 at every step.

    Those from column `first` on, the nodes, come first: schedulers add a prediction, the latent and the noise in this
    order, and the same order gives the same rounding.
    """
    used = coefficients.ne(0).any(0)
    columns = (output.nonzero().flatten().tolist() for output in used)
    return tuple(tuple(sorted(each, key=lambda column: (column < first, column))) for each in columns)


def _noise_dtypes(
    scheduler: Any, step_kwargs: Mapping[str, Any] | None, steps: list[StepMap], begin: int
) -> tuple[tuple[torch.dtype | None, ...], ...]:
    """Return the dtype of every draw, None where it follows the model output.

    Found by a run in bfloat16: a draw with another dtype has one that the scheduler fixes, or promotes to.
    """
    follows: tuple[torch.dtype | None, ...] = (None,)
    if not any(step.n_noise for step in steps):
        return ((),) * len(steps)
    drawn: list[torch.dtype] = []

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        drawn.append(dtype)
        return torch.zeros(shape, dtype=dtype)

    low = torch.bfloat16
    stepper = Stepper(scheduler, step_kwargs, draw, begin=begin)
    sample = torch.zeros((1, *_CHECK_SHAPE), dtype=low)
    output = torch.zeros((1, 2 * CHANNELS if stepper.doubles_channels else CHANNELS, *_CHECK_SHAPE[1:]), dtype=low)
    dtypes = []
    try:
        for k in range(stepper.n_steps):
            drawn.clear()
            stepper.model_input(k, sample)  # schedulers warn where this was not called
            sample = stepper.step(k, output, sample).to(low)
            dtypes.append(tuple(None if dtype == low else dtype for dtype in drawn))
    except UnsupportedScheduler:  # no half precision in this scheduler, so its draws are in the model's dtype
        return tuple(follows * step.n_noise for step in steps)
    return tuple(dtypes)


def _prove(scheduler: Any, step_kwargs: Mapping[str, Any] | None, table: SamplerTable, begin: int) -> None:
    """Run scheduler and table side by side on random numbers, and refuse the scheduler if they differ.

    The probe sees coefficients only: a condition on the latent's values, or a curve such as tanh, can look linear
    on symbols.  The two samples of the batch have amplitudes 1 and 100, so that clips and curves take effect in at
    least one of them, and so that a scheduler that lets one sample of a batch influence another is found as well.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(_CHECK_AMPLITUDES), *_CHECK_SHAPE)
    amplitude = torch.tensor(_CHECK_AMPLITUDES, dtype=torch.float64).view(-1, 1, 1, 1)

    def random() -> Tensor:
        return torch.randn(shape, generator=generator).double()

    draws: list[Tensor] = []

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        draws.append(random())
        return draws[-1].to(dtype)

    stepper = Stepper(scheduler, step_kwargs, draw, begin=begin)
    sample = random() * amplitude * table.init_noise_sigma
    state = torch.zeros(shape[0], table.n_state, *_CHECK_SHAPE, dtype=torch.float64)
    state[:, 0] = sample
    for k in range(table.n_steps):
        step = torch.full((shape[0],), k)
        draws.clear()
        model_output, variance = random() * amplitude, random().tanh()
        given = torch.cat([model_output, variance], 1) if stepper.doubles_channels else model_output
        _compare(stepper, k, "the denoiser's input", stepper.model_input(k, sample), table.model_input(state, step))
        before, sample = sample, stepper.step(k, given, sample.clone())
        if not bool(sample.isfinite().all()):
            refuse_infinite(scheduler, k, "of finite random numbers the latent becomes")
        if len(draws) != table.noise_draws[k]:
            refuse(scheduler, k, f"it draws {len(draws)} noises for these numbers, {table.noise_draws[k]} for others")
        noise = torch.zeros(shape[0], table.n_noise, *_CHECK_SHAPE, dtype=torch.float64)
        for j, drawn in enumerate(draws):
            noise[:, j] = drawn
        state = table.update(state, model_output, noise, step, variance)
        # A scheduler may round a latent to float32 at its full size, and then clip it to a much smaller one.
        rounded = (before,) if bool(table.node_kind[k].any()) else ()
        _compare(stepper, k, "the latent", sample, state[:, 0], rounded)


def _compare(
    stepper: Stepper, k: int, what: str, theirs: Tensor, ours: Tensor, rounded: tuple[Tensor, ...] = ()
) -> None:
    """Refuse a difference above `TOLERANCE`, relative to the largest value of `theirs` and of the `rounded` tensors."""
    size = torch.cat([theirs.flatten(1), *(r.flatten(1) for r in rounded)], 1).abs().amax(1).clamp(min=1e-12)
    errors = ((theirs - ours).abs().flatten(1).amax(1) / size).tolist()
    for error, amplitude in zip(errors, _CHECK_AMPLITUDES, strict=True):
        if not error <= TOLERANCE:  # also nan
            reason = (
                f"run on random numbers of amplitude {amplitude:g}, {what} differs from the scheduler's by "
                f"{error:.1e} of its size (allowed: {TOLERANCE:g}), so the scheduler is not linear there, or remembers "
                "tensors where they cannot be seen"
            )
            refuse(stepper.scheduler, k, reason)
