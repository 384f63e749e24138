"""``Adapter.with_scheduler``: a copy that is stepped by another scheduler, and an original that is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hsd
import tiny
from families import FAMILIES, swap
from families.measure import owner, with_scheduler
from helpers import fresh_generators, mean_difference
from hsd.models import load, shared_image, variants_of

PROMPTS = ["a cat", "a dog on a mat"]
SEEDS = [4, 9]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.schedulers], ids=lambda family: family.name)
def test_a_copy_is_stepped_by_another_scheduler(family):
    """It samples as a pipeline with that scheduler does, through any copy of it; the original is untouched."""
    pipe, name = family.build(), family.schedulers[0]
    settings = family.settings(family.guided, family.size)
    model = load(family.loadable(pipe), **settings)
    own, before = model.scheduler(), model.sampler(family.steps)
    other = swap(name, owner(pipe))
    copied = model.with_scheduler(other)
    expected = load(family.loadable(with_scheduler(family, name)), **settings).sampler(family.steps)
    assert not same_table(expected, before)  # the check can fail
    again = load(copied, **{key: settings[key] for key in list(settings)[:1]})
    of_prompts = {name: value for name, value in settings.items() if name not in shared_image.NAMES}
    for one in (copied, again, dataclasses.replace(copied), variants_of(copied, [{}, of_prompts])[1]):
        assert type(one) is type(model)
        assert one.scheduler() is other
        assert same_table(one.sampler(family.steps), expected)
        assert one.settings == model.settings
        assert one.encoding_key() == model.encoding_key()  # prompts need not be encoded again
        assert one.call_key() == copied.call_key() != model.call_key()
    assert model.scheduler() is own is getattr(owner(pipe), family.scheduler)
    assert same_table(model.sampler(family.steps), before)


def same_table(a, b):
    return a.scheduler == b.scheduler and torch.equal(a.timesteps, b.timesteps) and torch.equal(a.out, b.out)


def test_a_copy_with_another_scheduler_makes_that_pipelines_images():
    pipe = tiny.stable_diffusion()
    model = load(pipe, height=64, width=64).with_scheduler(swap("dpm++2m", pipe))
    own = [{}, {"guidance_scale": 2.0}]  # settings of single prompts: a copy of the model for each
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=3, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    stock = tiny.stable_diffusion()
    stock.scheduler = swap("dpm++2m", stock)
    for i, settings in enumerate(own):
        called = {"height": 64, "width": 64, "num_inference_steps": 3, **settings}
        expected = stock(PROMPTS[i], generator=fresh_generators(SEEDS[i : i + 1]), **called).images[0]
        assert mean_difference(images[i], expected) < 0.5
        with_its_own = pipe(PROMPTS[i], generator=fresh_generators(SEEDS[i : i + 1]), **called).images[0]
        assert mean_difference(images[i], with_its_own) > 2  # the check can fail


def test_the_scheduler_is_no_setting():
    """An adapter needs no code for it, and ``hsd.load`` takes no value for it."""
    pipe = tiny.stable_diffusion()
    assert "other_scheduler" not in load(pipe).settings
    with pytest.raises(TypeError, match="StableDiffusion has no setting 'other_scheduler'"):
        load(pipe, other_scheduler=pipe.scheduler)


def test_a_scheduler_that_comes_from_a_mixin_is_replaced_too():
    class Mixin:
        def scheduler(self):
            return self.pipe.scheduler

    model = load(tiny.stable_diffusion())

    class Mixed(Mixin, type(model)):
        pass

    class Derived(Mixed):
        def scheduler(self):
            return super().scheduler()

    other = swap("dpm++2m", model.pipe)
    for family in (Mixed, Derived):
        mixed = family(model.pipe)
        assert mixed.scheduler() is model.pipe.scheduler
        assert mixed.with_scheduler(other).scheduler() is other
