"""How many items fit into the memory: room is made first, and only then are there fewer of them, for good."""

from __future__ import annotations

import pytest
import torch

import hsd
from hsd.work.device import FittingSize

CPU = torch.device("cpu")


class Memory:
    """Work that fits up to ``most`` items at once; making room adds some to that, while there are some to add."""

    def __init__(self, most, room=()):
        self.most, self.room, self.tried, self.asked = most, list(room), [], 0

    def work(self, n):
        self.tried.append(n)
        if n > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [n] * n

    def make_room(self):
        self.asked += 1
        if not self.room:
            return False
        self.most += self.room.pop(0)
        return True


def test_where_room_can_be_made_the_size_stays():
    memory, halved = Memory(6, room=[2]), []
    fitting = FittingSize(8, "latents", CPU, lambda: halved.append(1), memory.make_room)
    assert fitting.run(memory.work, 20) == ([8] * 8, 8)
    assert (memory.tried, fitting.most, halved) == ([8, 8], 8, [])


def test_the_same_size_is_tried_once_more_and_then_it_is_halved():
    memory, halved = Memory(4, room=[1, 1, 1, 1, 1, 1, 1]), []
    fitting = FittingSize(8, "latents", CPU, lambda: halved.append(1), memory.make_room)
    with pytest.warns(hsd.errors.Notice, match="out of memory with 8 latents at once: continuing with 4"):
        assert fitting.run(memory.work, 20)[1] == 4
    assert (memory.tried, memory.asked, fitting.most, halved) == ([8, 8, 4], 1, 4, [1])
    memory.most = 3
    assert fitting.run(memory.work, 20)[1] == 4  # the next run may make room again
    assert memory.asked == 2


def test_where_there_is_no_room_to_make_it_is_halved_at_once():
    memory = Memory(4)
    fitting = FittingSize(8, "latents", CPU, make_room=memory.make_room)
    with pytest.warns(hsd.errors.Notice):
        fitting.run(memory.work, 20)
    assert memory.tried == [8, 4]


def test_caches_are_emptied_between_making_room_and_the_second_try(monkeypatch):
    memory, said = Memory(1, room=[1]), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append((len(memory.tried), memory.most)))
    FittingSize(2, "latents", torch.device("cuda:0"), make_room=memory.make_room).run(memory.work, 2)
    assert said == [(1, 2)]


def test_a_single_item_gets_room_before_it_is_given_up():
    memory = Memory(0, room=[1])
    assert FittingSize(1, "latents", CPU, make_room=memory.make_room).run(memory.work, 1) == ([1], 1)
    memory.most = 0
    with pytest.raises(hsd.OutOfMemory, match="a single one of the latents does not fit"):
        FittingSize(1, "latents", CPU, make_room=memory.make_room).run(memory.work, 1)
