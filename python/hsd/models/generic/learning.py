"""What a pipeline does, learnt from rehearsals: how it makes the network's arguments, and what it makes of outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .formula import Formula, formulas_of
from .recipe import Recipe, check_formula, evaluations_of, outputs_of, sources_of, with_source
from .rehearsal import Record, Step, Theatre, repeats
from .sources import Argument, Constant, Joined, Latents, OfOneLane, Source, Timestep, part_of
from .times import time_of
from .unfit import Unfit
from .values import close, described, same, stacked

PROMPTS = ("a cat", "a red house by the sea, in oil", 'a sign that says "open"')
"""What is rehearsed: two lengths, and a quoted text, which some pipelines treat in another way."""

STEPS = 20
"""Steps of a rehearsal: what changes from step to step, such as guidance for a part of the run, shows."""


def learn(theatre: Theatre, *, cut: bool = True) -> Recipe:
    """Rehearse a pipeline and find out what it does.

    Parameters
    ----------
    theatre
        Where.
    cut
        Whether tokens are stored without their padding where they come with a mask.

    Raises
    ------
    Unfit
        Names what the pipeline does that no recipe can say.
    """
    records = [theatre.call([prompt], STEPS, [_generator(i)]) for i, prompt in enumerate(PROMPTS)]
    pair = theatre.call(PROMPTS[:2], 3, [_generator(0), _generator(1)])
    for record in (*records, pair):
        _check_loop(record)
    first = records[0].steps[0]
    other_seed = theatre.call(PROMPTS[:1], STEPS, [_generator(99)], end_at=1)
    _check_seeds(first, other_seed.steps[0], theatre.latents_name)
    calls = []
    for c in range(len(first.calls)):
        calls.append(_arguments_of(c, records, pair, theatre))
    if cut:
        calls = [_without_padding(c, arguments, records) for c, arguments in enumerate(calls)]
    conditional = _conditional(calls)
    formula = _formula(formulas_of(outputs_of(first), first.output, conditional, *_numbers(theatre)), (*records, pair))
    index = _noise_index(theatre, records[0])
    recipe = Recipe(
        calls=tuple(calls),
        formula=formula,
        latent_shape=tuple(first.sample.shape[1:]),
        noise_index=index,
        noise_record=records[0],
        scales_input=first.scaled,
        options={k: v for k, v in first.options.items() if k not in ("return_dict", "generator")},
        reads_following=any(isinstance(a, Timestep) and a.following for call in calls for a in call.values()),
        one_length=_needs_one_length(calls),
        batches=False,
        main="",
        main_mask=None,
        dtype=first.sample.dtype,
        latents_name=theatre.latents_name,
        form=theatre.form,
    )
    main = _main(recipe, records)
    mask = _mask_of(recipe, records[0], main)
    recipe = replace(recipe, batches=_batches(recipe, records, pair), main=main, main_mask=mask)
    return replace(recipe, noise_record=Record(latents_call=records[0].latents_call))


def _formula(candidates: Sequence[Formula], records: Sequence[Record]) -> Formula:
    """The first of the formulas of the first step that holds at all of them."""
    failed: Unfit | None = None
    for formula in candidates:
        try:
            for record in records:
                for k, step in enumerate(record.steps):
                    check_formula(formula, step, k)
        except Unfit as error:
            failed = failed or error
        else:
            return formula
    assert failed is not None
    raise failed


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check_loop(record: Record) -> None:
    if record.timesteps_call is None or not record.steps:
        raise Unfit("does not call scheduler.set_timesteps and scheduler.step")
    if record.latents_call is None:
        raise Unfit("does not call prepare_latents")
    timesteps = torch.as_tensor(record.scheduler.timesteps).reshape(-1).cpu()
    counts = [[len(call.output) for call in step.calls] for step in record.steps]
    for k, (step, count) in enumerate(zip(record.steps, counts, strict=True)):
        if count != counts[0]:
            raise Unfit(
                f"evaluates the network {sum(count)} times at step {k} of {len(counts)}, and {sum(counts[0])} times at "
                "the first: guidance in a part of the run"
            )
        if not step.calls:
            raise Unfit("steps the scheduler without an evaluation of the network")
        if k >= len(timesteps) or not same(
            timesteps[k].double(), torch.as_tensor(step.timestep).double().cpu().reshape(())
        ):
            raise Unfit("gives scheduler.step other timesteps than those of the scheduler")
        if step.output.shape != step.sample.shape:
            raise Unfit("gives scheduler.step a learned variance, or an output in another shape than the latents")


def _check_seeds(a: Step, b: Step, latents: str | None) -> None:
    """``Unfit`` if an argument of the network besides the latents differs between two seeds."""
    for one, other in zip(a.calls, b.calls, strict=True):
        for name, value in one.arguments.items():
            if name != latents and not same(value, other.arguments.get(name)):
                what = "that depends on the seed" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
                raise Unfit(f"gives the network a {name} {what}")


def _arguments_of(c: int, records: Sequence[Record], pair: Record, theatre: Theatre) -> dict[str, Argument]:
    """How each argument of call ``c`` of a step is made."""
    first, latents_name = records[0].steps[0], theatre.latents_name
    call = first.calls[c]
    assert latents_name is not None
    value = stacked(call.arguments[latents_name])
    times = repeats(value, first.fed)
    for record in (*records, pair):
        for k, step in enumerate(record.steps):
            if repeats(stacked(step.calls[c].arguments[latents_name]), step.fed) != times:
                raise Unfit(f"gives the network other latents at step {k} than those that the scheduler steps")
    arguments: dict[str, Argument] = {}
    for name in call.arguments:
        if name == latents_name:
            as_list = isinstance(call.arguments[name], list)
            arguments[name] = Latents(tuple(value.shape[1:]), value.dtype, times, as_list)
            continue
        if any(name not in step.calls[c].arguments for record in (*records, pair) for step in record.steps):
            raise Unfit(f"gives the network {name} at some steps only")
        in_time = _timestep(name, c, records, pair, times)
        arguments[name] = in_time or _fixed(name, c, records, pair, times)
    return arguments


def _timestep(name: str, c: int, records: Sequence[Record], pair: Record, times: int) -> Timestep | None:
    """How an argument follows from the scheduler's timesteps; None if it is the same at all steps."""
    values: list[Any] = []
    own: list[Any] = []  # the timestep of each step of all rehearsals, and that of the step after it
    after: list[Any] = []
    changes = set()
    for record in (*records, pair):
        given = [step.calls[c].arguments[name] for step in record.steps]
        changes.add(not all(same(value, given[0]) for value in given))
        t = [step.timestep for step in record.steps]
        values, own = values + given, own + t
        after += [*t[1:], torch.zeros_like(torch.as_tensor(t[0]))]
    if changes == {False}:
        return None
    n = float(records[0].scheduler.config.get("num_train_timesteps", 1000))
    for timesteps, following in ((own, False), (after, True)):
        time = time_of(values, timesteps, n)
        if time is not None:
            return Timestep(time, times, following)
    raise Unfit(f"gives the network a {name} that changes from step to step: {described(values[0])}")


def _fixed(name: str, c: int, records: Sequence[Record], pair: Record, times: int) -> Argument:
    """How an argument is made that is the same at all steps."""
    values = [record.steps[0].calls[c].arguments[name] for record in records]
    for record in (*records, pair):
        for k, step in enumerate(record.steps):
            if not same(step.calls[c].arguments[name], record.steps[0].calls[c].arguments[name]):
                raise Unfit(f"gives the network another {name} at step {k} than at the first")
    grown = _growth(values[0], pair.steps[0].calls[c].arguments[name], times)
    if grown is None:
        if all(same(value, values[0]) for value in values):
            return Constant(values[0])
        if all(isinstance(value, Tensor) and value.ndim for value in values) and _prefixes(values):
            return OfOneLane(f"{name}_{c}", max(values, key=len))
        raise Unfit(
            f"gives the network a {name} that differs from prompt to prompt and has no rows: {described(values[0])}"
        )
    dim = grown[0]
    sources = []
    for part in range(times):
        own = [part_of(value, dim, part, 1)[0] for value in values]
        sources.append(_source(name, own, f"{name}_{c}_{part}"))
    return Joined(tuple(sources), dim)


def _growth(one: Any, two: Any, times: int) -> tuple[int | None] | None:
    """The dimension that holds the prompts of a call, (None,) for a list; None if there is none."""
    if isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim == two.ndim:
        for dim in range(one.ndim):
            if (one.shape[dim], two.shape[dim]) == (times, 2 * times):
                return (dim,)
    if isinstance(one, list) and isinstance(two, list) and (len(one), len(two)) == (times, 2 * times):
        return (None,)
    return None


def _source(name: str, values: Sequence[Any], row: str) -> Source:
    """One part of an argument, from its row of each rehearsed prompt."""
    equal = all(same(value, values[0]) for value in values)
    if not all(isinstance(value, Tensor) for value in values):
        if not equal:
            raise Unfit(f"gives the network a {name} that differs from prompt to prompt: {described(values[0])}")
        return Source(None, values[0])
    dtype, is_mask = values[0].dtype, not values[0].is_floating_point()
    if equal:
        return Source(row, values[0], dtype=dtype)
    if is_mask and not all(bool(((value == 0) | (value == 1)).all()) for value in values):
        raise Unfit(f"gives the network whole numbers as {name} that differ from prompt to prompt: they have no mean")
    shapes = [value.shape for value in values]
    ragged = any(shape != shapes[0] for shape in shapes)
    if ragged and any(shape[1:] != shapes[0][1:] or not len(shape) for shape in shapes):
        raise Unfit(
            f"gives the network a {name} whose rows differ in more than their length: {list(map(list, shapes))}"
        )
    return Source(row, own=True, ragged=ragged, is_mask=is_mask, dtype=dtype)


def _prefixes(values: Sequence[Tensor]) -> bool:
    """Whether each value begins as the longest one: what follows from the position alone."""
    longest = max(values, key=len)
    return all(
        value.dtype == longest.dtype and value.shape[1:] == longest.shape[1:] and same(value, longest[: len(value)])
        for value in values
    )


def _without_padding(c: int, arguments: dict[str, Argument], records: Sequence[Record]) -> dict[str, Argument]:
    """The arguments of call ``c``, in which tokens that come with a mask are rows without their padding.

    Their mean then counts, at each position, the prompts that have a token there.
    """
    out = dict(arguments)

    def rows(name: str, dim: int | None, part: int) -> list[Tensor]:
        return [part_of(record.steps[0].calls[c].arguments[name], dim, part, 1)[0] for record in records]

    joined = {name: each for name, each in arguments.items() if isinstance(each, Joined) and each.dim is not None}
    for name, argument in joined.items():
        for part, source in enumerate(argument.sources):
            if not source.is_mask or source.ragged or not source.own:
                continue
            masks = rows(name, argument.dim, part)
            if masks[0].ndim != 1 or not all(
                bool(mask[0]) and bool((mask.diff() <= 0).all()) for mask in map(_as_int, masks)
            ):
                continue
            length, tokens = len(masks[0]), None
            for other, its in joined.items():
                given = its.sources[part]
                if given.own and not given.is_mask and not given.ragged and given.length is None:
                    row = rows(other, its.dim, part)[0]
                    if row.ndim >= 2 and len(row) == length and tokens is None:
                        tokens = given.row
                        out[other] = with_source(out[other], part, replace(given, ragged=True, length=length))
            if tokens is not None:
                out[name] = with_source(out[name], part, replace(source, row=None, mask_of=tokens, length=length))
    return out


def _as_int(mask: Tensor) -> Tensor:
    return mask.to(torch.int64)


def _conditional(calls: Sequence[dict[str, Argument]]) -> int:
    """Which evaluation of a step reads the prompt."""
    sizes = [evaluations_of(call) for call in calls]
    starts = [0, *itertools.accumulate(sizes)]
    for c, part, _, source in sources_of(calls):
        if source.own:
            return starts[c] + part
    raise Unfit("gives the network nothing that depends on the prompt in a row of its own")


def _needs_one_length(calls: Sequence[dict[str, Argument]]) -> bool:
    return any(isinstance(each, OfOneLane) for call in calls for each in call.values()) or any(
        source.own
        and source.ragged
        and source.length is None
        and isinstance(argument, Joined)
        and argument.dim is not None
        for _, _, argument, source in sources_of(calls)
    )


def _numbers(theatre: Theatre) -> tuple[list[float], list[float]]:
    """Numbers that may be the guidance scale: settings and those of guiders, and defaults of the pipeline's call."""
    defaults = {name: parameter.default for name, parameter in theatre.takes.items() if name not in theatre.settings}
    guiders = [part for part in vars(theatre.pipe).values() if hasattr(part, "prepare_inputs")]
    own = [*_scales(theatre.settings)]
    for guider in guiders:
        own += _scales({"guidance_scale": getattr(guider, "guidance_scale", None)})
    return own, [*_scales(defaults)]


def _scales(given: dict[str, Any]) -> Iterator[float]:
    for name, value in given.items():
        if ("guidance" in name or "cfg" in name) and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)


def _noise_index(theatre: Theatre, record: Record) -> int | None:
    """Where ``prepare_latents`` gives the first latents, and whether HSD would make the same of a generator."""
    assert record.latents_call is not None
    args, kwargs = record.latents_call
    if not any(
        isinstance(each, list) and each and isinstance(each[0], torch.Generator) for each in (*args, *kwargs.values())
    ):
        raise Unfit("gives prepare_latents no generator")
    sample = record.steps[0].sample
    sigma = float(getattr(record.scheduler, "init_noise_sigma", 1.0))
    made = theatre.noise(record, None, _generator(0))
    for index, each in enumerate(made if isinstance(made, (tuple, list)) else (made,)):
        if (
            isinstance(each, Tensor)
            and each.shape == sample.shape
            and close((each.float() * sigma).to(sample.dtype), sample)
        ):
            return index if isinstance(made, (tuple, list)) else None
    raise Unfit("denoises other first latents than those that prepare_latents makes")


def _batches(recipe: Recipe, records: Sequence[Record], pair: Record) -> bool:
    """Whether two prompts in one call have the rows that each has by itself."""
    together = recipe.rows(pair, 2, own=True)
    for i in range(2):
        for name, row in recipe.rows(records[i], 1, own=True).items():
            if not close(together[name][i], row[0]):
                return False
    return True


def _main(recipe: Recipe, records: Sequence[Record]) -> str:
    """The largest tensor of those that are another one for every rehearsed prompt."""
    rows = [recipe.rows(record, 1, own=True) for record in records]
    sizes = {}
    for name, row in rows[0].items():
        values = [each[name][0] for each in rows]
        differ = not any(same(a, b) for a, b in itertools.combinations(values, 2))
        if row[0].is_floating_point() and differ and all(bool(value.any()) for value in values):
            sizes[name] = row[0].numel()
    if not sizes:
        raise Unfit("gives the network no numbers that depend on the prompt")
    return max(sizes, key=sizes.__getitem__)


def _mask_of(recipe: Recipe, record: Record, main: str) -> str | None:
    """The rows that are the mask of the tokens ``main`` (B, L, D): those of truth values, as many as tokens."""
    rows = recipe.rows(record, 1, own=True)
    tokens = rows[main][0]
    for name, row in rows.items():
        if tokens.ndim > 1 and row[0].dtype == torch.bool and row[0].shape == tokens.shape[:1]:
            return name
    return None
