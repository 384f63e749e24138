"""Units: parts of a plan that one process runs one after the other, and what it tells meanwhile."""

from __future__ import annotations

import itertools
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hsd
import tiny
from helpers import PROMPTS
from hsd.generation.options import Options
from hsd.generation.unit import UnitRunner

N = len(PROMPTS)


class Kept:
    """A writer that keeps pictures."""

    def __init__(self):
        self.images, self.flushed = {}, 0

    def add(self, index, image, extra):
        assert index not in self.images
        self.images[index] = np.asarray(image)

    def flush(self):
        self.flushed += 1


def counted(model):
    """The model, and the list of prompts that it encodes from now on."""
    texts, encode = [], model.encode

    def wrapper(batch):
        texts.extend(batch.prompts)
        return encode(batch)

    object.__setattr__(model, "encode", wrapper)
    return model, texts


def run_all(runner, cuts, proven=False):
    told = []
    for indices in cuts:
        told += runner.run(np.asarray(indices), proven=proven)
    return told


def assert_same(images, expected):
    """Equal but for rounding: prompts are encoded in batches of other sizes."""
    assert images.keys() == expected.keys()
    for index, image in expected.items():
        difference = np.abs(images[index].astype(int) - image)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def pixels(plan, model, batch_size):
    return {image.index: np.asarray(image.pil) for image in hsd.stream(plan, model, batch_size=batch_size)}


MODELS = {
    "sd": (tiny.stable_diffusion, {}),
    "kandinsky with a prior that shares": (tiny.k22_combined, {"share_prior": True, "prior_tau": 1.5}),
    "ragged tokens": (tiny.qwen_image, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_units_give_the_images_of_one_run(name):
    make, options = MODELS[name]
    model = hsd.load(make(), height=32, width=32, **options)
    plan = hsd.compile(PROMPTS, 1.0, model=model, steps=3)
    plan = hsd.Plan(plan._core, plan.prompts, plan.seeds, plan.request)  # what was encoded belongs to the first one
    alone = pixels(plan, model, 1)
    writer, runner = Kept(), UnitRunner(plan, model, Options(batch_size=1))
    runner.open(writer)
    units = [plan.tree.leaf_order[a:b] for a, b in ((5, 8), (0, 3), (3, 5))]
    told = run_all(runner, units)
    assert_same(writer.images, alone)
    assert sorted(i for one in told for i in one.made) == list(range(N))
    assert sum(one.node_steps for one in told) == sum(plan.prune(unit).node_steps for unit in units)
    assert sum(one.standard for one in told) == plan.standard_node_steps
    assert told[-1].fraction == 1.0
    assert writer.flushed == len(units)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1)))
def test_each_prompt_is_encoded_once(order, cuts):
    model, texts = counted(tiny_model())
    plan = hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2)
    runner = UnitRunner(plan, model, Options(batch_size=4))
    runner.open(Kept())
    edges = [0, *sorted(cuts), N]
    run_all(runner, [order[a:b] for a, b in itertools.pairwise(edges)])
    assert sorted(texts) == sorted(PROMPTS)


EMBEDDINGS = np.random.default_rng(0).normal(size=(N, 4)) + np.repeat(np.eye(4), 2, axis=0) * 4


def tiny_model(**options):
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, **options)


def test_rows_that_all_share_stay_one_row():
    model = tiny_model(guidance_scale=5.0)
    plan = hsd.compile(PROMPTS, 0.0, embeddings=EMBEDDINGS, steps=2)
    runner = UnitRunner(plan, model, Options())
    runner.open(Kept())
    run_all(runner, [[0, 1], [2, 3], range(4, N)])
    conditioning = runner.session.conditioning(plan)
    common, _ = conditioning.split(np.arange(N))
    assert common, "guided models have an embedding of the empty prompt"


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_settings_of_single_prompts_and_little_memory(memory):
    model = tiny_model()
    own = [{"guidance_scale": 3.0 if i % 2 else 6.0, "width": 32 if i < 4 else 64} for i in range(N)]
    plan = hsd.compile(PROMPTS, 0.0, embeddings=EMBEDDINGS, steps=2, settings=own)
    alone = pixels(plan, model, 1)
    writer, runner = Kept(), UnitRunner(plan, model, Options(batch_size=1, conditioning_memory=memory))
    runner.open(writer)
    run_all(runner, [[7, 0], [1, 6, 3], [2, 4, 5]])
    assert_same(writer.images, alone)


def test_a_prompt_that_cannot_be_encoded_fails_alone():
    model, encode = tiny_model(), None
    encode = model.encode

    def failing(batch):
        if PROMPTS[3] in batch.prompts:
            raise RuntimeError("no such word")
        return encode(batch)

    object.__setattr__(model, "encode", failing)
    plan = hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2)
    writer, runner = Kept(), UnitRunner(plan, model, Options())
    runner.open(writer)
    told = run_all(runner, [range(4), range(4, N)])
    (failure,) = [one for t in told for one in t.failed]
    assert (failure.index, failure.stage) == (3, "encode")
    assert "no such word" in failure.reason
    assert writer.images.keys() == set(range(N)) - {3}


def test_a_unit_gives_up_only_if_no_image_exists():
    prompts = [f"a cat with {n} heads" for n in range(20)]
    plan = hsd.compile(prompts, 0.0, embeddings=np.eye(20), steps=2)

    class Broken(Kept):
        def add(self, index, image, extra):
            raise RuntimeError("no such colour")

    runner = UnitRunner(plan, tiny_model(), Options())
    runner.open(Broken())
    with pytest.raises(hsd.FailedImages, match="no such colour"):
        run_all(runner, [range(20)])
    told = run_all(runner, [range(20)], proven=True)
    assert sorted(one.index for t in told for one in t.failed) == list(range(20))


def test_what_is_black_is_counted():
    writer, runner = Kept(), UnitRunner(plan_of_two(), tiny_model(), Options())
    with pytest.raises(ValueError, match="call open"):
        next(runner.run(np.arange(2), proven=False))
    runner.open(writer)
    (told,) = run_all(runner, [range(2)])
    assert (told.nsfw, told.upcast, told.batch_size) == (0, 0, 16)
    assert all(math.isfinite(value) for value in told.seconds.values())
    assert isinstance(PIL.Image.fromarray(writer.images[0]), PIL.Image.Image)


def plan_of_two():
    return hsd.compile(PROMPTS[:2], 0.0, embeddings=np.eye(2), steps=2)


def test_pictures_of_forks_are_refused():
    with pytest.raises(ValueError, match="keep_forks needs a run of one process"):
        UnitRunner(plan_of_two(), tiny_model(), Options(keep_forks=True))
