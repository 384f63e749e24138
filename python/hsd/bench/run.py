"""``hsd bench``: the speed of a model on this machine, with and without sharing. All numbers come from one run.

Four parts: the denoiser by itself, the predicted time of the plan, the executor that replays the plan, and images end
to end, compared with the diffusers pipeline. Each part gets a share of the time, and runs on as many prompts as should
fit into it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from .. import _core
from .._core import Program
from ..conditioning.rows import Conditioning
from ..generation.decoding import decoded_at_once
from ..generation.streaming import stream
from ..models.base import Adapter, quiet
from ..models.caches import refuse_step_caches
from ..models.controlnet import OF_EACH
from ..models.encode import encode, encoded
from ..models.shared_image import NAMES as IMAGES
from ..models.shared_image import SharedImage, own_size
from ..names import steps_of
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..planning.prompts import make_seeds
from ..replay.catch_up import catch_up_of
from ..replay.executor import Executor
from ..replay.graphs import can_capture
from ..replay.lengths import kinds_of
from ..replay.lowering import program_of
from ..sampler import SamplerTable
from ..tuning import speeds
from ..tuning.batching import Choice, choose, free_memory, slot_bytes
from ..tuning.curve import MOST, Curve, measure
from ..tuning.inputs import Inputs
from ..tuning.time_goal import seconds_to_decode
from ..work.device import FittingSize, describe, synchronize
from ..work.faults import first_line
from .changes import check_kinds
from .parity import OneCall
from .report import LEAST_GAIN, Alone, EndToEnd, Executed, Machine, Planned, Report, Setting, Tried
from .settings import applied, can_be_laid_out, compiled
from .trial import try_change, with_change

_SHARES = {"encode": 0.2, "curve": 0.1, "setting": 0.03, "executor": 0.15, "end to end": 0.15, "diffusers": 0.25}
"""Shares of the time; there are at most two curves and four settings. Changed networks take theirs in addition."""

_FEWEST = 4
"""Smallest number of prompts to encode, even if that takes longer than its share."""

Say = Callable[[str], object]


def bench(
    adapter: Adapter,
    prompts: Sequence[str],
    *,
    tau: float | None = None,
    budget: float | None = None,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    seeds: int | Sequence[int] = 0,
    seconds: float = 60.0,
    compile: bool | None = None,
    fuse_qkv: bool = False,
    quantize: Iterable[str] = (),
    say: Say = lambda stage: None,
) -> Report:
    """Measure ``adapter`` on this machine with ``prompts``.

    Parameters
    ----------
    adapter
        A loaded model, with the settings to measure it with.
    prompts
        N prompts. If encoding all of them takes more than a fifth of the time, only as many as fit, evenly spaced.
    tau, budget, steps, num_inference_steps, seeds
        As in :func:`hsd.compile`.
    seconds
        Approximate time to take. Loading and compiling come in addition, and every part runs on at least one prompt.
    compile
        Whether to try ``torch.compile`` too, which takes minutes with a large network. Default: on CUDA.
    fuse_qkv
        Whether to try attention with query, key and value in one product. It takes memory for a copy of their weights.
    quantize
        Numbers of 8 bits to try in linear layers, by torchao: ``int8`` and ``float8`` store weights so,
        ``int8-dynamic`` and ``float8-dynamic`` multiply so too. The unchanged weights stay in memory beside them.

        These changes are tried one by one in addition to the best setting. One that changes the output of a call more
        than its tolerance is not timed. The other parts of the report are without them.
    say
        Called with the name of what is measured next.

    Raises
    ------
    ValueError
        For bad arguments, and for float8 products on a device without them.
    hsd.Error
        As :func:`hsd.generate` does; if torchao is missing.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds is {seconds}: it has to be a finite number above 0")
    refuse_step_caches(adapter)
    changes = [Setting(fuse_qkv=True)] if fuse_qkv else []
    changes += [Setting(quantize=kind) for kind in check_kinds(quantize, adapter)]
    run = _Bench(adapter, seconds, adapter.device.type == "cuda" if compile is None else compile, say)
    given = list(prompts)
    plan = run.compiled(
        given, make_seeds(seeds, len(given)), tau=tau, budget=budget, steps=steps_of(steps, num_inference_steps)
    )
    alone, best, choice = run.denoiser(plan)
    alone = dataclasses.replace(alone, tried=run.tried(plan, alone, best, changes))
    planned = run.planned(plan, alone, best, len(given))
    run.watch_memory()
    part = run.part(plan, choice)
    with applied(adapter, best):
        executed = run.executor(part, alone, best)
        ours = run.images(part, alone.batch_size, best)
    compared = run.diffusers(plan, part, alone, ours)
    return Report(_machine(adapter), alone, planned, executed, compared)


class _Bench:
    """One run: the state that its parts share."""

    def __init__(self, adapter: Adapter, seconds: float, compile: bool, say: Say) -> None:
        self.adapter, self.device, self.say = adapter, adapter.device, say
        self.compile = compile
        self.share = {name: share * seconds for name, share in _SHARES.items()}
        self.conditioning: Conditioning
        self.sampler: SamplerTable
        self.encode_seconds = 0.0  # per image, clustering included
        self.decode_seconds = 0.0  # per image

    def compiled(self, given: list[str], seeds: np.ndarray, *, steps: int, **request: Any) -> Plan:
        """The plan of the prompts that can be encoded in their share of the time."""
        self.say("encoding and planning")
        self.sampler = self.adapter.sampler(steps)  # a scheduler that cannot be expressed is refused here
        few = min(_FEWEST, len(given))
        self._encode(given[:1], seeds[:1])  # warm-up
        per_image = self._timed(lambda: self._encode(given[:few], seeds[:few])) / few
        n = min(len(given), max(few, int(self.share["encode"] / per_image)))
        picked = np.linspace(0, len(given) - 1, n).astype(np.int64)
        prompts = [given[i] for i in picked]
        start = time.perf_counter()
        plan = compile_plan(prompts, model=self.adapter, steps=steps, seeds=seeds[picked], **request)
        self.encode_seconds = (time.perf_counter() - start) / n
        _, self.conditioning = encoded(plan)
        return plan

    def denoiser(self, plan: Plan) -> tuple[Alone, Setting, Choice]:
        """The curve of the denoiser, the batch size for the plan, and every setting at that size."""
        leaves, capturable = plan.covered(), can_capture(self.adapter)
        bases = [Setting(), Setting(cuda_graphs=True)] if capturable else [Setting()]
        curves: dict[str, Curve] = {}
        choices: dict[Setting, Choice] = {}
        for base in bases:
            self.say(f"the denoiser by itself: {base.name}")
            curve = self._measure(base, leaves, most=min(MOST, len(plan)), seconds=self.share["curve"])
            curves[base.name] = curve
            speeds.remember_curve(self.adapter, curve, **self._ways(base))
            choices[base] = choose(
                plan,
                curve,
                order="depth",
                slot_bytes=slot_bytes(
                    self.adapter, self.conditioning, self.sampler, plan, catch_up_of(plan, self.adapter)
                ),
                free_bytes=free_memory(self.device),
                mixed_steps=self.adapter.mixed_timesteps,
                rows=self.adapter.rows_by_step(plan.n_steps),
                kinds=kinds_of(plan, self.conditioning, self.adapter),
                padded=base.cuda_graphs,
                captured=base.cuda_graphs,
            )
        best = min(bases, key=lambda base: choices[base].seconds)
        choice = choices[best]
        at = {best: self._at(best, leaves, choice.batch_size)}
        failed: dict[str, str] = {}
        more = [(base != best, dataclasses.asdict(base)) for base in bases]
        more.append((any(map(can_be_laid_out, self.adapter.modules())), {"channels_last": True}))
        more.append((self.compile, {"compile": True}))
        for applies, changes in more:  # each in addition to the best so far
            if not applies:
                continue
            setting = dataclasses.replace(best, **changes)
            try:
                at[setting] = self._at(setting, leaves, choice.batch_size)
            except Exception as error:  # a compiler can fail in many ways; the other results are still valid
                failed[setting.name] = first_line(error)
            else:
                best = setting if at[setting] < at[best] * (1 - LEAST_GAIN) else best
        lanes = {setting.name: seconds / choice.batch_size for setting, seconds in at.items()}
        flags = best.flags(choice.batch_size, capturable)
        return Alone(curves, choice.batch_size, lanes, failed, best.name, flags), best, choice

    def _at(self, setting: Setting, leaves: np.ndarray, batch_size: int) -> float:
        """Seconds per call of ``batch_size`` lanes."""
        self.say(f"the denoiser by itself, {batch_size} lanes: {setting.name}")
        with applied(self.adapter, setting):
            curve = self._curve_at(setting, leaves, batch_size)
        speeds.remember_curve(self.adapter, curve, **self._ways(setting))
        return curve.seconds(batch_size)

    def _ways(self, setting: Setting) -> dict[str, bool]:
        """The options of a run with this setting; a model that cannot be captured runs without graphs by default."""
        graphs = setting.cuda_graphs or not can_capture(self.adapter)
        return {"compile": setting.compile, "channels_last": setting.channels_last, "cuda_graphs": graphs}

    def _curve_at(self, setting: Setting, leaves: np.ndarray, batch_size: int) -> Curve:
        """One point; the layout and the changes of the setting are those that the networks have now."""
        with compiled(self.adapter, setting, batch_size):
            return self._measure(setting, leaves, sizes=[batch_size], seconds=self.share["setting"])

    def tried(self, plan: Plan, alone: Alone, best: Setting, changes: list[Setting]) -> dict[str, Tried]:
        """Each change of the networks in addition to the best setting, by its name."""
        if not changes:
            return {}
        leaves, size = plan.covered(), alone.batch_size
        with applied(self.adapter, best):
            inputs = Inputs(self.adapter, self.conditioning, self.sampler, leaves)
            one_call = OneCall(self.adapter, inputs, size)
        compiles, results = any("compile" in name for name in alone.seconds_per_lane), {}
        for change in changes:
            setting = with_change(best, change, compiles)
            self.say(f"the denoiser by itself, {size} lanes: {setting.name}")
            timed = partial(self._curve_at, setting, leaves, size)
            results[change.name] = try_change(self.adapter, setting, change, one_call, size, timed)
        return results

    def planned(self, plan: Plan, alone: Alone, best: Setting, given: int) -> Planned:
        """The predicted time of the plan at the chosen batch size, by the measured seconds of the denoiser."""
        size, per_lane = alone.batch_size, alone.seconds_per_lane[best.name]
        program = self._program(plan, size)
        curve = alone.curves[Setting(cuda_graphs=best.cuda_graphs).name]
        filled, most = program.rows_per_call, program.max_rows
        full = int((filled == most).sum()) * size * per_lane
        # Calls that are not full: by the curve, scaled by what the chosen layout gains in full calls.
        padded_to = most if best.cuda_graphs or best.compile else None
        rest = curve.total(filled[filled < most], padded_to, rows=most // size)
        if not best.compile:
            rest *= per_lane / curve.seconds_per_lane(size)
        return Planned(
            prompts=len(plan),
            prompts_given=given,
            steps=plan.n_steps,
            tau=plan.tau,
            node_steps=plan.node_steps,
            standard_node_steps=plan.standard_node_steps,
            savings=plan.savings,
            calls=program.n_calls,
            calls_lower_bound=program.lower_bound,
            occupancy=program.occupancy,
            slots=program.n_slots,
            seconds=full + rest,
            standard_seconds=plan.standard_node_steps * per_lane,
        )

    def part(self, plan: Plan, choice: Choice) -> Plan:
        """The part of the plan that can be denoised and decoded in its shares of the time: neighbours in the tree."""
        n = min(decoded_at_once(self.adapter), len(plan)) if self.device.type == "cuda" else 1
        self.say("decoding")
        self.decode_seconds = seconds_to_decode(self.adapter, n)
        both = choice.seconds + self.decode_seconds * len(plan)
        parts = math.ceil(max(choice.seconds / self.share["executor"], both / self.share["end to end"]))
        return plan.shard(max(1, parts))[0]

    def executor(self, part: Plan, alone: Alone, setting: Setting) -> Executed:
        """Replay a part of the plan, and drop the latents."""
        self.say(f"the executor, on {len(part):,} prompts")
        program = self._program(part, alone.batch_size)

        def executor() -> Executor:
            return Executor(
                part,
                program,
                self.adapter,
                self.conditioning,
                self.sampler,
                cuda_graphs=setting.cuda_graphs,
                compile=setting.compile,
                catch_up=catch_up_of(part, self.adapter),
            )

        if setting.compile:  # the first full call compiles the networks, which would be most of a short run
            any(rows == program.max_rows for rows, _ in zip(program.rows_per_call, executor().run(), strict=False))
        machine, first, node_steps, finished = executor(), 0.0, 0, 0
        synchronize(self.device)
        parts, filled = speeds.Parts(machine.ahead), iter(program.rows_per_call)
        start = before = time.perf_counter()
        for lanes, done in machine.run():
            rows, now = int(next(filled)), time.perf_counter()
            parts.add(now - before, rows * alone.batch_size / program.max_rows, rows == program.max_rows)
            before = now
            if done and not finished:
                synchronize(self.device)
                first = time.perf_counter() - start
            node_steps += lanes
            finished += len(done)
        machine.wait()
        seconds = time.perf_counter() - start
        assert (node_steps, finished) == (part.node_steps, len(part))
        found = {} if (span := parts.span()) is None else {program.batch_size: span}
        speeds.remember(self.adapter, found, self.encode_seconds + self.decode_seconds, **self._ways(setting))
        by_denoiser = program.n_rows * alone.batch_size / program.max_rows * alone.seconds_per_lane[setting.name]
        base = Setting(cuda_graphs=setting.cuda_graphs)
        return Executed(
            prompts=len(part),
            node_steps=node_steps,
            savings=part.savings,
            calls=program.n_calls,
            occupancy=program.occupancy,
            seconds=seconds,
            denoiser_seconds=by_denoiser,
            efficiency=by_denoiser / seconds,
            first_image_seconds=first,
            one_image_seconds=part.n_steps * alone.curves[base.name].seconds(1),
        )

    def _program(self, plan: Plan, batch_size: int) -> Program:
        return program_of(plan, self.adapter, self.conditioning, batch_size)

    def images(self, part: Plan, batch_size: int, setting: Setting) -> EndToEnd:
        """Generate images with HSD; they are decoded, not stored."""
        self.say(f"end to end, on {len(part):,} prompts")
        start = time.perf_counter()
        images = stream(
            part,
            self.adapter,
            batch_size=batch_size,
            order="depth",
            compile=setting.compile,
            cuda_graphs=setting.cuda_graphs,
            channels_last=setting.channels_last,
        )
        made = sum(1 for _ in images)
        seconds = time.perf_counter() - start
        assert made == len(part)
        per_image = self.encode_seconds + seconds / made
        return EndToEnd(made, part.savings, self.encode_seconds, per_image, peak_bytes=self._peak())

    def diffusers(self, plan: Plan, part: Plan, alone: Alone, ours: EndToEnd) -> EndToEnd:
        """The pipeline's own call, on the first prompts of the same part, with the same batch size if it fits."""
        pipe = self.adapter.pipe
        if isinstance(pipe, tuple):
            return dataclasses.replace(ours, not_compared="a pair of pipelines cannot be called as one")
        candidates = np.concatenate([part.kept, np.setdiff1d(plan.kept, part.kept)])
        n = 1
        while n < len(candidates) and self._predicted(n + 1, plan, alone) <= self.share["diffusers"]:
            n += 1
        chosen = candidates[:n]
        self.say(f"the diffusers pipeline, on {n:,} prompts")
        accepted = inspect.signature(pipe.__call__).parameters
        # Not its `settings`, which leave out what earlier versions did not have; the pipeline's default may be another.
        names = [name for name in self.adapter.setting_names() if name in accepted]
        settings = {name: _as_pipeline(name, getattr(self.adapter, name)) for name in names}
        left_out = tuple(name for name in self._changed() if name not in accepted)
        try:
            # The pipeline decodes a whole batch at once, so it may take fewer images than the executor takes latents.
            fitting = FittingSize(alone.batch_size, "images in a call of the pipeline", self.device)
            seconds, batch = fitting.run(lambda size: self._calls(pipe, plan, chosen, size, settings), n)
        except Exception as error:  # the pipeline may refuse an argument; the other parts are still valid
            reason = f"{type(error).__name__}: {first_line(error)}"
            return dataclasses.replace(ours, not_compared=reason, not_passed_on=left_out)
        return dataclasses.replace(
            ours,
            diffusers_prompts=n,
            diffusers_batch_size=batch,
            diffusers_seconds_per_image=seconds / n,
            not_passed_on=left_out,
            speed_up=seconds / n / ours.seconds_per_image,
            diffusers_peak_bytes=self._peak(),
        )

    def _calls(self, pipe: Any, plan: Plan, chosen: np.ndarray, batch: int, settings: dict[str, Any]) -> float:
        """Seconds of the pipeline for the ``chosen`` prompts."""
        self.watch_memory()
        start = time.perf_counter()
        try:
            with quiet(pipe):
                for begin in range(0, len(chosen), batch):
                    self._call(pipe, plan, chosen[begin : begin + batch], settings)
        finally:
            self.adapter.free()
        synchronize(self.device)
        return time.perf_counter() - start

    def _call(self, pipe: Any, plan: Plan, chosen: np.ndarray, settings: dict[str, Any]) -> None:
        """One batch. Other texts have to be lists where the prompt is one."""
        own = {
            name: [value] * len(chosen)
            if name.startswith(("negative_prompt", "prompt_")) and isinstance(value, str)
            else value
            for name, value in settings.items()
        }
        images = pipe(
            [plan.prompts[i] for i in chosen],
            num_inference_steps=plan.request["steps"],
            generator=[torch.Generator("cpu").manual_seed(int(plan.seeds[i])) for i in chosen],
            **own,
        ).images
        assert len(images) == len(chosen)

    def _predicted(self, n: int, plan: Plan, alone: Alone) -> float:
        """Seconds of the pipeline's own call for ``n`` prompts."""
        full, rest = divmod(n, alone.batch_size)
        curve = alone.curves[Setting().name]
        calls = full * curve.seconds(alone.batch_size) + (curve.seconds(rest) if rest else 0.0)
        return plan.n_steps * calls + n * (self.encode_seconds + self.decode_seconds)

    def _changed(self) -> list[str]:
        """Settings of the model that differ from the defaults of its family, or from the size of its image."""
        defaults = {f.name: f.default for f in dataclasses.fields(self.adapter)}
        if isinstance(image := getattr(self.adapter, "image", None), SharedImage):
            defaults["height"], defaults["width"] = own_size(self.adapter, image)
        return [name for name, value in self.adapter.settings.items() if value != defaults[name]]

    def _measure(self, setting: Setting, leaves: np.ndarray, **options: Any) -> Curve:
        graphs = setting.cuda_graphs
        return measure(self.adapter, self.conditioning, self.sampler, leaves, cuda_graphs=graphs, **options)

    def _encode(self, prompts: list[str], seeds: np.ndarray) -> None:
        encode([self.adapter], np.zeros(len(prompts), np.int64), prompts, seeds)

    def _timed(self, work: Callable[[], object]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - start

    def watch_memory(self) -> None:
        """Start to record the peak of device memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> int | None:
        return int(torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else None


def _as_pipeline(name: str, value: Any) -> Any:
    """A setting as the pipeline's own call takes it: an image of PIL, and a list of what has one value a network."""
    if isinstance(value, SharedImage):
        return value.pil
    if isinstance(value, tuple) and name in (*IMAGES, *OF_EACH):
        return [_as_pipeline(name, each) for each in value]
    return value


def _machine(adapter: Adapter) -> Machine:
    device = adapter.device
    return Machine(
        model=adapter.name,
        device=describe(device),
        dtype=str(adapter.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        hsd=_core.__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="minutes"),
    )
