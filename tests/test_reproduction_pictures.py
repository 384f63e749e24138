"""The figures of images: steps and means against stock pipelines, trees against scipy."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import KandinskyV22CombinedPipeline, PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage, to_tree
from scipy.spatial.distance import pdist

import hsd
import tiny
from evaluate_cases import Brightness
from families.kandinsky22 import Kandinsky22
from families.stable_diffusion import StableDiffusion
from families.stable_diffusion_3 import StableDiffusion3
from helpers import PROMPTS, fresh_generators, make_scheduler, mean_difference
from hsd.demo import FOLDER, SETTINGS
from hsd.evaluation.measure import Measurer
from hsd.planning.rows import alone_from
from hsd.reproduction import pictures
from hsd.reproduction.lab import Lab, PromptSet, Skipped
from hsd.reproduction.results import Figure, Table
from hsd.reproduction.trees import in_order, joins_one, lowest_clusters, splits_at, tau_above_root
from hsd.reproduction.watching import decode, watch

STEPS, SEED = 4, 7
SHAPES = PromptSet("shapes", ("a red star", "a red ring", "a small red star", "a red heart", "a blue cross", "a cross"))
GROUNDS = PromptSet(
    "grounds",
    (
        "a white star on a blue background",
        "a white ring on a blue background",
        "a white star on a dotted blue background",
        "a white ring on a dotted blue background",
        "a red star",
    ),
)


@pytest.fixture(scope="module")
def demo():
    return hsd.load("demo", dtype=torch.float32, device="cpu")


def make_lab(model, out, sets=(SHAPES, GROUNDS), steps=STEPS):
    measurer = Measurer(Brightness(), 4, 100, 0, progress=False)
    return Lab(model, sets, out, measurer, steps=steps, seed=SEED, batch_size=3)


@pytest.fixture(scope="module")
def lab(demo, tmp_path_factory):
    return make_lab(demo, tmp_path_factory.mktemp("study"))


def opened(figure):
    assert isinstance(figure, Figure)
    assert len(figure.png) < 150_000
    image = PIL.Image.open(io.BytesIO(figure.png))
    image.load()
    return image


# Observing steps.


def noted(scheduler, predict, seen):
    """Let a stock pipeline's scheduler record the result of ``predict`` at each step."""
    original = scheduler.step

    @functools.wraps(original)
    def step(model_output, timestep, sample, **kwargs):
        result = original(model_output, timestep, sample, **kwargs)
        seen.append(predict(scheduler, model_output, timestep, sample, result))
        return result

    scheduler.step = step


def of_variance(scheduler, output, t, sample, result):
    """x0 by the definition of epsilon, for latents that keep their variance."""
    alpha = scheduler.alphas_cumprod[int(t)]
    return (sample - (1 - alpha) ** 0.5 * output) / alpha**0.5


def of_sigma(scheduler, output, t, sample, result):
    """The same for latents to which noise is added."""
    alpha = scheduler.alphas_cumprod[int(t)]
    return sample - ((1 - alpha) / alpha) ** 0.5 * output


def of_flow(scheduler, output, t, sample, result):
    return sample - float(t) / 1000 * output


def as_reported(scheduler, output, t, sample, result):
    return result.pred_original_sample


@pytest.mark.parametrize(
    ("family", "scheduler", "predict"),
    [
        (StableDiffusion(), "ddim", of_variance),
        (StableDiffusion(), "dpm++2m", of_variance),
        (StableDiffusion(), "unipc", of_variance),
        (StableDiffusion(), "euler", of_sigma),
        (StableDiffusion(), "euler-ancestral", of_sigma),
        (StableDiffusion3(), None, of_flow),
        (Kandinsky22(), None, as_reported),  # a learned variance and dynamic thresholding
    ],
    ids=lambda value: getattr(value, "__name__", getattr(value, "name", value)),
)
def test_predictions_are_those_of_the_stock_pipeline(family, scheduler, predict):
    prompts, seeds, seen = PROMPTS[:3], [4, 1, 9], []
    pipes = family.build(), family.build()
    if scheduler is not None:
        for pipe in pipes:
            pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    stepped = pipes[1][1] if isinstance(pipes[1], tuple) else pipes[1]
    noted(stepped.scheduler, predict, seen)
    family.call(pipes[1], prompts, fresh_generators(seeds), family.guided, family.size, STEPS, "latent")

    model = hsd.load(pipes[0], **family.settings(family.guided, family.size))
    trace = watch(hsd.compile(prompts, 0.0, model=model, steps=STEPS, seeds=seeds), model, batch_size=2)
    found = list(trace.predictions())
    assert len(found) == len(seen) == STEPS
    for (ours, predicted), theirs in zip(found, seen, strict=True):
        scale = theirs.abs().max()
        assert predicted
        assert (ours - theirs).abs().max() < 1e-4 * scale
        assert (ours[0] - theirs[1]).abs().max() > 1e-2 * scale
    assert not trace.shared().any()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_lane_follows_from_the_one_before(batch_size):
    """Through all forks: a deterministic scheduler's own step leads from each lane to the next."""
    scheduler = make_scheduler("ddim", tiny.sd_ddim().config)
    model = hsd.load(tiny.stable_diffusion(scheduler), height=32, width=32, guidance_scale=3.0)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=6, seeds=100, noise="shared")
    assert plan.savings > 0
    trace = watch(plan, model, batch_size=batch_size)
    assert len(trace.latents) == len(trace.outputs) == plan.node_steps
    after = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(100)).expand(len(PROMPTS), 4, 4, 4)
    for k in range(plan.n_steps):
        latents = trace.latents[trace.lane[k]]
        torch.testing.assert_close(latents, after, atol=1e-4, rtol=1e-4)
        active = plan.active(k)
        assert np.array_equal(trace.shared()[k], [(active == segment).sum() > 1 for segment in active])
        own = copy.deepcopy(scheduler)
        own.set_timesteps(6)
        after = own.step(trace.outputs[trace.lane[k]], own.timesteps[k], latents).prev_sample
    for i, picture in enumerate(decode(model, after, [0] * len(PROMPTS))):
        assert mean_difference(picture, trace.images[i].pil) < 0.5


@pytest.mark.parametrize("tau", [0.0, 0.6])
def test_the_last_prediction_is_the_image_and_the_first_is_not(demo, tau):
    plan = hsd.compile(SHAPES.prompts, tau, model=demo, steps=STEPS, seeds=SEED)
    images = {image.index: image.pil for image in hsd.stream(plan, demo)}
    trace = watch(plan, demo, batch_size=4)
    found = [trace.decoded(latents) for latents, _ in trace.predictions()]
    for i, image in images.items():
        assert mean_difference(trace.images[i].pil, image) < 0.5
        assert mean_difference(found[-1][i], image) < 0.5
        assert mean_difference(found[0][i], image) > 2
        assert mean_difference(found[-1][i - 1], image) > 2


def test_a_scheduler_that_predicts_nothing_shows_its_latents():
    scheduler = PNDMScheduler.from_config(tiny.sd_ddim().config, skip_prk_steps=True)
    model = hsd.load(tiny.stable_diffusion(scheduler), height=32, width=32)
    trace = watch(hsd.compile(PROMPTS[:2], 0.0, model=model, steps=3, seeds=[5, 6]), model, batch_size=2)
    (first, predicted), *_ = trace.predictions()
    assert not predicted
    torch.testing.assert_close(first[1:], torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(6)))


# Trees.


CHAINED = [(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 0.6, 0), (1, 1, 0.6, 0.3)]


@pytest.mark.parametrize(
    ("rows", "joins", "ordered"),
    [
        (CHAINED, [True, True, True], True),
        (CHAINED[::-1], [True, True, True], False),
        ([CHAINED[i] for i in (1, 0, 2, 3)], [True, True, True], False),
        ([(1, 0, 0), (1, 0.1, 0), (0, 0, 1), (0, 0.2, 1)], [True, False, False], False),
        ([(1, 0, 0), (1, 0.1, 0), (1, 0.3, 0), (0, 0, 1), (0, 0.2, 1)], [True, False, False, False], False),
    ],
)
def test_a_chain_is_distinguished_from_other_trees(rows, joins, ordered):
    tree = hsd.build_tree(np.array(rows, dtype=np.float32))
    found = joins_one(tree)
    assert in_order(tree) == ordered
    assert found.tolist() == joins
    # By scipy: of each of its nodes of more than two leaves, one child is a single leaf.
    root = to_tree(linkage(pdist(np.array(rows), "cosine"), "ward"))
    nodes, chain = [root], True
    while nodes:
        node = nodes.pop()
        if not node.is_leaf():
            chain &= node.left.is_leaf() or node.right.is_leaf()
            nodes += [node.left, node.right]
    assert found.all() == chain


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_lowest_nodes_are_those_of_scipy(n, size, seed):
    rows = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    found = lowest_clusters(hsd.build_tree(rows), size)
    expected = []
    nodes = [to_tree(linkage(pdist(rows.astype(np.float64), "cosine"), "ward"))] if n > 1 else []
    while nodes:
        node = nodes.pop()
        if node.count >= size and max(node.left.count, node.right.count) < size:
            expected.append((node.dist, sorted(node.pre_order())))
        elif node.count >= size:
            nodes += [node.left, node.right]
    assert found == [leaves for _, leaves in sorted(expected)]
    assert all(size <= len(leaves) <= 2 * size - 2 for leaves in found)


def test_equal_prompts_are_no_family():
    plan = hsd.compile(["a cat", "a cat", "a cat", "a cat", "a dog"], 1.0)
    assert lowest_clusters(plan.tree, 3) == []
    assert lowest_clusters(plan.tree, 2) == [[0, 4]]


@pytest.mark.parametrize("tau", [0.3, 0.9, 2.5, None])
def test_steps_of_splits_are_those_of_the_plan(tau):
    rows = np.random.default_rng(3).normal(size=(12, 6))
    if tau is None:  # a node whose height is the threshold is split
        tau = hsd.build_tree(rows).heights[5]
    plan = hsd.compile([f"prompt {i}" for i in range(12)], tau, embeddings=rows, steps=20)
    active = np.stack([plan.active(k) for k in range(20)])
    single = [(active == active[:, [i]]).sum(axis=1).tolist().index(1) for i in range(12)]
    assert alone_from(plan).tolist() == single
    members = [[i] for i in range(12)]
    for (a, b), height in zip(plan.tree.merges, plan.tree.heights, strict=True):
        members.append(members[a] + members[b])
        apart = [len(set(active[k, members[-1]])) > 1 for k in range(20)]
        assert splits_at(plan, height) == apart.index(True)


def test_at_a_tau_above_the_root_all_share():
    tree = hsd.build_tree(np.random.default_rng(1).normal(size=(9, 4)))
    assert tree.heights.max() < tau_above_root(tree) < 1.1 * tree.heights.max()
    assert tau_above_root(hsd.build_tree(np.ones((3, 2), dtype=np.float32))) > 0


# Fig. 4.


def test_the_chain_of_the_demo_is_one(lab):
    figure, merges, whole = pictures.chain(lab)
    opened(figure)
    assert isinstance(merges, Table)
    prompt_set = pictures.chain_set(lab)
    vectors = lab.vectors(prompt_set).astype(np.float64)
    heights = linkage(pdist(vectors, "cosine"), "ward")[:, 2]
    assert [row[3] for row in merges.rows] == pytest.approx(heights, rel=1e-4)
    assert [row[1] for row in merges.rows] == ['"a red star"', '"a star"', '"a shape"']
    ((prompts, chain, ordered, tau, evaluations, standard, saved),) = whole.rows
    assert (prompts, chain, ordered, standard) == (4, "yes", "yes", STEPS)
    assert "4 prompts" in figure.caption
    assert "a right-leaning chain (3 of 3" in figure.caption
    plan = hsd.compile(prompt_set.prompts, tau, model=lab.model, steps=STEPS, seeds=SEED, metric="cosine")
    assert plan.counts()[0] == 1
    assert evaluations == plan.node_steps / 4
    assert saved == pytest.approx(plan.savings)
    # The figure's step is the one in the metadata of the images.
    folder = lab.generate(*pictures.chain_needs(lab)[1]).folder
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {line["index"]: line["alone_from"] for line in lines} == dict(enumerate(alone_from(plan)))


def test_what_is_no_chain_is_not_called_one(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pictures,
        "DEMO_CHAIN",
        ("a red star", "a large red star", "a blue ring", "a large blue ring on a white background"),
    )
    figure, _, whole = pictures.chain(make_lab(demo, tmp_path, steps=2))
    assert whole.rows[0][1:3] == ("no", "no")
    assert ": not a chain (1 of 3" in figure.caption


def test_the_chain_never_takes_the_name_of_a_set(lab, demo, tmp_path):
    name = pictures.chain_set(lab).name
    other = make_lab(demo, tmp_path, sets=(PromptSet(name, SHAPES.prompts),))
    assert pictures.chain_set(other).name != name


# Fig. 10.


def test_the_image_of_the_mean_is_the_pipelines(lab):
    prompts = ["a red star on a white background", "a blue ring", "a green heart"]
    mean, *members = pictures.mean_and_members(lab, prompts)
    pipe = KandinskyV22CombinedPipeline.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": SETTINGS["guidance_scale"]}
    scale = SETTINGS["prior_guidance_scale"]
    for prompt, member in zip(prompts, members, strict=True):
        generator = torch.Generator().manual_seed(SEED)
        expected = pipe(prompt, generator=generator, prior_guidance_scale=scale, **size).images[0]
        assert mean_difference(member, expected) < 0.5

    embeds = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(SEED)  # in the state after the prior's draws for one image
        embeds.append(pipe.prior_pipe(prompt, guidance_scale=scale, generator=generator).image_embeds)
    zero = pipe.prior_pipe.get_zero_embed(1)

    def last_alone(_, step, timestep, tensors):
        return {"image_embeds": torch.cat([zero, embeds[0]])} if step == STEPS - 2 else {}

    expected = pipe.decoder_pipe(
        torch.cat(embeds).mean(dim=0, keepdim=True),
        zero,
        generator=generator,
        callback_on_step_end=last_alone,
        callback_on_step_end_tensor_inputs=["latents"],
        **size,
    ).images[0]
    assert mean_difference(mean, expected) < 0.5
    assert min(mean_difference(mean, member) for member in members) > 2


def test_means_are_of_one_cluster_per_set(lab, monkeypatch):
    seen = []
    original = pictures.mean_and_members
    monkeypatch.setattr(pictures, "mean_and_members", lambda lab, some: seen.append(some) or original(lab, some))
    (figure,) = pictures.mean_embedding(lab)
    opened(figure)
    assert "has 3 steps on the mean" in figure.caption
    assert len(seen) == 2
    for some, prompt_set in zip(seen, lab.sets, strict=True):
        assert 4 <= len(some) <= 6
        assert set(some) <= set(prompt_set.prompts)
    assert pictures.mean_embedding_needs(lab) == pictures.latents_needs(lab) == []


def test_too_few_prompts_or_steps_are_reported(demo, tmp_path):
    few = make_lab(demo, tmp_path / "few", sets=(PromptSet("few", SHAPES.prompts[:3]),))
    for experiment in (pictures.mean_embedding, pictures.latents):
        with pytest.raises(Skipped, match=r"no set has 4 different prompts: few \(3\)"):
            experiment(few)
    with pytest.raises(Skipped, match="a step before the last"):
        pictures.mean_embedding(make_lab(demo, tmp_path / "once", steps=1))


# Fig. 2.


def test_dissimilarity_at_the_last_step_is_that_of_the_images(lab):
    sheet, curve, table = pictures.latents(lab)
    opened(sheet)
    opened(curve)
    assert [column.title for column in table.columns] == ["step", "related", "unrelated"]
    assert [row[0] for row in table.rows] == [0, 1, 2, 3]
    families = pictures.disjoint_families(lab)
    assert len(families) == 2
    prompts = [prompt for family in families for prompt in family]
    plan = hsd.compile(prompts, 0.0, model=lab.model, steps=STEPS, seeds=SEED, noise="shared")
    images = {image.index: np.asarray(image.pil, dtype=float) / 255 for image in hsd.stream(plan, lab.model)}
    found = {True: [], False: []}
    for i, j in itertools.combinations(range(8), 2):
        found[i // 4 == j // 4].append(np.abs(images[i] - images[j]).mean())
    last = table.rows[-1]
    assert last[1].value == pytest.approx(np.mean(found[True]), abs=2e-3)
    assert last[2].value == pytest.approx(np.mean(found[False]), abs=2e-3)
    low, high = last[1].interval
    assert low <= last[1].value <= high
    # From one noise, related prompts are more similar at the first step than at the last; unrelated ones less similar.
    assert table.rows[0][1].value < last[1].value < last[2].value


def test_one_family_has_no_unrelated_prompts(demo, tmp_path):
    lab = make_lab(demo, tmp_path, sets=(PromptSet("one", SHAPES.prompts[:5]),), steps=2)
    _, curve, table = pictures.latents(lab)
    assert [column.title for column in table.columns] == ["step", "related"]
    assert table.rows[0][1].interval is None
    assert "unrelated" not in curve.caption


def test_no_prompt_is_in_two_families(demo, tmp_path):
    again = PromptSet("again", (*SHAPES.prompts, "a glowing cross"))
    families = pictures.disjoint_families(make_lab(demo, tmp_path, sets=(SHAPES, again, GROUNDS)))
    prompts = [prompt for family in families for prompt in family]
    assert len(prompts) == len(set(prompts))
    assert all(len(family) == 4 for family in families)
    assert len(families) == 2


def test_other_models_and_sizes(tmp_path):
    """Oblong images, latents that are scaled for the denoiser, a denoiser that takes one timestep per call."""
    pipe = tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))
    model = hsd.load(pipe, height=32, width=48, guidance_scale=3.0)
    lab = make_lab(model, tmp_path, sets=(PromptSet("words", tuple(PROMPTS)),), steps=3)
    results = [*pictures.chain(lab), *pictures.mean_embedding(lab), *pictures.latents(lab)]
    for result in results:
        if isinstance(result, Figure):
            opened(result)
    assert pictures.chain_set(lab).prompts == pictures.CHAIN


def test_differences_by_hand():
    pictures_of = [PIL.Image.new("RGB", (3, 2), color) for color in ((0, 0, 0), (255, 255, 255), (51, 0, 0))]
    found = pictures.differences(pictures_of)
    assert found == pytest.approx(np.array([[0, 1, 0.2 / 3], [1, 0, 1 - 0.2 / 3], [0.2 / 3, 1 - 0.2 / 3, 0]]))
