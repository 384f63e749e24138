"""The machine: streams as queues, and a seeded scheduler that runs what is in them, late and in turn."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from device.memory import Memory

Work = Callable[[], object]

DeviceError: Any = getattr(torch, "AcceleratorError", RuntimeError)
"""What torch raises for an error of the device."""

_PATIENCE = 60.0
"""Seconds without any progress after which a wait is an error: two streams or threads wait for each other."""

_CHANGES = 0.005
"""Probability that speeds change with an operation."""


class Marker:
    """One place in a stream: done as soon as the device has come past it."""

    def __init__(self) -> None:
        self.done = False
        self.at = 0.0  # on the clock of the device, in ms

    def pass_at(self, now: float) -> None:
        self.done, self.at = True, now


class Stream:
    """``torch.cuda.Stream``: work in order, beside that of other streams."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.machine = machine = active()
        machine.call("create a stream")
        self.device = torch.device("cuda", machine.index_of(device))
        self.device_index, self.device_type, self.priority = self.device.index, 1, priority
        self.queue: deque[Work | Marker] = deque()  # a marker: wait for it
        self.capture: Any = None  # the graph that records what is enqueued
        self.speed = machine.any_speed()
        with machine.lock:
            machine.streams.append(self)
            self.stream_id = self.cuda_stream = len(machine.streams)

    def enqueue(self, work: Work) -> None:
        """Run ``work`` after all that was enqueued before; while a graph is captured, only record it."""
        self.machine.call("enqueue")
        if self.capture is not None:
            self.capture.ops.append(work)
            return
        self.put(work)
        self.machine.run_some()

    def put(self, work: Work | Marker) -> None:
        """As :meth:`enqueue`, without a call of the driver: a capture does not record it."""
        with self.machine.lock:
            self.queue.append(work)

    def mark(self) -> Marker:
        """A marker behind all that is enqueued so far."""
        marker = Marker()
        self.put(lambda: marker.pass_at(self.machine.clock))
        return marker

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.machine.call("wait for an event")
        if self.capture is not None or event.captured is not None:
            if event.captured is not self.capture:
                self.machine.refuse("waiting for an event of another stream")
        elif event.marker is not None:
            self.put(event.marker)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        self.machine.forbid("synchronising a stream")
        self.machine.wait(self.mark())

    def query(self) -> bool:
        self.machine.forbid("asking for the state of a stream")
        return not self.queue


class Event:
    """``torch.cuda.Event``. A wait is for the latest record before it; an event that was never recorded is done."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.timing, self.blocking = enable_timing, blocking
        self.marker: Marker | None = None
        self.captured: Any = None
        self._device: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        machine = active()
        machine.call("record an event")
        stream = stream or machine.current_stream()
        if self._device not in (None, stream.device_index):
            raise RuntimeError(f"Event device index {self._device} does not match {stream.device_index}")
        self._device, self.captured = stream.device_index, stream.capture
        self.marker = None if stream.capture is not None else stream.mark()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or active().current_stream()).wait_event(self)

    def synchronize(self) -> None:
        machine = active()
        machine.forbid("waiting for an event")
        machine.counts["blocking waits" if self.blocking else "waits"] += 1
        if self.marker is not None:
            machine.wait(self.marker)

    def query(self) -> bool:
        machine = active()
        machine.forbid("asking for the state of an event")
        machine.run_some()
        return self.marker is None or self.marker.done

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds on the clock of the device: each of its operations takes :attr:`Machine.op_ms`."""
        active().call("elapsed time")
        if not (self.timing and end.timing and self.marker and end.marker):
            raise ValueError("Both events must be recorded and created with argument 'enable_timing=True'")
        if not (self.marker.done and end.marker.done):
            raise DeviceError("CUDA error: device not ready")
        return end.marker.at - self.marker.at


class _PerThread(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}
        self.capture: Any = None


class Machine:
    """Some devices, their streams and memory, and the scheduler.

    Parameters
    ----------
    seed
        Decides which stream goes on next. Threads of the host run as the system lets them, so that a seed does not
        repeat a schedule exactly, but the kind of it.
    eagerness
        Share of the calls of the host after which the device does some work at once: 0 does everything as late as
        possible, 1 nearly at once.
    devices
        How many there are.
    limit
        Bytes of each device.
    """

    op_ms = 0.005
    """What an operation takes by the clock of the device."""

    def __init__(self, seed: int = 0, eagerness: float = 0.3, devices: int = 2, limit: int = 1 << 34) -> None:
        self.lock = threading.RLock()
        self.eagerness, self.n_devices = eagerness, devices
        self.clock = 0.0
        self.counts: Counter[str] = Counter()
        self.calls = 0
        self.dies_at = 0
        """The number of the call at which the device dies; 0: never."""
        self.dead = ""
        self.cause: Exception | None = None
        self.streams: list[Stream] = []
        self.captures: list[Any] = []  # graphs that are being captured, in any thread
        self.thread = _PerThread()
        self._random = random.Random(seed)
        self._later: list[tuple[list[Marker], Work]] = []
        self.memory = [Memory(self, index, limit) for index in range(devices)]
        self.defaults: list[Stream] = []

    def start(self) -> None:
        """Make the default streams, once this machine is :func:`active`."""
        self.defaults = [Stream(torch.device("cuda", index)) for index in range(self.n_devices)]
        self.calls = 0

    # -- devices and streams of the calling thread

    def index_of(self, device: Any) -> int:
        """The index of a device; that of the current one, if it has none."""
        if isinstance(device, str):
            device = torch.device(device)
        if isinstance(device, torch.device):
            device = device.index
        index = self.thread.device if device is None or device < 0 else int(device)
        if index >= self.n_devices:
            raise DeviceError("CUDA error: invalid device ordinal")
        return index

    def current_stream(self, device: Any = None) -> Stream:
        index = self.index_of(device)
        return self.thread.streams.get(index) or self.defaults[index]

    def set_stream(self, stream: Stream | None) -> None:
        if stream is not None:
            self.thread.device = stream.device_index
            self.thread.streams[stream.device_index] = stream

    # -- errors

    def call(self, name: str) -> None:
        """Every call of the driver comes through here: at one of them the device may die, and then all fail."""
        with self.lock:
            self.calls += 1
            if not self.dead and self.dies_at and self.calls >= self.dies_at:
                self.dead = f"CUDA error: an illegal memory access was encountered ({name})"
            if self.dead:
                raise DeviceError(self.dead) from self.cause

    def forbid(self, what: str) -> None:
        """A call that is not allowed while a graph is captured, in this thread or with the mode "global" in any."""
        self.call(what)
        if self.thread.capture is not None or any(graph.mode == "global" for graph in self.captures):
            self.refuse(what)

    def refuse(self, what: str) -> None:
        """Spoil the captures that are under way, as CUDA does, and raise its error."""
        for graph in [self.thread.capture] if self.thread.capture is not None else self.captures:
            graph.spoiled = True
        raise DeviceError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    # -- running

    def later(self, markers: list[Marker], work: Work) -> None:
        """Run ``work`` when all ``markers`` are done."""
        with self.lock:
            self._later.append((markers, work))

    def run_some(self) -> None:
        """Now and then the device does something while the host enqueues."""
        with self.lock:
            n = self._random.randrange(1, 12) if self._random.random() < self.eagerness else 0
        for _ in range(n):
            if not self._step():
                break

    def wait(self, *markers: Marker) -> None:
        """Let the device work until it has passed ``markers``."""
        self.counts["synchronisations"] += 1
        with _disable_current_modes():
            self._wait(markers)

    def _wait(self, markers: tuple[Marker, ...]) -> None:
        deadline = None
        while not all(marker.done for marker in markers):
            if self._step():
                deadline = None
                continue
            deadline = deadline or time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
                raise RuntimeError("nothing on the emulated device can go on: streams wait for each other")
            time.sleep(0.0001)  # another thread may enqueue what this one waits for
        self.call("synchronise")

    def finish(self, device: int | None = None) -> None:
        """Do all that is enqueued, on one device or on all."""
        self.wait(*[stream.mark() for stream in list(self.streams) if device in (None, stream.device_index)])

    def _step(self) -> bool:
        """Run one operation of a stream chosen at random; False if none can go on."""
        with self.lock:
            self._free_what_is_done()
            able = [stream for stream in self.streams if self._can_go_on(stream)]
            if not able:
                return False
            work = self._chosen(able).queue.popleft()
            assert not isinstance(work, Marker)
            self.clock += self.op_ms
            try:
                work()
            except Exception as error:
                self.dead, self.cause = f"CUDA error: device-side assert triggered ({error})", error
            return True

    def any_speed(self) -> float:
        return 10 ** self._random.uniform(-3, 3)

    def _chosen(self, streams: list[Stream]) -> Stream:
        """A stream by its speed. Speeds change at times: one stream may stand still while another does a lot."""
        if len(streams) == 1:
            return streams[0]
        if self._random.random() < _CHANGES:
            for stream in self.streams:
                stream.speed = self.any_speed()
        return self._random.choices(streams, [stream.speed for stream in streams])[0]

    def _free_what_is_done(self) -> None:
        if self._later:
            ready = [entry for entry in self._later if all(marker.done for marker in entry[0])]
            if ready:
                self._later = [entry for entry in self._later if entry not in ready]
                for _, work in ready:
                    work()

    @staticmethod
    def _can_go_on(stream: Stream) -> bool:
        while stream.queue and isinstance(first := stream.queue[0], Marker):
            if not first.done:
                return False
            stream.queue.popleft()
        return bool(stream.queue)


_active: list[Machine] = []


def active() -> Machine:
    """The machine that ``emulated`` has started."""
    return _active[-1]


def set_active(machine: Machine | None) -> None:
    _active[:] = [] if machine is None else [machine]


def is_active(machine: Machine) -> bool:
    return bool(_active) and _active[-1] is machine
