"""Prompts that are cut: exactly those whose last character changes nothing in any family's conditioning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hsd
import tiny
from families import FAMILIES, Family
from hsd.models import cut_prompts
from hsd.models.encode import encode


def conditioning(adapter, prompts):
    """The prompts' own rows, one by one: in a batch they may be rounded otherwise."""
    out = []
    for prompt in prompts:
        rows = encode([adapter], np.zeros(1, np.int64), [prompt], np.zeros(1, np.int64)).mean(np.array([0]))
        out.append({name: row for name, row in rows.items() if "negative" not in name})
    return out


def same(adapter, one, other):
    a, b = conditioning(adapter, [one, other])
    return all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.cuts], ids=lambda family: family.name)
def test_the_shortest_prompt_that_is_cut(family: Family):
    adapter = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    low, high = 1, 1000  # one token a letter
    assert not cut_prompts(adapter, ["x"])
    assert cut_prompts(adapter, ["x" * high])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cut_prompts(adapter, ["x" * middle]) else (middle, high)
    assert same(adapter, "x" * low + "a", "x" * low + "b")  # of low + 1 letters
    assert not same(adapter, "x" * (low - 1) + "a", "x" * (low - 1) + "b")
    prompts = ["a cat", "x" * low + "the end", "x" * low, "x" * high]
    cuts = cut_prompts(adapter, prompts)
    assert [cut.index for cut in cuts] == [1, 3]  # and not 2
    assert cuts[0].lost in ("the end", "theend")
    assert cuts[0].tokens > cuts[1].tokens > cuts[1].limit


def test_one_message_names_all():
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    prompts = ["a cat", "x" * 75 + "and more", "a dog", "y" * 100]
    with pytest.warns() as warned:
        plan = hsd.compile(prompts, model=model, steps=2)
    list(hsd.stream(plan, model))  # says nothing more
    assert [one.category for one in warned] == [hsd.Notice]
    assert [str(one.message) for one in warned] == [
        "2 of 4 prompts are longer than the model reads (77 tokens): prompts 1, 3; the end has no effect, of prompt 1: "
        "'and more'"
    ]


def test_one_prompt_many_prompts_and_negative_prompts():
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32, negative_prompt="z" * 75 + " dull")
    with pytest.warns(hsd.Notice) as warned:
        hsd.compile(["x" * 75 + str(i) for i in range(30)], model=model, steps=2)
    messages = [str(one.message) for one in warned]
    assert "30 of 30 prompts are longer" in messages[0]
    assert "prompts 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more;" in messages[0]
    assert messages[1] == (
        "the negative prompt is longer than the model reads (77 tokens): its end has no effect: 'dull'"
    )
    with pytest.warns(hsd.Notice, match=r"^1 of 1 prompt is longer than the model reads \(77 tokens\): prompt 0;"):
        hsd.compile(["x" * 77], model=hsd.load(model, negative_prompt=None), steps=2)


def test_a_long_text_encoder_reads_what_a_short_one_does_not():
    pipe = tiny.sd3()
    model = hsd.load(pipe, height=32, width=32)
    assert not cut_prompts(model, ["x" * 100])
    assert cut_prompts(hsd.load(model, max_sequence_length=64), ["x" * 100])
    assert not cut_prompts(hsd.load(model, max_sequence_length=64), ["x" * 70])  # CLIP reads it


def test_a_family_that_is_not_known(model):
    class Other(type(model)):
        pipelines = ("OtherPipeline",)

    assert cut_prompts(Other(model.pipe), ["x" * 1000]) == []
