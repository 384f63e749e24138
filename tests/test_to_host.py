"""Waiting for a GPU and copying from it, on a fake of what torch has for that: the order of the calls matters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hsd.work import device as work_device
from hsd.work.device import describe, finish, to_host


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda:1")


@pytest.fixture
def said(monkeypatch):
    """What is asked of torch.cuda, in order."""
    found = []

    class Event:
        def __init__(self, blocking=False):
            found.append(f"event, blocking={blocking}")

        def record(self, stream):
            found.append(f"recorded on {stream}")

        def synchronize(self):
            found.append("waited")

    class Host:
        def copy_(self, tensor, non_blocking=False):
            found.append(f"copied, non_blocking={non_blocking}")

    def empty_like(tensor, device, pin_memory):
        found.append(f"memory of the {device}, pinned={pin_memory}")
        return Host()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr(work_device, "torch", SimpleNamespace(cuda=torch.cuda, empty_like=empty_like))
    return found


def test_a_copy_is_waited_for_before_it_is_read(said):
    host = to_host(torch.zeros(2).as_subclass(OnDevice))
    assert not isinstance(host, torch.Tensor)  # the fake one
    assert said == [
        "memory of the cpu, pinned=True",
        "copied, non_blocking=True",
        "event, blocking=True",
        "recorded on the stream of cuda:1",
        "waited",
    ]


def test_a_stream_is_waited_for_asleep(said):
    finish("a stream")
    assert said == ["event, blocking=True", "recorded on a stream", "waited"]


def test_what_is_on_the_host_stays_there(said):
    tensor = torch.zeros(2)
    assert to_host(tensor) is tensor
    assert said == []


def test_a_device_that_does_not_answer_is_described_by_its_type(monkeypatch):
    def no_answer(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "get_device_name", no_answer)
    assert describe(torch.device("cuda:0")) == "cuda"
