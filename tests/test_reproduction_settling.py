"""How early a model decides what, what is saved at equal quality, and other averages than the mean."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

import hsd
import tiny
from evaluate_cases import Brightness
from hsd.conditioning.rows import Conditioning, Field, Rows
from hsd.conditioning.spool import Spool
from hsd.evaluation.by_name import make_scorer
from hsd.evaluation.measure import Measurer
from hsd.reproduction import settling
from hsd.reproduction.averages import AVERAGES, averaged, token_vectors
from hsd.reproduction.lab import Lab, PromptSet, Skipped, Variant
from hsd.reproduction.results import Estimate
from hsd.reproduction.watching import watch

SEED, STEPS = 5, 6
PAIR = PromptSet("pair", ("a cat", "a dog"))
SETS = (
    PromptSet("first", ("a cat", "a cat on a mat", "a dog", "a small dog", "the sea at night")),
    PromptSet("second", ("a red bicycle", "a red boat", "a blue boat")),
)


@pytest.fixture(scope="module")
def model():
    """Deterministic, and so it predicts an image at each step."""
    return hsd.load(tiny.stable_diffusion(tiny.sd_ddim()), height=32, width=32, guidance_scale=3.0)


def make_lab(model, out, sets=SETS, scorer=None):
    measurer = Measurer(scorer or Brightness(), 4, 100, 0, progress=False)
    return Lab(model, sets, out, measurer, steps=STEPS, seed=SEED, batch_size=4)


@pytest.fixture(scope="module")
def lab(model, tmp_path_factory):
    return make_lab(model, tmp_path_factory.mktemp("study"))


# Averages, against closed forms.


def conditioning(rows, vectors=None):
    spool = Spool(1 << 30)
    table = Rows(spool, ragged=isinstance(rows, list))
    table.append(rows)
    vectors = np.ones((len(rows), 2), np.float32) if vectors is None else np.array(vectors, np.float32)
    return Conditioning({"e": Field(table, np.arange(len(rows)))}, vectors, spool)


def test_norm_and_empty_keep_the_members_length():
    rows = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    origin = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1))
    members = np.array([0, 2, 3])
    for average, at in (("norm", torch.zeros(3, 5)), ("empty", origin[0])):
        found = averaged(conditioning(rows), average, conditioning(origin)).mean(members)["e"]
        some = (rows[members] - at).numpy()
        middle = some.mean(axis=0)
        for token in range(3):
            length = np.mean([np.linalg.norm(row[token]) for row in some])
            wanted = at[token].numpy() + length * middle[token] / np.linalg.norm(middle[token])
            np.testing.assert_allclose(found[token].numpy(), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(averaged(conditioning(rows), average, conditioning(origin)).mean(members[:1])["e"], rows[0])


def test_the_medoid_is_a_member():
    rows = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    vectors = [[0.0, 0.0], [1.0, 0.0], [1.2, 0.1], [9.0, 9.0]]
    found = averaged(conditioning(rows, vectors), "medoid", None)
    # The mean of the first three is (.73, .03), that of all is (2.8, 2.3).
    assert torch.equal(found.mean(np.array([0, 1, 2]))["e"], rows[1])
    assert torch.equal(found.mean(np.array([0, 1, 2, 3]))["e"], rows[2])


def test_the_mean_stays_the_mean_and_lengths_that_differ_too():
    rows = [torch.full((length, 2), float(length)) for length in (3, 1)]
    plain = conditioning(rows)
    assert averaged(plain, "mean", None) is plain
    out = averaged(plain, "norm", None).mean(np.array([0, 1]))
    assert torch.equal(out["e"], plain.mean(np.array([0, 1]))["e"])


def test_vectors_of_tokens():
    rows = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(token_vectors(conditioning(rows)), rows.mean(1).numpy(), rtol=1e-6)
    assert token_vectors(conditioning(rows[:, 0])) is None


def test_with_the_medoid_its_prompt_shares_without_any_change(model, tmp_path):
    """Of two prompts the medoid is the first one, whose noise the cluster has too: so its image is the standard one."""
    lab = make_lab(model, tmp_path, (PAIR,))
    everything = Variant(tau=10.0)
    pictures = {}
    for variant in (Variant(), everything, Variant(tau=10.0, average="medoid")):
        folder = lab.generate(PAIR, variant).folder
        pictures[variant] = [pixels(folder / f"{i:05d}.png") for i in range(2)]
    standard, mean, medoid = pictures.values()
    assert lab.plan(PAIR, everything).counts().tolist() == [1] * (STEPS - 1) + [2]
    assert np.abs(medoid[0] - standard[0]).max() <= 1
    assert np.abs(medoid[1] - standard[1]).max() > 5
    assert np.abs(mean[0] - standard[0]).max() > 1


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_all_averages_give_images_of_their_own(model, tmp_path):
    lab = make_lab(model, tmp_path, (PAIR,))
    variants = [Variant(tau=10.0, average=average) for average in AVERAGES]
    folders = [lab.generate(PAIR, variant).folder for variant in variants]
    assert len({pixels(folder / "00001.png").tobytes() for folder in folders}) == len(AVERAGES)


def test_clustered_by_tokens(lab):
    own, tokens = lab.plan(SETS[0], Variant(tau=0.9)), lab.plan(SETS[0], Variant(tau=0.9, vectors="tokens"))
    assert own.tree.heights.tolist() != tokens.tree.heights.tolist()
    rows = [lab._conditioning(SETS[0], Variant()).mean(np.array([i]))["prompt_embeds"].mean(0) for i in range(5)]
    unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
    nearest = (1 - unit @ unit.T + 2 * torch.eye(5)).min()
    assert tokens.tree.heights.min() == pytest.approx(float(nearest), rel=1e-3)


# How early.


class Marks(Brightness):
    """Two marks: whether the picture is bright, and a name that no prompt has."""

    mark_names = ("bright", "never")

    def marks(self, images, prompts):
        bright = [np.asarray(image).mean() / 255 for image in images]
        return np.array([[value, np.nan] for value in bright])


def test_curves_are_the_scores_of_the_pipelines_own_predictions(model, lab, tmp_path):
    """Against a loop of diffusers' own pipeline and scheduler, whose predictions are decoded by the pipeline's VAE."""
    prompts = [prompt for one in SETS for prompt in one.prompts]
    _, settled, table = settling.settling(make_lab(model, tmp_path, scorer=Marks()))
    assert [column.title for column in table.columns] == ["steps done", "share", "bright", "all"]
    pipe, seen = model.pipe, []
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    original, stepped = scheduler.step, pipe.scheduler

    def step(*args, **kwargs):
        result = original(*args, **kwargs)
        seen.append(result.pred_original_sample if hasattr(result, "pred_original_sample") else result[1])
        return result

    scheduler.step = step
    pipe.scheduler = scheduler
    pipe(
        prompts,
        num_inference_steps=STEPS,
        height=32,
        width=32,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(prompts))],
        output_type="latent",
    )
    pipe.scheduler = stepped
    assert len(seen) == STEPS
    for k, found in enumerate(seen):
        with torch.no_grad():
            image = pipe.vae.decode(found / pipe.vae.config.scaling_factor).sample
        bright = float((image / 2 + 0.5).clamp(0, 1).mean())
        assert table.rows[k][2].value == pytest.approx(bright, abs=2e-3)
        assert table.rows[k][0] == k + 1
    assert [row[0] for row in settled.rows] == ["bright", "all"]
    assert [column.title for column in settled.columns][-1] == "score settled at"  # it does not say what pictures show


def test_settled_is_where_the_curve_stays():
    curve = [Estimate(value) for value in (0.2, 0.95, 0.5, 0.93, 1.0)]
    assert settling._way(curve) == (curve[0], curve[-1], 0.8)
    assert settling._likeness(curve) == (curve[0], 0.8)
    # Of a way from .8 to 1, .93 is less than 90 %.
    assert settling._way([Estimate(value) for value in (0.8, 0.93, 0.97, 1.0)])[2] == 1.0
    assert settling._way([Estimate(1.0), Estimate(1.0)])[2] == 0.5
    # Nor does it matter that a score falls.
    assert settling._way([Estimate(0.9), Estimate(0.7), Estimate(0.7)])[2] == 2 / 3
    assert settling._likeness(None) == (None, None)


def test_pictures_are_compared_with_their_own_finished_ones():
    """Whether it is what the prompt names does not matter, and what only an early picture shows does not count."""
    readings = [
        [{"shape": "ring", "place": "top"}, {"shape": "star"}],
        [{"shape": "star", "place": "top"}, {"shape": "star", "place": "top"}],
        [{"shape": "star", "place": "left"}, {"shape": "star"}],
    ]
    found = settling._alike(readings, ["shape", "place", "all"])
    assert found[:, 0].tolist() == [[0, 0, 0], [1, 0, 0.5], [1, 1, 1]]
    np.testing.assert_equal(found[:, 1], [[1, np.nan, 1]] * 3)


def test_the_demo_is_compared_with_its_finished_images(tmp_path):
    """Step by step, with attributes that the evaluator reads from the decoded predictions."""
    model, evaluator = hsd.load("demo"), make_scorer("demo")
    two = PromptSet("two", ("a red star", "a small blue ring left of a white heart on a plain green background"))
    *figures, settled, scores, alike = settling.settling(make_lab(model, tmp_path, (two,), evaluator))
    assert [figure.name for figure in figures] == ["settling", "settling-alike"]
    assert (scores.name, alike.name) == ("settling", "settling-alike")
    plan = hsd.compile(two.prompts, 0.0, model=model, steps=STEPS, seeds=SEED)
    trace = watch(plan, model, batch_size=2)
    shown = [evaluator.attributes(trace.decoded(found)) for found, _ in trace.predictions()]
    for name in ("shape", "background"):
        at = [column.title for column in alike.columns].index(name)
        for k in range(STEPS):
            expected = np.mean([one[name] == last[name] for one, last in zip(shown[k], shown[-1], strict=True)])
            assert alike.rows[k][at].value == pytest.approx(expected)
    assert alike.rows[-1][-1].value == 1.0
    rows = {row[0]: row for row in settled.rows}
    assert rows["all"][4] == alike.rows[0][-1]


def test_a_scheduler_that_predicts_nothing_is_skipped(tmp_path, monkeypatch, model):
    monkeypatch.setattr(
        settling, "watch", lambda plan, adapter, batch_size: Unpredicted(watch(plan, adapter, batch_size=4))
    )
    with pytest.raises(Skipped, match="DDIMScheduler does not predict an image"):
        settling.settling(make_lab(model, tmp_path))


class Unpredicted:
    def __init__(self, trace):
        self.trace = trace

    def predictions(self):
        return ((found, False) for found, _ in self.trace.predictions())


# Equal quality.


def test_as_good_up_to_the_first_share_that_is_not(lab, monkeypatch):
    """The summary names the largest share below which all are as good, by the intervals of the differences."""
    monkeypatch.setattr(settling, "EQUAL_BUDGETS", (0.1, 0.2, 0.3))
    monkeypatch.setattr(settling, "EQUAL_WAYS", {"one": {}, "two": {"catch_up": 1.0}})
    lows = {
        (0.1, 0.0): -0.001,
        (0.2, 0.0): -0.5,
        (0.3, 0.0): 0.0,
        (0.1, 1.0): 0.0,
        (0.2, 1.0): -0.001,
        (0.3, 1.0): -1.0,
    }

    def difference(lab, ours, base, within_sets):
        assert within_sets
        assert all(one.variant == Variant() for one in base)
        low = lows[ours[0].variant.budget, ours[0].variant.catch_up]
        return Estimate(low + 0.1, (low, low + 0.2))

    monkeypatch.setattr(settling, "mean_difference", difference)
    _, summary, table = settling.equal(lab)
    assert [row[0] for row in summary.rows] == ["one", "two"]
    assert [row[-1] for row in summary.rows] == [0.1, 0.2]
    assert len(table.rows) == 2 * 3 * 3  # two sets and all together
    for row in table.rows:
        assert row[3] > 0.09  # at least the budget
    by_way = {(row[0], row[1]): row[6] for row in table.rows if row[1] == "all"}
    assert set(by_way) == {("one", "all"), ("two", "all")}


def test_the_difference_is_that_of_the_scores(lab, monkeypatch):
    monkeypatch.setattr(settling, "EQUAL_BUDGETS", (0.3,))
    monkeypatch.setattr(settling, "EQUAL_WAYS", {"one": {}})
    _, _, table = settling.equal(lab)
    means = []
    for variant in (Variant(), Variant(budget=0.3)):
        means.append(np.nanmean(np.concatenate([lab.scores(lab.generate(one, variant)) for one in SETS])))
    everything = table.rows[-1]
    assert everything[1] == "all"
    assert everything[4].value == pytest.approx(means[1])
    assert everything[5].value == pytest.approx(means[1] - means[0])


def test_ways_that_the_model_lacks_are_left_out(lab):
    assert set(settling._equal(lab)) == {"the paper's sharing", "catch-up"}
    assert set(settling.vector_variants(lab)) == {"own embedding, cosine", "mean of the tokens, cosine", "direct"}


def test_images_that_are_equal_are_as_good():
    assert settling._at_least(Estimate(0.0, (-0.01, 0.01)), -0.02, 9)
    assert not settling._at_least(Estimate(0.0, (-0.03, 0.03)), -0.02, 9)
    assert settling._at_least(Estimate(0.0), -0.02, 9)  # equal in all clusters
    assert not settling._at_least(Estimate(0.0), -0.02, 1)  # one cluster does not show how much it varies
    assert not settling._at_least(Estimate(-0.1), -0.02, 9)
