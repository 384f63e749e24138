"""How a pipeline is driven: what is learnt of it, in the form in which it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .formula import Formula
from .rehearsal import Record, Step
from .sources import Argument, Constant, Joined, Latents, Source, Timestep, fits, part_of, rows_of
from .unfit import Unfit
from .values import error_of, tolerance_of


@dataclass(frozen=True)
class Recipe:
    """How a pipeline is driven."""

    calls: tuple[dict[str, Argument], ...]
    """The arguments of each call of the network in a step."""
    formula: Formula
    latent_shape: tuple[int, ...]
    noise_index: int | None
    """Which of the values of ``prepare_latents`` the noise is; None if it gives one."""
    noise_record: Record
    """A rehearsal of one prompt whose call of ``prepare_latents`` is made again for each noise."""
    scales_input: bool
    options: dict[str, Any]
    """Arguments of ``scheduler.step``."""
    reads_following: bool
    one_length: bool
    batches: bool
    """Whether several prompts are encoded in a call as each by itself."""
    main: str
    """The rows whose mean prompts are clustered by."""
    main_mask: str | None
    """The rows that are their mask, if there are any."""
    dtype: torch.dtype
    """That of the first latents."""
    latents_name: str | None
    form: tuple[Any, int] | None
    """As in :class:`~hsd.models.generic.rehearsal.Theatre`."""
    mixed: bool = False
    """Whether the lanes of a call may be at different steps."""
    size: tuple[int, int] | None = None
    """Height and width of the images."""

    @property
    def is_cut(self) -> bool:
        """Whether tokens are stored without the padding under their mask."""
        return any(source.mask_of for _, _, _, source in sources_of(self.calls))

    def structure(self) -> str:
        """Text that is equal for recipes that differ in numbers only."""
        calls = [
            sorted((name, type(each).__name__, str(_kind(each))) for name, each in call.items()) for call in self.calls
        ]
        return f"{calls} {self.formula.rescale} {self.formula.sign} {self.scales_input} {self.one_length}"

    def unguided(self) -> Recipe:
        """The same without guidance: the call that holds the conditional output alone, and that output alone."""
        at = self.formula.conditional
        for arguments in self.calls:
            times = evaluations_of(arguments)
            if at < times:
                return replace(self, calls=(arguments,), formula=Formula((1.0,), self.formula.sign, "none", at))
            at -= times
        raise AssertionError(f"no call holds output {self.formula.conditional}")

    def rows(self, record: Record, n: int, *, own: bool) -> dict[str, Any]:
        """Rows of ``n`` prompts from a rehearsal of them; those that all share are one row."""
        found: dict[str, Any] = {}
        for call, arguments in zip(record.steps[0].calls, self.calls, strict=True):
            for name, argument in arguments.items():
                found |= rows_of(argument, name, call.arguments.get(name), n, own)
        masks = {
            source.mask_of: part_of(call.arguments[name], argument.dim, i, n)
            for call, arguments in zip(record.steps[0].calls, self.calls, strict=True)
            for name, argument in arguments.items()
            if isinstance(argument, Joined)
            for i, source in enumerate(argument.sources)
            if source.mask_of is not None and own
        }
        for row, mask in masks.items():
            assert row is not None
            found[row] = [tokens[kept.bool()] for tokens, kept in zip(found[row], mask, strict=True)]
        return found

    def check(self, record: Record, n: int) -> None:
        """``Unfit`` unless the first step of a rehearsal of ``n`` prompts is what this recipe makes of it."""
        step = record.steps[0]
        if len(step.calls) != len(self.calls):
            raise Unfit(f"evaluates the network {len(step.calls)} times a step, and {len(self.calls)} times before")
        for call, arguments in zip(step.calls, self.calls, strict=True):
            if call.arguments.keys() != arguments.keys():
                changed = sorted(call.arguments.keys() ^ arguments.keys())
                raise Unfit(f"gives the network other arguments than before: {', '.join(changed)}")
            for name, argument in arguments.items():
                if not fits(argument, call.arguments[name], n):
                    raise Unfit(f"gives the network another {name} than for other prompts")
        check_formula(self.formula, step, 0)

    def refreshed(self, record: Record) -> Recipe:
        """The same with the constants of a new rehearsal of one prompt."""
        calls = [
            {name: _refreshed(argument, call.arguments[name]) for name, argument in arguments.items()}
            for call, arguments in zip(record.steps[0].calls, self.calls, strict=True)
        ]
        return replace(self, calls=tuple(calls))


def _refreshed(argument: Argument, value: Any) -> Argument:
    """The argument with what is now the same for all prompts."""
    if isinstance(argument, Constant):
        return Constant(value)
    if isinstance(argument, Joined):
        for i, source in enumerate(argument.sources):
            if not source.own:
                argument = with_source(argument, i, replace(source, value=part_of(value, argument.dim, i, 1)[0]))
    return argument


def _kind(argument: Argument) -> Any:
    if isinstance(argument, Joined):
        return argument.dim, [(each.own, each.ragged, each.mask_of, each.length is None) for each in argument.sources]
    if isinstance(argument, Timestep):
        return argument.time
    return argument.times if isinstance(argument, Latents) else ""


def evaluations_of(arguments: dict[str, Argument]) -> int:
    """How many evaluations a call of the network with these arguments holds."""
    return next(each.times for each in arguments.values() if isinstance(each, Latents))


def outputs_of(step: Step) -> list[Tensor]:
    """The outputs (B, ...) of the evaluations of a step, each in the shape of the latents."""
    found = []
    for call in step.calls:
        times = len(call.output) // len(step.sample)
        for part in call.output.chunk(times):
            found.append(in_shape(part, step.sample.shape))
    return found


def in_shape(output: Tensor, shape: Sequence[int]) -> Tensor:
    """An output (B, ...) in the shape of the latents (B, ...); without the learned variance, if it holds one."""
    n = torch.Size(shape).numel()
    if output.numel() == 2 * n and output.ndim > 1 and output.shape[1] == 2 * shape[1]:
        output = output.chunk(2, dim=1)[0]
    if output.numel() != n:
        raise Unfit(
            f"has a network whose output, {list(output.shape)}, is of another size than the latents, {list(shape)}"
        )
    return output.reshape(tuple(shape))


def check_formula(formula: Formula, step: Step, k: int) -> None:
    """``Unfit`` unless ``formula`` makes what step ``k`` gave the scheduler of the outputs of its evaluations."""
    error = error_of(formula.of([each.double() for each in outputs_of(step)]), step.output.double())
    if not error <= tolerance_of(step.output.dtype):
        raise Unfit(
            f"gives scheduler.step at step {k} something else than {formula} of the network's outputs, which it gives "
            f"at the first step: off by {error:.1e} of its size (guidance in a part of the run, or with a memory)"
        )


def with_source(argument: Argument, part: int, source: Source) -> Joined:
    """The argument with another source for one of its parts."""
    assert isinstance(argument, Joined)
    sources = list(argument.sources)
    sources[part] = source
    return replace(argument, sources=tuple(sources))


def sources_of(calls: Sequence[dict[str, Argument]]) -> Iterator[tuple[int, int, Argument, Source]]:
    """All sources of the calls of a step: the call, the part of it, the argument and the source."""
    for c, arguments in enumerate(calls):
        for argument in arguments.values():
            if isinstance(argument, Joined):
                for part, source in enumerate(argument.sources):
                    yield c, part, argument, source
