"""The frontier experiment and several seeds a prompt: what is generated and compared, and what is resampled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import hsd
from evaluate_cases import Brightness
from hsd import cli
from hsd.evaluation.measure import Measurer
from hsd.evaluation.stats import mean_of_known
from hsd.reproduction import experiment, frontier, paper
from hsd.reproduction.lab import Lab, PromptSet, Skipped, Variant
from hsd.reproduction.results import MARK, Column, Estimate, Figure, Table

FIRST = PromptSet("first", ("a cat", "a cat on a mat", "a dog", "a small dog", "the sea at night", "the sea by day"))
SECOND = PromptSet("second", ("a red bicycle", "a red boat", "a blue boat", "a house", "a hut"))


def make_lab(model, out, **how):
    how = {"steps": 6, "seed": 5, "batch_size": 8, "sets": (FIRST, SECOND)} | how
    measurer = Measurer(Brightness(), 4, 100, 0, progress=False)
    return Lab(model, how.pop("sets"), out, measurer, **how)


@pytest.fixture(scope="module")
def lab(model, tmp_path_factory):
    return make_lab(model, tmp_path_factory.mktemp("study"), seeds=2, evaluations=[3])


# Several seeds a prompt.


def test_seed_ranges(lab):
    assert [(s.name, s.repeat) for s in lab.sets] == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert lab.first_sets == (FIRST, SECOND)
    generated = experiment.generate_all_sets(lab, Variant(budget=0.4, steps=5))
    assert [one.plan.seeds[0] for one in generated] == [5, 5, 1005, 1005]
    assert [one.folder.parent.name for one in generated] == ["first", "second", "first_seeds-1000", "second_seeds-1000"]
    images = [(one.folder / "00000.png").read_bytes() for one in generated]
    assert len(set(images)) == 4
    # All prompts of all ranges are in one row, and those of a prompt belong together.
    rows = experiment.grouped(generated)
    assert {name: experiment.count_images(some) for name, some in rows.items()} == {
        "first": 12,
        "second": 10,
        "all": 22,
    }
    scores, prompts = lab.pooled(rows["first"])
    assert prompts == [f"first: {prompt}" for prompt in FIRST.prompts] * 2
    assert experiment.score(lab, rows["first"]).value == pytest.approx(scores.mean())


def test_standard_images_are_resampled_by_prompt_over_all_seeds(lab):
    standard = [lab.generate(s, Variant()) for s in lab.sets]
    clusters = lab.clusters(standard)
    assert (clusters.by, clusters.count) == ("prompts", 11)
    scores, prompts = lab.pooled(standard)
    assert experiment.score(lab, standard)[:2] == mean_of_known(scores, prompts, seed=lab.seed)


def test_shared_images_are_resampled_by_prompt_and_trunk(lab):
    """Trunks of one range join prompts, and prompts join the trunks of both ranges: they are crossed."""
    shared = [lab.generate(s, Variant(budget=0.4, steps=5)) for s in lab.sets]
    trunks = sum(len(np.unique(one.plan.active(0))) for one in shared)
    clusters = lab.clusters(shared)
    if clusters.by == "prompts and root clusters":
        assert [len(np.unique(labels)) for labels in clusters.groupings] == [11, trunks]
    else:
        assert (clusters.by, clusters.count <= trunks) == ("root clusters", True)
    alone = lab.clusters(shared[:1])
    assert (alone.by, alone.count) == ("root clusters", len(np.unique(shared[0].plan.active(0))))
    # A difference to images that share nothing has the trunks of ours only.
    standard = [lab.generate(s, Variant()) for s in lab.sets]
    assert [g.tolist() for g in lab.clusters(shared, standard).groupings] == [g.tolist() for g in clusters.groupings]
    found = lab.win_rate(shared, standard)
    assert found.interval in ("bootstrap", "crossed")
    assert found.few_clusters is clusters.few
    difference = experiment.mean_difference(lab, shared, standard)
    assert difference == Estimate(
        pytest.approx(found.difference), pytest.approx(found.difference_interval), clusters.few
    )


def test_more_seeds_continue_a_study(model, tmp_path):
    one = make_lab(model, tmp_path)
    shared = one.generate(FIRST, Variant(tau=0.9))
    more = make_lab(model, tmp_path, seeds=3)
    assert more.missing(more.sets[0], Variant(tau=0.9)) == (0, 0)
    assert more.missing(more.sets[2], Variant(tau=0.9))[0] == 6
    assert more.sets[0] == FIRST
    assert more.generate(FIRST, Variant(tau=0.9)).folder == shared.folder


def test_sets_that_differ_do_not_widen_an_interval_within_sets(lab, monkeypatch):
    ours, theirs = ([lab.generate(s, v) for s in lab.sets] for v in (Variant(budget=0.4, steps=5), Variant()))
    levels = {"first": 1.0, "second": 3.0}
    noise = {
        one.folder: np.random.default_rng(i).normal(size=len(one.prompt_set.prompts)) for i, one in enumerate(ours)
    }

    def scores(one, spread):
        return levels[one.prompt_set.name] + spread * noise.get(one.folder, 0.0)

    monkeypatch.setattr(lab, "scores", lambda one: scores(one, 0.0) if one in ours else np.zeros(len(one.plan)))
    flat = experiment.mean_difference(lab, ours, theirs, within_sets=True)
    mean = (12 * 1.0 + 10 * 3.0) / 22
    assert flat.value == pytest.approx(mean)
    assert flat.interval is None  # nothing varies within the sets
    assert experiment.mean_difference(lab, ours, theirs).interval[0] < mean - 0.1
    # Within one set it makes no difference.
    monkeypatch.setattr(lab, "scores", lambda one: scores(one, 1.0) if one in ours else np.zeros(len(one.plan)))
    first = [one for one in ours if one.prompt_set.name == "first"]
    within, without = (experiment.score(lab, first, within_sets=w) for w in (True, False))
    assert within.value == pytest.approx(without.value)
    assert within.interval == pytest.approx(without.interval)


def test_a_mean_of_pairs_over_several_seeds(lab, model, tmp_path):
    both = [lab.generate(s, Variant()) for s in lab.sets if s.name == "first"]
    each = [experiment.similarity(lab, [one]) for one in both]
    found = experiment.similarity(lab, both)
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    # The two ranges have the same prompts, so they do not count as independent sets.
    assert found.interval[1] - found.interval[0] > 0.75 * min(one.interval[1] - one.interval[0] for one in each)


def test_families_and_trunks_are_those_of_the_first_seeds(lab):
    table = paper.families(lab)[0]
    assert sum(row[2] for row in table.rows) == 11


# What is new in a variant.


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(budget=0.5, catch_up=1.0), "budget-0.5_catch_up-1.0"),
        (Variant(budget=0.5, catch_up=2.0, metric="calibrated"), "budget-0.5_catch_up-2.0_metric-calibrated"),
        (Variant(budget=0.5, metric="direct"), "budget-0.5_metric-direct"),
    ],
)
def test_names_of_folders(variant, name):
    assert variant.name == name


def test_the_papers_sharing_does_not_catch_up(lab, model, tmp_path):
    """Also where it is the model's default; and the plan is the same as before there was any."""
    plain = lab.plan(FIRST, Variant(budget=0.4, steps=5))
    assert "catch_up" not in plain.request
    assert plain.catch_up == 0
    before = hsd.Plan(plain._core, plain.prompts, plain.seeds, {**plain.request})
    assert before.fingerprint == plain.fingerprint
    caught = lab.generate(FIRST, Variant(budget=0.4, steps=5, catch_up=2.0))
    assert caught.plan.catch_up == 2
    assert caught.plan.node_steps == plain.node_steps
    first = lab.generate(FIRST, Variant(budget=0.4, steps=5)).folder
    joined = np.flatnonzero(np.bincount(plain.active(0))[plain.active(0)] > 1)
    different = [
        i for i in range(6) if (first / f"{i:05d}.png").read_bytes() != (caught.folder / f"{i:05d}.png").read_bytes()
    ]
    assert different == joined.tolist() != []


@pytest.fixture(scope="module")
def demo():
    return hsd.load("demo", prior_steps=2)


SHAPES = PromptSet("shapes", tuple(f"a {c} {s}" for c in ("red", "blue", "pink") for s in ("star", "ring", "cross")))


@pytest.mark.parametrize("metric", ["calibrated", "direct"])
def test_plans_are_those_of_compile(demo, tmp_path, metric):
    """Without encoding and probing the prompts for each of them."""
    lab = make_lab(demo, tmp_path, sets=(SHAPES,), seeds=2)
    assert lab.measures(metric)
    for prompt_set, seed in zip(lab.sets, (5, 1005), strict=True):
        plan = lab.plan(prompt_set, Variant(budget=0.4, steps=5, metric=metric))
        same = hsd.compile(prompt_set.prompts, budget=0.4, model=demo, steps=5, seeds=seed, metric=metric, catch_up=0.0)
        assert np.array_equal(plan.segments, same.segments)
        assert plan.tau == same.tau
        assert plan.tree.leaf_order.tolist() == same.tree.leaf_order.tolist()
    cosine = lab.plan(lab.sets[0], Variant(budget=0.4, steps=5))
    assert not np.array_equal(
        cosine.tree.merges, lab.plan(lab.sets[0], Variant(budget=0.4, steps=5, metric=metric)).tree.merges
    )


def test_a_model_without_a_calibration_lacks_its_ways(lab, demo, tmp_path):
    assert not lab.measures("calibrated")
    with pytest.raises(Skipped, match="is not calibrated: run `hsd calibrate`"):
        lab.plan(FIRST, Variant(budget=0.4, steps=5, metric="calibrated"))
    ways = {point.way for point in frontier.points(lab, None)}
    assert ways == {"own steps", "the paper's sharing", "catch-up alone", "both, direct metric"}
    calibrated = make_lab(demo, tmp_path, sets=(SHAPES,), evaluations=[3])
    assert {point.way for point in frontier.points(calibrated, None)} == {"own steps", *frontier.WAYS}


# The experiment.


def test_numbers_of_evaluations():
    assert frontier.check_evaluations([7, 2, 7]) == (2, 7)
    with pytest.raises(ValueError, match="evaluations is 6: frontier has settings for 2, 3, 4, 5, 7, 10, 20"):
        frontier.check_evaluations([6])
    with pytest.raises(ValueError, match="no evaluations"):
        frontier.check_evaluations([])
    for choices in (frontier.CHOICES, frontier.DETERMINISTIC):
        assert tuple(choices) == (2, 3, 4, 5, 7, 10, 20)
        for spent, choice in choices.items():
            assert choice.steps * (1 - choice.saved) == pytest.approx(spent, abs=0.05)


def test_only_as_many_steps_as_the_study(lab, model, tmp_path):
    assert frontier.budgets(lab) == [3]
    assert frontier.budgets(make_lab(model, tmp_path / "a", sets=(FIRST,), steps=14)) == [2, 3, 4, 5, 7]
    with pytest.raises(Skipped, match="has 3 steps: this experiment needs at least 4"):
        frontier.budgets(make_lab(model, tmp_path / "b", sets=(FIRST,), steps=3))


def test_the_frontier(lab, monkeypatch):
    needed = set(frontier.frontier_needs(lab))
    seen, generate = set(), lab.generate
    monkeypatch.setattr(lab, "generate", lambda *one: seen.add(one) or generate(*one))
    results = frontier.frontier(lab)
    assert seen == needed
    assert [r.name for r in results] == [
        "frontier", "frontier", "frontier-sets", "frontier-scores", "frontier-own-steps", "frontier-standard"
    ]  # fmt: skip
    assert all(r.png.startswith(b"\x89PNG") for r in results if isinstance(r, Figure))
    main, scores, over_own, over_standard = (r for r in results if isinstance(r, Table))
    for table in (main, scores, over_own, over_standard):
        assert all(len(row) == len(table.columns) for row in table.rows)
    titles = [column.title for column in main.columns]
    rows = [dict(zip(titles, row, strict=True)) for row in main.rows]
    ways = [way for way, how in frontier.WAYS.items() if lab.measures(how.metric)]
    assert [(r["sampler"], r["evaluations"], r["way"]) for r in rows] == [
        (sampler, 3, way)
        for sampler in ("EulerAncestralDiscrete", "DDIM, deterministic")
        for way in ["own steps", *ways]
    ]
    for row in rows:
        if row["way"] == "own steps":
            assert row["evaluations an image"] == row["evaluations"] == row["steps"]
            assert row["more than own steps"] == Estimate(None)
            assert (row["clusters"], row["of"]) == (11, "prompts")
        else:
            assert row["evaluations an image"] <= row["evaluations"] + 1e-9
            assert row["evaluations an image"] == pytest.approx(row["steps"] * (1 - row["saved"]))
            assert row["more than own steps"].interval is not None
    # By hand: what a cell says.
    own = [lab.generate(s, Variant(steps=3)) for s in lab.sets]
    shared = [lab.generate(s, Variant(budget=0.4, steps=5, catch_up=1.0)) for s in lab.sets]
    row = next(r for r in rows if (r["evaluations"], r["way"]) == (3, "catch-up alone"))
    assert row["gamma"] == 1.0
    expected = np.mean(lab.pooled(shared)[0] - lab.pooled(own)[0])
    assert row["more than own steps"].value == pytest.approx(expected)
    at = list(main.rows).index(next(r for r in main.rows if r[1] == 3 and r[2] == "catch-up alone"))
    assert over_own.rows[at][-1] == row["more than own steps"]
    by_set = [lab.pooled([s for s in shared if s.prompt_set.name == n])[0].mean() for n in ("first", "second")]
    assert [cell.value for cell in scores.rows[at][3:5]] == pytest.approx(by_set)
    assert "more than 6 own steps" in titles
    assert over_standard.rows[at][-1] == row["more than 6 own steps"]


def test_intervals_from_few_clusters_are_marked():
    few = Estimate(0.5, (0.25, 0.75), few=True)
    table = Table("t", "T", (Column("score"),), ((few,), (Estimate(0.5, (0.25, 0.75)),), (Estimate(None, few=True),)))
    assert table.marked
    assert table.markdown().splitlines()[2:] == [
        f"| 0.500 (0.250 to 0.750){MARK} |",
        "| 0.500 (0.250 to 0.750) |",
        "| – |",
    ]
    assert not Table("t", "T", (Column("score"),), table.rows[1:]).marked
    assert table.csv().splitlines()[1] == "0.5,0.25,0.75"


def test_on_the_command_line(tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "shapes.txt").write_text("a red star\na red ring\na blue star\n")
    arguments = ["reproduce", str(tmp_path / "out"), "--prompts", str(prompts), "--steps", "4", "--only", "frontier"]
    arguments += [
        "--seeds",
        "2",
        "--evaluations",
        "2",
        "--batch-size",
        "64",
        "--device",
        "cpu",
        "--set",
        "prior_steps=2",
    ]
    ran = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "out" / "results.md").read_text()
    assert "in every variant of the first of 2 seed ranges, which are 1,000 apart" in text
    assert "with other prompts like these and with other seeds" in text
    assert {p.name for p in (tmp_path / "out" / "runs").iterdir()} == {"shapes", "shapes_seeds-1000"}
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(study["sets"]) == ["shapes"]
    bad = CliRunner().invoke(cli.app, [*arguments, "--evaluations", "6"])
    assert "evaluations is 6" in str(bad.exception)
