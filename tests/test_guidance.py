"""Classifier-free guidance: the network's inputs in a guided call, and the guided output."""

from __future__ import annotations

import pytest
import torch

from hsd.models import Guidance, guide, scale_row


def conditioning():
    """Two lanes, the negative prompt longer than both prompts."""
    return {
        "tokens": torch.arange(12.0).view(2, 3, 2),
        "tokens_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(),
        "negative_tokens": -torch.arange(16.0).view(2, 4, 2),
        "negative_tokens_mask": torch.ones(2, 4).bool(),
        "guidance_scale": torch.tensor([2.0, 5.0]),
    }


def test_both_halves_unconditional_first():
    rows = conditioning()
    guidance = Guidance(rows, True)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guidance.twice(x), torch.cat([x, x]))
    assert torch.equal(guidance.join(-x, x), torch.cat([-x, x]))
    short = {name: row[:, :3] for name, row in rows.items() if "tokens" in name}
    both = Guidance(short, True).both("tokens")
    assert torch.equal(both, torch.cat([short["negative_tokens"], short["tokens"]]))


@pytest.mark.parametrize("longer", ["tokens", "negative_tokens"])
def test_tokens_and_their_mask_are_padded_to_the_longer(longer):
    rows = conditioning()
    if longer == "tokens":
        for suffix in ("", "_mask"):
            rows[f"negative_tokens{suffix}"] = rows[f"negative_tokens{suffix}"][:, :2]
    tokens, mask = Guidance(rows, True).both_tokens("tokens")
    length = rows[longer].shape[1]
    assert tokens.shape == (4, length, 2)
    assert mask.shape == (4, length)
    for half, name in ((slice(0, 2), "negative_tokens"), (slice(2, 4), "tokens")):
        n = rows[name].shape[1]
        assert torch.equal(tokens[half, :n], rows[name])
        assert torch.equal(mask[half, :n], rows[f"{name}_mask"])
        assert not mask[half, n:].any()


def test_each_lane_has_its_own_scale():
    guidance = Guidance(conditioning(), True)
    output = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    guided = guidance.apply(output)
    for lane, scale in enumerate((2.0, 5.0)):
        unconditional, conditional = output[lane], output[lane + 2]
        assert torch.equal(guided[lane], unconditional + scale * (conditional - unconditional))
    assert torch.equal(guidance.conditional(output), output[2:])
    assert torch.equal(guided, guide(output, torch.tensor([2.0, 5.0])))
    named = Guidance({"true_cfg_scale": torch.cat([scale_row(2.0), scale_row(5.0)])}, True, scale="true_cfg_scale")
    assert torch.equal(named.apply(output), guided)


def test_without_guidance_nothing_is_changed_and_no_negative_is_needed():
    rows = {name: row for name, row in conditioning().items() if name in ("tokens", "tokens_mask")}
    guidance, x = Guidance(rows, False), torch.randn(2, 4)
    for same in (guidance.twice(x), guidance.join(-x, x), guidance.conditional(x), guidance.apply(x)):
        assert same is x
    assert guidance.both("tokens") is rows["tokens"]
    assert guidance.both_tokens("tokens") == (rows["tokens"], rows["tokens_mask"])
