"""Sets that grow: by Algorithm 1 with layers, images that stay, what a longer list means, and kept trunks."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
import tiny
from algorithm1 import algorithm1
from disk import check_lines, check_pixels, images, lines
from families import EVERY
from families.measure import EMBEDDINGS, SHARED_PROMPTS, SHARED_SEEDS, owner, with_scheduler
from helpers import PROMPTS, encoded, latents_of, make_scheduler, rows_of
from hsd.generation.trunks import TRUNKS
from hsd.planning.twins import same_texts

NEW = ["a cat in the sun", "the sea by night", "a purple elephant"]
"""One joins each family, one joins nobody."""

FAMILY = {family.name: family for family in EVERY}


# -- Algorithm 1 with layers


ADDED = ["a cat on a mat, seen from above by a very tall painter", "the sea at noon", "a green bicycle", "a fox"]
ADDED_SEEDS = [70, 30, 90, 10]
# The first is in the first family, and longer than all of the base; the last joins the second.
_NEAR = np.random.default_rng(8).normal(size=(4, 12))
ADDED_ROWS = EMBEDDINGS[[0, 3, 5, 4]] + 0.4 * _NEAR


def grown_plan(model, steps):
    """Three layers: of six, two and two prompts."""
    plan = hsd.compile(SHARED_PROMPTS, 0.8, embeddings=EMBEDDINGS, model=model, steps=steps, seeds=SHARED_SEEDS)
    for some in (slice(0, 2), slice(2, 4)):
        plan = plan.extend(ADDED[some], embeddings=ADDED_ROWS[some], seeds=ADDED_SEEDS[some])
    return plan


def layer_of(plan, prompt):
    return sum(prompt >= begin for begin in plan.extensions)


def members_of(plan, leaves):
    """The prompts of a cluster that count in its mean: not those that came after its lowest one."""
    return [i for i in leaves if layer_of(plan, i) <= layer_of(plan, min(leaves))]


def witness(family, pipe, plan, gamma, members=members_of):
    """Latents by Algorithm 1 around the networks themselves, and the rows that it evaluated."""
    family.seeds = plan.seeds.tolist()
    conditioning = family.conditioning(pipe, plan.prompts)
    own = getattr(owner(pipe), family.scheduler)
    return algorithm1(
        plan.tree,
        plan.phi,
        lambda scheduler: family.set_timesteps(scheduler, family.steps, family.size),
        own,
        plan.seeds,
        mean=lambda leaves: family.mean([conditioning[i] for i in members(plan, leaves)]),
        evaluate=family.evaluate(pipe, family.guided, family.size),
        first_noise=lambda generator: family.first_noise(pipe, family.size, generator),
        new_generator=lambda seed: family.generator(pipe, seed),
        scale_input=family.scales_input,
        step_kwargs=family.step_kwargs(own),
        catch_up=gamma,
    )


def error(ours, expected):
    return max(float((ours[i] - latent).abs().max() / latent.abs().max()) for i, latent in expected.items())


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("kandinsky-2.2", "ddim"),
        ("kandinsky-2.2", "euler-ancestral"),
        ("pixart-sigma", "unipc"),
        ("pixart-sigma", "euler-ancestral"),
    ],
)
def test_a_grown_plan_is_algorithm_1_with_layers(name, scheduler, gamma):
    family = FAMILY[name]
    pipe = with_scheduler(family, scheduler)
    model = hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))
    plan = grown_plan(model, family.steps)
    assert plan.extensions == (6, 8)
    assert len(ADDED[0]) > max(map(len, SHARED_PROMPTS))
    # Some of each layer share steps with an earlier one, and fork at different steps.
    later = [row for row in plan.segments if row["representative"] >= 6 and row["parent"] >= 0]
    assert {layer_of(plan, int(row["representative"])) for row in later} == {1, 2}
    expected, rows = witness(family, pipe, plan, gamma)
    assert rows == plan.node_steps
    ours = latents_of(plan, model, {"catch_up": gamma}, batch_size=3)
    assert error(ours, expected) < 10 * family.tolerance
    # The mean over all members would be seen, in the images of the base too.
    plain, _ = witness(family, pipe, plan, gamma, members=lambda plan, leaves: leaves)
    assert error({i: ours[i] for i in range(6)}, {i: plain[i] for i in range(6)}) > 1e-3
    if gamma == 1.0 and scheduler != "euler-ancestral":
        base = hsd.compile(
            SHARED_PROMPTS, 0.8, embeddings=EMBEDDINGS, model=model, steps=family.steps, seeds=SHARED_SEEDS
        )
        alone = latents_of(base, model, {"catch_up": gamma}, batch_size=3)
        assert error({i: ours[i] for i in range(6)}, alone) < 10 * family.tolerance


# -- folders


STEPS = 4


def listed(prompts, model, out=None, **options):
    """The plan of a list, which continues the folder ``out``."""
    options = {"tau": 0.9, "seeds": 100, **options}
    return hsd.compile(prompts, model=model, steps=STEPS, extend=out, **options)


def run(plan, model, out, **options):
    return hsd.generate(plan, model, out, **{"batch_size": 1, "progress": False, **options})


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """A folder of the eight, with all trunks. Not to be changed."""
    out = tmp_path_factory.mktemp("base") / "images"
    run(listed(PROMPTS, model), model, out, keep_trunks=True)
    return out


@pytest.fixture
def folder(base, tmp_path):
    """A copy without trunks."""
    shutil.copytree(base, tmp_path / "images", ignore=shutil.ignore_patterns(TRUNKS))
    return tmp_path / "images"


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}


def test_a_folder_grows(model, folder, base):
    """New images are made, old files stay; lines are in order; a second and a third time."""
    lists = [PROMPTS + NEW, [*PROMPTS, *NEW, "a dog at night"], [*PROMPTS, *NEW, "a dog at night", "a cat, in oil"]]
    for prompts, made in zip(lists, (3, 1, 1), strict=True):
        before, written = images(folder), times(folder)
        plan = listed(prompts, model, folder)
        result = run(plan, model, folder)
        assert (result.images, result.existing) == (made, len(prompts) - made)
        assert before.items() <= images(folder).items()
        assert written.items() <= times(folder).items()
        assert plan.prompts == prompts
        assert plan.seeds.tolist() == [100 + i for i in range(len(prompts))]
        check_lines(folder, plan)
        assert hsd.Plan.load(folder / "plan.safetensors").fingerprint == plan.fingerprint
        assert json.loads((folder / "identity.json").read_text())["plan"] == plan.fingerprint
    assert plan.extensions == (8, 11, 12)
    assert len(set(plan.grown_from)) == 3
    assert plan.grown_from[0] == hsd.Plan.load(base / "plan.safetensors").fingerprint
    assert len(json.loads((folder / "run.json").read_text())["runs"]) == 4
    again = run(listed(lists[-1], model, folder), model, folder)
    assert (again.images, again.existing) == (0, 13)
    # Any earlier list: nothing is made, and nothing goes.
    before = images(folder)
    for prompts in (PROMPTS, *lists):
        found = listed(prompts, model, folder)
        assert len(found) == len(prompts)
        assert run(found, model, folder).images == 0
    assert images(folder) == before
    assert hsd.Plan.load(folder / "plan.safetensors").fingerprint == plan.fingerprint


@pytest.mark.parametrize(("name", "gamma"), [("ddim", 1.0), ("euler-ancestral", 0.0)])
def test_old_images_from_the_grown_plan_are_those_of_the_base(name, gamma, tmp_path):
    model = hsd.load(tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config)), height=32, width=32)
    small = listed(PROMPTS, model, catch_up=gamma)
    large = small.extend(NEW, model=model).extend(["a dog at night"], model=model)
    assert large.segments["borrowed"].sum() > 2
    run(small, model, tmp_path / "small", batch_size=4)
    run(large, model, tmp_path / "large", batch_size=4)
    for i in range(len(PROMPTS)):
        a, b = (np.asarray(PIL.Image.open(tmp_path / at / f"{i:05d}.png"), int) for at in ("small", "large"))
        assert np.abs(a - b).max() <= 1
    ours, expected = (latents_of(plan, model, {"catch_up": gamma}, batch_size=4) for plan in (large, small))
    assert error(ours, expected) < 1e-4
    # Compiled at once they would be others.
    at_once = latents_of(listed(large.prompts, model, catch_up=gamma), model, {"catch_up": gamma})
    assert error({i: at_once[i] for i in expected}, expected) > 1e-3


def test_columns_are_merged(model, tmp_path):
    first = listed(PROMPTS[:4], model, columns={"id": list("abcd"), "old": [1, 2, 3, 4]})
    run(first, model, tmp_path)
    columns = {"id": list("abcde"), "new": [5, 6, 7, 8, 9]}
    plan = listed([*PROMPTS[:4], "a hill"], model, tmp_path, columns=columns)
    assert plan.columns == {"id": list("abcde"), "old": [1, 2, 3, 4, None], "new": [5, 6, 7, 8, 9]}
    run(plan, model, tmp_path)
    found = lines(tmp_path)
    assert [line["id"] for line in found] == list("abcde")
    assert [line.get("old") for line in found] == [1, 2, 3, 4, None]
    assert found[4]["new"] == 9


def test_settings_of_new_prompts(model, tmp_path):
    """They share no step with prompts of other settings, and join those with the same."""
    own = [{}, {}, {"negative_prompt": "blurry"}, {}]
    run(listed(PROMPTS[:4], model, settings=own), model, tmp_path)
    new = ["a cat in the sun", "a small dog at night"]
    more = [*own, {"negative_prompt": "blurry"}, {"guidance_scale": 2.0}]
    plan = listed([*PROMPTS[:4], *new], model, tmp_path, settings=more, tau=0.9)
    assert [plan.settings[i] for i in plan.setting] == more
    for row in plan.segments:
        within = plan.tree.leaf_order[row["leaf_begin"] : row["leaf_end"]]
        assert len(set(plan.setting[within].tolist())) == 1
    assert (run(plan, model, tmp_path).images, plan.extensions) == (2, (4,))
    fresh = tmp_path / "fresh"
    run(plan, model, fresh)
    check_pixels(tmp_path, fresh, within=1)


def test_without_sharing(model, tmp_path):
    run(listed(PROMPTS[:3], model, tau=0.0), model, tmp_path)
    before = images(tmp_path)
    plan = listed([*PROMPTS[:3], "a hill", "a dog"], model, tmp_path, tau=0.0)
    assert run(plan, model, tmp_path).images == 2
    assert plan.node_steps == 5 * STEPS
    assert not plan.segments["borrowed"].any()
    assert before.items() <= images(tmp_path).items()
    run(listed([*PROMPTS[:3], "a hill", "a dog"], model, tau=0.0), model, tmp_path / "fresh")
    check_pixels(tmp_path, tmp_path / "fresh", within=1)


def test_several_images_per_prompt(model, tmp_path):
    run(listed(PROMPTS[:3], model, images_per_prompt=2), model, tmp_path)
    before = images(tmp_path)
    plan = listed([*PROMPTS[:3], "a cat in the sun"], model, tmp_path, images_per_prompt=2)
    assert (run(plan, model, tmp_path).images, plan.extensions) == (2, (6,))
    assert plan.prompts[6:] == ["a cat in the sun"] * 2
    assert plan.seeds.tolist() == list(range(100, 108))
    assert before.items() <= images(tmp_path).items()
    assert plan.active(0)[6] != plan.active(0)[7]
    assert images(tmp_path)["00006.png"] != images(tmp_path)["00007.png"]


def test_a_twin_shares_nothing_with_the_one_that_is_there(model, folder):
    plan = listed([*PROMPTS, PROMPTS[0], PROMPTS[0]], model, folder)
    assert run(plan, model, folder).images == 2
    assert len({int(plan.active(0)[i]) for i in (0, 8, 9)}) == 3
    found = images(folder)
    assert len({found[f"{i:05d}.png"] for i in (0, 8, 9)}) == 3


def test_a_twin_by_its_conditioning_alone(model, tmp_path):
    """By embeddings of the user that tell them apart, the model cannot."""
    vectors = np.random.default_rng(3).normal(size=(3, 4)) * 0.05 + 1
    plan = hsd.compile(["a cat", "a dog"], 9.0, embeddings=vectors[:2], model=model, steps=STEPS, seeds=1)
    run(plan, model, tmp_path)
    before = images(tmp_path)
    grown = plan.extend(["A  CAT"], embeddings=vectors[2:], seeds=[9])
    assert grown.active(0).tolist() == [0, 0, 0]
    a, b = rows_of(encoded(model, ["a cat", "A  CAT"], [1, 9]), "prompt_embeds")
    assert torch.equal(a, b)
    assert run(grown, model, tmp_path).images == 1
    assert before.items() <= images(tmp_path).items()
    assert len(set(images(tmp_path).values())) == 3


def test_prompts_that_are_left_out(model, folder):
    before, written = images(folder), times(folder)
    some = [PROMPTS[i] for i in (0, 1, 3)]
    plan = listed(some, model, folder, seeds=[100, 101, 103])
    assert plan.kept.tolist() == [0, 1, 3]
    assert (run(plan, model, folder).images, plan.n_prompts) == (0, 8)
    assert (images(folder), times(folder)) == (before, written)
    # With a new one, and without seeds the list is known as far as its indices are.
    plan = listed([*PROMPTS[:5], "a hill"], model, folder)
    assert plan.kept.tolist() == [0, 1, 2, 3, 4, 8]
    assert run(plan, model, folder).images == 1
    assert before.items() <= images(folder).items()
    # All come back.
    assert run(listed([*PROMPTS, "a hill"], model, folder), model, folder).images == 0


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"seeds": [100, 101, 102, 103, 104, 105, 106, 999]}, [7]),
        ({"settings": [{}] * 7 + [{"guidance_scale": 1.5}]}, [7]),
        ({"prompts": [*PROMPTS[:7], "a blue bicycle"]}, [7]),
        ({"prompts": [*PROMPTS[:3], "a hill", *PROMPTS[3:]]}, [3]),
    ],
    ids=["seed", "setting", "text", "in the middle"],
)
def test_what_is_another_prompt(model, folder, change, new):
    before = images(folder)
    prompts = change.pop("prompts", PROMPTS)
    plan = listed(prompts, model, folder, **change)
    assert plan.n_prompts == 8 + len(new)
    assert plan.prompts[8:] == [prompts[i] for i in new]
    if "seeds" not in change:
        assert plan.seeds.tolist() == [100 + i for i in range(plan.n_prompts)]
    assert run(plan, model, folder).images == len(new)
    assert before.items() <= images(folder).items()
    check_lines(folder, plan)
    assert run(listed(prompts, model, folder, **change), model, folder).images == 0


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (["a hill", "a lake"], {}, "prompt"),
        ([*PROMPTS, "a hill"], {"tau": 0.5}, "tau: 0.9 before, 0.5 now"),
        ([*PROMPTS, "a hill"], {"noise": "shared"}, "noise"),
        ([*PROMPTS, "a hill"], {"seeds": 5}, "seeds"),
        ([*PROMPTS, "a hill"], {"images_per_prompt": 2}, "prompt"),
    ],
    ids=["nothing in common", "tau", "noise", "seeds", "images per prompt"],
)
def test_what_does_not_continue_a_folder_is_refused(model, folder, prompts, options, says):
    before = images(folder)
    plan = listed(prompts, model, folder, **options)
    assert plan.extensions == ()
    with pytest.raises(hsd.PlanMismatch, match=f"holds images of another plan .*{says}"):
        run(plan, model, folder)
    assert images(folder) == before


def test_another_growth_of_the_same_base_is_refused(model, folder):
    small = hsd.Plan.load(folder / "plan.safetensors")
    run(small.extend(["a hill"], model=model), model, folder)
    with pytest.raises(hsd.PlanMismatch, match="holds images of another plan"):
        run(small.extend(["a lake"], model=model), model, folder)


def test_another_model_is_refused_although_the_plan_has_grown(model, folder):
    plan = listed([*PROMPTS, "a hill"], model, folder)
    other = hsd.load(model.pipe, height=32, width=32, guidance_scale=4.0)
    before = (folder / "plan.safetensors").read_bytes()
    with pytest.raises(hsd.PlanMismatch, match="guidance_scale"):
        run(plan, other, folder)
    assert (folder / "plan.safetensors").read_bytes() == before
    assert run(plan, model, folder).images == 1


def test_a_plan_without_a_model_continues_a_folder(model, tmp_path):
    small = hsd.compile(PROMPTS, 0.9, steps=STEPS, seeds=100)
    assert small.is_estimate
    run(small, model, tmp_path)
    before = images(tmp_path)
    for plan in (small.extend(NEW), hsd.compile(PROMPTS + NEW, 0.9, steps=STEPS, seeds=100)):
        assert plan.is_estimate
        result = run(plan, model, tmp_path)
        assert before.items() <= images(tmp_path).items()
        assert result.plan.extensions == (8,)
        assert result.images + result.existing == 11
    assert result.images == 0
    check_lines(tmp_path, result.plan)


# -- plan.extend


@pytest.fixture
def by_rows():
    return hsd.compile(["a", "b", "c"], 0.9, embeddings=np.eye(3) + 1, steps=4, seeds=5)


@pytest.mark.parametrize(
    ("prompts", "options", "raised", "says"),
    [
        (["d"], {"embeddings": np.ones((2, 3))}, ValueError, "has 2 rows: give one for each of the 1 new .*all 4"),
        (["d"], {"embeddings": np.ones((1, 5))}, ValueError, "vectors of 5 numbers.*have 3: give embeddings="),
        (["d"], {"embeddings": np.full((1, 3), np.nan)}, ValueError, "(?i)nan"),
        (["d"], {}, ValueError, "by embeddings that were given: give embeddings= of the new prompts"),
        (["d"], {"embeddings": np.ones((1, 3)), "encoder": len}, ValueError, "give one of model=.*not embeddings"),
        (["d", " "], {"embeddings": np.ones((2, 3))}, ValueError, "prompt 1"),
        ([], {"embeddings": np.ones((0, 3))}, ValueError, "prompt"),
        (["d"], {"embeddings": np.ones((1, 3)), "seeds": [1, 2]}, ValueError, "2 .*1"),
        (["d"], {"embeddings": np.ones((1, 3)), "images_per_prompt": 0}, ValueError, "images_per_prompt"),
        (["d"], {"embeddings": np.ones((1, 3)), "columns": {"id": [1, 2]}}, ValueError, "column"),
        (["d"], {"embeddings": np.ones((1, 3)), "settings": [{}, {}]}, ValueError, "settings"),
    ],
    ids=str,
)
def test_what_cannot_be_added(by_rows, prompts, options, raised, says):
    with pytest.raises(raised, match=says):
        by_rows.extend(prompts, **options)


def test_the_model_has_to_be_that_of_the_plan(by_rows, model):
    with pytest.raises(hsd.PlanMismatch, match="clustered by embeddings, and model= is"):
        by_rows.extend(["d"], model=model)
    with pytest.raises(ValueError, match="give model=, or the encoder=, that it was compiled with"):
        listed(PROMPTS, model).extend(["d"])


def test_after_load_all_rows_are_needed(by_rows, tmp_path):
    by_rows.save(tmp_path / "plan.safetensors")
    loaded = hsd.Plan.load(tmp_path / "plan.safetensors")
    assert loaded.vectors is None
    with pytest.raises(ValueError, match="not known any more: give one row for each prompt, those of the plan first"):
        loaded.extend(["d"], embeddings=np.ones((1, 3)))
    rows = np.concatenate([np.eye(3) + 1, np.ones((1, 3))])
    expected = by_rows.extend(["d"], embeddings=rows[3:])
    assert loaded.extend(["d"], embeddings=rows).fingerprint == expected.fingerprint
    assert by_rows.extend(["d"], embeddings=rows).fingerprint == expected.fingerprint
    assert expected.seeds.tolist() == [5, 6, 7, 8]


def test_a_part_that_is_extended_keeps_its_part(by_rows):
    part = by_rows.prune([1]).extend(["d"], embeddings=np.ones((1, 3)))
    assert part.kept.tolist() == [1, 3]
    assert part.origin.fingerprint == by_rows.extend(["d"], embeddings=np.ones((1, 3))).fingerprint


# -- layers, by brute force


def trees(seed, sizes, tau, spread):
    """A base of random embeddings, and its extensions, one for each further size."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    centres = rng.normal(size=(3, 4))
    vectors = centres[rng.integers(3, size=total)] + spread * rng.normal(size=(total, 4))
    texts = [f"prompt {i}" for i in range(total)]
    texts[-1] = texts[0] if seed % 3 == 0 else texts[-1]
    plans = [hsd.compile(texts[: sizes[0]], tau, embeddings=vectors[: sizes[0]], steps=6)]
    for begin, end in itertools.pairwise(np.cumsum(sizes).tolist()):
        plans.append(plans[-1].extend(texts[begin:end], embeddings=vectors[begin:end]))
    return plans


random_trees = given(
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 5)) | st.lists(st.integers(1, 4), min_size=3, max_size=4),
    tau=st.sampled_from([0.3, 0.9, 3.0]),
    spread=st.sampled_from([0.2, 0.6]),
)


def cluster(plan, row):
    return sorted(plan.tree.leaf_order[row["leaf_begin"] : row["leaf_end"]].tolist())


@settings(max_examples=60)
@random_trees
def test_layers_are_as_defined(seed, sizes, tau, spread):
    plan = trees(seed, sizes, tau, spread)[-1]
    rng = np.random.default_rng(seed)
    keep = np.flatnonzero(rng.random(plan.n_prompts) < 0.6)
    for part in (plan, plan.prune(keep)) if len(keep) else (plan,):
        layers, kept, lengths = part.layers(), set(part.kept.tolist()), rng.integers(0, 9, size=(plan.n_prompts, 2))
        clusters = [cluster(part, row) for row in part.segments]
        members = [members_of(part, leaves) for leaves in clusters]
        assert [sorted(layers.members(i).tolist()) for i in range(len(clusters))] == members
        assert layers.counts().tolist() == [len(own) for own in members]
        assert layers.any_member().tolist() == sorted(set().union(*members)) == part.covered().tolist()
        assert layers.longest(lengths).tolist() == [lengths[own].max(axis=0).tolist() for own in members]
        borrowed = [
            any(i in kept and layer_of(part, i) > layer_of(part, leaves[0]) for i in leaves) for leaves in clusters
        ]
        assert part.segments["borrowed"].tolist() == layers.borrowed(part.kept).tolist() == borrowed
        parent, first = part.segments["parent"], part.segments["first_step"]
        origins = layers.origins(parent, first)
        for i, own in enumerate(members):
            above = i
            while parent[above] >= 0 and members[parent[above]] == own:
                above = parent[above]
            assert origins[i] == first[above]


@settings(max_examples=60)
@random_trees
def test_the_base_is_in_what_it_has_grown_to(seed, sizes, tau, spread):
    """The same clusters of old prompts at each step, on the same mean, with the noise of the same prompt."""
    plans = trees(seed, sizes, tau, spread)
    for small, large in itertools.combinations(plans, 2):
        n, part = small.n_prompts, large.prune(range(small.n_prompts))
        assert part.node_steps == small.node_steps
        for k in range(small.n_steps):
            found = []
            for plan in (small, large, part):
                active = plan.active(k)[:n].tolist()
                of = {i: {j for j in range(n) if active[j] == active[i]} for i in range(n)}
                means = {i: sorted(plan.layers().members(active[i]).tolist()) for i in range(n)}
                noise = {i: int(plan.segments["representative"][active[i]]) for i in range(n)}
                found.append((of, means, noise))
            assert found[0] == found[1] == found[2]
    last = plans[-1]
    for label in set(same_texts(last.prompts).tolist()):  # images of one text share no step
        same = np.flatnonzero(same_texts(last.prompts) == label)
        assert len(set(last.active(0)[same].tolist())) == len(same)
