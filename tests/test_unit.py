"""Units: parts of a plan that one process runs one after the other, and what it tells meanwhile."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
import tiny
from device.runs import same_images
from helpers import PROMPTS
from hsd.conditioning import spool
from hsd.generation import session, unit
from hsd.generation.options import Options
from hsd.generation.unit import UnitRunner
from hsd.replay.denoiser import Batch

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
    model, texts = counted(model)
    writer, runner = Kept(), UnitRunner(plan, model, Options(batch_size=1))
    runner.open(writer)
    units = [plan.tree.leaf_order[a:b] for a, b in ((5, 8), (0, 3), (3, 5))]
    told = run_all(runner, units)
    assert_same(writer.images, alone)
    assert sorted(texts) == sorted(PROMPTS)
    assert sorted(i for one in told for i in one.made) == list(range(N))
    assert sum(one.node_steps for one in told) == sum(plan.prune(unit).node_steps for unit in units)
    assert sum(one.standard for one in told) == plan.standard_node_steps
    assert told[-1].fraction == 1.0
    assert writer.flushed == len(units)


REPEATED = [*PROMPTS[:6], PROMPTS[0], PROMPTS[4]]
"""Two texts have two seeds each, in other parts of the leaf order."""


@pytest.fixture(scope="module")
def repeated():
    """A model that says what it encodes, a plan, and its images from one run."""
    model, texts = counted(tiny_model())
    plan = hsd.compile(REPEATED, 1.0, embeddings=EMBEDDINGS, steps=2)
    assert plan.savings > 0.0
    return model, texts, plan, pixels(plan, model, 4)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1)), batch_size=st.sampled_from([1, 4]))
def test_any_cuts_give_the_images_of_one_run_and_encode_each_prompt_once(repeated, order, cuts, batch_size):
    model, texts, plan, alone = repeated
    texts.clear()
    writer, runner = Kept(), UnitRunner(plan, model, Options(batch_size=batch_size))
    runner.open(writer)
    edges = [0, *sorted(cuts), N]
    units = [order[a:b] for a, b in itertools.pairwise(edges)]
    told = run_all(runner, units)
    assert_same(writer.images, alone)
    assert sorted(texts) == sorted(set(REPEATED))
    assert sum(one.node_steps for one in told) == sum(plan.prune(unit).node_steps for unit in units)
    assert sorted(i for one in told for i in one.made) == list(range(N))


def test_equal_calls_give_equal_bytes(monkeypatch):
    """One lane a call, one prompt a batch of the encoder: then next to nothing is rounded differently."""
    model = tiny_model()
    monkeypatch.setattr(type(model), "encode_batch", 1)
    plan = hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2)
    alone = pixels(plan, model, 1)
    writer, runner = Kept(), UnitRunner(plan, model, Options(batch_size=1))
    runner.open(writer)
    order = plan.tree.leaf_order
    run_all(runner, [order[:3], order[3:4], order[4:]])
    assert same_images(writer.images, alone)


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


def failing_at(text, own, batch):
    """``encode`` that raises for a text."""
    if text in batch.prompts:
        raise RuntimeError("no such word")
    return own(batch)


def nan_at(model, text, own, latents, timestep, rows):
    """``denoise`` whose output is NaN in the lanes of a prompt."""
    output, variance = own(latents, timestep, rows)
    with torch.no_grad():
        row = model.encode(Batch([text], np.zeros(1, dtype=np.int64))).rows["prompt_embeds"][0]
    for lane, one in enumerate(rows["prompt_embeds"]):
        if torch.allclose(one, row, atol=1e-5):
            output[lane] = float("nan")
    return output, variance


@pytest.mark.parametrize("stage", ["encode", "denoise", "write"])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_an_image_that_cannot_be_made_fails_alone(stage, tau):
    """As in one run: the other images are the same, also where they share steps with it."""
    model, bad = tiny_model(), 3
    change = {"encode": partial(failing_at, PROMPTS[bad]), "denoise": partial(nan_at, model, PROMPTS[bad])}
    if stage in change:
        object.__setattr__(model, stage, partial(change[stage], getattr(model, stage)))
    # Without catch-up, so that a lane alone has its prompt's own row, by which it is found.
    plan, failures = hsd.compile(PROMPTS, tau, embeddings=EMBEDDINGS, steps=2, catch_up=0.0), []
    images = hsd.stream(plan, model, batch_size=1, failed=failures.append)
    alone = {image.index: np.asarray(image.pil) for image in images}

    class Refusing(Kept):
        def add(self, index, image, extra):
            if stage == "write" and index == bad:
                raise RuntimeError("no such colour")
            super().add(index, image, extra)

    writer, runner = Refusing(), UnitRunner(plan, model, Options(batch_size=1))
    runner.open(writer)
    told = run_all(runner, [plan.tree.leaf_order[:5], plan.tree.leaf_order[5:]])
    (failure,) = [one for t in told for one in t.failed]
    assert (failure.index, failure.stage) == (bad, stage)
    assert stage == "write" or [failure] == failures
    alone.pop(bad, None)
    assert_same(writer.images, alone)
    assert sorted(i for t in told for i in t.made) == sorted(alone)


def test_a_unit_gives_up_only_if_no_image_exists():
    prompts = [f"a cat with {n} heads" for n in range(20)]
    plan = hsd.compile(prompts, 0.0, embeddings=np.eye(20), steps=2)

    class Broken(Kept):
        def add(self, index, image, extra):
            raise RuntimeError("no such colour")

    runner = UnitRunner(plan, tiny_model(), Options())
    runner.open(Broken())
    told = []
    with pytest.raises(hsd.FailedImages, match="no such colour"):
        told.extend(runner.run(np.arange(20), proven=False))
    assert sum(one.node_steps for one in told) >= 16 * 2, "what was done before an error counts"
    assert len({one.index for t in told for one in t.failed}) >= 16
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


def test_what_failed_in_a_unit_that_ended_is_forgotten():
    """The first unit ends before anything is encoded; then the encoder has recovered."""
    model = tiny_model()
    own, broken = model.encode, [True]

    def encode(batch):
        if broken[0]:
            raise RuntimeError("no file left")
        return own(batch)

    object.__setattr__(model, "encode", encode)
    runner = UnitRunner(hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2), model, Options())
    runner.open(Kept())
    with pytest.raises(hsd.PromptError, match="no file left"):
        run_all(runner, [range(4)])
    broken[0] = False
    told = run_all(runner, [range(4)])
    assert sorted(i for one in told for i in one.made) == [0, 1, 2, 3]
    assert not any(one.failed for one in told)


def test_the_space_for_a_unit_is_that_of_its_own_prompts(monkeypatch):
    """On a disk with room for the prompts that are left, and for no more."""
    model = tiny_model()
    monkeypatch.setattr(type(model), "encode_batch", 1)
    runner = UnitRunner(
        hsd.compile(PROMPTS, 0.0, embeddings=EMBEDDINGS, steps=2), model, Options(conditioning_memory=0)
    )
    runner.open(Kept())
    run_all(runner, [range(6)])
    one = runner.session.conditioning(plan_of_two()).fields["prompt_embeds"].rows[0].nbytes
    usage = spool.shutil.disk_usage("/")._replace(free=spool._DISK_KEPT_FREE + 3 * one)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: usage)
    run_all(runner, [range(6, N)])


def test_there_are_signs_of_life_while_prompts_are_encoded(monkeypatch):
    monkeypatch.setattr(session, "_AHEAD", 2)
    monkeypatch.setattr(unit, "_PAUSE", 0.0)
    runner = UnitRunner(hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2), tiny_model(), Options())
    runner.open(Kept())
    told = run_all(runner, [range(N)])
    parts = [(one.part, one.fraction) for one in told]
    assert parts[: N // 2] == [("encode", 0.0)] * (N // 2)
    assert {part for part, _ in parts[N // 2 : -1]} == {"denoise"}
    fractions = [fraction for _, fraction in parts]
    assert fractions == sorted(fractions)
    assert parts[-1] == ("write", 1.0)
    assert pickle.loads(pickle.dumps(told)) == told


def test_what_a_plan_was_compiled_with_is_used_and_the_weights_are_read_once(monkeypatch):
    model, texts = counted(tiny_model())
    plan, read = hsd.compile(PROMPTS, 1.0, model=model, steps=2), []
    texts.clear()
    own = type(model).encoding_key
    monkeypatch.setattr(type(model), "encoding_key", lambda self: read.append(1) or own(self))
    runner = UnitRunner(plan, model, Options())
    runner.open(Kept())
    run_all(runner, [[0, 1], [2, 3], range(4, N)])
    assert not texts
    assert len(read) == 1


def test_the_denoiser_is_measured_once(monkeypatch):
    measured, own = [], session.curve_of

    def curve_of(*args, **options):
        measured.append(1)
        return own(*args, **options)

    monkeypatch.setattr(session, "curve_of", curve_of)
    plan = hsd.compile(PROMPTS, 1.0, embeddings=EMBEDDINGS, steps=2)
    writer, runner = Kept(), UnitRunner(plan, tiny_model(), Options(batch_size="auto"))
    runner.open(writer)
    run_all(runner, [range(5), range(5, N)])
    assert len(measured) == 1
    assert len(writer.images) == N


def test_long_prompts_are_reported_once_for_all_units():
    long = [f"{prompt}, {'a very long prompt ' * 40}" for prompt in PROMPTS]
    plan = hsd.compile(long, 0.0, embeddings=EMBEDDINGS, steps=2)
    runner = UnitRunner(plan, tiny_model(), Options())
    runner.open(Kept())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_all(runner, [range(3), range(3, N)])
    (message,) = [str(one.message) for one in said if "longer than the model reads" in str(one.message)]
    assert message.startswith("8 of 8 prompts")


def test_workers_of_one_machine_share_its_memory(monkeypatch):
    """Where the user says nothing, and each would take what is free."""
    monkeypatch.setattr("hsd.generation.session.default_memory", lambda: 1200)
    asked = []
    monkeypatch.setattr("hsd.generation.session.Encodings", lambda *_, memory, **__: asked.append(memory))
    for options in (Options(neighbours=4), Options(), Options(neighbours=4, conditioning_memory=50)):
        UnitRunner(plan_of_two(), tiny_model(), options).session._encoder()
    assert asked == [300, None, 50]
