"""Prompts that cannot be told apart are different images, whatever the tree."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
import tiny
from families import FAMILIES
from families.measure import stock
from helpers import PROMPTS, encoded, fresh_generators, latents_of, make_scheduler, mean_difference
from hsd import _core
from hsd.conditioning.twins import same_prompts, same_rows
from hsd.planning.apart import split_tree
from hsd.planning.twins import replicas, same_vectors
from hsd.planning.vectors import as_vectors

LONG = "a very long prompt about one thing after another, " * 2
PAIRS = {
    "case": ("A cat", "a cat"),
    "trailing space": ("a cat", "a cat "),
    "inner spaces": ("a cat", "a  cat"),
    "composed or not": (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    "after token 77": (LONG + "a dog", LONG + "a cat"),
}
SEEDS = [11, 5, 42]
STEPS = 4


@pytest.fixture(scope="module")
def stochastic():
    """A pipeline with a stochastic scheduler, and its model."""
    pipe = tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))
    return pipe, hsd.load(pipe, height=32, width=32, guidance_scale=3.0)


def images_of(plan, model, **options):
    return {image.index: image.pil for image in hsd.stream(plan, model, **options)}


def roots(plan):
    """The prompts of each cluster at step 0."""
    label = plan.active(0)
    return {frozenset(np.flatnonzero(label == one).tolist()) for one in set(label.tolist())}


# -- with a model: equal by its own embeddings


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_prompts_that_the_model_reads_alike_are_replicas(stochastic, pair):
    pipe, model = stochastic
    ids = [pipe.tokenizer(text, truncation=True, max_length=77).input_ids for text in pair]
    assert ids[0] == ids[1]
    assert pair[0] != pair[1]
    plan = hsd.compile([*pair, "a red bicycle"], 1e6, model=model, steps=STEPS, seeds=SEEDS)
    assert roots(plan) == {frozenset({0, 2}), frozenset({1})}
    # The witness: the second image is what the pipeline itself draws, and so is the first where it is alone.
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "height": 32, "width": 32}
    expected = pipe(list(pair), generator=fresh_generators(SEEDS[:2]), **call).images
    images = images_of(plan, model)
    assert mean_difference(images[1], expected[1]) < 0.5
    assert mean_difference(images[0], images[1]) > 5
    for i, image in images_of(hsd.compile(pair, 1e6, model=model, steps=STEPS, seeds=SEEDS[:2]), model).items():
        assert mean_difference(image, expected[i]) < 0.5


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.cuts], ids=lambda family: family.name)
def test_in_every_family_what_is_cut_off_makes_no_difference(family):
    """Texts that differ only behind the most tokens that any encoder reads: two images, each the pipeline's own."""
    pipe = family.build()
    cut = [PROMPTS[0] + " and more" * 200 + end for end in (" in oil", " by night")]
    model = hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))
    plan = hsd.compile([*cut, "a dog"], 1e6, model=model, steps=family.steps, seeds=SEEDS)
    assert roots(plan) == {frozenset({0, 2}), frozenset({1})}
    reference = stock(family, pipe, family.guided, family.size, "latent", fresh_generators(SEEDS[1:2]), cut[1:])
    ours = latents_of(plan, model)
    assert (ours[1] - reference[0].float()).abs().max() < 10 * family.tolerance * reference.abs().max()
    assert (ours[0] - ours[1]).abs().max() > 0.1 * reference.abs().max()


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_batches_do_not_hide_that_prompts_are_equal(stochastic, batch, monkeypatch):
    """Encoded in another batch, an equal text may differ in its last bits."""
    model = stochastic[1]
    prompts = ["A cat", "a dog", "the sea", "a bird", "a cat", "a tree", "a CAT"]
    monkeypatch.setattr(type(model), "encode_batch", batch)
    plan = hsd.compile(prompts, 1e6, model=model, steps=STEPS)
    assert roots(plan) == {frozenset({0, 1, 2, 3, 5}), frozenset({4}), frozenset({6})}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_in_half_precision_does_not_hide_it(stochastic, dtype, monkeypatch):
    """As a GPU would do it: each prompt's rows are off by some units of rounding."""
    model, whole = stochastic[1], type(stochastic[1]).encode
    random = torch.Generator().manual_seed(0)

    def rounded(tensor):
        noise = torch.randn(tensor.shape, generator=random)
        return (tensor.float() * (1 + noise * torch.finfo(dtype).eps / 2)).to(dtype)

    def encode(self, batch):
        found = whole(self, batch)
        rows = {name: rounded(row) for name, row in found.rows.items()}
        return type(found)(rows, rounded(found.vectors))

    monkeypatch.setattr(type(model), "encode", encode)
    conditioning = encoded(model, ["A cat", "a dog", "a cat", "a dig", "a cat."], np.arange(5))
    assert same_prompts(conditioning).tolist() == [0, 1, 0, 3, 4]
    assert same_rows(conditioning, np.arange(5)).tolist() == [0, 1, 0, 3, 4]


@pytest.mark.parametrize("prior_tau", [0.0, 0.5, 1e6])
def test_a_prior_that_draws_does_not_make_equal_texts_different(prior_tau):
    """Their image embeddings differ, because their seeds do; so do those of a repeat."""
    pipe = tiny.k22_combined()
    pair = ["A cat", "a cat"]
    model = hsd.load(pipe, height=64, width=64, prior_steps=3, prior_tau=prior_tau)
    plan = hsd.compile([*pair, "a dog"], 1e6, model=model, steps=STEPS, seeds=SEEDS)
    assert roots(plan) == {frozenset({0, 2}), frozenset({1})}
    conditioning = encoded(model, [*pair, "a dog"], SEEDS)
    assert same_prompts(conditioning).tolist() == [0, 0, 2]
    assert np.abs(conditioning.vectors[0] - conditioning.vectors[1]).max() > 0.01  # nor does the prior share for them
    alone = encoded(hsd.load(pipe, height=64, width=64, prior_steps=3), pair[1:], SEEDS[1:2])
    np.testing.assert_allclose(conditioning.vectors[1], alone.vectors[0], rtol=1e-4, atol=1e-4)


def test_twins_of_other_settings_are_clustered_with_their_own(stochastic):
    own = [{"guidance_scale": 2.0}, {"guidance_scale": 2.0}, {"guidance_scale": 5.0}, {"guidance_scale": 5.0}]
    plan = hsd.compile(["a cat", "a dog", "A cat", "a dog"], 1e6, model=stochastic[1], steps=STEPS, settings=own)
    assert roots(plan) == {frozenset({0, 1}), frozenset({2, 3})}


# -- at a run: plans that were clustered by something else


@pytest.fixture(scope="module")
def seen_as_different():
    """A plan whose embeddings tell apart what the model does not: twins in two clusters, none in the third."""
    prompts = ["A cat", "a dog", "a cat", "the sea", "THE SEA", "the  sea", "two birds", "a bird"]
    e = np.repeat(np.eye(3), [3, 3, 2], axis=0) + 0.02 * np.random.default_rng(0).normal(size=(8, 3))
    plan = hsd.compile(prompts, 0.5, embeddings=e, steps=STEPS, seeds=20)
    assert roots(plan) == {frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6, 7})}
    return plan


def test_a_run_sets_them_apart(stochastic, seen_as_different, tmp_path):
    pipe, model = stochastic
    plan = seen_as_different
    run = hsd.generate(plan, model, tmp_path, progress=False)
    assert roots(run.plan) == {frozenset(s) for s in ({0, 1}, {2}, {3}, {4}, {5}, {6, 7})}
    assert run.node_steps == run.plan.node_steps > plan.node_steps
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "height": 32, "width": 32}
    images = images_of(plan, model)
    for i in (2, 3, 4, 5):
        expected = pipe(plan.prompts[i], generator=torch.Generator().manual_seed(20 + i), **call).images[0]
        assert mean_difference(images[i], expected) < 0.5
    # A cluster without twins is what it was: the plan of its prompts alone.
    alone = hsd.compile(["two birds", "a bird"], 1.0, embeddings=1 + 1e-3 * np.eye(2), steps=STEPS, seeds=26)
    for i, image in images_of(alone, model).items():
        assert mean_difference(images[i + 6], image) < 0.5
    assert mean_difference(images[6], images[7]) < 5 < mean_difference(images[3], images[4])


def test_parts_of_the_plan_are_set_apart_alike(stochastic, seen_as_different, tmp_path):
    """Shards, single images and a plan from a file, each of which knows only the prompts of its own clusters."""
    model, plan = stochastic[1], seen_as_different
    whole = images_of(plan, model)
    plan.save(tmp_path / "plan.safetensors")
    parts = [*plan.shard(3), *(hsd.Plan.load(tmp_path / "plan.safetensors").prune([i]) for i in range(8))]
    for part in parts:
        images = images_of(part, model)
        assert sorted(images) == part.kept.tolist()
        for i, image in images.items():
            assert mean_difference(image, whole[i]) < 0.5


def test_a_stopped_run_is_continued_with_the_same_images(stochastic, seen_as_different, tmp_path):
    model, plan = stochastic[1], seen_as_different
    whole = images_of(plan, model)
    hsd.generate(plan.prune([1, 4]), model, tmp_path, progress=False)
    run = hsd.generate(plan, model, tmp_path, progress=False)
    assert (run.images, run.existing) == (6, 2)
    import PIL.Image

    for i, image in whole.items():
        assert mean_difference(PIL.Image.open(tmp_path / f"{i:05d}.png"), image) < 0.5


def test_equal_vectors_are_not_enough_where_the_model_reads_on():
    """Flux is clustered by CLIP, which stops at token 77; T5 reads on, and the user's embeddings say so too."""
    model = hsd.load(tiny.flux(), height=64, width=64)
    prompts = [LONG + "a dog", LONG + "a cat", LONG + "a dog "]
    conditioning = encoded(model, prompts, SEEDS)
    assert same_prompts(conditioning).tolist() == [0, 0, 0]
    assert same_rows(conditioning, np.arange(3)).tolist() == [0, 1, 2]  # its T5 here has one token per byte
    plan = hsd.compile(prompts, 1.0, embeddings=1 + 1e-2 * np.eye(3), steps=STEPS)
    assert len(roots(plan)) == 1
    list(hsd.stream(plan, model))
    # By its own embeddings they are at distance 0, which would be one picture.
    assert len(roots(hsd.compile(prompts, 1.0, model=model, steps=STEPS))) == 3


def test_a_plan_that_needs_no_change_is_run_as_it_is(stochastic, plan, model):
    from hsd.generation.session import Options, Session

    session = Session(plan, model, Options())
    list(session.images(plan, None))
    assert session.plan is plan


# -- without a model: equal vectors


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3.7, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equal_embeddings_never_mean_one_picture(scale, metric):
    e = np.random.default_rng(0).normal(size=(5, 6)) * scale
    e[3] = e[1] * (1 + 3e-7)
    plan = hsd.compile([f"prompt {i}" for i in range(5)], 1e32, embeddings=e, steps=5, metric=metric)
    assert roots(plan) == {frozenset({0, 1, 2, 4}), frozenset({3})}
    e[3] = 2 * e[1]  # the same direction: cosine distance 0
    plan = hsd.compile([f"prompt {i}" for i in range(5)], 1e32, embeddings=e, steps=5, metric=metric)
    assert len(roots(plan)) == (2 if metric == "cosine" else 1)


def test_near_embeddings_are_the_users_concern():
    e = np.random.default_rng(0).normal(size=(5, 6))
    e[3] = e[1] * (1 + 1e-4 * np.arange(6))
    assert len(roots(hsd.compile([f"prompt {i}" for i in range(5)], 1e6, embeddings=e, steps=5))) == 1


@pytest.mark.parametrize("form", [np.float64, np.float32, np.float16, "bfloat16", "integers"])
def test_equal_embeddings_of_any_kind(form):
    e = np.random.default_rng(3).integers(1, 50, size=(40, 7))
    e[30] = e[4]
    array = {"bfloat16": lambda: torch.from_numpy(e).to(torch.bfloat16), "integers": lambda: e}.get(
        form, lambda: e.astype(form)
    )()
    plan = hsd.compile([f"prompt {i}" for i in range(40)], 1e6, embeddings=array, steps=3)
    assert roots(plan) == {frozenset(range(40)) - {30}, frozenset({30})}


def test_rows_of_zeros_are_equal_where_lengths_count():
    e = np.zeros((3, 4))
    e[1] = 1.0
    plan = hsd.compile(["a", "b", "c"], 10.0, embeddings=e, metric="euclidean", steps=3)
    assert roots(plan) == {frozenset({0, 1}), frozenset({2})}


def test_the_built_in_encoder_repeats_nothing_that_it_reads_alike():
    plan = hsd.compile(["a cat", "a dog", "a\u00a0cat", "a cat"], 1e6, steps=3)
    assert len(roots(plan)) >= 2  # the repeat
    plan = hsd.compile(["dog bites man", "man bites dog"], 1e6, steps=3)
    assert len(roots(plan)) == 1  # the order is heard: two prompts that may share


# -- the parts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 10**6), st.booleans())
def test_equal_rows_are_found_as_by_comparing_all_pairs(n, d, seed, cosine):
    random = np.random.default_rng(seed)
    e = random.normal(size=(n, d)).astype(np.float32)[random.integers(0, n, size=n)]
    e *= 1 + 1e-7 * random.normal(size=(n, d)).astype(np.float32)
    if cosine:
        e *= random.uniform(0.1, 10, size=(n, 1)).astype(np.float32)
    unit = e / np.linalg.norm(e, axis=1, keepdims=True) if cosine else e
    apart = np.linalg.norm(unit[:, None].astype(float) - unit, axis=2)
    equal = apart <= 1e-5 * np.linalg.norm(unit, axis=1)
    assert same_vectors(as_vectors(e, n, "e"), cosine=cosine).tolist() == equal.argmax(axis=1).tolist()


def test_equal_rows_among_many():
    random = np.random.default_rng(0)
    e = random.normal(size=(30_000, 48)).astype(np.float32) + 3
    source = random.integers(0, 20_000, size=10_000)
    e[20_000:] = e[source] * (1 + 1e-7)
    expected = np.concatenate([np.arange(20_000), source])
    assert same_vectors(as_vectors(e, len(e), "e"), cosine=True).tolist() == expected.tolist()


def test_replicas_of_several_labels():
    variant = np.array([0, 0, 0, 0, 1])
    text, vector = np.array([0, 1, 0, 3, 0]), np.array([0, 0, 2, 2, 0])
    # 1 has the vector of 0; 2 its text; 3 the vector of 2. Image 4 has other settings.
    assert (replicas([text, vector], variant) // 2).tolist() == [0, 1, 1, 2, 0]
    assert replicas([text], variant).tolist() == [0, 0, 2, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from(["ward", "centroid", "average"]), st.integers(0, 10**6))
def test_a_tree_taken_apart_has_the_clusters_of_the_tree_divided(n, linkage, seed):
    random = np.random.default_rng(seed)
    tree = _core.Tree.build(random.normal(size=(n, 3)), linkage)
    part = random.integers(0, 3, size=n)
    found = split_tree(tree, part)
    for height in [*tree.heights, *np.nextafter(tree.heights, np.inf), 1e300]:
        labels = [tuple(one) for one in zip(tree.cut(height), part, strict=True)]
        expected = {frozenset(i for i in range(n) if labels[i] == one) for one in set(labels)}
        cut = found.cut(height)
        assert {frozenset(np.flatnonzero(cut == one).tolist()) for one in set(cut.tolist())} == expected


# -- nothing to cluster


def test_nothing_is_clustered_where_nothing_is_shared(monkeypatch):
    monkeypatch.setattr("hsd.planning.compile.replica_tree", lambda *_: pytest.fail("clustered"))
    monkeypatch.setattr("hsd.planning.compile.default_encoder", lambda: pytest.fail("encoded"))
    for embeddings in (np.zeros((3, 4)), np.full((3, 4), 1e30), None):
        seen = {}
        plan = hsd.compile(["a", "b", "a"], 0.0, embeddings=embeddings, steps=5, progress=seen.__setitem__)
        assert plan.counts().tolist() == [3] * 5
        assert seen["cluster"] == 1.0
    with pytest.raises(ValueError, match="embedding 1 holds NaN at column 2"):
        hsd.compile(["a", "b"], 0.0, embeddings=[[1, 1, 1], [1, 1, np.nan]])
    with pytest.raises(ValueError, match="embedding 1 is all zeros"):
        hsd.compile(["a", "b"], 0.1, embeddings=[[1, 1, 1], [0, 0, 0]])
