"""hsd reproduce: which prompts share, tables against hsd.evaluate and closed forms, resuming, errors."""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import numpy as np
import PIL.Image
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UnCLIPScheduler,
)
from typer.testing import CliRunner

import hsd
from evaluate_cases import Brightness
from hsd import cli
from hsd.evaluation.measure import Measurer
from hsd.evaluation.stats import mean_cosine, pair_mean_interval, similarity_to_others
from hsd.models.encode import recall
from hsd.reproduction import experiment, open_questions, paper, study
from hsd.reproduction.catalogue import EXPERIMENTS, NAMES
from hsd.reproduction.lab import Lab, PromptSet, Skipped, Variant
from hsd.reproduction.results import Column, Estimate, Table
from hsd.reproduction.samplers import NoSuchSampler, sampler_named

RUN = CliRunner()
FIRST = PromptSet("first", ("a cat", "a cat on a mat", "a dog", "a small dog", "the sea at night", "the sea by day"))
SECOND = PromptSet("second", ("a red bicycle", "a red boat", "a blue boat", "a house", "a hut"))


@pytest.fixture(scope="module")
def lab(model, tmp_path_factory):
    return make_lab(model, tmp_path_factory.mktemp("study"))


def make_lab(model, out, sets=(FIRST, SECOND), **how):
    how = {"steps": 6, "seed": 5, "batch_size": 4} | how
    return Lab(model, sets, out, Measurer(Brightness(), 4, 100, 0, progress=False), **how)


# Which prompts share.


def test_shuffled_prompts_share_as_much_but_with_others(lab):
    ours, chance = lab.plan(FIRST, Variant(tau=0.9)), lab.plan(FIRST, Variant(tau=0.9, shuffled=True))
    assert 0 < ours.savings == chance.savings
    assert np.sort(ours.tree.heights) == pytest.approx(np.sort(chance.tree.heights), rel=1e-6)

    def families(plan):
        return {frozenset(np.flatnonzero(plan.active(2) == s)) for s in np.unique(plan.active(2))}

    assert sorted(map(len, families(ours))) == sorted(map(len, families(chance)))
    assert families(ours) != families(chance)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_groups_separate_all_at_once(lab, size):
    together = 2
    plan = lab.plan(FIRST, Variant(group=size, schedule=(1.0,) * together + (0.0,) * (6 - together)))
    groups = -(-6 // size)
    assert plan.counts().tolist() == [groups] * together + [6] * (6 - together)
    # Neighbours in the leaf order of the model's own tree.
    order = lab.plan(FIRST, Variant(tau=1.0)).tree.leaf_order
    for i in range(groups):
        assert len(set(plan.active(0)[order[i * size : (i + 1) * size]])) == 1


@pytest.mark.parametrize(
    "variant", [Variant(), Variant(tau=0.9), Variant(budget=0.3, linkage="average", noise="shared")], ids=str
)
def test_images_are_those_of_generate(lab, model, tmp_path, variant):
    generated = lab.generate(FIRST, variant)
    own = {"tau": variant.tau or 0.0} if variant.budget is None else {"budget": variant.budget}
    plan = hsd.compile(
        FIRST.prompts, model=model, steps=6, seeds=5, linkage=variant.linkage, noise=variant.noise, catch_up=0.0, **own
    )
    hsd.generate(plan, model, tmp_path, batch_size=4, progress=False)
    assert plan.node_steps == generated.plan.node_steps
    for i in range(6):
        assert (generated.folder / f"{i:05d}.png").read_bytes() == (tmp_path / f"{i:05d}.png").read_bytes()


def test_standard_with_equal_compute(lab):
    shared = Variant(tau=0.9)
    fewer = paper.with_equal_compute(lab, FIRST, shared)
    assert fewer == Variant(steps=round(lab.plan(FIRST, shared).node_steps / 6))
    assert fewer.steps < 6
    generated = lab.generate(FIRST, fewer)
    assert generated.evaluations == fewer.steps
    assert experiment.saved(lab, [generated]) == pytest.approx(1 - fewer.steps / 6)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant(), "standard"),
        (Variant(tau=0.0, prior_tau=0.3), "standard_prior_tau-0.3"),
        (Variant(steps=3), "standard_steps-3"),
        (Variant(tau=0.5), "tau-0.5"),
        (Variant(tau=0.25), "tau-0.25"),
        (Variant(budget=0.5), "budget-0.5"),
        (Variant(budget=0.5, shuffled=True), "budget-0.5_shuffled"),
        (Variant(budget=0.5, noise="shared"), "budget-0.5_noise-shared"),
        (Variant(budget=0.5, linkage="average"), "budget-0.5_linkage-average"),
        (Variant(budget=0.5, schedule="paper-eq7"), "budget-0.5_schedule-paper-eq7"),
        (Variant(budget=0.5, prior_tau=3.0), "budget-0.5_prior_tau-3.0"),
        (Variant(sampler="deterministic"), "standard_sampler-deterministic"),
        (Variant(budget=0.5, sampler="stochastic", noise="shared"), "budget-0.5_noise-shared_sampler-stochastic"),
        (Variant(group=2, schedule=(1.0, 0.0, 0.0)), "schedule-[1.0, 0.0, 0.0]_group-2"),
        (Variant(group=8, schedule=(1.0,) * 12 + (0.0,) * 28), "schedule-78fcbf9f_group-8"),
    ],
)
def test_names_of_folders_do_not_change(variant, name):
    """A study is continued only if its folders are found again."""
    assert variant.name == name


def test_every_variant_has_a_folder_of_its_own():
    variants = {
        Variant(), Variant(steps=3), Variant(tau=0.5), Variant(tau=0.25), Variant(budget=0.5),
        Variant(budget=0.5, shuffled=True), Variant(budget=0.5, noise="shared"),
        Variant(budget=0.5, linkage="average"), Variant(budget=0.5, schedule="log"),
        Variant(budget=0.5, prior_tau=0.3), Variant(sampler="deterministic"), Variant(sampler="stochastic"),
        Variant(group=2, schedule=(1.0, 0.0, 0.0)), Variant(group=2, schedule=(1.0, 1.0, 0.0)),
        Variant(group=3, schedule=(1.0, 0.0, 0.0)),
    }  # fmt: skip
    assert len({variant.name for variant in variants}) == len(variants)


# Samplers.


@pytest.mark.parametrize("own", [DDPMScheduler, DDIMScheduler])
def test_samplers_of_one_noise_schedule(own):
    scheduler = own(beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing")
    for name, cls in {"deterministic": DDIMScheduler, "stochastic": DDPMScheduler}.items():
        sampler = sampler_named(name, scheduler)
        assert type(sampler) is cls
        assert np.array_equal(sampler.alphas_cumprod, scheduler.alphas_cumprod)
        assert sampler.config.prediction_type == "v_prediction"
        sampler.set_timesteps(5), scheduler.set_timesteps(5)
        assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    assert sampler_named("stochastic" if own is DDPMScheduler else "deterministic", scheduler) is scheduler


def test_samplers_of_a_flow():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for name, noisy in {"deterministic": False, "stochastic": True}.items():
        sampler = sampler_named(name, flow)
        assert sampler.config.stochastic_sampling is noisy
        assert sampler.config.shift == 3.0


def test_a_sampler_without_a_counterpart():
    with pytest.raises(NoSuchSampler, match="UnCLIPScheduler has no deterministic counterpart"):
        sampler_named("deterministic", UnCLIPScheduler())


def test_the_sampler_is_what_makes_the_images(lab):
    """The model's own is Euler ancestral: the deterministic one is another scheduler, and the model is not changed."""
    before = type(lab.model.scheduler())
    ddim = lab.generate(FIRST, Variant(sampler="deterministic"))
    assert json.loads((ddim.folder / "run.json").read_text())["runs"][-1]["scheduler"] == "DDIMScheduler"
    assert type(lab.model.scheduler()) is before
    standard = lab.generate(FIRST, Variant())
    assert (ddim.folder / "00000.png").read_bytes() != (standard.folder / "00000.png").read_bytes()


# Numbers.


def test_scores_and_wins_are_those_of_evaluate(lab):
    shared, standard = [lab.generate(FIRST, Variant(tau=0.9))], [lab.generate(FIRST, Variant())]
    found = hsd.evaluate(
        shared[0].folder, against=standard[0].folder, scorer=Brightness(), seed=lab.seed, progress=False
    )
    mean = experiment.score(lab, shared)
    assert mean.value == pytest.approx(found.measured.fidelity.mean)
    wins = lab.win_rate(shared, standard)
    assert (wins.wins, wins.ties, wins.losses) == (found.wins.wins, found.wins.ties, found.wins.losses)
    assert wins.difference == pytest.approx(found.wins.difference)
    assert experiment.win(wins)[:2] == (found.wins.win_rate, found.wins.win_rate_interval)
    assert experiment.similarity(lab, shared).value == pytest.approx(found.measured.diversity.sample.mean_cosine)
    assert experiment.vendi(lab, shared) == pytest.approx(found.measured.diversity.sample.vendi)


def test_sets_together(lab):
    both = experiment.generate_all_sets(lab, Variant(tau=0.9))
    scores, _ = lab.pooled(both)
    assert experiment.score(lab, both).value == pytest.approx(np.mean(scores))
    assert experiment.saved(lab, both) == pytest.approx(1 - sum(one.plan.node_steps for one in both) / (11 * 6))
    single = [experiment.similarity(lab, [one]).value for one in both]
    assert experiment.similarity(lab, both).value == pytest.approx(np.mean(single))


def test_the_mean_of_each_gives_the_mean_of_all_pairs():
    rows = np.random.default_rng(0).standard_normal((9, 4)) + 1
    each = similarity_to_others(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    by_hand = [np.mean([unit[i] @ unit[j] for j in range(9) if j != i]) for i in range(9)]
    assert each == pytest.approx(by_hand)
    assert each.mean() == pytest.approx(mean_cosine(rows))
    assert similarity_to_others(rows[:1]) is None


def test_intervals_of_a_mean_of_pairs_cover_it():
    rng = np.random.default_rng(1)
    shift = np.array([1.0, 0.5, 0.0])
    draw = rng.standard_normal((400_000, 3)) + shift
    draw /= np.linalg.norm(draw, axis=1, keepdims=True)
    true = float(np.square(draw.mean(axis=0)).sum())  # of two independent rows
    ends = np.array(
        [pair_mean_interval(similarity_to_others(rng.standard_normal((60, 3)) + shift)) for _ in range(600)]
    )
    covered = np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))
    assert 0.92 <= covered <= 0.97  # 2.5 standard errors of the simulation about 0.945


def test_families_add_up(lab):
    lab_tau = lab.tau
    table = paper.families(lab)[0]
    for prompt_set in lab.sets:
        rows = [row for row in table.rows if row[0] == prompt_set.name]
        assert sum(row[2] for row in rows) == len(prompt_set.prompts)
        assert sum(row[7] + row[8] + row[9] for row in rows) == len(prompt_set.prompts)
        plan = lab.plan(prompt_set, Variant(tau=lab_tau))
        # Families share nothing with each other, so their evaluations add up to the set's.
        spent = sum(row[2] * plan.n_steps * (1 - row[3]) for row in rows)
        assert spent == pytest.approx(plan.node_steps)


def observed(lab, report, monkeypatch):
    """The results of a report, and the sets and variants that it generates."""
    seen, generate = set(), lab.generate
    monkeypatch.setattr(lab, "generate", lambda *one: seen.add(one) or generate(*one))
    return report(lab), seen


@pytest.mark.parametrize("name", [e.name for e in EXPERIMENTS if e.report.__module__ == paper.__name__])
def test_the_papers_tables(lab, name, monkeypatch):
    one = next(e for e in EXPERIMENTS if e.name == name)
    needed = set(one.needs(lab))
    results, generated = observed(lab, one.report, monkeypatch)
    assert generated <= needed  # so that all images are counted before the first is generated
    for table in (r for r in results if isinstance(r, Table)):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert {"first", "second"} <= {cell for row in table.rows for cell in row if isinstance(cell, str)}


@pytest.mark.parametrize("name", ["linkage", "schedule", "noise", "sampler", "trunk"])
def test_open_questions(lab, name, monkeypatch):
    one = next(e for e in EXPERIMENTS if e.name == name)
    needed = set(one.needs(lab))
    (figure, table), generated = observed(lab, one.report, monkeypatch)
    assert generated <= needed
    assert figure.png.startswith(b"\x89PNG")
    assert all(len(row) == len(table.columns) for row in table.rows)
    saved = [row[[c.title for c in table.columns].index("saved")] for row in table.rows]
    if name in ("linkage", "schedule", "noise"):
        assert saved[0] == 0
        assert all(0.5 <= share < 0.7 for share in saved[1:])  # equal compute, as nearly as these few prompts allow


def test_a_model_without_a_prior_skips_it(lab):
    with pytest.raises(Skipped, match="has no prior"):
        open_questions.prior_needs(lab)
    with pytest.raises(Skipped, match="has no prior"):
        lab.plan(FIRST, Variant(prior_tau=0.3))


def test_the_prior_shared_and_what_it_saves(tmp_path):
    sets = [PromptSet("shapes", ("a red star", "a red ring", "a blue star", "a blue ring"))]
    demo = make_lab(hsd.load("demo", prior_steps=3), tmp_path, sets, steps=4)
    separate, some, most = Variant(), Variant(prior_tau=0.3), Variant(prior_tau=100.0)
    shares = [demo.prior_saved(sets[0], variant) for variant in (separate, some, most)]
    # All but the last of three steps shared by all four: 1 + 1 + 4 evaluations instead of 12.
    assert shares[0] == 0 <= shares[1] < shares[2] == pytest.approx(0.5)
    assert not np.array_equal(demo.vectors(sets[0], separate), demo.vectors(sets[0], most))
    adapter = demo.adapter(most)
    assert (adapter.share_prior, adapter.prior_tau) == (True, 100.0)
    own = hsd.compile(sets[0].prompts, 0.0, model=adapter, steps=4, seeds=5)
    assert np.array_equal(demo.vectors(sets[0], most), recall(own, adapter.encoding_key()).vectors)
    assert demo.model.share_prior is False


def test_impossible_savings_are_skipped(model, tmp_path):
    small = make_lab(model, tmp_path, sets=[PromptSet("two", ("a cat", "a dog"))])
    with pytest.raises(Skipped, match=r"two: a budget of 0.5 cannot be met"):
        small.plan(small.sets[0], Variant(budget=0.5))


# Tables as text.


def test_a_table_in_markdown_and_csv():
    columns = (
        Column("set", "text"),
        Column("n", "count"),
        Column("saved", "share"),
        Column("score"),
        Column("more", "signed"),
    )
    rows = (
        ("a|b", 1200, 0.25, Estimate(0.5, (0.25, 0.75)), Estimate(0.0125)),
        ("c", 2.5, None, Estimate(None), Estimate(-1.0, (-2.0, 0.0))),
    )
    table = Table("t", "T", columns, rows)
    assert table.markdown().splitlines() == [
        "| set | n | saved | score | more |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b | 1,200 | 25.0% | 0.500 (0.250 to 0.750) | +0.013 |",
        "| c | 2.5 | – | – | -1.000 (-2.000 to +0.000) |",
    ]
    read = list(csv.reader(io.StringIO(table.csv())))
    assert read[0] == ["set", "n", "saved", "score", "score low", "score high", "more", "more low", "more high"]
    assert read[1] == ["a|b", "1200", "0.25", "0.5", "0.25", "0.75", "0.0125", "", ""]
    assert read[2] == ["c", "2.5", "", "", "", "", "-1.0", "-2.0", "0.0"]


# Whole studies.


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "shapes.txt").write_text("a red star\na red ring\na blue star\na blue ring\na pink ring\n")
    more = ("a star", "a green star", "a pink disc", "a cross", "a ring")
    (folder / "more.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in more))
    (folder / "notes.md").write_text("not prompts")
    return folder


def test_a_study_of_the_demo_model_and_once_more(prompts, tmp_path):
    messages, stages = [], set()
    how = {"only": ["diversity", "prior"], "steps": 4, "say": messages.append, "progress": lambda at, _: stages.add(at)}
    first = hsd.reproduce("demo", prompts, tmp_path / "out", **how)
    assert set(first.results) | set(first.skipped) == {"diversity", "prior"}
    assert stages == {"encode", "cluster", "denoise", "score", "embed"}
    assert any("images to generate" in text and not text.startswith("0 ") for text in messages)
    text = first.report.read_text()
    assert "sets: more (5), shapes (5)" in text
    assert "## Diversity" in text
    tables = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"diversity.csv", "diversity.md"} <= tables
    for path in (tmp_path / "out").rglob("*.png"):
        path.touch()
    messages.clear()
    again = hsd.reproduce("demo", prompts, tmp_path / "out", **how)
    assert any(text.startswith("0 images to generate, 0 evaluations") for text in messages)
    assert again.results == first.results


def test_prompts_that_the_demos_scorer_cannot_read_are_said_first(prompts, tmp_path, monkeypatch):
    (prompts / "other.txt").write_text("a cat on a mat\na dog\na red star\n")
    messages = []

    class Stop(Exception):
        pass

    def generate_all(lab, chosen, progress, say):
        raise Stop

    monkeypatch.setattr(study, "_generate_all", generate_all)
    for scorer in (None, Brightness()):
        with pytest.raises(Stop):
            hsd.reproduce("demo", prompts, tmp_path / "out", only=["savings"], scorer=scorer, say=messages.append)
    [said] = messages  # of the default scorer only
    assert said.startswith("the scorer demo gives no score for 2 of ")
    assert "--scorer clipscore" in said


def test_all_experiments_on_a_given_pipeline(model, prompts, tmp_path):
    """A model without a prior, and a scorer object: all experiments but the prior, and every file that is linked to."""
    (prompts / "more.jsonl").unlink()  # one set is enough to see that all of them work together
    messages = []
    found = hsd.reproduce(
        model,
        prompts,
        tmp_path / "out",
        scorer=Brightness(),
        steps=6,
        batch_size=8,
        say=messages.append,
        progress=False,
    )
    assert set(found.skipped) == {"prior"}
    assert set(found.results) == set(NAMES) - {"prior"}
    text = found.report.read_text()
    assert "Skipped: " in text
    linked = re.findall(r"\]\((figures/[a-z-]+\.png)\)", text)
    assert len(linked) == len(set(linked)) >= 8
    for path in linked:
        PIL.Image.open(found.out / path).verify()
    names = [r.name for results in found.results.values() for r in results if isinstance(r, Table)]
    assert len(names) == len(set(names))
    for name in names:
        rows = list(csv.reader(io.StringIO((found.out / "tables" / f"{name}.csv").read_text())))
        assert len({len(row) for row in rows}) == 1
        assert (found.out / "tables" / f"{name}.md").read_text().strip() in text


def test_a_folder_holds_one_study(prompts, tmp_path):
    how = {"only": ["families"], "progress": False}
    hsd.reproduce("demo", prompts, tmp_path / "out", steps=2, limit=2, **how)
    with pytest.raises(hsd.Error, match=r"out holds another study: its steps is 2, not 3; choose another folder"):
        hsd.reproduce("demo", prompts, tmp_path / "out", steps=3, limit=2, **how)
    with pytest.raises(hsd.Error, match=r"out holds another study: its sets is"):
        hsd.reproduce("demo", prompts, tmp_path / "out", steps=2, **how)


def test_bad_arguments_before_a_model_is_loaded(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "load", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(ValueError, match=r"unknown experiment 'table1': one of savings, random-clusters"):
        hsd.reproduce("demo", prompts, tmp_path, only=["table1"])
    with pytest.raises(hsd.PromptError, match="nowhere is not a folder"):
        hsd.reproduce("demo", tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(hsd.PromptError, match="empty has no file of prompts"):
        hsd.reproduce("demo", tmp_path / "empty", tmp_path)
    with pytest.raises(ValueError, match="limit is 0"):
        hsd.reproduce("demo", prompts, tmp_path, limit=0)
    (prompts / "own.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "seed": 3}\n')
    with pytest.raises(hsd.PromptError, match=r"own.jsonl: prompt 1 has a seed: in experiments"):
        hsd.reproduce("demo", prompts, tmp_path)
    (prompts / "own.jsonl").write_text('{"prompt": "a", "width": 8}\n')
    with pytest.raises(hsd.PromptError, match=r"own.jsonl: prompt 0 has settings: in experiments"):
        hsd.reproduce("demo", prompts, tmp_path)
    (prompts / "own.jsonl").rename(prompts / "shapes.jsonl")
    (prompts / "shapes.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(hsd.PromptError, match="another set named 'shapes'"):
        hsd.reproduce("demo", prompts, tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(hsd.Error, match=r'plots need matplotlib .*pip install "hsd-diffusion\[reproduce\]"'):
        hsd.reproduce("demo", prompts, tmp_path)


def test_on_the_command_line(prompts, tmp_path):
    arguments = ["reproduce", str(tmp_path / "out"), "--prompts", str(prompts), "--steps", "2", "--only", "families"]
    ran = RUN.invoke(cli.app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "results.md: 1 experiment in" in ran.output
    assert "hsd: By family (supplement)" in ran.output
    assert (tmp_path / "out" / "tables" / "families.csv").is_file()
    assert set(NAMES) == {e.name for e in EXPERIMENTS}


def test_the_demos_sets_are_all_in_its_language():
    from hsd.demo.evaluator import named_attributes

    sets = study.read_sets(study.PROMPTS)
    assert [s.name for s in sets] == ["objects", "scenes", "styles", "templates"]
    for prompt_set in sets:
        assert len(set(prompt_set.prompts)) == 64
        assert all(named_attributes(prompt) for prompt in prompt_set.prompts)


def test_sets_are_files_of_prompts_by_any_of_their_names(tmp_path):
    for name in ("a.ndjson", "b.json", "c.JSONL", "d.TXT", "f.png", "g.jsonl.txt"):
        (tmp_path / name).write_text('{"prompt": "a cat"}\n')
    (tmp_path / "e.csv").write_text("prompt,note\na cat,3\n")
    assert [s.name for s in study.read_sets(tmp_path)] == ["a", "b", "c", "d", "e", "g.jsonl"]


class Plain:
    """A scorer that does not embed images, and gives images of the sea no score."""

    name, version = "plain", "1"

    def score(self, images, prompts):
        return [
            np.nan if "sea" in prompt else np.asarray(image).mean()
            for image, prompt in zip(images, prompts, strict=True)
        ]


def test_a_scorer_that_does_not_embed(model, tmp_path):
    plain = Lab(model, [FIRST], tmp_path, Measurer(Plain(), 4, 100, 0, progress=False), steps=6, seed=5, batch_size=4)
    with pytest.raises(Skipped, match="plain does not embed images"):
        paper.diversity_needs(plain)
    _, table = open_questions.noise(plain)
    titles = [column.title for column in table.columns]
    for row in table.rows:
        assert row[titles.index("mean cosine")] == Estimate(None)
        assert row[titles.index("Vendi score")] is None
    # Prompts without a score are left out, on both sides.
    generated = plain.generate(FIRST, Variant())
    scores = plain.scores(generated)
    assert np.isnan(scores).tolist() == ["sea" in prompt for prompt in FIRST.prompts]
    assert experiment.score(plain, [generated]).value == pytest.approx(np.nanmean(scores))
    family_rows = paper.families(plain)[0].rows
    assert sum(row[7] + row[8] + row[9] for row in family_rows) == 4
