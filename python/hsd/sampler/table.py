"""The sampler table: what a scheduler does, as coefficients, for lanes that are at different steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hsd.sampler.probe import CLAMP, THRESHOLD
from hsd.work.broadcast import per_row

# Per output, the columns that have a coefficient other than 0 at some step: the update leaves out the products that
# are 0 at every step.  Known on the host, so reading it never waits for the device.
Terms = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False, repr=False)
class SamplerTable:
    """A scheduler with its timesteps set, as one matrix for each step.

    A lane holds S tensors of the latent's shape: the latent, then what the scheduler remembers (zeros before the
    first step).  With the columns ``[S state | 1 model output | Z noises | Y nodes]`` (V of them), a step is

    * noise ``z``: scaled by ``exp(l / 2)`` where the model predicts a variance ``v``, with ``l`` between two bounds;
    * node ``y_j = f((node[k, j] @ columns) / divisor[k, j])``, ``f`` a clamp or dynamic thresholding;
    * new state ``out[k] @ columns``.

    Every operation is elementwise over the lanes (thresholding: per lane), so a lane's result does not depend on
    the other lanes of the call, not even in its last bit.  `model_input` and `update` have no branch on lane
    values and never wait for the device, so they can be captured in a CUDA graph.

    Attributes
    ----------
    scheduler
        The scheduler's class name, for messages.
    timesteps
        (K,) as the scheduler gives them, in its dtype; K is the number of evaluations of the denoiser.
    init_noise_sigma
        The factor by which the noise of the first latent is multiplied.
    init_image_scale
        The factor by which the latent of an image is multiplied that is added to it; 0 where denoising begins from
        noise alone.
    noise_draws
        (K,) how many noises step k draws.  Draws whose coefficient is 0 count: the generator must advance as it
        does in diffusers.
    noise_dtypes
        The dtype of every draw of every step: None is the dtype of the model output, any other is fixed by the
        scheduler.  A generator gives different numbers in different dtypes.
    scale
        (K, S) the denoiser's input as a combination of the state.
    out
        (K, S, V) the new state.
    node
        (K, Y, V) the combination that each node is applied to, before it is divided.
    divisor
        (K, Y) what the combination is divided by; 0 makes it infinite, and its sign decides at which bound it is
        clipped.  unCLIP's first step divides a difference by 5e-5: in one sum of products, the rounding of each product
        would be 20,000 times as large.  For the same reason tables with nodes round as the scheduler does, operation by
        operation.
    node_kind
        (K, Y) int8, 0 where the step has no such node, `CLAMP` or `THRESHOLD`.
    low, high
        (K, Y) bounds of the clamps, infinite where there is none.
    log_variance
        (K, 2) the learned log-variance where ``v`` is -1 and 1; 0, 0 at steps that scale no noise.
    needs_variance
        Whether the model's second half of the channels enters (``variance_type="learned_range"``).
    threshold_ratio, threshold_max
        The scheduler's ``dynamic_thresholding_ratio`` and ``sample_max_value``.
    scale_terms, out_terms, node_terms
        The columns that each output reads.
    node_kinds
        For each of the Y nodes, the kinds it has at any step.
    """

    scheduler: str
    timesteps: Tensor
    init_noise_sigma: float
    noise_draws: tuple[int, ...]
    noise_dtypes: tuple[tuple[torch.dtype | None, ...], ...]
    scale: Tensor
    out: Tensor
    node: Tensor
    divisor: Tensor
    node_kind: Tensor
    low: Tensor
    high: Tensor
    log_variance: Tensor
    needs_variance: bool
    threshold_ratio: float
    threshold_max: float
    scale_terms: Terms
    out_terms: Terms
    node_terms: Terms
    node_kinds: tuple[frozenset[int], ...]
    init_image_scale: float = 0.0

    @property
    def n_steps(self) -> int:
        """K, the number of evaluations of the denoiser."""
        return self.out.shape[0]

    @property
    def n_state(self) -> int:
        """S, the number of tensors a lane holds; the first is the latent."""
        return self.out.shape[1]

    @property
    def n_noise(self) -> int:
        """Z, the most noises that any step draws."""
        return max(self.noise_draws)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the coefficients, which is the dtype of the state and of the arithmetic."""
        return self.out.dtype

    def __repr__(self) -> str:
        extras = [name for name, has in (("learned variance", self.needs_variance),) if has]
        kinds = frozenset().union(*self.node_kinds)
        extras += [name for kind, name in ((CLAMP, "clamp"), (THRESHOLD, "thresholding")) if kind in kinds]
        return (
            f"SamplerTable({self.scheduler}: {self.n_steps} steps, {self.n_state} tensors per lane, "
            f"{', '.join([f'{sum(self.noise_draws)} noises', *extras])}; {self.dtype}, {self.out.device})"
        )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> SamplerTable:
        """Return the table on `device`, its coefficients in `dtype` (float32 or float64)."""
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a sampler table computes in float32 or float64, not {dtype}: latents lose too much")
        coefficients = ("scale", "out", "node", "divisor", "low", "high", "log_variance")
        moved = {name: getattr(self, name).to(device, dtype) for name in coefficients}
        return replace(self, timesteps=self.timesteps.to(device), node_kind=self.node_kind.to(device), **moved)

    @torch.no_grad()
    def model_input(self, state: Tensor, step: Tensor) -> Tensor:
        """Return the denoiser's input: ``scale_model_input`` of every lane at its own step.

        Parameters
        ----------
        state : (B, S, ...), the table's dtype
        step : (B,) int64, on the table's device, each in 0..K-1

        Returns
        -------
        (B, ...), the table's dtype; a view of `state` where the scheduler scales nothing.
        """
        self._check(state, step)
        if self.scale_terms == ((),):
            return state[:, 0]
        coefficients = self.scale.index_select(0, step)  # [B, S]
        return _combine(torch.empty_like(state[:, 0]), coefficients, self.scale_terms[0], state.unbind(1))

    @torch.no_grad()
    def update(
        self,
        state: Tensor,
        model_output: Tensor,
        noise: Tensor | None,
        step: Tensor,
        variance: Tensor | None = None,
    ) -> Tensor:
        """Return the state after each lane's own step.

        Parameters
        ----------
        state : (B, S, ...), the table's dtype
            The latent first; what the scheduler remembers is 0 before step 0.
        model_output : (B, ...), any floating dtype
            After guidance; without the variance channels.
        noise : (B, Z, ...), any floating dtype, or None if Z is 0
            Raw draws.  Where a step draws fewer than Z, the rest is ignored, but must be finite.
        step : (B,) int64, on the table's device, each in 0..K-1
        variance : (B, ...), any floating dtype
            The model's second half of the channels; needed if `needs_variance`.

        Returns
        -------
        (B, S, ...), the table's dtype, newly allocated.
        """
        self._check(state, step, model_output, noise, variance)
        columns = [*state.unbind(1), model_output.to(self.dtype)]
        if noise is not None and self.n_noise:
            draws: Sequence[Tensor] = noise[:, : self.n_noise].to(self.dtype).unbind(1)
            if self.needs_variance and variance is not None:
                least, most = (per_row(c, variance) for c in self.log_variance.index_select(0, step).unbind(1))
                part = (variance.to(self.dtype) + 1).div_(2)  # [B, ...]; the order of operations is diffusers'
                deviation = (most * part).add_((1 - part).mul_(least)).mul_(0.5).exp_()
                draws = [draw * deviation for draw in draws]
            columns += draws
        if self.node_terms:
            node = self.node.index_select(0, step)  # [B, Y, V]
            divisor = self.divisor.index_select(0, step)  # [B, Y]
            for j, terms in enumerate(self.node_terms):
                y = _combine(torch.empty_like(columns[0]), node[:, j], terms, columns, fused=False)
                y.div_(per_row(divisor[:, j], y))
                columns.append(self._apply_node(j, y, step))
        out = self.out.index_select(0, step)  # [B, S, V]
        new = torch.empty_like(state, memory_format=torch.contiguous_format)
        for s, terms in enumerate(self.out_terms):
            _combine(new[:, s], out[:, s], terms, columns, fused=not self.node_terms)
        return new

    def _apply_node(self, j: int, y: Tensor, step: Tensor) -> Tensor:
        """Apply node j of each lane's step to y (B, ...)."""
        if self.node_kinds[j] == {THRESHOLD}:
            return dynamic_threshold(y, self.threshold_ratio, self.threshold_max)
        low, high = (per_row(bound[:, j].index_select(0, step), y) for bound in (self.low, self.high))
        clamped = torch.clamp(y, low, high)  # [B, ...]
        if THRESHOLD not in self.node_kinds[j]:
            return clamped
        thresholded = dynamic_threshold(y, self.threshold_ratio, self.threshold_max)
        kind = self.node_kind[:, j].index_select(0, step)
        return torch.where(per_row(kind, y) == THRESHOLD, thresholded, clamped)

    def _check(
        self,
        state: Tensor,
        step: Tensor,
        model_output: Tensor | None = None,
        noise: Tensor | None = None,
        variance: Tensor | None = None,
    ) -> None:
        """Check shapes and dtypes, which the host knows; values on the device are not read."""
        lanes, latent = state.shape[:1], state.shape[2:]
        if state.ndim < 3 or state.shape[1] != self.n_state or state.dtype != self.dtype:
            raise ValueError(
                f"state is {tuple(state.shape)} {state.dtype}; expected (B, {self.n_state}, ...) {self.dtype} "
                "(SamplerTable.to(device, dtype) sets the dtype)"
            )
        if step.shape != lanes or step.dtype != torch.int64:
            raise ValueError(f"step is {tuple(step.shape)} {step.dtype}; expected {tuple(lanes)} torch.int64")
        if model_output is None:
            return
        if model_output.shape != lanes + latent:
            raise ValueError(f"model_output is {tuple(model_output.shape)}; expected {tuple(lanes + latent)}")
        if self.n_noise and (noise is None or noise.shape[1] < self.n_noise or noise[:, 0].shape != lanes + latent):
            have = None if noise is None else tuple(noise.shape)
            raise ValueError(f"noise is {have}; expected {(*lanes, self.n_noise, *latent)}")
        if self.needs_variance and (variance is None or variance.shape != lanes + latent):
            have = None if variance is None else tuple(variance.shape)
            raise ValueError(f"variance is {have}; {self.scheduler} needs {tuple(lanes + latent)}")


def dynamic_threshold(sample: Tensor, ratio: float, max_value: float) -> Tensor:
    """Clip every sample to its own quantile, as ``_threshold_sample`` of the diffusers schedulers does.

    The method is Imagen's (Saharia et al., arXiv 2205.11487, section 2.3), with its threshold capped at `max_value`.

    Parameters
    ----------
    sample : (B, ...), float32 or float64
    ratio : the quantile of the absolute values
    max_value : the largest threshold; the smallest is 1

    Returns
    -------
    (B, ...), in [-1, 1]

    Raises
    ------
    RuntimeError
        From older versions of torch, whose quantile takes at most 2^24 values per sample, here and in diffusers.
    """
    flat = sample.flatten(1)  # [B, n]
    limit = torch.quantile(flat.abs(), ratio, dim=1).clamp(min=1, max=max_value)[:, None]  # [B, 1]
    return (torch.clamp(flat, -limit, limit) / limit).view_as(sample)


def _combine(
    into: Tensor, coefficients: Tensor, terms: Sequence[int], columns: Sequence[Tensor], *, fused: bool = True
) -> Tensor:
    """Write the sum over `terms` of coefficients (B, >= n columns) times columns (B, ...) to `into`, and return it.

    Multiply-adds rather than a matrix product: half of the coefficients are 0 at every step, a product over so few
    columns is bound by memory anyway, and it may be rounded to TF32 or differ with the number of lanes.  Unless
    `fused`, each product is rounded before it is added, as a scheduler's own products are.
    """
    if not terms:
        return into.zero_()
    torch.mul(per_row(coefficients[:, terms[0]], into), columns[terms[0]], out=into)
    for term in terms[1:]:
        coefficient = per_row(coefficients[:, term], into)
        if fused:
            into.addcmul_(coefficient, columns[term])
        else:
            into.add_(coefficient * columns[term])
    return into
