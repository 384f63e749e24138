"""Variations of images of a plan: which steps they share, what they begin with, and what is refused."""

from __future__ import annotations

import copy
import inspect
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
import tiny
from algorithm1 import caught_up
from disk import check_lines, check_pixels, images
from families import EVERY
from families.measure import EMBEDDINGS, SHARED_PROMPTS, SHARED_SEEDS, owner
from helpers import PROMPTS, latents_of, make_scheduler
from hsd.generation.trunks import TRUNKS
from hsd.generation.variations import fresh_noise
from hsd.planning.vary import fork_step

K = 10


def random_plan(seed, n=7, tau=3.0, linkage="ward", metric="cosine", **options):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(3, 5))[rng.integers(3, size=n)] + 0.3 * rng.normal(size=(n, 5))
    options = {"steps": K, "linkage": linkage, "metric": metric, **options}
    return hsd.compile([f"prompt {i}" for i in range(n)], tau, embeddings=vectors, **options)


@pytest.fixture
def small():
    return random_plan(1, seeds=50)


def clusters_of(plan, k, among):
    """The clusters of a step, of some prompts."""
    active = plan.active(k)
    return {frozenset(i for i in among if active[i] == segment) for segment in set(active[list(among)].tolist())}


# -- plans


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 9),
    tau=st.sampled_from([0.2, 0.9, 3.0]),
    kind=st.sampled_from(
        [("ward", "cosine"), ("average", "euclidean"), ("complete", "cosine"), ("centroid", "cosine")]
    ),
    depth=st.floats(0.01, 0.99),
    calls=st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
def test_each_leaves_its_cluster_at_the_step_and_nothing_else_changes(seed, n, tau, kind, depth, calls):
    plan = random_plan(seed, n, tau, *kind)
    rng = np.random.default_rng(seed)
    step, large = fork_step(plan.phi, depth), plan
    chosen = np.flatnonzero(rng.random(n) < 0.7)
    for more in calls:
        large = large.whole().more(more, chosen if len(chosen) else None, depth).whole()
    of = large.variations
    assert sorted(of) == list(range(n, large.n_prompts))
    assert sorted(of.values()) == sorted((chosen if len(chosen) else np.arange(n)).tolist() * max(calls))
    for k in range(K):
        active = large.active(k).tolist()
        assert clusters_of(large, k, range(n)) == clusters_of(plan, k, range(n))
        for variation, original in of.items():
            assert (active[variation] == active[original]) == (k < step)
            if k >= step:
                assert active.count(active[variation]) == 1
    assert large.node_steps == plan.node_steps + len(of) * (K - step)
    assert [i for i in large.tree.leaf_order.tolist() if i < n] == plan.tree.leaf_order.tolist()
    joins = np.isin(large.tree.merges, list(of)).any(axis=1)
    assert np.array_equal(np.sort(large.tree.heights[~joins]), np.sort(plan.tree.heights))
    # What shared clusters are conditioned on, and whose noise they have, does not change.
    for k in range(K):
        for i in range(n):
            a, b = int(plan.active(k)[i]), int(large.active(k)[i])
            assert plan.segments["representative"][a] == large.segments["representative"][b]
            assert sorted(plan.layers().members(a)) == sorted(large.layers().members(b))


@pytest.mark.parametrize("depth", [0.05, 0.31, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_step_is_the_nearest_at_which_clusters_split(depth, schedule):
    phi = random_plan(0, schedule=schedule).phi
    falls = [k for k in range(1, K) if phi[k] < phi[k - 1]]
    assert abs(fork_step(phi, depth) - depth * K) == min(abs(k - depth * K) for k in falls)


def test_the_same_call_adds_nothing(small):
    two = small.more(2, [3, 0])
    assert two.more(2, [0, 3]).fingerprint == two.fingerprint
    assert two.more(1, [0, 3]).n_prompts == two.n_prompts
    assert two.variations == {7: 0, 8: 0, 9: 3, 10: 3}
    three = two.more(3, [0])
    assert (three.n_prompts, three.variations[11]) == (12, 0)
    assert three.kept.tolist() == [0, 7, 8, 11]
    assert (three.extensions, len(set(three.grown_from))) == ((7, 11), 2)
    assert three.grown_from == (small.fingerprint, two.whole().fingerprint)


def test_what_is_kept(small):
    assert small.more(1).kept.tolist() == list(range(14))
    assert small.more(2, [5, 2, 5]).kept.tolist() == [2, 5, 7, 8, 9, 10]
    part = small.prune([1, 4]).more(1)
    assert part.kept.tolist() == [1, 4, 7, 8]
    assert part.n_prompts == 9
    assert part.more(2).variations == {7: 1, 8: 4, 9: 1, 10: 4}


def test_prompts_settings_columns_and_seeds_are_those_of_the_original():
    own = [{}, {"guidance_scale": 2.0}, {"guidance_scale": 2.0}, {}]
    columns = {"id": list("abcd"), "none": [None, 1, None, 2]}
    seeds = [9, 3, 40, 5]
    plan = random_plan(2, 4, settings=own, columns=columns, seeds=seeds)
    large = plan.more(2, [1, 3]).whole()
    assert large.prompts == [*plan.prompts, *(plan.prompts[i] for i in (1, 1, 3, 3))]
    assert large.seeds.tolist() == [*seeds, 41, 42, 43, 44]
    assert [large.settings[i] for i in large.setting] == [*own, own[1], own[1], own[3], own[3]]
    assert large.columns == {"id": list("abcdbbdd"), "none": [None, 1, None, 2, 1, 1, 2, 2]}
    assert plan.columns == columns
    rows = plan.vectors.array
    assert np.array_equal(large.vectors.array, rows[[0, 1, 2, 3, 1, 1, 3, 3]])


@pytest.mark.parametrize(
    ("arguments", "raised", "says"),
    [
        ({"n": 0}, ValueError, "n is 0"),
        ({"n": -2}, ValueError, "n is -2"),
        ({"n": 1.5}, TypeError, "1.5"),
        ({"n": "2"}, TypeError, "'2'"),
        ({"n": True}, TypeError, "True"),
        ({"depth": 0}, ValueError, "depth is 0: .*above 0"),
        ({"depth": 1.0}, ValueError, "depth is 1.0: .*below 1"),
        ({"depth": -0.5}, ValueError, "depth is -0.5"),
        ({"depth": float("nan")}, ValueError, "depth is nan"),
        ({"depth": "deep"}, TypeError, "'deep'"),
        ({"depth": True}, TypeError, "True"),
        ({"depth": None}, TypeError, "None"),
        ({"prompts": [7]}, ValueError, "prompt 7 is not in the plan, which has 7"),
        ({"prompts": [-1]}, ValueError, "prompt -1 is not in the plan"),
        ({"prompts": []}, ValueError, "prompts has to hold the numbers"),
        ({"prompts": [0.5]}, ValueError, "prompts has to hold the numbers"),
        ({"prompts": ["a cat"]}, ValueError, "prompts has to hold the numbers"),
        ({"prompts": [True]}, ValueError, "prompts has to hold the numbers"),
    ],
    ids=str,
)
def test_what_means_nothing(small, arguments, raised, says):
    with pytest.raises(raised, match=says):
        small.more(**{"n": 1, **arguments})


def test_a_variation_of_a_variation_is_refused(small):
    large = small.more(1, [4]).whole()
    with pytest.raises(ValueError, match="prompt 7 is a variation of prompt 4: name that one"):
        large.more(1, [0, 7])
    assert large.more(1).variations.keys() == set(range(7, 14))  # of all others


def test_a_plan_that_shares_nothing_says_what_to_do():
    with pytest.raises(ValueError, match=r"shares no step \(tau is 0\).*compile one with a tau above 0"):
        random_plan(0, tau=0.0).more(1)


def test_one_prompt_alone():
    plan = hsd.compile(["a cat"], 0.9, embeddings=np.ones((1, 3)), steps=K)
    large = plan.more(3, depth=0.5)
    assert large.variations == {1: 0, 2: 0, 3: 0}
    assert large.counts().tolist() == [1] * 5 + [4] * 5


# -- files and lists


def test_save_and_load(small, tmp_path):
    large = small.more(2, [1, 6])
    large.save(tmp_path / "plan.safetensors")
    loaded = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert loaded.variations == large.variations == {7: 1, 8: 1, 9: 6, 10: 6}
    assert loaded.fingerprint == large.fingerprint
    assert loaded.kept.tolist() == large.kept.tolist()
    assert loaded.more(2, [1, 6]).fingerprint == large.fingerprint
    assert loaded.more(3, [1]).fingerprint == large.more(3, [1]).fingerprint


def test_the_fingerprint_knows_what_is_a_variation(small):
    large = small.more(1, [2]).whole()
    request = {name: value for name, value in large.request.items() if name != "variations"}
    others = [request, {**request, "variations": [[7, 3]]}]
    prints = {hsd.Plan(large._core, large.prompts, large.seeds, own).fingerprint for own in (large.request, *others)}
    assert len(prints) == 3


HOSTILE = [
    [[7, 7]],
    [[7, 9]],
    [[7, -1]],
    [[99, 0]],
    [[7]],
    [[7, 0, 1]],
    [7],
    7,
    {"7": 0},
    "70",
    [["7", "0"]],
    [[7.5, 0]],
    [[7, None]],
    [[7, True]],
    [[7, 1e300]],
]


@pytest.mark.parametrize("value", HOSTILE, ids=json.dumps)
def test_files_from_anywhere(small, tmp_path, value):
    large = small.more(1, [0, 1]).whole()
    path = tmp_path / "plan.safetensors"
    hsd.Plan(large._core, large.prompts, large.seeds, {**large.request, "variations": value}).save(path)
    with pytest.raises(hsd.Error, match="is not a plan that can be used: .*variations"):
        hsd.Plan.load(path)


def test_a_list_says_nothing_of_variations(small):
    """Its prompts are found, a repeat is new although a variation has that text, and variations are left out."""
    rows, large = small.vectors.array, small.more(2, [0, 1]).whole()
    same = hsd.compile(small.prompts, 3.0, embeddings=rows, steps=K, seeds=50, extend=large)
    assert same.fingerprint == large.fingerprint
    assert same.kept.tolist() == list(range(7))
    longer = [*small.prompts, small.prompts[0], "another"]
    found = hsd.compile(
        longer, 3.0, embeddings=np.concatenate([rows, rows[:1], rows[1:2] + 0.1]), steps=K, seeds=50, extend=large
    )
    assert found.kept.tolist() == [*range(7), 11, 12]
    assert found.variations == large.variations
    assert found.prompts[11:] == longer[7:]
    assert found.active(0)[11] != found.active(0)[0]  # a twin


# -- images, by hand: the pipeline's own network and scheduler, one prompt at a time


FAMILY = {family.name: family for family in EVERY}


def members_of(plan, leaves):
    """The prompts of a cluster that count in its mean: not those that came after its lowest one."""

    def layer(i):
        return sum(i >= begin for begin in plan.extensions)

    return [i for i in leaves if layer(i) <= layer(min(leaves))]


def predicted_image(scheduler, stepped, output, t, latent):
    """The x0 of a step, as the scheduler tells it; for flow matching latent = (1 - sigma) x0 + sigma noise."""
    x0 = getattr(stepped, "pred_original_sample", None)
    if x0 is not None:
        return x0
    sigma = scheduler.sigmas[scheduler.timesteps.tolist().index(float(t))]
    return latent - sigma * output


def noised(scheduler, x0, noise, t):
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x0, t[None], noise)
    return scheduler.add_noise(x0, noise, t[None])


def by_hand(family, pipe, plan, prompt, gamma):
    """The latent of one prompt: along the clusters that hold it, from noise to image."""
    own = copy.deepcopy(owner(pipe).scheduler)
    family.set_timesteps(own, family.steps, family.size)
    takes_generator = "generator" in inspect.signature(own.step).parameters
    draws = type(own).__name__ in ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
    conditioning = family.conditioning(pipe, plan.prompts)
    evaluate = family.evaluate(pipe, family.guided, family.size)
    lowest, given_before, x0, latent = None, [], None, None
    for k, t in enumerate(own.timesteps):
        active = plan.active(k)
        leaves = np.flatnonzero(active == active[prompt]).tolist()
        if leaves[0] != lowest:
            lowest = leaves[0]
            generator = family.generator(pipe, int(plan.seeds[lowest]))
            if k == 0:
                latent = family.first_noise(pipe, family.size, generator) * getattr(own, "init_noise_sigma", 1.0)
            elif lowest in plan.variations and not draws:
                assert leaves == [prompt]
                latent = noised(own, x0, family.first_noise(pipe, family.size, generator), t)
        x = own.scale_model_input(latent, t) if family.scales_input else latent
        row = caught_up(family.mean([conditioning[i] for i in members_of(plan, leaves)]), given_before, gamma)
        output = evaluate(x, t, row)
        given_before = [*given_before, row]
        before = copy.deepcopy(own)
        stepped = own.step(output, t, latent, **({"generator": generator} if takes_generator else {}))
        x0, latent = predicted_image(before, stepped, output, t, latent), stepped.prev_sample.float()
    return latent


def varied_plan(model, steps, tau=0.8):
    plan = hsd.compile(SHARED_PROMPTS, tau, embeddings=EMBEDDINGS, model=model, steps=steps, seeds=SHARED_SEEDS)
    return plan, plan.more(2, [1, 4], depth=0.6).more(1, [5], depth=0.4).whole()


def relative(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("name", "scheduler", "gamma"),
    [
        ("stable-diffusion", "ddim", 0.0),
        ("stable-diffusion", "ddim", 1.0),
        ("stable-diffusion", "euler", 1.0),
        ("stable-diffusion", "ddpm", 0.0),
        ("stable-diffusion", "euler-ancestral", 0.0),
        ("stable-diffusion-3", None, 1.0),
    ],
)
def test_a_variation_is_what_diffusers_makes_of_the_shared_image(name, scheduler, gamma):
    family = FAMILY[name]
    pipe = family.build()
    if scheduler is not None:
        pipe.scheduler = make_scheduler(scheduler, tiny.sd_ddim().config)
    model = hsd.load(pipe, **family.settings(family.guided, family.size))
    base, plan = varied_plan(model, family.steps)
    fresh = fresh_noise(plan, model, model.sampler(family.steps))
    assert (fresh is None) == (scheduler in ("ddpm", "euler-ancestral"))
    ours = latents_of(plan, model, {"catch_up": gamma, "fresh": fresh}, batch_size=3)
    for i in (1, 6, 7, 8, 10):
        expected = by_hand(family, pipe, plan, i, gamma)
        assert relative(ours[i], expected) < 2e-5
        if i in plan.variations:
            assert relative(ours[i], ours[plan.variations[i]]) > 1e-3
    alone = latents_of(base, model, {"catch_up": gamma}, batch_size=3)
    assert max(relative(ours[i], alone[i]) for i in range(6)) < 10 * family.tolerance


# -- folders


STEPS = 6


def loaded(name):
    return hsd.load(tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config)), height=32, width=32)


def run(plan, model, out, **options):
    return hsd.generate(plan, model, out, **{"batch_size": 1, "progress": False, **options})


def test_trunks_change_no_image_and_save_the_shared_steps(tmp_path):
    model = loaded("dpm++2m")  # which remembers an x0, that of the shared step
    base = hsd.compile(PROMPTS[:3], 0.9, model=model, steps=STEPS, seeds=100)
    one, two = base.more(1, [0, 2], 0.6), base.more(1, [0, 2], 0.6).more(2, [0, 2], 0.6)
    step = fork_step(base.phi, 0.6)
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    for out, keep in ((plain, False), (kept, True)):
        run(base, model, out, keep_trunks=keep)
        before = images(out)
        run(one, model, out, keep_trunks=keep)
        result = run(two, model, out, keep_trunks=keep)
        assert (result.images, result.existing) == (2, 4)  # prompt 1 is not asked for
        assert before.items() <= images(out).items()
        assert len(images(out)) == len(set(images(out).values())) == 7
        check_lines(out, two.whole())
    assert result.node_steps == 2 * (STEPS - step)
    assert result.record["trunks"]["node_steps_saved"] > 0
    assert (kept / TRUNKS).is_dir()
    check_pixels(kept, plain, within=1)
    at_once = tmp_path / "at once"
    run(two.whole(), model, at_once, batch_size=4)
    check_pixels(kept, at_once, within=1)
    # Any of them again, from what was kept.
    for i in (3, 5):
        (kept / f"{i:05d}.png").unlink()
        assert run(two, model, kept).node_steps == STEPS - step
    check_pixels(kept, plain, within=1)


def test_a_variation_that_a_new_prompt_forks_from_goes_on_by_itself(tmp_path):
    """With trunks it begins anew at that fork: with its own latent, and not with fresh noise a second time."""
    model, rng = loaded("ddim"), np.random.default_rng(1)
    rows = rng.normal(size=(2, 6))
    rows[1] = rows[0] + 0.1 * rng.normal(size=6)
    options = {"steps": STEPS, "seeds": 1, "metric": "euclidean", "catch_up": 0.0}
    plan = hsd.compile(PROMPTS[:2], 3.0, embeddings=rows, model=model, **options)
    plan = plan.more(1, [0], 0.3).whole()
    plan = plan.extend(PROMPTS[2:3], embeddings=rows[:1] + 0.4 * rng.normal(size=6))
    (shared,) = [row for row in plan.segments if row["representative"] == 2 and row["leaf_end"] - row["leaf_begin"] > 1]
    assert 0 < shared["first_step"] < shared["end_step"] < STEPS
    run(plan, model, tmp_path / "kept", keep_trunks=True)
    shutil.copytree(tmp_path / "kept", tmp_path / "again")
    for i in (2, 3):
        (tmp_path / "again" / f"{i:05d}.png").unlink()
    assert run(plan, model, tmp_path / "again").node_steps == 2 * (STEPS - shared["end_step"])
    check_pixels(tmp_path / "again", tmp_path / "kept", within=1)


def test_a_scheduler_that_remembers_noise_is_refused_before_anything_changes(tmp_path):
    model, out = loaded("unipc"), tmp_path / "images"
    plan = hsd.compile(PROMPTS[:3], 0.9, model=model, steps=STEPS, seeds=100)
    run(plan, model, out)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    more = plan.more(1, [0])
    with pytest.raises(hsd.UnsupportedScheduler, match="cannot make variations.*remembers the noise.*DDIM"):
        run(more, model, out)
    with pytest.raises(hsd.UnsupportedScheduler, match="cannot make variations"):
        next(hsd.stream(more, model))
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    with pytest.raises(hsd.UnsupportedScheduler, match="cannot make variations"):
        run(more, model, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.png"))


def test_a_variation_of_a_twin_is_no_twin(tmp_path):
    """Images whose prompts the model cannot tell apart share no step; variations share those of their own image."""
    model = loaded("ddim")
    plan = hsd.compile(["a cat", "a cat", "a dog"], 0.9, model=model, steps=STEPS, seeds=1).more(1, depth=0.5)
    result = run(plan, model, tmp_path)
    step = fork_step(plan.phi, 0.5)
    assert result.images == len(set(images(tmp_path).values())) == 6
    for variation, original in plan.variations.items():
        assert plan.active(step - 1)[variation] == plan.active(step - 1)[original]
    assert result.node_steps == plan.node_steps
