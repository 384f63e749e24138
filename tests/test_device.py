"""The emulated device itself: it is as late, as strict and as forgetful as a real one."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from device import DeviceError, emulated
from device.memory import PAGE

LATE = {"eagerness": 0.0}
"""Nothing is done before somebody waits."""


def raw(tensor):
    """What is in the memory of a tensor at this moment."""
    return tensor.raw.clone()


def pinned(*values):
    return torch.tensor(values, dtype=torch.float32).pin_memory()


# ------------------------------------------------------------------------------- tensors


def test_tensors_are_on_the_device():
    with emulated():
        x = torch.arange(6.0, device="cuda").reshape(2, 3)
        assert x.is_cuda
        assert x.device == torch.device("cuda:0")
        assert (x + 1).sum().item() == 21
        assert x[:, 1].tolist() == [1.0, 4.0]
        assert x.to("cpu").equal(torch.arange(6.0).reshape(2, 3))
        assert torch.tensor([1.5, 2.5], device="cuda:1").device == torch.device("cuda:1")
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
    assert not torch.cuda.is_available()


def test_everything_is_put_back():
    names = ("Stream", "Event", "CUDAGraph", "current_stream", "synchronize", "is_available", "mem_get_info")
    before = [getattr(torch.cuda, name) for name in names], threading.Thread.run, torch.Tensor.pin_memory
    network = nn.Linear(2, 2)
    weight = network.weight
    with emulated() as device:
        device.adopt(network)
        assert network.weight.is_cuda
        assert isinstance(network.weight, nn.Parameter)
    assert network.weight is weight
    assert before == ([getattr(torch.cuda, name) for name in names], threading.Thread.run, torch.Tensor.pin_memory)
    assert torch.cuda.graph.default_capture_stream is None
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")


def test_networks_move_there_and_back():
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).requires_grad_(False)
    x = torch.randn(5, 3)
    expected = network(x)
    with emulated():
        there = copy.deepcopy(network).to("cuda")
        assert {p.device.type for p in there.parameters()} == {"cuda"}
        assert there(x.cuda()).cpu().equal(expected)
        again = copy.deepcopy(there).half().float()
        assert again(x.cuda()).cpu().sub(expected).abs().max() < 1e-2
        for parameter in there.parameters():
            parameter.data = parameter.data.half()
        assert there[0].weight.dtype == torch.float16
        assert there[0].weight.raw.dtype == torch.float16
        assert there.float().to("cpu")(x).sub(expected).abs().max() < 1e-2


def test_tensors_of_two_places_do_not_mix():
    with emulated():
        x, y = torch.ones(2, device="cuda:0"), torch.ones(2, device="cuda:1")
        assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0]  # a number on the host is an argument
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            x + y
        assert (x + y.to("cuda:0")).tolist() == [2.0, 2.0]


def test_what_is_written_by_a_boolean_index_stays():
    """The operation reads back where to write; its result is the tensor itself, whose memory lives on."""
    with emulated(**LATE):
        x, where = torch.arange(4.0, device="cuda"), torch.tensor([True, False, True, False], device="cuda")
        x[where] = torch.tensor([8.0, 9.0], device="cuda")
        assert x.tolist() == [8.0, 1.0, 9.0, 3.0]


def test_random_numbers_of_the_host_are_not_for_the_device():
    with emulated():
        torch.manual_seed(1)
        assert torch.randn(3, device="cuda").isfinite().all()
        with pytest.raises(RuntimeError, match="generator"):
            torch.zeros(3, device="cuda").normal_(generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------- order


def test_work_is_late_and_in_order():
    with emulated(**LATE):
        x = torch.zeros(3, device="cuda")
        torch.cuda.synchronize()
        x.add_(1)
        x.mul_(3)
        y = x * 2
        assert raw(x).tolist() == [0.0] * 3
        assert raw(y).isnan().all()
        torch.cuda.current_stream().synchronize()
        assert raw(x).tolist() == [3.0] * 3
        assert raw(y).tolist() == [6.0] * 3


def test_streams_go_on_by_themselves_unless_they_wait():
    found = {True: set(), False: set()}
    for seed in range(30):
        for waits in (True, False):
            with emulated(seed, 0.5):
                x = torch.zeros(1, device="cuda")
                torch.cuda.synchronize()
                for _ in range(5):
                    x.add_(1)
                side = torch.cuda.Stream()
                if waits:
                    side.wait_event(torch.cuda.current_stream().record_event())
                with torch.cuda.stream(side):
                    y = x.clone()
                side.synchronize()
                found[waits].add(float(raw(y)))
    assert found[True] == {5.0}
    assert len(found[False]) > 2


def test_a_wait_is_for_the_latest_record():
    with emulated(**LATE):
        event, side = torch.cuda.Event(), torch.cuda.Stream()
        assert event.query()  # never recorded
        x = torch.zeros(1, device="cuda")
        event.record()
        with torch.cuda.stream(side):
            side.wait_event(event)
            y = torch.ones(1, device="cuda")
        event.record(side)  # what waits, waits for the first record
        assert not event.query()
        event.synchronize()
        assert event.query()
        assert raw(y).item() == 1
        assert raw(x).item() == 0


def test_elapsed_time_is_the_devices():
    with emulated(**LATE) as device:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        x = torch.zeros(1, device="cuda")
        begin.record()
        for _ in range(10):
            x.add_(1)
        end.record()
        with pytest.raises(DeviceError, match="not ready"):
            begin.elapsed_time(end)
        end.synchronize()
        assert 10 * device.op_ms <= begin.elapsed_time(end) < 20 * device.op_ms
        with pytest.raises(ValueError, match="enable_timing"):
            torch.cuda.Event().elapsed_time(end)


def test_each_thread_has_its_own_stream_and_device():
    found = []
    with emulated():

        def look():
            found.append((torch.cuda.current_device(), torch.cuda.current_stream()))
            torch.cuda.set_device(1)
            found.append(torch.zeros(1, device="cuda").device.index)
            assert torch.tensor([1.0], device="cuda:1").tolist() == [1.0]

        with torch.cuda.stream(torch.cuda.Stream()):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert found == [(0, torch.cuda.default_stream()), 1]
        assert torch.cuda.current_device() == 0
        with torch.cuda.device(1):
            assert torch.cuda.current_stream().device.index == 1
        with torch.cuda.stream(torch.cuda.Stream("cuda:1")):
            assert torch.cuda.current_device() == 1
        assert torch.cuda.current_device() == 0


# ------------------------------------------------------------------------------- copies


def test_pinned_memory_is_read_when_the_copy_happens():
    with emulated(**LATE):
        host = pinned(1, 2)
        assert host.is_pinned()
        assert host[1:].is_pinned()
        pageable = torch.tensor([1.0, 2.0])
        late, now = host.to("cuda", non_blocking=True), pageable.to("cuda", non_blocking=True)
        host.zero_()
        pageable.zero_()
        assert late.tolist() == [0.0, 0.0]
        assert now.tolist() == [1.0, 2.0]


def test_a_copy_to_pinned_memory_is_late():
    with emulated(**LATE):
        x = torch.ones(2, device="cuda") * 3
        host = torch.empty(2, pin_memory=True)
        host.copy_(x, non_blocking=True)
        other = x.to("cpu", non_blocking=True)
        assert host.isnan().all()
        assert other.is_pinned()
        assert other.isnan().all()
        torch.cuda.synchronize()
        assert host.tolist() == other.tolist() == [3.0, 3.0]
        pageable = torch.empty(2)
        pageable.copy_(x, non_blocking=True)  # waits
        assert pageable.tolist() == [3.0, 3.0]


# ------------------------------------------------------------------------------- memory


def test_what_nobody_has_written_is_nan():
    with emulated():
        assert torch.empty(3, device="cuda").isnan().all()


def test_a_freed_block_turns_to_nan_when_its_stream_has_passed():
    with emulated(**LATE):
        x = torch.ones(3, device="cuda")
        memory, view = x.raw, x[1:]
        y = x + 1
        del x
        torch.cuda.synchronize()
        assert memory.tolist() == [1.0] * 3  # the view is alive
        z = view * 2
        del view
        assert memory.tolist() == [1.0] * 3
        torch.cuda.synchronize()
        assert memory.isnan().all()
        assert y.tolist() == [2.0] * 3
        assert z.tolist() == [2.0] * 2


@pytest.mark.parametrize("records", [True, False])
def test_a_block_that_another_stream_reads_needs_record_stream(records):
    spoiled = []
    for seed in range(20):
        with emulated(seed, 0.5):
            side = torch.cuda.Stream()
            x = torch.ones(3, device="cuda")
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                y = x + 1
            if records:
                x.record_stream(side)
            del x
            torch.cuda.current_stream().synchronize()
            side.synchronize()
            spoiled.append(bool(raw(y).isnan().any()))
    assert any(spoiled) == (not records)


def test_memory_is_counted():
    with emulated(limit=100 * PAGE):
        free, total = torch.cuda.mem_get_info()
        assert free == total == 100 * PAGE
        x = torch.zeros(10 * PAGE, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == 10 * PAGE
        assert torch.cuda.memory_allocated(1) == 0
        del x
        assert torch.cuda.memory_allocated() == 0
        assert torch.cuda.memory_reserved() == 10 * PAGE
        y = torch.zeros(4 * PAGE, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() == 10 * PAGE  # from the cache
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 4 * PAGE
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info()[0] == 96 * PAGE
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(97 * PAGE, dtype=torch.uint8, device="cuda")
        assert y.sum().item() == 0


def test_memory_for_another_stream_comes_from_what_is_given_back():
    with emulated(limit=10 * PAGE):
        x = torch.zeros(8 * PAGE, dtype=torch.uint8, device="cuda")
        del x
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.zeros(8 * PAGE, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() == 8 * PAGE


def test_out_of_memory_at_the_nth_allocation():
    with emulated() as device:
        device.memory[0].fails_at = 3
        x, y = torch.zeros(1, device="cuda"), torch.ones(1, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            x + y
        assert (x + y).item() == 1


def test_a_dead_device_stays_dead():
    with emulated() as device:
        x = torch.zeros(1, device="cuda")
        device.dies_at = device.calls + 3
        x.add_(1)
        x.add_(1)
        for call in (lambda: x.add_(1), lambda: x.item(), torch.cuda.synchronize, torch.cuda.Event().record):
            with pytest.raises(DeviceError, match="CUDA error: an illegal memory access"):
                call()


def test_an_error_of_a_kernel_is_seen_later():
    with emulated(**LATE):
        x, index = torch.zeros(3, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
        torch.cuda.synchronize()
        index.fill_(7)
        x.index_select(0, index)
        with pytest.raises(DeviceError, match="device-side assert"):
            torch.cuda.synchronize()


# ------------------------------------------------------------------------------- graphs


def captured(work, **options):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        out = work()
    return graph, out


def test_a_replay_repeats_what_was_recorded():
    with emulated(**LATE) as device:
        x = torch.ones(2, device="cuda")
        graph, y = captured(lambda: (x + 1) * 2)
        assert raw(y).isnan().all()  # a capture executes nothing
        graph.replay()
        assert y.tolist() == [4.0, 4.0]
        x.fill_(5)
        graph.replay()
        assert y.tolist() == [12.0, 12.0]
        assert device.counts["replays"] == 2


def test_temporaries_of_a_replay_turn_to_nan():
    kept = []

    def work(x):
        temporary = x + 1
        kept.append(temporary.raw)
        return temporary * 2

    with emulated():
        x = torch.ones(2, device="cuda")
        graph, y = captured(lambda: work(x))
        graph.replay()
        assert y.tolist() == [4.0, 4.0]
        assert kept[0].isnan().all()


def test_a_replay_reads_freed_memory():
    with emulated():
        inputs = [torch.ones(2, device="cuda")]
        graph, y = captured(lambda: inputs[0] + 1)
        inputs.clear()
        graph.replay()
        assert y.isnan().all()


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.zeros(2)),
        lambda x: x.copy_(torch.zeros(2), non_blocking=True),
        lambda x: x[x > 0],
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.default_stream().record_event().synchronize(),
        lambda x: torch.cuda.empty_cache(),
        lambda x: torch.cuda.current_stream().wait_event(torch.cuda.default_stream().record_event()),
    ],
)
def test_a_capture_with_a_sync_is_refused(sync):
    with emulated():
        x = torch.ones(2, device="cuda")
        with pytest.raises(DeviceError, match="previous error during capture") as caught:
            captured(lambda: sync(x), capture_error_mode="thread_local")
        assert "not permitted when stream is capturing" in str(caught.value.__context__)
        assert not torch.cuda.is_current_stream_capturing()
        assert x.tolist() == [1.0, 1.0]


def test_a_capture_copies_pinned_memory_and_allocates():
    with emulated():
        host, x = pinned(3, 4), torch.zeros(2, device="cuda")
        graph, y = captured(lambda: x.copy_(host, non_blocking=True) + torch.ones(2, device="cuda"))
        graph.replay()
        assert y.tolist() == [4.0, 5.0]


def test_other_threads_may_wait_during_a_capture_of_one_thread():
    def in_thread():
        try:
            torch.cuda.synchronize()
        except DeviceError as error:
            errors.append(error)

    for mode, n in (("thread_local", 0), ("global", 1)):
        errors: list[Exception] = []
        with emulated():
            x = torch.zeros(1, device="cuda")

            def work(x=x):
                x.add_(1)
                thread = threading.Thread(target=in_thread)
                thread.start()
                thread.join()

            try:
                captured(work, capture_error_mode=mode)
            except DeviceError:
                assert mode == "global"
        assert len(errors) == n


def test_a_graphs_pool_is_private():
    with emulated():
        x = torch.zeros(4 * PAGE, dtype=torch.uint8, device="cuda")
        pool = torch.cuda.graph_pool_handle()
        first, _ = captured(lambda: (x + 1).sum(), pool=pool)
        reserved = torch.cuda.memory_reserved()
        assert reserved >= 8 * PAGE
        second, _ = captured(lambda: (x + 2).sum(), pool=pool)
        assert torch.cuda.memory_reserved() < reserved + 4 * PAGE  # it uses the first one's memory
        assert first.pool() == second.pool() == pool
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() >= 8 * PAGE
        del first
        second.reset()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() < 8 * PAGE


def test_a_failed_capture_leaves_the_allocator_in_capture_mode():
    """As torch does: blocks that several streams use never come back, until somebody ends the allocation."""

    def cached_after_use():
        side, x = torch.cuda.Stream(), torch.zeros(4 * PAGE, dtype=torch.uint8, device="cuda")
        x.record_stream(side)
        before = sum(device.memory[0].cached.values())
        del x
        torch.cuda.synchronize()
        torch.cuda.current_stream().query()
        return sum(device.memory[0].cached.values()) - before

    with emulated() as device:
        assert cached_after_use() == 4 * PAGE
        pool = torch.cuda.graph_pool_handle()
        with pytest.raises(DeviceError):
            captured(torch.cuda.synchronize, pool=pool)
        assert cached_after_use() == 0
        torch._C._cuda_endAllocateToPool(0, pool)
        assert cached_after_use() == 8 * PAGE  # the other block too
        with pytest.raises(RuntimeError, match="not currently recording"):
            torch._C._cuda_endAllocateToPool(0, pool)


def test_a_capture_on_a_stream_of_another_device_records_nothing():
    with emulated():
        captured(lambda: torch.zeros(1, device="cuda"))  # torch makes its stream now, on cuda:0
        x = torch.zeros(1, device="cuda:1")
        with warnings.catch_warnings(record=True) as caught, torch.cuda.device(1):
            warnings.simplefilter("always")
            graph, _ = captured(lambda: x.add_(1))
        assert "The CUDA Graph is empty" in str(caught[0].message)
        assert x.item() == 1  # it ran at once
        graph.replay()
        assert x.item() == 1
        stream = torch.cuda.Stream("cuda:1")
        with torch.cuda.device(1):
            graph, _ = captured(lambda: x.add_(1), stream=stream)
        graph.replay()
        assert x.item() == 2
