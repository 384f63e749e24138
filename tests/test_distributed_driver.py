"""The driver and its crew on a simulated Ray: workers answer in any order, die, fail and hang; nothing takes time."""

from __future__ import annotations

import random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd import _core
from hsd.distributed.crew import Crew
from hsd.distributed.driver import Driver
from hsd.distributed.messages import Fault
from hsd.distributed.whole import Whole
from hsd.distributed.worker import Loaded, Place
from hsd.errors import WorkersFailed
from hsd.generation.events import Watcher
from hsd.generation.options import Options
from hsd.generation.unit import Told

pytest.importorskip("ray")
from ray.exceptions import ActorDiedError

N = 24
PLAN = hsd.compile([f"prompt {i}" for i in range(N)], 0.0, embeddings=np.eye(N), steps=2)


class World:
    """What is used of the package ``ray``, and the machines: a node with so many GPUs, one worker on each.

    Parameters
    ----------
    bad
        ``dies`` or ``raises``, by image.
    deaths
        Workers that die at some moment.
    broken
        GPUs on which no unit runs.
    loads
        What loading does: returns a ``Fault``, raises, or returns None.
    lag
        Whether the folder shows new images only after a while.
    """

    def __init__(self, chance, *, gpus=2, bad=None, deaths=0, broken=(), loads=lambda world: None, lag=False):
        self.chance, self.bad, self.deaths, self.broken = chance, bad or {}, deaths, broken
        self.loads, self.lag = loads, lag
        self.free, self.folder, self.written, self.seen = list(range(gpus)), [], [], 0
        self.actors, self.closed = [], 0

    # what is used of the package

    def remote(self, _):
        return mock.Mock(options=lambda **_: mock.Mock(remote=lambda: Actor(self)))

    def put(self, value):
        return value

    def nodes(self):
        return [{"NodeID": "node", "Alive": True, "Resources": {"CPU": 8.0}}]

    def cluster_resources(self):
        return {"CPU": 8.0}

    def wait(self, pending, num_returns, timeout, fetch_local):
        if num_returns == 1:
            self.ready = [one for one in pending if one.actor.has_place() and self.chance.random() < 0.7]
            return self.ready[:1], []
        return [one for one in pending if one in self.ready], []

    def get(self, value):
        value = next(value) if isinstance(value, Pending) else value
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, actor, no_restart):
        actor.end()

    # the folder

    def done(self):
        return set()

    def refresh(self):
        if self.lag and self.chance.random() < 0.8:
            return set()
        return set(self.written)

    repaired = ()


class Pending:
    """An answer, or a stream of them."""

    def __init__(self, actor, answers):
        self.actor, self.answers = actor, answers

    def __next__(self):
        world = self.actor.world
        if self.actor.ended:
            return ActorDiedError()
        if world.deaths and world.chance.random() < 0.1:
            world.deaths -= 1
            return self.actor.died()
        return next(self.answers)


class Actor:
    def __init__(self, world):
        self.world, self.gpu, self.ended = world, None, False
        world.actors.append(self)

    def has_place(self):
        if self.gpu is None and not self.ended and self.world.free:
            self.gpu = self.world.free.pop(0)
        return self.gpu is not None

    def end(self):
        if not self.ended and self.gpu is not None:
            self.world.free.insert(0, self.gpu)
        self.ended = True

    def died(self):
        self.end()
        return ActorDiedError()

    def __getattr__(self, method):
        def ask(*args):
            return Pending(self, iter(getattr(self, f"_{method}")(*args)))

        return mock.Mock(remote=ask, options=lambda **_: mock.Mock(remote=ask))

    def _where(self):
        yield Place("node", 1, "host", _core.__version__)

    def _load(self, _):
        yield self.world.loads(self.world)

    def _begin(self, plan, options):
        yield Loaded({"model": "one"}, {}), []

    def _open(self, out, image_format):
        yield None

    def _close(self):
        self.world.closed += 1
        return [None]

    def _run(self, indices, proven):
        world = self.world
        for index in indices.tolist():
            yield Told("denoise", 0.5, node_steps=1)
            if self.gpu in world.broken or world.bad.get(index) == "dies":
                yield self.died()
            if world.bad.get(index) == "raises":
                yield Fault(hsd.Error("this image is bad"))
                return
            world.folder.append(index)
            world.written.append(index)
            yield Told("denoise", 0.5, made=(index,))


def run(world, workers=2, stall=60.0):
    """What failed, by index."""
    failed = []
    whole = Whole("images", Options(), "png", Watcher(), failed.append, alone=True, wanted=N)
    crew = Crew(world, workers, {"num_cpus": 1})
    with mock.patch("hsd.distributed.whole.open_folder", return_value=world):
        try:
            Driver(crew, world.put, int, PLAN, whole, stall).run()
        finally:
            assert all(actor.ended for actor in world.actors)
            assert all(slot.actor is None and slot.pending is None for slot in crew.slots)
    return {failure.index: failure.reason for failure in failed}


@settings(max_examples=60)
@given(
    bad=st.dictionaries(st.integers(0, N - 1), st.sampled_from(["dies", "raises"]), max_size=3),
    deaths=st.integers(0, 2),
    gpus=st.integers(1, 3),
    lag=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_everything_is_made_but_bad_images(bad, deaths, gpus, lag, chance):
    """Three workers, of which some may have no place; a unit that ended well is believed before the folder shows it."""
    world = World(chance, gpus=gpus, bad=bad, deaths=deaths, lag=lag)
    with mock.patch("time.sleep"):
        failed = run(world, workers=3)
    assert failed.keys() == bad.keys()
    assert set(world.written) == set(range(N)) - bad.keys()
    if not lag:
        assert len(world.written) == len(set(world.written)), "an image was made twice"


def test_a_worker_that_was_killed_is_named(caplog):
    """Without what Ray says of it, which is mostly identifiers; the one that lives closes its files."""
    world = World(random.Random(0), bad={3: "dies"})
    with caplog.at_level("INFO", "hsd.distributed"):
        (reason,) = run(world).values()
    ended = "worker 1 on host ended unexpectedly (killed, out of memory, or its machine was lost)"
    assert reason == f"its worker ended 3 times: {ended}"
    assert f"{ended}; its images go to another" in caplog.messages
    assert world.closed > 0


def test_a_broken_gpu_costs_no_image(monkeypatch):
    monkeypatch.setattr("hsd.distributed.whole.units", lambda plan, workers: plan.shard(12))
    world = World(random.Random(0), gpus=2, broken=[0])
    with pytest.warns(hsd.errors.Notice, match="ended 3 times in a row and made nothing: no more are started") as told:
        assert run(world) == {}
    assert len(told) == 1
    assert sorted(world.written) == list(range(N))


def test_the_last_gpu_is_not_given_up():
    world = World(random.Random(0), gpus=1, broken=[0])
    with pytest.raises(WorkersFailed, match=r"units ended badly in a row, and no image was made meanwhile"):
        run(world, workers=1)


@pytest.mark.parametrize("workers", [1, 3])
def test_loading_always_fails(workers):
    world = World(random.Random(0), gpus=3, loads=lambda _: Fault(RuntimeError("no weights")))
    with pytest.raises(
        WorkersFailed, match=r"no worker can load the model \(RuntimeError: no weights\); none of its 24"
    ):
        run(world, workers)
    assert len(world.actors) <= 4 * workers


def test_workers_that_die_after_loading_end_the_run(monkeypatch):
    """Loading succeeds each time: that alone is no success."""
    monkeypatch.setattr(Actor, "_begin", lambda self, *_: iter([self.died()]))
    with pytest.raises(WorkersFailed, match="workers end before they can run a unit"):
        run(World(random.Random(0)))


def test_errors_that_every_worker_would_have_end_the_run():
    world = World(random.Random(0), loads=lambda _: Fault(hsd.UnknownModel("no such model"), ends=True))
    with pytest.raises(hsd.UnknownModel, match="no such model"):
        run(world)


def test_another_model_ends_the_run(monkeypatch):
    models = iter([{"name": "demo", "settings": {"height": height}} for height in (64, 32)])
    monkeypatch.setattr(Actor, "_begin", lambda *_: iter([(Loaded(next(models), {}), [])]))
    with pytest.raises(hsd.PlanMismatch, match="the model of a worker on host is another one.*height"):
        run(World(random.Random(0)))


@pytest.mark.parametrize("method", ["_load", "_begin", "_open", "_run"])
def test_whatever_hangs_is_ended(monkeypatch, method):
    """Once: then it works."""
    hung, real = [], getattr(Actor, method)

    def hangs(self, *args):
        if not hung:
            hung.append(self)
            self.has_place = lambda: False
        return real(self, *args)

    monkeypatch.setattr(Actor, method, hangs)
    world = World(random.Random(0), gpus=2)
    assert run(world, workers=1, stall=0.2) == {}
    assert hung[0].ended
    assert sorted(world.written) == list(range(N))


def test_images_that_never_appear_are_lost(monkeypatch):
    world = World(random.Random(0))
    monkeypatch.setattr(world, "refresh", lambda: {0, 1})
    monkeypatch.setattr("hsd.distributed.driver.SEEN", 0.0)
    with pytest.raises(WorkersFailed, match="22 images are lost"):
        run(world)
