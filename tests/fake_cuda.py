"""As much of torch.cuda as captured calls need, without a device: graphs that replay, streams, events, an allocator.

Captured operations are recorded on CPU tensors, and a replay runs them again on the same tensors, as a GPU does. Time
is simulated: :meth:`FakeCuda.busy` says how long the host and the device take.
"""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Records operations. What changes a tensor that exists is not done: a capture executes nothing."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = kwargs.get("out", args[0]) if function._schema.is_mutable else function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for before, now in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if torch.is_tensor(before) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class FakeCuda:
    """What was made and what happened.

    Attributes
    ----------
    graphs
        All graphs, in the order of their captures.
    underway
        Pools that the allocator believes are being captured into.
    users
        Number of graphs that use a pool, by pool.
    """

    default_capture_stream = None  # of torch.cuda.graph: one per process

    def __init__(self):
        self.graphs, self.underway, self.users = [], set(), {}
        self.device = 0
        self.streams = {}  # the default one of each device
        self.current = {}  # by device
        self.now, self.done = 0.0, 0.0  # seconds: the host's clock, and when the device has done everything
        self._pools = itertools.count(1)
        self.capturing = None
        self.modes = []  # of each capture

    def busy(self, host, device):
        """Enqueue kernels: the host takes ``host`` seconds for it, the device ``device``."""
        begin = max(self.now, self.done)
        self.now += host
        self.done = max(begin + device, self.now)

    def illegal(self):
        """Something that a capture does not allow."""
        if self.capturing is not None:
            self.capturing.valid = False
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    # -- torch.cuda

    def current_device(self):
        return self.device

    @contextlib.contextmanager
    def device_of(self, device):
        before, self.device = self.device, torch.device(device).index or 0
        yield
        self.device = before

    def current_stream(self, device=None):
        index = self.device if device is None or torch.device(device).index is None else torch.device(device).index
        if index not in self.streams:
            self.streams[index] = FakeStream(self, torch.device("cuda", index))
        return self.current.get(index, self.streams[index])

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current[stream.device.index] = self.current_stream(stream.device), stream
        try:
            yield
        finally:
            self.current[stream.device.index] = before

    def graph_pool_handle(self):
        return (0, next(self._pools))

    def end_allocate(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device, pool):
        self.users[pool] -= 1


class FakeStream:
    def __init__(self, cuda, device=None):
        self.cuda = cuda
        index = cuda.device if device is None else device.index or 0  # a CPU in the place of a GPU has none
        self.device = torch.device("cuda", index)
        self.waited_for = []

    def wait_event(self, event):
        self.waited_for.append(event)

    def record_event(self):
        event = FakeEvent(self.cuda)
        event.record()
        return event


class FakeEvent:
    def __init__(self, cuda, **options):
        self.cuda, self.options = cuda, options

    def record(self, stream=None):
        self.time = max(self.cuda.now, self.cuda.done)

    def query(self):
        return self.cuda.now >= self.time

    def elapsed_time(self, end):
        assert self.options["enable_timing"]
        return 1e3 * (end.time - self.time)


class FakeGraph:
    def __init__(self, cuda):
        self.cuda, self.recorder, self.replays = cuda, None, 0

    def replay(self):
        self.replays += 1
        self.recorder.replay()


class FakeCapture:
    """``torch.cuda.graph``, as it is in torch 2.11: what it leaves behind where it fails too."""

    def __init__(self, cuda, graph, pool=None, stream=None, capture_error_mode="global"):
        if stream is None:
            cuda.default_capture_stream = stream = cuda.default_capture_stream or FakeStream(cuda)
        self.cuda, self.graph, self.stream, self.mode, self.valid = cuda, graph, stream, capture_error_mode, True
        self.pool = cuda.graph_pool_handle() if pool is None else pool

    def __enter__(self):
        cuda = self.cuda
        assert self.pool not in cuda.underway, "already recording to mempool_id"
        cuda.modes.append(self.mode)
        self.before, cuda.current[self.stream.device.index] = cuda.current_stream(self.stream.device), self.stream
        cuda.underway.add(self.pool)
        cuda.users[self.pool] = cuda.users.get(self.pool, 0) + 1
        cuda.capturing = self
        # On another device than that of the stream, nothing is captured, and no one is told.
        self.graph.recorder = Recorder()
        self.records = self.graph.recorder if self.stream.device.index == cuda.device else Recorder()
        self.records.__enter__()

    def __exit__(self, *error):
        self.records.__exit__(*error)
        self.cuda.capturing = None
        if not self.valid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.underway.remove(self.pool)
        self.cuda.current[self.stream.device.index] = self.before
        if error[0] is None:
            self.graph.device, self.graph.stream, self.graph.pool = self.cuda.device, self.stream, self.pool
            self.cuda.graphs.append(self.graph)


def install(monkeypatch):
    """Put it in the place of torch.cuda; returns it."""
    cuda = FakeCuda()
    names = {
        "CUDAGraph": lambda: FakeGraph(cuda),
        "Event": lambda **options: FakeEvent(cuda, **options),
        "Stream": lambda device=None: FakeStream(cuda, device),
        "current_device": cuda.current_device,
        "current_stream": cuda.current_stream,
        "device": cuda.device_of,
        "empty_cache": lambda: None,
        "graph": lambda graph, **options: FakeCapture(cuda, graph, **options),
        "graph_pool_handle": cuda.graph_pool_handle,
        "stream": cuda.stream,
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
    monkeypatch.setattr("hsd.replay.worth.time", SimpleNamespace(perf_counter=lambda: cuda.now))
    monkeypatch.setattr("hsd.replay.capture._unended", [])
    return cuda
