"""Programs, run by an independent simulator: slots hold the history of the latent in them."""

import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cases import chain, plans, tree_of
from hsd import _core


def run(plan: _core.Plan, program: _core.Program) -> None:
    """Replays ``program``: every prompt must come out once, after its own segments' steps and nothing else."""
    rows, order = plan.segments, plan.tree.leaf_order
    slots: list[list[tuple[int, int]] | None] = [None] * program.n_slots
    finished = {}
    target_of: dict[int, int] = {}
    for call, filled in zip(program.calls, program.lanes, strict=True):
        assert 1 <= filled <= program.batch_size == len(call)
        lanes, padding = call[:filled], call[filled:]
        assert program.mixed_steps or len(set(lanes["step"].tolist())) == 1
        assert (padding["segment"] == -1).all()
        assert (padding["step"] == 0).all()
        assert (padding["source"] == program.n_slots).all()
        assert (padding["target"] == program.n_slots).all()
        assert not (padding["fresh"] | padding["begins"] | padding["final"]).any()
        # Roots are drawn before the call; that must not destroy what another lane reads.
        for lane in lanes[lanes["fresh"]]:
            assert lane["source"] == lane["target"]
            slots[lane["source"]] = []
        sources, targets = lanes["source"].tolist(), lanes["target"].tolist()
        assert len(set(targets)) == len(targets)
        for at, target in enumerate(targets):
            assert target not in sources[:at] + sources[at + 1 :]
        # With these, the order of lanes within a call cannot matter.
        read = [slots[source] for source in sources]
        for lane, history in zip(lanes, read, strict=True):
            segment, step, target = int(lane["segment"]), int(lane["step"]), int(lane["target"])
            row = rows[segment]
            assert row["first_step"] <= step < row["end_step"]
            assert lane["begins"] == (step == row["first_step"])
            assert lane["fresh"] == (lane["begins"] and row["parent"] == -1)
            assert lane["final"] == (step == plan.n_steps - 1)
            assert target_of.setdefault(segment, target) == target
            history = [*history, (segment, step)]
            slots[target] = history
            if lane["final"]:
                assert row["leaf_end"] - row["leaf_begin"] == 1
                prompt = int(order[row["leaf_begin"]])
                assert prompt not in finished
                finished[prompt] = history
                # The slot may be reused from now on.
    assert sorted(finished) == plan.kept.tolist()
    active = np.array([plan.active(step) for step in range(plan.n_steps)])
    for prompt, history in finished.items():
        assert history == [(segment, step) for step, segment in enumerate(active[:, prompt].tolist())]


ORDERS = st.sampled_from(["depth", "breadth"])


@given(plans(), st.integers(1, 40), ORDERS)
@settings(max_examples=200)
def test_programs_make_every_prompt(plan, batch_size, order):
    program = plan.program(batch_size, order)
    run(plan, program)
    assert (program.batch_size, program.order) == (batch_size, order)
    assert program.lanes.sum() == plan.node_steps
    assert program.calls.shape == (program.n_calls, batch_size)
    assert program.occupancy == pytest.approx(plan.node_steps / program.calls.size)
    counts = plan.counts()
    bound = max(step + -(-counts[step:].sum() // batch_size) for step in range(plan.n_steps))
    assert program.lower_bound == plan.lower_bound(batch_size) == bound
    assert program.n_calls >= bound
    if order == "breadth":
        assert program.n_calls == bound
    assert program.mixed_steps


@given(plans(), st.integers(1, 40))
def test_depth_first_the_first_image_takes_no_longer_than_alone(plan, batch_size):
    """It is finished after K calls, one per step: there cannot be fewer."""
    calls = plan.program(batch_size, "depth").calls
    assert int(np.flatnonzero(calls["final"].any(axis=1))[0]) + 1 == len(plan.phi)


@given(plans(), st.integers(1, 40), ORDERS)
@settings(max_examples=200)
def test_calls_of_one_step_meet_their_bound(plan, batch_size, order):
    program = plan.program(batch_size, order, mixed_steps=False)
    run(plan, program)
    assert program.mixed_steps is False
    bound = int(np.sum(-(-plan.counts() // batch_size)))
    assert program.n_calls == program.lower_bound == plan.lower_bound(batch_size, mixed_steps=False) == bound
    assert bound >= plan.lower_bound(batch_size)
    assert program.occupancy == pytest.approx(plan.node_steps / (bound * batch_size))
    assert order == "breadth" or program.n_slots <= 2 * plan.n_steps * batch_size


@given(plans(), st.integers(1, 40), ORDERS, st.integers(0, 40), st.booleans())
@settings(max_examples=200)
def test_few_slots_suffice(plan, batch_size, order, spare, mixed_steps):
    least = plan.least_slots()
    program = plan.program(batch_size, order, max_slots=least + spare, mixed_steps=mixed_steps)
    assert program.n_slots <= least + spare
    run(plan, program)
    for refuse in (plan.program, plan.check_program):
        with pytest.raises(ValueError, match=f"max_slots is {least - 1}, but this plan needs at least {least}"):
            refuse(batch_size, order, max_slots=least - 1, mixed_steps=mixed_steps)


@given(plans())
def test_one_lane_at_a_time_needs_the_least(plan):
    program = plan.program(1)
    assert program.n_slots == plan.least_slots()
    assert program.n_calls == plan.node_steps


@given(plans(), st.integers(1, 40), ORDERS, st.integers(1, 50), st.booleans())
def test_chunks_are_the_calls_in_order(plan, batch_size, order, size, mixed_steps):
    program = plan.program(batch_size, order, mixed_steps=mixed_steps)
    chunks = list(program.chunks(size))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert (np.concatenate(chunks) == program.calls).all()
    assert chunks[0].dtype == program.calls.dtype
    assert not chunks[0].flags.writeable
    assert ((program.calls["segment"] >= 0).sum(axis=1) == program.lanes).all()


@given(plans(20), st.integers(1, 8), ORDERS, st.booleans())
def test_programs_are_the_same_every_time(plan, batch_size, order, mixed_steps):
    first, second = (plan.program(batch_size, order, mixed_steps=mixed_steps) for _ in range(2))
    assert first.calls.tobytes() == second.calls.tobytes()
    copy = pickle.loads(pickle.dumps(first))
    assert copy.calls.tobytes() == first.calls.tobytes()
    assert copy.mixed_steps == mixed_steps


def clustered_plan() -> _core.Plan:
    """800 prompts about 40 centres, in 40 steps."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    E = centres[rng.integers(40, size=800)] + 0.6 * rng.normal(size=(800, 16))
    return _core.Plan.compile(_core.Tree.build(E), _core.schedule_shape("linear", 40))


def test_depth_keeps_few_latents_alive():
    plan = clustered_plan()
    depth, breadth = plan.program(16), plan.program(16, "breadth")
    assert depth.n_slots * 5 < breadth.n_slots
    assert depth.n_calls < 1.04 * depth.lower_bound
    few = plan.program(16, max_slots=40)
    assert few.n_slots <= 40
    run(plan, few)


@pytest.mark.parametrize("order", ["depth", "breadth"])
def test_calls_of_one_step_are_well_filled_in_few_slots(order):
    plan = clustered_plan()
    free = plan.program(16, "depth", mixed_steps=False)
    assert free.n_calls == free.lower_bound
    assert free.n_slots * 2 < plan.program(16, "breadth", mixed_steps=False).n_slots
    for max_slots, excess in ((40, 1.6), (64, 1.3), (128, 1.2)):
        few = plan.program(16, order, max_slots, mixed_steps=False)
        assert few.n_slots <= max_slots < free.n_slots
        assert few.n_calls < excess * few.lower_bound
        run(plan, few)
    enough = plan.program(16, order, len(plan.kept) + plan.least_slots(), mixed_steps=False)
    assert enough.n_calls == enough.lower_bound


def test_breadth_goes_depth_first_where_that_is_shorter():
    plan = _core.Plan.compile(tree_of(400, "random", "rising", 0), 2 * _core.schedule_shape("linear", 40))
    few, many = plan.least_slots() + 20, len(plan.kept)
    assert plan.program(16, "breadth", few).calls.tobytes() == plan.program(16, "depth", few).calls.tobytes()
    assert plan.program(16, "breadth", many).calls.tobytes() == plan.program(16, "breadth").calls.tobytes()
    assert plan.program(16, "breadth").n_calls < plan.program(16, "depth").n_calls


def lengths_of(plan: _core.Plan, lengths: np.ndarray) -> np.ndarray:
    """The length of each segment, which is that of its longest prompt."""
    ordered = lengths[plan.tree.leaf_order]
    return np.array([ordered[row["leaf_begin"] : row["leaf_end"]].max() for row in plan.segments], np.int64)


@given(plans(), st.integers(1, 12), ORDERS, st.booleans(), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_programs_by_kind_make_every_prompt(plan, batch_size, order, mixed_steps, n_kinds, seed):
    rng, rows = np.random.default_rng(seed), plan.segments
    kinds = rng.integers(n_kinds, size=len(rows))
    least = plan.least_slots()
    for max_slots in (None, least, least + 3):
        program = plan.program(batch_size, order, max_slots, mixed_steps=mixed_steps, kinds=kinds)
        run(plan, program)
        for call, filled in zip(program.calls, program.lanes, strict=True):
            assert len(set(kinds[call["segment"][:filled]].tolist())) == 1
        assert max_slots is None or program.n_slots <= max_slots
        bound = plan.lower_bound(batch_size, mixed_steps=mixed_steps, kinds=kinds)
        assert program.n_calls >= program.lower_bound == bound
        assert mixed_steps or max_slots or program.n_calls == bound
        assert (program.kinds == kinds).all()
    # The bound, written out: (node-steps of the kind before it on its way, step) of each node-step of a kind.
    total, after = 0, np.zeros(plan.n_steps, int)
    for kind in range(n_kinds):
        places = []
        for at in np.flatnonzero(kinds == kind):
            before, above = 0, rows["parent"][at]
            while above >= 0:
                before += (rows["end_step"] - rows["first_step"])[above] * int(kinds[above] == kind)
                above = rows["parent"][above]
            places += [(before + i, step) for i, step in enumerate(range(rows["first_step"][at], rows["end_step"][at]))]
        before, step = np.array(places, int).reshape(-1, 2).T
        if not mixed_steps:
            total += sum(-(-count // batch_size) for count in np.bincount(step).tolist())
        elif len(before):
            total += max(d + -(-int((before >= d).sum()) // batch_size) for d in range(before.max() + 1))
        after += [-(-int((step >= k).sum()) // batch_size) for k in range(plan.n_steps)]
    assert bound == (max(total, int((after + np.arange(plan.n_steps)).max())) if mixed_steps else total)


@given(plans(), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_breadth_first_calls_of_one_length_are_the_fewest(plan, batch_size, n_lengths, seed):
    kinds = lengths_of(plan, np.random.default_rng(seed).integers(n_lengths, size=plan.n_prompts))
    program = plan.program(batch_size, "breadth", kinds=kinds)
    whole = len(plan.kept) == plan.n_prompts  # a cluster's longest member may be pruned
    assert program.n_calls == program.lower_bound or (not whole and program.n_calls > program.lower_bound)


def test_calls_of_one_length_are_filled():
    plan = clustered_plan()
    kinds = lengths_of(plan, np.random.default_rng(1).poisson(12, plan.n_prompts))
    free, program = plan.program(16), plan.program(16, kinds=kinds)
    run(plan, program)
    cut = sum(len(set(kinds[call[call >= 0]].tolist())) for call in free.calls["segment"])
    assert free.n_calls < program.lower_bound <= program.n_calls < 1.03 * program.lower_bound < 0.3 * cut
    assert program.n_slots < 0.6 * plan.program(16, "breadth", kinds=kinds).n_slots
    few = plan.program(16, max_slots=100, kinds=kinds)
    assert few.n_slots <= 100
    assert few.n_calls < 0.8 * cut
    run(plan, few)


def test_a_program_keeps_its_kinds():
    plan = clustered_plan()
    kinds = np.arange(len(plan.segments)) % 3
    program = plan.program(16, kinds=kinds)
    copy = pickle.loads(pickle.dumps(program))
    assert copy.calls.tobytes() == program.calls.tobytes()
    assert copy.kinds.tolist() == kinds.tolist()
    assert repr(program).endswith(", 3 kinds)")
    assert f"{program.n_calls} calls of 16 lanes of one kind (at least" in program.describe(1)
    assert plan.program(16).kinds is None
    same = plan.program(16, kinds=np.full(len(kinds), 7))
    assert same.calls.tobytes() == plan.program(16).calls.tobytes()


def test_bad_kinds_are_refused():
    plan = _core.Plan.compile(chain(4), np.array([1.0, 0.0]))
    kinds = np.zeros(len(plan.segments), np.int64)
    kinds[2] = -7
    for refuse in (plan.program, plan.lower_bound):
        with pytest.raises(ValueError, match="kinds is -7 at segment 2; kinds are numbers >= 0"):
            refuse(2, kinds=kinds)
        with pytest.raises(ValueError, match="kinds has length 2, but 5 is needed"):
            refuse(2, kinds=kinds[:2])
        with pytest.raises(TypeError, match="kinds must be a NumPy int64 array"):
            refuse(2, kinds=kinds.astype(np.int32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "batch_size is 0; it must be at least 1"),
        ((-1,), "batch_size is -1; it must be at least 1"),
        ((2**40,), "lanes are more than"),
        ((2, "sideways"), '"sideways".*depth.*breadth'),
        ((2, "depth", -3), "max_slots is -3"),
        ((2, "breadth", 1), "max_slots is 1, but this plan needs at least 2"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    plan = _core.Plan.compile(chain(4), np.array([1.0, 0.0]))
    for refuse in (plan.program, plan.check_program):
        with pytest.raises(ValueError, match=message):
            refuse(*arguments)
        with pytest.raises(ValueError, match=message):
            refuse(*arguments, mixed_steps=False)
        with pytest.raises(TypeError, match="'mixed_steps'"):
            refuse(2, mixed_steps="no")
    plan.check_program(2, "breadth", 2)
    plan.check_program(2, "breadth", 2, mixed_steps=False)


def test_tables_are_read_only_and_chunks_have_a_size():
    plan = _core.Plan.compile(chain(4), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="calls is 0; it must be at least 1"):
        plan.program(2).chunks(0)
    with pytest.raises(ValueError, match="read-only"):
        plan.program(2).calls["step"] = 0


def test_the_table_is_made_once():
    program = _core.Plan.compile(chain(4), np.array([1.0, 0.0])).program(2)
    assert program.calls is program.calls
    assert repr(program) == f"Program({program.n_calls} calls of 2 lanes, {program.n_slots} slots, order='depth')"
    alone = _core.Plan.compile(chain(4), np.array([1.0, 0.0])).program(2, mixed_steps=False)
    assert (
        repr(alone)
        == f"Program({alone.n_calls} calls of 2 lanes, {alone.n_slots} slots, order='depth', mixed_steps=False)"
    )
    assert alone.describe().startswith(
        f"program: depth first, {alone.n_calls} calls of 2 lanes at one step (at least 3)"
    )


def test_progress_rises_to_one():
    plan = _core.Plan.compile(tree_of(3000, "random", "rising", 0), _core.schedule_shape("linear", 40))
    for order, max_slots, mixed in (
        ("depth", None, True),
        ("breadth", 100, True),
        ("breadth", None, False),
        ("breadth", 100, False),
    ):
        seen = []
        plan.program(8, order, max_slots, mixed_steps=mixed, progress=seen.append)
        assert seen == sorted(seen)
        assert 0.0 <= seen[0] < 0.5
        assert seen[-1] == 1.0


def test_what_progress_raises_comes_out():
    def stop(fraction):
        raise LookupError(fraction)

    with pytest.raises(LookupError):
        _core.Plan.compile(chain(4), np.array([1.0, 0.0])).program(2, progress=stop)


def test_ctrl_c_stops_the_lowering():
    plan = _core.Plan.compile(chain(300), _core.schedule_shape("linear", 40))
    with pytest.raises(KeyboardInterrupt):
        plan.program(2, progress=lambda fraction: signal.raise_signal(signal.SIGINT))
