"""Batch sizes by measurement: no test looks at a clock, since the fake denoiser is its own."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hsd
from helpers import encoded
from hsd import cli
from hsd.conditioning.rows import Conditioning, Field, Rows
from hsd.conditioning.spool import Spool
from hsd.replay.buffers import rounded_up
from hsd.replay.denoiser import Denoiser
from hsd.replay.executor import Executor
from hsd.replay.graphs import bucket, can_capture
from hsd.replay.kept import kept_by
from hsd.tuning import batching
from hsd.tuning.batching import choose
from hsd.tuning.curve import CudaMemory, Curve, measure

SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SAMPLER = SimpleNamespace(timesteps=torch.arange(50.0, 0.0, -10.0), n_state=3)


class Fake(Denoiser):
    """A denoiser with a clock that only its own calls move, and with memory that only they take."""

    def __init__(self, seconds, warm_up=0.0, fits=10**9, base=0, row=0, free=0):
        self.seconds, self.warm_up, self.fits = seconds, warm_up, fits
        self.base, self.row, self.bytes = base, row, free
        self.now, self.calls, self.peak, self.entered = 0.0, [], 0, 0

    def denoise(self, latents, timestep, rows):
        assert not torch.is_grad_enabled()
        assert self.entered == 1
        lanes = len(latents)
        assert latents.shape == (lanes, 2, 3)
        if lanes > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot.\nand more")
        first = all(len(call[0]) != lanes for call in self.calls)
        self.calls.append((latents, timestep, rows))
        self.now += self.seconds(lanes) + (self.warm_up if first else 0.0)
        self.peak = max(self.peak, self.base + self.row * lanes)
        return latents, None

    @contextmanager
    def running(self):
        self.entered += 1
        yield
        self.entered -= 1

    # the memory of its device
    def free(self):
        return self.bytes

    def begin(self):
        self.peak = 0

    def grown(self):
        return self.peak

    # what else a denoiser has
    def encode(self, batch):
        raise NotImplementedError

    def scheduler(self):
        raise NotImplementedError

    def latent_shape(self):
        return (2, 3)

    device, dtype = torch.device("cpu"), torch.float32


def conditioning(n=5):
    """``own`` differs between prompts, ``all`` does not, ``text`` has 1 to 3 tokens per prompt."""
    spool = Spool(1 << 30)
    own, everyone, text = Rows(spool, ragged=False), Rows(spool, ragged=False), Rows(spool, ragged=True)
    own.append(torch.arange(4.0 * n).view(n, 4))
    everyone.append(torch.ones(1, 2))
    text.append([torch.full((1 + i % 3, 2), float(i)) for i in range(n)])
    index, same = np.arange(n), np.zeros(n, np.int64)
    fields = {"own": Field(own, index), "all": Field(everyone, same), "text": Field(text, index)}
    return Conditioning(fields, np.ones((n, 2), np.float32), spool)


def run(fake, **options):
    return measure(fake, conditioning(), SAMPLER, np.arange(5), clock=lambda: fake.now, **options)


def plan_of(n, tau, steps=6, seed=0):
    """A plan of ``n`` prompts in families of about three."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(max(1, n // 3), 8))[rng.integers(0, max(1, n // 3), n)] + 0.3 * rng.normal(size=(n, 8))
    return hsd.compile([f"prompt {i}" for i in range(n)], tau, embeddings=vectors, steps=steps)


def affine(a, b, lanes=SIZES):
    return Curve(tuple(lanes), tuple(a * n + b for n in lanes))


# -- the curve


def test_interpolation_in_closed_form():
    curve = Curve((1, 2, 4), (1.0, 1.5, 3.5))
    assert [curve.seconds(n) for n in (1, 1.5, 2, 3, 4)] == [1.0, 1.25, 1.5, 2.5, 3.5]
    assert curve.seconds(8) == 7.0  # by the last one's seconds per lane
    assert curve.seconds_per_lane(16) == curve.seconds_per_lane(4) == 3.5 / 4
    assert Curve((4, 8), (1.0, 1.5)).seconds(2) == 1.0
    assert curve.total(np.array([1, 1, 3, 4])) == 2 * 1.0 + 2.5 + 3.5


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9))
def test_a_curve_never_falls_whatever_was_measured(times):
    curve = Curve(tuple(SIZES[: len(times)]), tuple(times))
    values = [curve.seconds(n) for n in np.linspace(1, 2 * curve.lanes[-1], 200)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(values))
    assert all(curve.seconds(n) <= t for n, t in zip(curve.lanes, times, strict=True))  # a disturbance only adds
    assert curve.seconds(curve.lanes[-1]) == times[-1]


def test_candidates_are_what_was_measured_and_the_sizes_between():
    assert affine(1, 1, [1]).candidates() == [1]
    assert affine(1, 1, [1, 2]).candidates() == [1, 2]
    assert affine(1, 1, [1, 2, 4, 8, 16]).candidates() == [1, 2, 3, 4, 6, 8, 12, 16]
    assert affine(1, 1, [4, 8]).candidates() == [4, 6, 8]
    assert all(bucket(n, 64) == n for n in affine(1, 1, SIZES[:7]).candidates())  # what the executor pads to


@pytest.mark.parametrize(
    ("lanes", "seconds", "says"),
    [
        ((), (), "needs the same number of each, 1 or more"),
        ((1, 2), (1.0,), "needs the same number of each"),
        ((2, 1), (1.0, 1.0), r"\(2, 1\): they have to ascend"),
        ((0, 1), (1.0, 1.0), r"\(0, 1\): they have to ascend"),
        ((1,), (0.0,), "finite and above 0"),
        ((1,), (float("nan"),), "finite and above 0"),
    ],
)
def test_no_curve_of_nonsense(lanes, seconds, says):
    with pytest.raises(ValueError, match=says):
        Curve(lanes, seconds)


def test_no_call_of_no_lanes():
    with pytest.raises(ValueError, match="the number of lanes is 0"):
        affine(1, 1).seconds(0)


def test_a_curve_prints_its_numbers():
    text = str(Curve((1, 2), (0.5, 0.75), (3 << 20, 5 << 20), "enough"))
    assert text.splitlines() == [
        "lanes   ms per call   ms per lane  MiB per call",
        "    1       500.000       500.000             3",
        "    2       750.000       375.000             5",
        "ended: enough",
    ]


# -- measuring


def test_what_is_measured_is_what_a_call_takes_once_it_is_warm():
    fake = Fake(lambda n: 0.01 + 0.002 * n, warm_up=0.05)
    curve = run(fake, most=64)
    assert curve.lanes == (1, 2, 4, 8, 16, 32, 64)
    assert curve.seconds_per_call == pytest.approx([0.01 + 0.002 * n for n in curve.lanes])
    assert curve.bytes_per_call is None
    assert curve.ended == "64 lanes are the largest number to try"
    assert fake.entered == 0


def test_the_median_is_taken():
    disturbed = itertools.cycle([0.1, 0.1, 5.0, 0.1])
    fake = Fake(lambda n: next(disturbed))
    assert run(fake, sizes=[4], seconds=200.0).seconds_per_call == pytest.approx([0.1])
    assert len(fake.calls) == 8  # one to warm up, and seven


def test_short_calls_are_timed_in_blocks():
    fake = Fake(lambda n: 0.002)
    assert run(fake, sizes=[4]).seconds_per_call == pytest.approx([0.002])
    assert len(fake.calls) == 1 + 7 * 10


@pytest.mark.parametrize(
    ("seconds", "lanes"),
    [
        (lambda n: n, (1, 2, 4)),  # no gain at 2, and none at 4
        (lambda n: 10 + n, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        (lambda n: max(n, 2) + 0.5 * (n == 2), (1, 2, 4, 8, 16)),  # 1: 2, 2: 1.25, 4: 1, then nothing
        (lambda n: {1: 1.0, 2: 2.0, 4: 3.5}.get(n, 3.5 / 4 * n), (1, 2, 4, 8, 16)),  # 2 gains nothing, but 4 does
        (lambda n: n * 0.98 ** np.log2(n), (1, 2, 4, 8, 16, 32, 64, 128, 256)),  # 4 % in two doublings
        (lambda n: n * 0.99 ** np.log2(n), (1, 2, 4)),
    ],
    ids=["flat", "affine", "knee", "grace", "slow gain", "too slow"],
)
def test_doubling_goes_on_as_long_as_a_lane_takes_less(seconds, lanes):
    curve = run(Fake(seconds), seconds=1e9)
    assert curve.lanes == lanes
    assert curve.ended == (
        "the time per lane no longer falls" if lanes[-1] < 256 else "256 lanes are the largest number to try"
    )


def test_the_time_is_bounded():
    fake = Fake(lambda n: 0.5 + 0.1 * n)
    curve = run(fake, seconds=20.0)
    assert fake.now <= 20.0
    assert 2 <= len(curve.lanes) < 8
    assert curve.ended == f"{2 * curve.lanes[-1]} lanes would take longer than the time left"
    slow = Fake(lambda n: 100.0)
    assert run(slow, seconds=1.0).lanes == (1,)
    assert len(slow.calls) == 2  # the least: one to warm up, and one


def test_memory_is_predicted_before_it_is_taken():
    for base, row, free in [(0, 10, 1000), (300, 10, 1000), (5, 10, 10**6), (0, 1000, 1000)]:
        fake = Fake(lambda n: 1 + n, base=base, row=row, free=free)
        curve = run(fake, memory=fake, seconds=1e9)
        assert curve.bytes_per_call == tuple(base + row * n for n in curve.lanes)
        assert all(base + row * n <= 0.85 * free for n in curve.lanes[1:])  # one lane is always tried
        if curve.lanes[-1] < 256:
            # Linear in the lanes, so the prediction is exact from the second point on.
            assert base + row * 2 * curve.lanes[-1] > 0.85 * free or len(curve.lanes) == 1
            assert f"{2 * curve.lanes[-1]} lanes would take" in curve.ended


def test_running_out_of_memory_ends_the_doubling():
    fake = Fake(lambda n: 1 + n, fits=11)
    curve = run(fake, seconds=1e9)
    assert curve.lanes == (1, 2, 4, 8)
    assert curve.ended == "16 lanes failed: CUDA out of memory. Tried to allocate a lot"
    assert run(Fake(lambda n: 1.0, fits=3), sizes=[1, 3, 6, 7]).lanes == (1, 3)
    with pytest.raises(hsd.OutOfMemory, match="a call of 1 lanes does not fit into the memory"):
        run(Fake(lambda n: 1.0, fits=0))


def test_an_error_of_the_first_call_comes_out():
    def broken(n):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(Fake(broken))


def test_sizes_that_are_asked_for():
    curve = run(Fake(lambda n: float(n)), sizes=[3, 12], most=1)
    assert (curve.lanes, curve.seconds_per_call, curve.ended) == ((3, 12), (3.0, 12.0), "")


def test_lanes_have_the_rows_of_prompts_and_stand_at_all_steps():
    fake = Fake(lambda n: 1.0)
    run(fake, sizes=[7])
    before = torch.get_rng_state()
    latents, timestep, rows = fake.calls[-1]
    assert torch.equal(torch.get_rng_state(), before)  # the user's generator is not used
    expected = [conditioning().mean(np.array([i * 5 // 7])) for i in range(7)]
    assert set(rows) == {"own", "all", "text", "text_mask"}
    for name in rows:
        assert torch.equal(rows[name], torch.stack([row[name] for row in expected]))
    assert rows["all"].stride(0) == 0  # read by every lane, as in the executor
    assert timestep.tolist() == [50, 50, 40, 30, 30, 20, 10]
    assert latents.std() > 0.5
    one_step = Fake(lambda n: 1.0)
    one_step.mixed_timesteps = False
    run(one_step, sizes=[3])
    assert one_step.calls[-1][1].tolist() == [30, 30, 30]


def test_captured_calls_are_timed_once_they_are_captured(monkeypatch):
    """Without a GPU: that the graph is what is timed, and that the calls before its capture are not."""
    replayed, cleared = [], []

    class Stub:
        def __init__(self, device):
            self.used = {}

        def run(self, size, work):
            self.used[size] = self.used.get(size, 0) + 1
            if self.used[size] <= 3:
                work(size)
            else:
                replayed.append(size)
                fake.now += 0.03

        def clear(self):
            cleared.append(len(fake.calls))

    monkeypatch.setattr("hsd.tuning.curve.Graphs", Stub)
    monkeypatch.setattr("hsd.tuning.curve.can_capture", lambda denoiser: True)
    fake = Fake(lambda n: 0.5)
    curve = run(fake, sizes=[1, 2], cuda_graphs=True, seconds=100.0)
    assert curve.seconds_per_call == pytest.approx([0.03, 0.03])
    assert replayed == [1] * 7 + [2] * 7
    assert len(fake.calls) == 6
    assert cleared == [3, 6]  # before the next size is predicted: a graph's memory does not count as free
    monkeypatch.undo()
    assert not can_capture(fake)  # there is nothing to capture on a CPU


def test_free_memory_of_a_gpu(monkeypatch):
    """What the driver has free, and what torch's allocator holds free: with artificial numbers."""
    numbers = {
        "mem_get_info": (600, 1000),
        "memory_reserved": 300,
        "memory_allocated": 100,
        "max_memory_allocated": 250,
    }
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    memory = CudaMemory(torch.device("cuda"))
    memory.begin()
    assert memory.free() == 600 + 300 - 100
    assert memory.grown() == 250 - 100
    assert batching.free_memory(torch.device("cuda")) == int(0.85 * 800)


@pytest.mark.parametrize(("options", "says"), [({"most": 0}, "most is 0"), ({"seconds": 0}, "seconds is 0")])
def test_bad_arguments_of_measure(options, says):
    with pytest.raises(ValueError, match=says):
        run(Fake(lambda n: 1.0), **options)


def test_on_a_real_denoiser(plan, model):
    c = encoded(model, plan.prompts, plan.seeds)
    curve = measure(model, c, model.sampler(6), plan.covered(), sizes=[1, 3])
    assert curve.lanes == (1, 3)
    program = plan.program(4)
    executor = Executor(plan, program, model, c, model.sampler(6))
    buffers = [executor.state, *executor.buffers.rows.values()]
    per_slot = batching.slot_bytes(model, c, model.sampler(6), plan)
    assert per_slot * (program.n_slots + 1) == sum(buffer.nbytes for buffer in buffers)
    assert batching.free_memory(torch.device("cpu")) > 0


# -- choosing


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    tau=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    a=st.floats(0.01, 1.0),
    b=st.floats(0.0, 10.0),
    mixed=st.booleans(),
    order=st.sampled_from([None, "depth", "breadth"]),
)
def test_a_linear_curve_in_closed_form(n, tau, a, b, mixed, order):
    """Seconds are a * node-steps + b * calls, and the choice is that of brute force over every size."""
    plan, curve = plan_of(n, tau), affine(a, b, SIZES[:7])
    every = range(1, 65)
    choice = choose(plan, curve, order=order, mixed_steps=mixed, sizes=every)
    calls = {
        (size, name): plan.program(size, name, mixed_steps=mixed).n_calls
        for size in every
        for name in ([order] if order else ["depth", "breadth"])
    }
    assert choice.seconds == pytest.approx(a * plan.node_steps + b * min(calls.values()))
    assert choice.n_calls == calls[choice.batch_size, choice.order]
    if b > 1e-3:
        fewest = [size for (size, _), count in calls.items() if count == min(calls.values())]
        assert choice.batch_size == min(fewest)
    else:
        assert choice.seconds <= (a * plan.node_steps + b * plan.node_steps) * (1 + 1e-9)
    for row in choice.table:
        assert row.seconds == pytest.approx(a * plan.node_steps + b * row.n_calls)
    widest = max(int(plan.program(64, name, mixed_steps=mixed).lanes.max()) for name in ("depth", "breadth"))
    assert choice.batch_size <= widest


@settings(deadline=None, max_examples=40)
@given(
    times=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6),
    n=st.integers(1, 30),
    padded=st.booleans(),
    large=st.booleans(),
)
def test_any_curve_by_brute_force(times, n, padded, large):
    """With any curve, candidates that are skipped because they cannot be better are not better."""
    plan, curve = plan_of(n, 0.8), Curve(tuple(SIZES[: len(times)]), tuple(times))
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(batching, "_LOWERED_AT_ONCE", 0)
        choice = choose(plan, curve, padded=padded)
    predictions = {}
    for size, order in itertools.product(curve.candidates(), ("depth", "breadth")):
        lanes = plan.program(size, order).lanes
        size = min(size, int(lanes.max()))
        seconds = sum(curve.seconds(bucket(int(k), size) if padded else int(k)) for k in lanes)
        predictions[size, order] = seconds
    best = min(predictions.values())
    assert choice.seconds == pytest.approx(best)
    assert predictions[choice.batch_size, choice.order] == pytest.approx(best)
    assert choice.batch_size == min(size for (size, _), s in predictions.items() if s <= best * (1 + 1e-9))
    if not large:
        assert {row.status for row in choice.table} == {"fits"}


def test_equally_fast_sizes_and_orders_give_the_smallest_and_depth():
    choice = choose(plan_of(20, 0.5), affine(0.1, 0.0, SIZES[:5]))
    assert (choice.batch_size, choice.order) == (1, "depth")


def test_one_prompt():
    choice = choose(plan_of(1, 1.0), affine(0.1, 1.0))
    assert (choice.batch_size, choice.n_calls, choice.n_slots) == (1, 6, 1)
    assert choice.seconds == pytest.approx(6 * 1.1)


def test_a_plan_smaller_than_the_batch():
    """Five prompts fill at most five lanes: not a measured size, but the size of the largest call."""
    choice = choose(plan_of(5, 0.0), affine(0.1, 1.0))
    assert choice.batch_size == 5
    assert choice.n_calls == 6
    assert max(row.batch_size for row in choice.table) == 5


@pytest.mark.parametrize("order", [None, "depth", "breadth"])
def test_slots_fit_the_memory(order):
    plan, curve = plan_of(60, 0.8, steps=12), affine(0.1, 5.0)
    free_choice = choose(plan, curve, order=order, slot_bytes=100)
    least = min(row.n_slots for row in free_choice.table)
    limits = [(least + 1) * 100, (free_choice.n_slots + 1) * 100 - 1, (free_choice.n_slots + 1) * 100]
    for free in limits:
        if free < (least + 1) * 100:
            continue
        choice = choose(plan, curve, order=order, slot_bytes=100, free_bytes=free)
        assert (choice.n_slots + 1) * 100 <= free
        allowed = [row for row in free_choice.table if (row.n_slots + 1) * 100 <= free]
        assert choice.seconds == min(row.seconds for row in allowed)
        assert all((row.status == "fits") == ((row.n_slots + 1) * 100 <= free) for row in choice.table)
    assert choice.batch_size == free_choice.batch_size  # the last limit just suffices
    with pytest.raises(hsd.OutOfMemory, match=rf"{least} latents alive at once of 100 bytes each.*max_slots="):
        choose(plan, curve, order=order, slot_bytes=100, free_bytes=(least + 1) * 100 - 1)


def test_captured_calls_need_memory_of_their_own():
    """The pool of the graphs, and beside it the calls that are not captured: the largest size and the next smaller."""
    curve = Curve((1, 2, 4, 8), (1.0, 1.1, 1.2, 1.3), (100, 200, 400, 800))
    assert [curve.memory_of_run(n, captured=False) for n in (1, 2, 6, 8)] == [100, 200, 600, 800]
    assert [curve.memory_of_run(n, captured=True) for n in (1, 2, 6, 8)] == [100, 200 + 100, 600 + 400, 800 + 600]
    assert curve.memory_of_run(8, captured=True, rows=2) == 800 + 700  # 16 rows and 14
    assert curve.memory_of_run(1, captured=True, rows=2) == 100 + 100  # two rows and one, which is half a lane
    assert Curve((1, 2), (1.0, 1.1)).memory_of_run(2, captured=True) == 0


def test_captured_calls_count_in_the_choice():
    plan = plan_of(60, 0.0)
    curve = Curve((1, 2, 4, 8), (1.0, 1.1, 1.2, 1.3), (100, 200, 400, 800))
    assert choose(plan, curve, free_bytes=800 + 600, captured=True).batch_size == 8
    assert choose(plan, curve, free_bytes=800 + 599, captured=True).batch_size == 6
    slots = choose(plan, curve, order="depth", sizes=[8]).n_slots + 1
    spare = rounded_up(slots)
    assert spare > slots
    options = {"order": "depth", "sizes": [8], "slot_bytes": 1000}
    assert choose(plan, curve, free_bytes=spare * 1000 + 1400, captured=True, **options).batch_size == 8
    with pytest.raises(hsd.OutOfMemory):
        choose(plan, curve, free_bytes=spare * 1000 + 1399, captured=True, **options)


def test_measuring_drops_what_is_kept():
    """It would take the memory that is measured."""
    fake = Fake(lambda n: 1.0)
    kept_by(fake)._kept = ("key", None, None)
    run(fake, sizes=[1])
    assert not kept_by(fake).free()


def test_the_memory_of_a_call_counts():
    plan = plan_of(60, 0.0)
    curve = Curve((1, 2, 4, 8), (1.0, 1.1, 1.2, 1.3), (100, 200, 400, 800))
    assert choose(plan, curve, free_bytes=800).batch_size == 8
    assert choose(plan, curve, free_bytes=799).batch_size == 6
    assert curve.memory(6) == 600
    assert curve.memory(16) == 1600


def test_max_slots_is_kept():
    plan = plan_of(60, 0.8, steps=12)
    slots = plan._core.least_slots() + 2
    assert choose(plan, affine(0.1, 5.0), max_slots=slots).n_slots <= slots
    with pytest.raises(ValueError, match="max_slots"):
        choose(plan, affine(0.1, 5.0), max_slots=plan._core.least_slots() - 1)


@pytest.mark.parametrize("mixed", [True, False])
def test_huge_plans_are_estimated(monkeypatch, mixed):
    """By the bound on calls, which depth first meets to a few percent: only the chosen candidate is lowered."""
    plan, curve = plan_of(400, 0.5, steps=10), Curve((1, 2, 4, 8, 16), (1.0, 1.2, 1.6, 2.4, 6.0))
    exact = choose(plan, curve, order="depth", mixed_steps=mixed)
    monkeypatch.setattr(batching, "_LOWERED", 0)
    guess = choose(plan, curve, mixed_steps=mixed)
    assert [row.status for row in guess.table].count("fits") == 1
    assert (guess.batch_size, guess.order, guess.n_slots) == (exact.batch_size, "depth", exact.n_slots)
    assert guess.seconds == pytest.approx(exact.seconds, rel=0.05)
    if not mixed:
        assert guess.seconds == pytest.approx(exact.seconds, rel=1e-9)
    fitting = choose(plan, curve, mixed_steps=mixed, slot_bytes=1, free_bytes=exact.n_slots)
    assert fitting.n_slots + 1 <= exact.n_slots
    assert fitting.batch_size < exact.batch_size


def test_bad_sizes():
    plan = plan_of(3, 0.0)
    with pytest.raises(ValueError, match="a size is 0"):
        choose(plan, affine(1, 1), sizes=[0, 1])
    with pytest.raises(ValueError, match="sizes is empty"):
        choose(plan, affine(1, 1), sizes=[])
    with pytest.raises(ValueError, match="order"):
        choose(plan, affine(1, 1), order="sideways")


def test_a_choice_prints_its_table():
    text = str(choose(plan_of(5, 0.0), affine(0.1, 1.0, [1, 2, 4]), order="depth")).splitlines()
    assert text[0].split() == ["batch", "order", "seconds", "calls", "slots"]
    assert [line.split()[0] for line in text[1:]] == ["1", "2", "3", "4"]
    assert [line for line in text if line.endswith("chosen")] == [text[3]]  # four lanes take as many calls


# -- in use


def test_auto_on_a_real_model(plan, model):
    """The images are those of any other batch size; only the denoiser's time decides which size is chosen."""
    c = encoded(model, plan.prompts, plan.seeds)
    for order in (None, "breadth"):
        choice = batching.automatic(plan, model, c, model.sampler(6), order=order)
        assert 1 <= choice.batch_size <= len(plan)
        assert order in (None, choice.order)
        assert choice.n_slots == plan.program(choice.batch_size, choice.order).n_slots


def test_measuring_takes_no_longer_than_it_can_save(plan, model, monkeypatch):
    """A tenth of the plan's time with one lane per call; the only clock is the fake's."""
    given = []

    def measured(*args, sizes=None, seconds=None, **options):
        given.append((sizes, seconds))
        return affine(0.1, 0.9, [1] if sizes else [1, 2, 4])

    monkeypatch.setattr(batching, "measure", measured)
    c = encoded(model, plan.prompts, plan.seeds)
    choice = batching.automatic(plan, model, c, model.sampler(6))
    assert given[0][0] == [1]
    assert given[1] == (None, min(5.0, 0.1 * plan.node_steps * 1.0))
    assert choice.batch_size == 4


def test_auto_and_the_switches_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("a red star\na blue star\na green ring\n")
    common = ["generate", str(tmp_path / "p.txt"), "--steps", "3", "--set", "prior_steps=2", "--out"]
    run = CliRunner().invoke(cli.app, [*common, str(tmp_path / "a"), "--batch-size", "auto"])
    assert re.search(r"^hsd: batch size \d+, measured in ", run.stderr, re.M)
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "a" / "run.json").read_text())["runs"][-1]["batch_size"] in (1, 2, 3)
    bad = CliRunner().invoke(cli.app, [*common, str(tmp_path / "b"), "--batch-size", "many"])
    assert "--batch-size is 'many': it has to be an integer or auto" in str(bad.exception)
    assert not (tmp_path / "b").exists()
    given = {}

    def generate(*args, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("hsd.generation.run.generate", generate)
    for extra, expected in [
        ([], {"compile": False, "channels_last": False, "cuda_graphs": True, "batch_size": 16}),
        (
            ["--compile", "--channels-last", "--no-cuda-graphs", "--batch-size", "auto"],
            {"compile": True, "channels_last": True, "cuda_graphs": False, "batch_size": "auto"},
        ),
    ]:
        assert CliRunner().invoke(cli.app, [*common, str(tmp_path / "c"), *extra]).exit_code == 130
        assert {name: given[name] for name in expected} == expected
