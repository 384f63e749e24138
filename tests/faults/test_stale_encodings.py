"""What a plan has encoded is used while the encoders are as they were, and no longer."""

from __future__ import annotations

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import hsd
import tiny
from model_changes import CHANGES, OTHERS, PROMPTS, SAME, SETTINGS, done, one_bit, textual_inversion

pytestmark = pytest.mark.faults

STALE = {
    "textual inversion": (tiny.stable_diffusion, textual_inversion),
    "weights through data": (
        tiny.stable_diffusion,
        lambda p: next(p.text_encoder.parameters()).data.mul_(1.01),
    ),
    "weights by copy_": (tiny.stable_diffusion, lambda p: one_bit(p.text_encoder)),
    "weights by load_state_dict": (tiny.stable_diffusion, CHANGES["text encoder"][0]),
    "LoRA": (tiny.stable_diffusion, CHANGES["LoRA of the text encoder"][0]),
    "tokenizer": (tiny.stable_diffusion, CHANGES["token length"][0]),
    "another tokenizer": (tiny.stable_diffusion, lambda p: setattr(p, "tokenizer", other_tokenizer())),
    "epsilon": (
        tiny.stable_diffusion,
        lambda p: setattr(next(m for m in p.text_encoder.modules() if isinstance(m, nn.LayerNorm)), "eps", 0.1),
    ),
    "prior": (tiny.k22_combined, OTHERS["prior weights"][1]),
    "scheduler of the prior": (tiny.k22_combined, OTHERS["prior scheduler"][1]),
    "tensors of the prior's scheduler": (
        tiny.k22_combined,
        lambda p: p.prior_pipe.scheduler.alphas_cumprod.mul_(0.9),
    ),
    "image encoder": (tiny.k22_combined, OTHERS["image encoder"][1]),
    "second encoder": (tiny.sdxl, OTHERS["second text encoder"][1]),
    "noising scheduler": (
        tiny.stable_unclip,
        lambda p: p.image_noising_scheduler.register_to_config(beta_schedule="linear"),
    ),
    "option": (tiny.sdxl, OTHERS["option of the pipeline"][1]),
}
"""Changes after which the encodings that a plan has are stale."""


def other_tokenizer():
    tokenizer = tiny.clip_tokenizer()
    tokenizer.add_tokens(["cat</w>"])
    return tokenizer


@pytest.mark.parametrize(("build", "change"), STALE.values(), ids=STALE)
def test_encodings_of_a_changed_model_are_stale(build, change):
    model = hsd.load(build())
    before = model.encoding_key()
    assert model.encoding_key() == before
    change(model.pipe)
    assert model.encoding_key() != before


FRESH = {
    **{name: change for name, change in SAME.items() if "offload" not in name},
    "unet weights": done(CHANGES["unet weights"][0]),
    "vae weights": done(CHANGES["vae weights"][0]),
    "LoRA of the unet": done(CHANGES["LoRA"][0]),
    "scheduler": done(CHANGES["scheduler class"][0]),
    "text encoder offloaded": done(lambda p: cpu_offload(p.text_encoder, "cpu")),
}
"""After these, prompts are encoded as before."""


@pytest.mark.parametrize("change", FRESH.values(), ids=FRESH)
def test_encodings_are_used_again_where_nothing_changed(change, tmp_path):
    pipe = tiny.stable_diffusion()
    before = hsd.load(pipe).encoding_key()
    assert hsd.load(change(pipe, tmp_path)).encoding_key() == before


def test_a_plan_is_encoded_again_after_a_change_only(monkeypatch):
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2)
    encoded, own = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, batch: encoded.append(batch) or own(self, batch))
    before = {image.index: image.pil for image in hsd.stream(plan, model)}
    assert not encoded
    next(model.pipe.text_encoder.parameters()).data.mul_(3.0)
    after = {image.index: image.pil for image in hsd.stream(plan, model)}
    assert encoded
    assert any(before[i].tobytes() != after[i].tobytes() for i in before)


def test_draws_of_a_prior_follow_its_scheduler():
    """The decoder draws after the prior: how much the prior draws must not be remembered from another scheduler."""
    pipe = tiny.k22_combined()
    model = hsd.load(pipe)
    model.generator(3)
    pipe.prior_pipe.scheduler = diffusers.DDIMScheduler(prediction_type="sample")
    assert torch.equal(model.generator(3).get_state(), hsd.load(pipe).generator(3).get_state())
