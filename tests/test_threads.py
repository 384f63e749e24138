"""Threads that work for a device: it is the current one in each of them, as it is not by itself."""

from __future__ import annotations

import threading

import pytest
import torch

from hsd.work.threads import BoundedPool, ahead


@pytest.fixture
def current(monkeypatch):
    """The current CUDA device of each thread, as CUDA has it: 0 until the thread sets another."""
    own = threading.local()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(own, "index", torch.device(device).index))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(own, "index", 0))
    return torch.cuda.current_device


def in_pool(device, threads=1):
    pool: BoundedPool[int] = BoundedPool(threads, 8, "hsd-test", device=device)
    for _ in range(8):
        pool.submit(torch.cuda.current_device)
    found = set(pool.results(wait=True))
    pool.close()
    return found


def in_ahead(device):
    items = (torch.cuda.current_device() for _ in range(3))
    with ahead(items, 2, name="hsd-test", device=device) as found:
        return set(found)


@pytest.mark.parametrize("seen", [in_pool, in_ahead])
def test_the_device_is_current_in_the_threads(current, seen):
    assert seen(torch.device("cuda:1")) == {1}
    assert current() == 0  # this thread's stays


@pytest.mark.parametrize("seen", [in_pool, in_ahead])
def test_a_device_without_an_index_is_the_one_of_the_thread_that_starts_them(current, seen):
    torch.cuda.set_device("cuda:3")
    assert seen(torch.device("cuda")) == {3}


@pytest.mark.parametrize("seen", [in_pool, in_ahead])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_without_a_cuda_device_nothing_is_set(current, monkeypatch, seen, device):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("set"))
    assert seen(device) == {0}


def test_every_thread_of_a_pool_has_it(current):
    assert in_pool(torch.device("cuda:2"), threads=4) == {2}
