"""Captured calls: when a size is captured, where, what a failure leaves behind, and what stands between two runs."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import weakref

import numpy as np
import pytest
import torch

import fake_cuda
import hsd
import tiny
from families import FAMILIES
from helpers import encoded, executor_of, finished_by, latents_of
from hsd.models.restoring import clear_caches
from hsd.replay import capture as capture_module
from hsd.replay.capture import CaptureFailed, capture, first_cause
from hsd.replay.executor import Executor
from hsd.replay.feed import now_on
from hsd.replay.graphs import Graphs, bucket, smaller_bucket
from hsd.replay.worth import CallCost, CallsLeft, pays
from hsd.sampler import SamplerTable
from model_changes import Muted, add_lora
from test_executor import assert_near

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
PROMPTS = ["a cat", "a cat on a mat", "a dog", "the sea at night", "the sea by day", "a boat"]


@pytest.fixture
def cuda(monkeypatch):
    return fake_cuda.install(monkeypatch)


class Counted:
    """Work on one number, which a capture records and a replay repeats."""

    def __init__(self):
        self.value, self.calls = torch.zeros(()), []

    def __call__(self, size):
        self.calls.append(size)
        self.value += size


# -- when


def test_a_size_is_captured_at_its_third_use(cuda):
    graphs, work = Graphs(CUDA), Counted()
    for size in [4, 2, 4, 4, 4, 2, 4]:
        graphs.run(size, work)
    assert work.calls == [4, 2, 4, 4, 2]  # twice eager, once to capture; 2 is never captured
    assert [graph.replays for graph in cuda.graphs] == [3]
    assert work.value == 5 * 4 + 2 * 2
    assert graphs.clear()
    assert not graphs.clear()
    graphs.run(4, work)
    assert work.calls[-1] == 4


def test_the_rule_in_numbers():
    """Calls that were measured on an H200, and what is left of them."""
    one_lane = CallCost(host=0.055, elapsed=0.0557, waited=True)  # the host is the limit
    assert not pays(one_lane, 9)
    assert pays(one_lane, 10)
    sixteen = CallCost(host=0.050, elapsed=0.1017, waited=True)  # the device is
    assert not pays(sixteen, 132)
    assert pays(sixteen, 133)
    held_up = CallCost(host=0.1, elapsed=0.1017, waited=False)  # the host, by the driver's queue
    assert not pays(held_up, 197)
    assert pays(held_up, 200)
    behind = CallCost(host=0.5, elapsed=0.015, waited=False)  # by the large call before
    assert not pays(behind, 199)
    assert not pays(None, 200)
    assert pays(None, 201)
    assert not pays(one_lane, 0)


@pytest.mark.parametrize(("host", "device", "n", "captured"), [(0.055, 0.015, 30, 1), (0.01, 0.1, 30, 0)])
def test_a_size_is_captured_where_it_pays(cuda, host, device, n, captured):
    """By the time of the calls before, and by what is left; nothing waits for the device."""
    left = iter(range(n, 0, -1))
    graphs = Graphs(CUDA, left=lambda size: next(left))
    for _ in range(n):
        graphs.run(4, lambda size: cuda.busy(host, device))
    assert len(cuda.graphs) == captured


def test_few_calls_of_a_size_are_not_captured(cuda):
    graphs = Graphs(CUDA, left=lambda size: 5)
    for _ in range(10):
        graphs.run(4, lambda size: cuda.busy(0.055, 0.015))
    assert not cuda.graphs


def test_a_host_that_is_held_up_is_not_the_limit(cuda):
    """The device is behind from the first call on: that the host waits inside a call says nothing of the host."""
    graphs = Graphs(CUDA, left=lambda size: 100)
    cuda.busy(0.0, 5.0)
    for _ in range(20):
        graphs.run(4, lambda size: cuda.busy(1.0, 1.0))
    assert not cuda.graphs


def test_a_call_that_raised_is_not_measured(cuda):
    """It ended early: by its time, the size would be captured where it does not pay."""

    def work(size):
        work.calls += 1
        cuda.busy(0.01, 0.001 if work.calls == 2 else 0.1)
        if work.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    work.calls = 0
    graphs = Graphs(CUDA, lambda size: 30)
    graphs.run(4, work)
    cuda.now = cuda.done  # the device has finished
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(4, work)
    for _ in range(5):
        graphs.run(4, work)
    assert not cuda.graphs


def test_what_is_left_of_a_program():
    rows = np.array([8, 8, 8, 5, 3, 1, 8, 7])
    left = CallsLeft(rows, bucket, 8)
    assert {size: left.of(size) for size in (1, 2, 3, 4, 6, 8)} == {1: 1, 2: 0, 3: 1, 4: 0, 6: 1, 8: 5}
    left.done(8)
    left.done(3)
    assert (left.of(8), left.of(3)) == (4, 0)
    left.cut_to(4)  # 8: twice 4; 5: 4 and 1; 7: 4 and 3
    assert {size: left.of(size) for size in (1, 2, 3, 4)} == {1: 2, 2: 0, 3: 1, 4: 3 * 2 + 1 + 1}


# -- where


def test_each_device_has_a_stream_of_its_own(cuda):
    """The one of torch is of the device that is current at its first use: on another one it captures nothing."""
    for index in (0, 1):
        graphs, work = Graphs(torch.device("cuda", index)), Counted()
        for _ in range(5):
            graphs.run(4, work)
        assert work.value == 5 * 4
        graph = cuda.graphs[-1]
        assert (graph.device, graph.stream.device.index, graph.replays) == (index, index, 3)
    assert cuda.default_capture_stream is None


def test_the_feeder_and_its_events(plan, model, monkeypatch):
    """Its thread works for the device of the executor, and sleeps while it waits."""
    executor = executor_of(plan, model)
    asked = []
    monkeypatch.setattr("hsd.replay.executor.ahead", lambda *_, **options: asked.append(options["device"]))
    executor._on_gpu = True
    with pytest.raises(TypeError), executor._feeds():  # the fake is no context
        pass
    assert asked == [executor._device]
    fake = fake_cuda.install(monkeypatch)
    assert now_on(CUDA).options == {"blocking": True}
    assert fake.current_stream(CUDA).device == CUDA


# -- what a failure leaves behind


def test_a_failed_capture_is_ended(cuda):
    """The allocator is not left in a capture, the stream is the one from before, and the reason is the first error."""

    def work(size):
        work.calls += 1
        if work.calls > 2:
            cuda.illegal()

    work.calls = 0
    graphs, before = Graphs(CUDA), cuda.current_stream(CUDA)
    graphs.run(4, work)
    graphs.run(4, work)
    with pytest.warns(UserWarning, match="one kernel at a time: operation not permitted when stream is capturing$"):
        graphs.run(4, work)
    graphs.run(4, work)
    assert work.calls == 5
    assert not cuda.underway
    assert sum(cuda.users.values()) == 1  # of the empty capture, by which the generators leave their capture mode
    assert cuda.modes == ["thread_local"] * 2  # in another mode the decoder's thread could not allocate meanwhile
    assert cuda.current_stream(CUDA) is before
    assert len(capture_module._unended) == 1
    assert not graphs.sound


def test_torch_before_2_8(cuda, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.setattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", cuda.end_allocate, raising=False)
    with pytest.raises(CaptureFailed, match="not permitted"):
        capture(cuda.illegal, CUDA, (0, 7), fake_cuda.FakeStream(cuda, CUDA))
    assert not cuda.underway


def test_torch_without_such_a_function(cuda, monkeypatch):
    """Then the allocator stays as it is, and the run goes on."""
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.delattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", raising=False)
    with pytest.raises(CaptureFailed, match="not permitted"):
        capture(cuda.illegal, CUDA, (0, 7), fake_cuda.FakeStream(cuda, CUDA))
    assert len(capture_module._unended) == 1


def test_a_capture_that_ended_is_not_ended_again(cuda):
    """The work raised, but the stream's capture was good: torch ends all of it."""
    pool = (0, 7)
    for error, raised in [(ValueError, ValueError), (RuntimeError, CaptureFailed), (KeyboardInterrupt,) * 2]:

        def work(error=error):
            raise error("no")

        with pytest.raises(raised):
            capture(work, CUDA, pool, fake_cuda.FakeStream(cuda, CUDA))
    assert not cuda.underway
    assert cuda.users[pool] == 3  # the graphs, which go, release it themselves
    assert not capture_module._unended


def test_the_first_cause():
    outer = ValueError("handled by the caller")

    def fail():
        try:
            raise outer
        except ValueError:
            try:
                raise KeyError("first")
            except KeyError as first:
                raise RuntimeError("second") from first

    with pytest.raises(RuntimeError) as raised:
        fail()
    assert repr(first_cause(raised.value, outer)) == "KeyError('first')"
    assert first_cause(raised.value) is outer
    assert first_cause(outer) is outer


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_capture_that_does_not_fit(cuda):
    """The call runs one kernel at a time, since that did fit; larger ones are not tried, smaller ones are."""

    def work(size):
        work.sizes.append(size)
        if size > 2 and cuda.capturing is not None:
            out_of_memory()

    work.sizes = []
    graphs = Graphs(CUDA)
    for size in [4, 4, 4, 4, 6, 6, 6, 2, 2, 2]:
        graphs.run(size, work)
    assert work.sizes == [4, 4, 4, 4, 4, 6, 6, 6, 2, 2, 2]
    assert len(cuda.graphs) == 1
    assert not graphs.sound


def test_room_is_made_by_dropping_graphs(cuda):
    graphs, work = Graphs(CUDA), Counted()
    for size in [2, 2, 2, 4, 4, 4]:
        graphs.run(size, work)
    assert graphs.make_room()
    assert not graphs.make_room()  # nothing is held
    for size in [2, 2, 2, 4, 4, 4]:
        graphs.run(size, work)
    assert len(cuda.graphs) == 3  # 2 again; 4 had run out of memory
    assert graphs.make_room()
    for size in [2, 2, 2]:
        graphs.run(size, work)
    assert len(cuda.graphs) == 3  # and not in turns


# -- in a run


@pytest.fixture
def captured(cuda, monkeypatch):
    """Every size is captured, on the CPU; counts of the captures."""
    monkeypatch.setattr("hsd.replay.executor.can_capture", lambda denoiser: True)
    monkeypatch.setattr("hsd.replay.graphs.pays", lambda cost, left: True)
    return cuda


@pytest.fixture
def own(request):
    """A model that nothing else has run, without seeds for the catch-up of a family."""
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)


def plan_for(model, prompts=PROMPTS, seeds=100, **options):
    return hsd.compile(prompts, 0.6, model=model, steps=8, seeds=seeds, **options)


def run(plan, model, **execution):
    return latents_of(plan, model, execution, batch_size=4)


def settle(plan, model, **execution):
    """Three runs: a size that one run has not used often enough is captured in the next one."""
    for _ in range(3):
        latents = run(plan, model, **execution)
    return latents


def eager(plan, model, **execution):
    return latents_of(plan, model, {"cuda_graphs": False, **execution}, batch_size=4)


def count(cuda, work):
    before = len(cuda.graphs)
    result = work()
    return len(cuda.graphs) - before, result


def test_a_later_run_captures_nothing(captured, own):
    """Other prompts and seeds, other values of the shared rows and the sampler: the same graphs, the right latents."""
    plan = plan_for(own)
    first, latents = count(captured, lambda: settle(plan, own))
    assert first > 1
    assert_near(latents, eager(plan, own))
    other = plan_for(own, [f"{prompt}, in oil" for prompt in reversed(PROMPTS)], seeds=7)
    for again in (plan, other):
        captures, latents = count(captured, lambda again=again: run(again, own))
        assert captures == 0
        assert_near(latents, eager(again, own))
    assert sum(graph.replays for graph in captured.graphs) > 3 * first


def test_other_values_in_the_same_buffers(captured, own, monkeypatch):
    """Timesteps of another schedule, another scale: the replayed calls read them."""
    plan = plan_for(own)
    settle(plan, own)
    sampler = own.sampler
    monkeypatch.setattr(type(own), "sampler", lambda self, steps: shifted(sampler(steps)))
    captures, latents = count(captured, lambda: run(plan, own))
    assert captures == 0
    assert_near(latents, eager(plan, own))
    monkeypatch.undo()
    assert max((latents[i] - latent).abs().max() for i, latent in eager(plan, own).items()) > 0.01


def shifted(table: SamplerTable) -> SamplerTable:
    table.out.mul_(0.97)
    table.timesteps.sub_(5)
    return table


def test_what_all_prompts_share_is_a_value_too(captured, own):
    """With one prompt, repeated, all conditioning is a shared row; another prompt needs no other graph."""
    cats, dogs = (plan_for(own, [prompt] * 5) for prompt in ("a cat", "a dog by the sea"))
    assert not executor_of(cats, own).buffers.rows
    settle(cats, own)
    captures, latents = count(captured, lambda: run(dogs, own))
    assert captures == 0
    assert_near(latents, eager(dogs, own))


def test_what_a_network_makes_in_its_first_call(captured, own, monkeypatch):
    """It is there in the next run, and no reason to capture again."""
    plan, whole = plan_for(own), type(own).denoise

    def denoise(self, latents, timestep, rows):
        vars(self.pipe.unet).setdefault("made", torch.ones(1))
        return whole(self, latents, timestep, rows)

    monkeypatch.setattr(type(own), "denoise", denoise)
    first, _ = count(captured, lambda: run(plan, own))
    sizes = set(vars(own)["_kept_graphs"]._kept[1].graphs._graphs)
    assert first == len(sizes) > 0
    executor = executor_of(plan, own, batch_size=4)
    assert sizes <= set(executor._graphs._graphs)


def test_guidance_in_an_interval_is_replayed(captured, own):
    """Rows of the network are laid out for real lanes: padded ones are told by the scratch slot, wherever it is."""
    part = hsd.load(own, guidance_interval=(0.2, 0.6))
    plan, lowering = plan_for(own, [f"{p} {i}" for i in range(2) for p in PROMPTS][:11]), {"order": "breadth"}
    executor = executor_of(plan, part, **lowering)
    assert executor.buffers.slots > executor.program.n_slots + 1  # some are spare
    expected = latents_of(plan, part, {"cuda_graphs": False}, **lowering)
    assert_near(finished_by(executor), expected)
    for _ in range(2):
        latents_of(plan, part, **lowering)
    captures, latents = count(captured, lambda: latents_of(plan, part, **lowering))
    assert captures == 0
    assert_near(latents, expected)


def test_catch_up_is_replayed(captured, own):
    """Its weights are values too: another gamma needs no other graph."""
    plan = plan_for(own)
    settle(plan, own, catch_up=1.0)
    captures, latents = count(captured, lambda: run(plan, own, catch_up=0.5))
    assert captures == 0
    assert_near(latents, eager(plan, own, catch_up=0.5))
    assert count(captured, lambda: run(plan, own))[0] > 0  # without it, calls are others


def test_more_slots_or_other_lanes_are_another_layout(captured, own):
    few, many = plan_for(own, PROMPTS[:3]), plan_for(own, [f"{p} {i}" for i in range(4) for p in PROMPTS])
    lowering = {"batch_size": 4, "order": "breadth"}
    slots = [executor_of(plan, own, {"cuda_graphs": False}, **lowering).program.n_slots for plan in (few, many)]
    assert slots[1] > 2 * slots[0]
    for plan in (few, many):
        captures, latents = count(captured, lambda plan=plan: latents_of(plan, own, **lowering))
        latents_of(plan, own, **lowering)
        assert captures > 0
        assert_near(latents, latents_of(plan, own, {"cuda_graphs": False}, **lowering))
    executor = executor_of(few, own, **lowering)
    assert len(executor.state) > slots[1]  # it fits into the larger one
    assert_near(finished_by(executor), latents_of(few, own, {"cuda_graphs": False}, **lowering))
    assert count(captured, lambda: latents_of(few, own, batch_size=3))[0] > 0


def test_two_runs_at_once(captured, own):
    """The second one has buffers of its own, and keeps nothing."""
    plan = plan_for(own)
    settle(plan, own)
    first, second = (executor_of(plan, own, batch_size=4) for _ in range(2))
    assert first.state.data_ptr() != second.state.data_ptr()
    calls = first.run()
    latents = {f.index: f.latent for _, done in [next(calls)] for f in done}
    captures, others = count(captured, lambda: finished_by(second))
    assert captures > 0
    latents |= {f.index: f.latent for _, done in calls for f in done}
    for found in (latents, others):
        assert_near(found, eager(plan, own))
    assert executor_of(plan, own, batch_size=4).state.data_ptr() == first.state.data_ptr()


def test_the_next_run_waits_for_the_one_before(captured, own):
    """It may be on another stream."""
    plan = plan_for(own)
    settle(plan, own)
    stream = fake_cuda.FakeStream(captured, CUDA)
    with captured.stream(stream):
        run(plan, own)
    assert len(stream.waited_for) == 1


def test_a_run_that_raises_keeps_nothing(captured, own, monkeypatch):
    plan = plan_for(own)
    run(plan, own)
    with monkeypatch.context() as patch:
        patch.setattr("hsd.replay.feed.Feeder._first_latent", lambda self, representative: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(plan, own)
    assert count(captured, lambda: run(plan, own))[0] > 0
    calls = executor_of(plan, own, batch_size=4).run()
    next(calls)
    calls.close()  # given up
    assert count(captured, lambda: run(plan, own))[0] > 0


def test_an_executor_that_is_dropped_is_gone(captured, own):
    """Its buffers are, without a collection; and a run that never began keeps no other one from keeping its graphs."""
    plan = plan_for(own)
    settle(plan, own)
    gc.disable()
    try:
        executor = weakref.ref(executor_of(plan, own, batch_size=4))
        assert executor() is None
        run(plan, own)
        assert own.free_graphs()
    finally:
        gc.enable()


def test_free_graphs(captured, own):
    plan = plan_for(own)
    assert not own.free_graphs()
    run(plan, own)
    assert own.free_graphs()
    assert not own.free_graphs()
    captures, _ = count(captured, lambda: run(plan, own))
    assert captures > 0
    calls = executor_of(plan, own, batch_size=4).run()
    next(calls)
    assert not own.free_graphs()  # they are in use; the run ends, and keeps nothing
    list(calls)
    assert not own.free_graphs()


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_kept_makes_room_for_encoding(captured, own, monkeypatch, kept):
    plan, encode, calls = plan_for(own), type(own).encode, []
    settle(plan, own)
    if not kept:
        assert own.free_graphs()

    def scarce(self, batch):
        calls.append(batch)
        if len(calls) == 1:
            out_of_memory()
        return encode(self, batch)

    monkeypatch.setattr(type(own), "encode", scarce)
    with contextlib.nullcontext() if kept else pytest.raises(hsd.OutOfMemory):
        encoded(own, ["a lamp"], [3])
    assert len(calls) == (2 if kept else 1)
    assert not own.free_graphs()


def test_passes_do_not_add_up(captured, own):
    """Images of two sizes need two passes, and the second one needs the memory that the first would keep."""
    for settings, kept in [([{}] * 6, True), ([{}] * 3 + [{"height": 48}] * 3, False)]:
        plan = hsd.compile(PROMPTS, 0.6, model=own, steps=8, settings=settings)
        assert len(list(hsd.stream(plan, own, batch_size=4))) == 6
        assert captured.graphs
        assert own.free_graphs() is kept


def test_graphs_go_with_the_model(captured, own):
    """And with the adapter that a bare pipeline gets for one run; copies have none."""
    plan = plan_for(own)
    settle(plan, own)
    assert count(captured, lambda: run(plan, copy.deepcopy(own)))[0] > 0
    assert count(captured, lambda: run(plan, hsd.load(own.pipe, height=32, width=32, guidance_scale=3.0)))[0] > 0
    assert count(captured, lambda: run(plan, own))[0] == 0
    kept = vars(own)["_kept_graphs"]
    state = kept._kept[1].buffers.state
    assert not [one for one in gc.get_referrers(kept) if isinstance(one, Executor)]
    assert state.untyped_storage().nbytes() > 0


def test_a_model_that_is_offloaded_keeps_nothing(captured, own, monkeypatch):
    plan = plan_for(own)
    monkeypatch.setattr(type(own), "offloads", True)
    assert own.graph_key() is None
    assert count(captured, lambda: run(plan, own))[0] > 0
    assert count(captured, lambda: run(plan, own))[0] > 0


def test_memory_that_runs_out_in_a_run(captured, own, monkeypatch):
    """Captured calls are dropped, others make room, and the same size is tried again before calls are cut."""
    plan, whole, seen, limit = plan_for(own), type(own).denoise, [], [99]
    expected = eager(plan, own)

    def denoise(self, latents, timestep, rows):
        if len(latents) > limit[0] - 3 * bool(live()):
            seen.append(len(latents))
            out_of_memory()
        return whole(self, latents, timestep, rows)

    def live():
        return executor._graphs is not None and executor._graphs.any

    monkeypatch.setattr(type(own), "denoise", denoise)
    executor = executor_of(plan, own, batch_size=4)
    calls, latents = executor.run(), {}
    while not live():
        latents |= {f.index: f.latent for f in next(calls)[1]}
    limit[0] = 4  # from now on a call of four lanes fits only without captured calls
    latents |= {f.index: f.latent for _, done in calls for f in done}
    assert_near(latents, expected)
    assert executor._lanes.most == 4  # never cut
    assert seen


@pytest.mark.parametrize("room", [True, False])
def test_others_make_room(own, monkeypatch, room):
    """What the session hands in is asked once, before the call is cut."""
    plan, whole, asked = plan_for(own), type(own).denoise, []

    def denoise(self, latents, timestep, rows):
        if len(latents) > 2 and not (asked and room):
            out_of_memory()
        return whole(self, latents, timestep, rows)

    expected = eager(plan, own)
    monkeypatch.setattr(type(own), "denoise", denoise)
    executor = executor_of(plan, own, {"make_room": lambda: asked.append(1) or room}, batch_size=4)
    if room:
        assert_near(finished_by(executor), expected)
    else:
        with pytest.warns(UserWarning, match="continuing with 2"):
            assert_near(finished_by(executor), expected)
    assert asked == [1]
    assert executor._lanes.most == (4 if room else 2)


# -- what a captured call depends on


def set_flag(owner, name, value):
    """A switch of the process, put back after the test."""

    def change(model, patch):
        patch.setattr(owner, name, value)

    return change


def on(action):
    return lambda model, patch: action(model.pipe)


def scaled(pipe):
    pipe.unet.set_adapters(["style"], [0.5])


def moved(pipe):
    """As after ``.to("cpu")`` and back: equal values, elsewhere."""
    for parameter in pipe.unet.parameters():
        parameter.data = parameter.data.clone()


def cleared(model, patch):
    """What ``hsd check`` does where a network keeps tensors in a cache: a graph may read some of them."""
    marker, cache = object(), functools.lru_cache(lambda value: value)
    cache(marker)
    clear_caches(lambda item: item is marker)
    assert cache.cache_info().currsize == 0


CHANGES = {
    "caches cleared": cleared,
    "weights elsewhere": on(moved),
    "one weight elsewhere": on(lambda p: setattr(p.unet.conv_in.weight, "data", p.unet.conv_in.weight.data.clone())),
    "dtype": on(lambda p: p.unet.to(torch.bfloat16)),
    "layout of the weights": on(lambda p: p.unet.to(memory_format=torch.channels_last)),
    "another network": on(lambda p: setattr(p, "unet", copy.deepcopy(p.unet))),
    "text encoder elsewhere": on(lambda p: p.text_encoder.to(torch.float64)),
    "LoRA": on(lambda p: add_lora(p.unet, "other")),
    "LoRA scale": on(scaled),
    "LoRA off": on(lambda p: p.unet.disable_adapters()),
    "LoRA fused": on(lambda p: p.fuse_lora(components=["unet"])),
    "LoRA unloaded": on(lambda p: p.unload_lora_weights()),
    "attention processor": on(lambda p: p.unet.set_attn_processor(Muted())),
    "attention slicing": on(lambda p: p.enable_attention_slicing()),
    "hook": on(lambda p: p.unet.mid_block.register_forward_hook(lambda *_: None)),
    "pre-hook": on(lambda p: p.unet.register_forward_pre_hook(lambda *_: None)),
    "forward replaced": on(lambda p: setattr(p.unet, "forward", lambda *_, **__: None)),
    "training": on(lambda p: p.unet.train()),
    "configuration": on(lambda p: p.unet.register_to_config(center_input_sample=True)),
    "FreeU": on(lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4)),
    "epsilon": on(lambda p: setattr(p.unet.conv_norm_out, "eps", 0.1)),
    "padding": on(lambda p: setattr(p.unet.conv_in, "padding_mode", "circular")),
    "class changed": lambda model, patch: patch.setattr(type(model.pipe.unet), "forward", lambda *_, **__: None),
    "adapter changed": lambda model, patch: patch.setattr(type(model), "denoise", lambda *_: None),
    "TF32": lambda model, patch: torch.set_float32_matmul_precision("high"),
    "cudnn benchmark": set_flag(torch.backends.cudnn, "benchmark", True),
    "cudnn deterministic": set_flag(torch.backends.cudnn, "deterministic", True),
    "attention replaced": set_flag(torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: None),
    "an attention kernel": lambda model, patch: torch.backends.cuda.enable_flash_sdp(False),
}
"""What is done to a model that has a LoRA."""


@pytest.fixture
def lora(own):
    add_lora(own.pipe.unet)
    precision = torch.get_float32_matmul_precision()
    yield own
    torch.backends.cuda.enable_flash_sdp(True)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_makes_captured_calls_invalid(lora, change, monkeypatch):
    key = lora.graph_key()
    assert lora.graph_key() == key
    assert hash(lora.graph_key()) == hash(key)
    change(lora, monkeypatch)
    assert lora.graph_key() != key


class Strength:
    """What a hook multiplies with."""

    def __init__(self):
        self.value = 1.0

    def hook(self, module, inputs, output):
        return output * self.value


def closing_over(strength):
    return lambda module, inputs, output: output * strength[0]


def test_what_a_hook_reads_is_in_the_key(own):
    """A variable that it closes over, an attribute of its object: a replay has the value of the capture."""
    held, strength = Strength(), [1.0]
    own.pipe.unet.conv_out.register_forward_hook(held.hook)
    own.pipe.unet.conv_in.register_forward_hook(closing_over(strength))
    keys = [own.graph_key()]
    assert own.graph_key() == keys[0]
    held.value = 2.0
    keys.append(own.graph_key())
    strength[0] = 2.0
    keys.append(own.graph_key())
    assert len(set(keys)) == 3


@pytest.mark.parametrize("first", [True, False])
def test_runs_in_inference_mode_and_outside(captured, own, first):
    """What is made in it cannot be written outside: such a run keeps nothing for the other kind."""
    plan = plan_for(own)
    expected = eager(plan, own)
    for mode in (first, not first, first):
        with torch.inference_mode(mode):
            assert_near(run(plan, own), expected)


def test_settings_are_in_the_key(own):
    key = own.graph_key()
    assert hsd.load(own, height=64).graph_key() != key
    assert hsd.load(own, guidance_scale=1.0).graph_key() != key  # not guided
    assert own.with_scheduler(copy.deepcopy(own.scheduler())).graph_key() != key
    with torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else torch.autocast("cpu"):
        assert (own.graph_key() == key) == (not torch.cuda.is_available())


@pytest.mark.parametrize("change", ["LoRA", "weights elsewhere", "TF32"])
def test_a_change_gives_new_captures(captured, lora, change, monkeypatch):
    plan = plan_for(lora)
    settle(plan, lora)
    assert count(captured, lambda: run(plan, lora))[0] == 0
    CHANGES[change](lora, monkeypatch)
    captures, latents = count(captured, lambda: run(plan, lora))
    assert captures > 0
    assert_near(latents, eager(plan, lora))


def test_weights_that_change_in_place_are_seen(captured, own):
    """A replay reads them from where they are: no new capture, other latents."""
    plan = plan_for(own)
    before = settle(plan, own)
    own.pipe.unet.conv_out.weight.data.mul_(1.5)
    captures, latents = count(captured, lambda: run(plan, own))
    assert captures == 0
    assert_near(latents, eager(plan, own))
    assert max((latents[i] - before[i]).abs().max() for i in before) > 0.01


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_run_changes_nothing_that_counts(family):
    """Else nothing would ever be replayed. The key is taken after the first calls, as that of captured calls is."""
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    plan = hsd.compile(PROMPTS[:2], 0.5, model=model, steps=family.steps)
    images = hsd.stream(plan, model)
    next(images)
    key = model.graph_key()
    list(images)
    assert not model.offloads  # diffusers leaves empty lists of hooks behind
    assert key is not None
    assert model.graph_key() == key


def test_a_dead_object_is_equal_to_nothing():
    from hsd.models.graph_key import Same

    class Thing:
        pass

    thing = Thing()
    same, other = Same(thing), Same(Thing())
    assert same == Same(thing)
    assert same != other
    del thing
    gc.collect()
    assert same != Same(Thing())


# -- memory


def test_slots_are_rounded_up():
    from hsd.replay.buffers import rounded_up

    sizes = [rounded_up(n) for n in range(1, 400)]
    assert all(n <= size <= max(n, 1.25 * n) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 40


@pytest.mark.parametrize(("most", "smaller"), [(1, 0), (2, 1), (5, 4), (6, 4), (8, 6), (16, 14), (17, 16)])
def test_the_size_below(most, smaller):
    assert smaller_bucket(most) == smaller


def test_a_plan_with_shared_rows_only_needs_no_more(plan, model):
    """Without graphs nothing is spare, and the calls are those of before, bit by bit."""
    executor = executor_of(plan, model, batch_size=4)
    assert len(executor.state) == executor.program.n_slots + 1
    conditioning = encoded(model, plan.prompts, plan.seeds)
    assert executor.buffers.rows.keys() == conditioning.split(plan.covered())[1].shapes().keys()
