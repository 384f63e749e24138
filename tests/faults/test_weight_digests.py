"""Digests of weights: they find every change of a value, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hsd.models.weights import digest, weights_of

pytestmark = pytest.mark.faults


def test_digests_do_not_depend_on_layout_or_place_in_memory():
    values = torch.randn(70_000)
    whole = digest([values])
    assert digest([torch.cat([torch.zeros(1), values])[1:]]) == whole
    image = torch.randn(8, 4, 3, 3)
    assert digest([image]) == digest([image.to(memory_format=torch.channels_last)])
    assert digest([values.view(7, -1)]) != whole
    assert digest([values.view(torch.int32)]) != whole
    assert digest([values, values[:3]]) != digest([values[:3], values])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.bool, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 32_768 * 4 + 3])
def test_every_change_of_one_value_changes_a_digest(dtype, n):
    values = torch.ones(n, dtype=torch.float32).to(dtype)
    for at in {0, n // 2, n - 1}:
        other = values.clone()
        other.view(torch.uint8).view(-1)[at * values.itemsize] ^= 1
        assert digest([values]) != digest([other]), at
    assert digest([values]) != digest([values[1:]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs_of_signs_change_a_digest(dtype):
    values = torch.randn(64).to(dtype)
    seen = {digest([values])}
    for i in range(0, 64, 2):
        other = values.clone()
        other[[i, 63]] *= -1
        seen.add(digest([other]))
    assert len(seen) == 33


def test_large_weights_are_summed_in_threads_to_the_same(monkeypatch):
    values = [torch.randn(50_000) for _ in range(4)]
    before = digest(values)
    monkeypatch.setattr("hsd.models.weights._THREADED", 1)
    assert digest(values) == before


class FourBits:
    """What bitsandbytes keeps beside codes of 4 bits, with scales that are codes of 8 bits themselves."""

    def __init__(self, absmax, offset=None, state2=None):
        self.absmax, self.offset, self.state2 = absmax, offset, state2


def test_quantised_weights_count_by_codes_and_scales():
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    seen = set()
    for blocks, mean, second in ((1, 0, 1), (2, 0, 1), (1, 3, 1), (1, 0, 4)):
        outer = FourBits(torch.ones(2) * second)
        layer.weight.quant_state = FourBits(torch.ones(4, dtype=torch.uint8) * blocks, torch.tensor(float(mean)), outer)
        seen.add(digest(weights_of(layer)))
    assert len(seen) == 4


def test_scales_of_rows_count_wherever_they_are():
    """The first call of a layer in 8 bits moves them from its weight to the layer."""
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    layer.weight.SCB = torch.ones(4)
    before = digest(weights_of(layer))
    layer.state, layer.weight.SCB = SimpleNamespace(SCB=layer.weight.SCB), None
    assert digest(weights_of(layer)) == before
    layer.state.SCB = torch.ones(4) * 2
    assert digest(weights_of(layer)) != before
