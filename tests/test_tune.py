"""hsd tune on a tiny model: what is generated, what is paired with what, resuming, files, the command."""

from __future__ import annotations

import json
import shlex

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import hsd
import tiny
from evaluate_cases import Brightness
from hsd import cli
from hsd.choice import Setting, Tuning
from hsd.choice.cost import prior_rows, rows
from hsd.choice.grid import Axes, grid
from hsd.choice.halving import Rung
from hsd.tuning.passes import rows_by_step
from test_calibration import make

RUN = CliRunner()
PROMPTS = [
    f"{what} {where}" for where in ("at night", "by day", "in oil") for what in ("a cat", "a dog", "the sea", "a hut")
]
STANDARD = Setting(4)
AXES = Axes(steps=[4, 2], budgets=[0.0, 0.4], catch_up=[0.0], metrics=["cosine"], guidance_intervals=[None])


@pytest.fixture(autouse=True, scope="module")
def small_neighbourhoods():
    """Of at most two prompts, so that a sample of few has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsd.choice.neighbourhoods.SMALLEST", 2)
        yield


def prepare(model, out, scorer=None, prompts=PROMPTS, **how):
    how = {
        "scorer_model": None,
        "python": None,
        "steps": 4,
        "axes": AXES,
        "sample": 8,
        "images_per_prompt": 1,
        "margin": 0.01,
        "seeds": 3,
        "seed": 0,
        "batch_size": 4,
        "prompt_settings": None,
        "progress": False,
        "say": lambda text: None,
    } | how
    return Tuning(model, prompts, scorer=scorer or Brightness(), out=out, **how)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    tuning = prepare(model, tmp_path_factory.mktemp("tuning"))
    return tuning, tuning.run()


def test_the_images_are_those_of_the_whole_set(model, tmp_path):
    """Also where a trunk is shared with prompts outside the sample."""
    tuning, setting = prepare(model, tmp_path / "tuning"), Setting(4, 0.4)
    members = tuning.members(tuning.rungs[-1])
    assert 0 < len(members) < len(PROMPTS)
    for one in (setting, STANDARD):
        tuning.trials.scores(one, 0, members)
    plan = hsd.compile(PROMPTS, model=model, budget=0.4, steps=4, seeds=3, catch_up=0.0)
    hsd.generate(plan, model, tmp_path / "all", batch_size=4, progress=False)
    outside = np.setdiff1d(np.arange(len(PROMPTS)), members)
    assert set(plan.active(0)[members]) & set(plan.active(0)[outside]), "no trunk is shared with others"
    differ = []
    for i in members:
        ours, alone = (pixels(tuning.trials.folder(one, 0) / f"{i:05d}.png") for one in (setting, STANDARD))
        assert np.abs(ours - pixels(tmp_path / "all" / f"{i:05d}.png")).max() <= 2  # another batch rounds differently
        differ.append(np.abs(ours - alone).max())
    assert max(differ) > 20


def pixels(path):
    return np.asarray(PIL.Image.open(path)).astype(int)


def test_pairs_are_of_one_prompt_and_seed(done):
    tuning, choice = done
    standard = {e["index"]: e for e in entries(tuning, tuning.standard)}
    for one in choice.compared:
        own = entries(tuning, one.setting)
        members = tuning.members(tuning.rungs[one.rung])
        assert {e["index"] for e in own} == set(members.tolist())
        assert all(e["seed"] == standard[e["index"]]["seed"] == 3 + e["index"] for e in own)
        assert one.difference.pairs == len(members)
        ours, theirs = (tuning.trials.scores(s, 0, members) for s in (one.setting, tuning.standard))
        assert one.difference.mean == pytest.approx((ours - theirs).mean())
        assert (one.score, one.standard_score) == pytest.approx((ours.mean(), theirs.mean()))


def entries(tuning, setting, replicate=0):
    path = tuning.trials.folder(setting, replicate) / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_half_of_the_settings_go_on(model, tmp_path):
    tuning = prepare(model, tmp_path, sample=12, images_per_prompt=2)
    choice = tuning.run()
    assert len(choice.compared) == 4
    last = len(tuning.rungs) - 1
    left, expected = 3, []
    for number in range(last):
        expected += [number] * (left - -(-left // 2))
        left = -(-left // 2)
    assert sorted(one.rung for one in choice.compared[1:]) == sorted([*expected, *[last] * left])
    assert choice.compared[0].rung == last
    # Other seeds in the second replicate, the same ones for all settings.
    seeds = {e["index"]: e["seed"] for e in entries(tuning, tuning.standard, 1)}
    assert seeds == {i: 3 + i + len(PROMPTS) for i in range(len(PROMPTS))}
    # The whole set was drawn: only trunks and seeds make pairs dependent.
    assert len(tuning.groupings(Setting(2), Rung(len(tuning.drawn), 2))) == 1
    assert len(np.unique(tuning.groupings(Setting(2), Rung(len(tuning.drawn), 2))[0])) == 2 * len(PROMPTS)


def test_a_second_run_repeats_nothing(done, model, tmp_path, monkeypatch):
    tuning, choice = done
    files = {p: p.stat().st_mtime_ns for p in tuning.trials.out.rglob("0*.png")}
    scorer = Brightness()
    again = prepare(model, tuning.trials.out, scorer)
    assert again.estimate().images < prepare(model, tmp_path).estimate().images
    scorer.embed = lambda images: pytest.fail("embeddings are stored too")
    monkeypatch.setattr("hsd.choice.trials.generate", lambda *a, **k: pytest.fail("images exist already"))
    found = again.run()
    assert scorer.scored == 0
    assert found.compared == choice.compared
    assert found.sentence == choice.sentence
    assert {p: p.stat().st_mtime_ns for p in tuning.trials.out.rglob("0*.png")} == files


def test_an_interrupted_run_continues(done, model, tmp_path):
    class Stops(Brightness):
        def score(self, images, prompts):
            if self.scored > 12:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        prepare(model, tmp_path, Stops()).run()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("0*.png")}
    assert before
    scorer = Brightness()
    choice = prepare(model, tmp_path, scorer).run()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert choice.compared == done[1].compared
    scored = sum(1 for path in tmp_path.rglob("scores-*.jsonl") for _ in path.read_text().splitlines())
    assert 0 < scorer.scored < scored


def test_a_folder_belongs_to_one_set_and_model(done, model):
    tuning, _ = done
    with pytest.raises(hsd.Error, match="holds trials of another prompts"):
        prepare(model, tuning.trials.out, prompts=PROMPTS[:5])
    with pytest.raises(hsd.Error, match="images of another model .*guidance_scale"):
        prepare(hsd.load(model, guidance_scale=1.0), tuning.trials.out)
    # Plans by another map are others, but have the same names of folders.
    with pytest.raises(hsd.Error, match="holds trials of another calibration"):
        prepare(model.with_calibration(make()), tuning.trials.out)


@pytest.mark.parametrize("text", ["{", "[]", b"\xff"], ids=str)
def test_a_damaged_study_is_an_error(model, tmp_path, text):
    (tmp_path / "study.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(hsd.Error, match=r"study\.json cannot be read"):
        prepare(model, tmp_path)


def test_a_scorer_without_scores_is_said(model, tmp_path):
    class Silent(Brightness):
        def score(self, images, prompts):
            return [float("nan")] * len(images)

    with pytest.raises(hsd.Error, match="no score to any of the 2 images of the standard way"):
        prepare(model, tmp_path, Silent()).run()


# Cost.


def test_cost_counts_rows(model):
    plan = hsd.compile(PROMPTS, model=model, budget=0.4, steps=6)
    assert model.guided
    assert rows(plan, model) == 2 * plan.node_steps
    unguided = hsd.load(model, guidance_scale=1.0)
    assert rows(plan, unguided) == plan.node_steps
    assert prior_rows(model, PROMPTS, np.arange(12)) == 0
    own = [{"guidance_scale": 1.0}] * 6 + [{}] * 6
    mixed = hsd.compile(PROMPTS, model=model, tau=0.0, steps=6, settings=own)
    assert rows(mixed, model) == 6 * 6 + 6 * 6 * 2
    assert rows(mixed.prune([0, 11]), model) == 6 + 12


def test_the_guidance_interval_saves_rows(model):
    assert rows_by_step(hsd.load(model, guidance_interval=(0.25, 0.5)), 8).tolist() == [1, 1, 2, 2, 1, 1, 1, 1]
    assert rows_by_step(hsd.load(model, guidance_interval=(0.5, 1.0)), 4).tolist() == [1, 1, 2, 2]
    assert rows_by_step(model, 3).tolist() == [2, 2, 2]
    assert rows_by_step(hsd.load(model, guidance_scale=1.0), 3).tolist() == [1, 1, 1]
    plan = hsd.compile(PROMPTS, model=model, budget=0.4, steps=6)
    early = hsd.load(model, guidance_interval=(0.0, 0.5))
    assert rows(plan, early) == plan.node_steps + plan.counts()[:3].sum()


def test_the_prior_counts():
    demo = hsd.load("demo")
    prior = demo.prior()
    ratio = sum(w.numel() for w in prior.modules()[0].parameters()) / sum(
        w.numel() for w in demo.decoder.unet.parameters()
    )
    assert prior_rows(demo, PROMPTS, np.arange(12)) == pytest.approx(demo.prior_steps * ratio)
    guided = hsd.load(demo, prior_guidance_scale=4.0, negative_prompt="blur")
    assert prior_rows(guided, PROMPTS, np.arange(12)) == pytest.approx(4 * demo.prior_steps * ratio)
    shares = hsd.load(demo, share_prior=True, prior_tau=5.0)
    assert 0 < prior_rows(shares, PROMPTS, np.arange(12)) < demo.prior_steps * ratio


# The grid.


def test_the_default_grid(model):
    settings, notes = grid(Axes(), model, 40)
    assert settings[0] == Setting(40)
    assert len(set(settings)) == len(settings)
    assert {one.steps for one in settings} == {40, 20, 12, 8}
    assert {one.budget for one in settings} == {0.0, 0.3, 0.5}
    assert all(one.catch_up == 0 and one.metric == "cosine" for one in settings if not one.budget)
    assert len({one.name for one in settings}) == len(settings)
    assert any("calibrat" in note for note in notes)


@pytest.mark.parametrize(("steps", "left"), [(None, {8, 4}), ([8, 2], {8})])
def test_steps_of_which_strength_leaves_none_are_left_out_and_said(tmp_path, steps, left):
    """They are 8, 4 and 2 by default, of which the last int(n * 0.3) are made."""
    from_image = hsd.load(tiny.sd_from_image(), image=tiny.picture((32, 32)), strength=0.3)
    tuning = prepare(from_image, tmp_path, steps=8, axes=Axes(steps=steps, budgets=[0.0], guidance_intervals=[None]))
    assert {setting.steps for setting in tuning.settings} == left
    assert [note for note in tuning.notes if "left out: 2 steps: strength is 0.3" in note]


def test_the_automatic_metric_is_named(model):
    """The file of settings has a threshold, which belongs to one metric."""
    axes = Axes(steps=[4], budgets=[0.5], metrics=["auto", "cosine"], catch_up=[0.0], guidance_intervals=[None])
    assert [one.metric for one in grid(axes, model, 4)[0][1:]] == ["cosine"]
    assert [one.metric for one in grid(axes, model.with_calibration(make()), 4)[0][1:]] == ["calibrated", "cosine"]


def test_settings_that_are_close_have_different_folders():
    close = [
        Setting(4, budget, guidance_interval=(0.0, end)) for budget in (0.3, 0.30000001) for end in (0.5, 0.50000001)
    ]
    assert len({one.name for one in close}) == len(close)
    assert close[0].name == "steps-4_budget-0.3_guidance_interval-0-0.5"


def test_axes_that_a_model_does_not_have_are_left_out_and_said(model):
    unguided = hsd.load(model, guidance_scale=1.0)
    axes = Axes(metrics=["calibrated"], schedules=["measured"], guidance_intervals=[(0.0, 0.5)], schedulers=["nothing"])
    settings, notes = grid(axes, unguided, 10)
    assert {(s.metric, s.schedule, s.guidance_interval, s.scheduler) for s in settings} == {
        ("cosine", "linear", None, None)
    }
    said = "\n".join(notes)
    for what in ("metric calibrated", "schedule measured", "guidance interval (0.0, 0.5)", "'nothing' is no scheduler"):
        assert what in said


def test_the_models_own_scheduler_is_one_setting(model):
    own = type(model.scheduler()).__name__
    settings, _ = grid(Axes(steps=[4], budgets=[0.0], schedulers=[None, own, "deterministic"]), model, 4)
    assert [one.scheduler for one in settings if one.guidance_interval is None] == [None, "deterministic"]


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (Axes(budgets=[1.5]), "budget is 1.5"),
        (Axes(steps=[0]), "steps is 0"),
        (Axes(catch_up=[-1.0], budgets=[0.5]), "catch_up is -1"),
        (Axes(metrics=["far"], budgets=[0.5]), "metric is 'far'"),
    ],
)
def test_bad_axes(model, axes, says):
    with pytest.raises(ValueError, match=says):
        grid(axes, model, 10)


def test_a_budget_out_of_reach_is_left_out(model, tmp_path):
    tuning = prepare(model, tmp_path, axes=Axes(steps=[4], budgets=[0.0, 0.99], guidance_intervals=[None]))
    assert tuning.settings == [Setting(4)]
    assert any("a budget of 0.99 cannot be met" in note for note in tuning.notes)
    assert tuning.run().decision.answer == "keep the standard settings"


# Results and the command.


def test_the_files(done):
    tuning, choice = done
    out = tuning.trials.out
    settings = hsd.load_settings(out / "hsd-settings.json")
    assert settings == choice.settings
    assert settings.evidence["sentence"] == choice.sentence
    numbers = json.loads((out / "frontier.json").read_text())
    assert len(numbers["settings"]) == len(choice.compared)
    assert numbers["answer"] == choice.decision.answer
    assert (out / "frontier.png").stat().st_size > 1000
    assert choice.sentence in str(choice)
    assert "(standard)" in str(choice)


def test_the_chosen_settings_give_the_plan_that_was_tried(model, tmp_path):
    """A scorer for which less is more: the cheapest setting is chosen, and its file makes the same plan."""

    class Dark(Brightness):
        name = "dark"

        def score(self, images, prompts):
            return [1.0] * len(images)

    tuning = prepare(model, tmp_path, Dark(), sample=12)
    choice = tuning.run()
    assert choice.decision.answer == "share"
    assert choice.best.cost == min(one.cost for one in choice.compared if one.rung == choice.last_rung)
    settings = hsd.load_settings(tmp_path / "hsd-settings.json")
    plan = hsd.compile(PROMPTS, model=model, seeds=3, **settings.compile_arguments())
    tried = tuning.trials.plan(choice.decision.chosen)
    assert np.array_equal(plan.segments, tried.segments)
    assert plan.tau == tried.tau


def test_bad_arguments(model, tmp_path):
    for how, says in (({"margin": -1.0}, "margin is -1"), ({"sample": 0}, "sample is 0"), ({"steps": 0}, "steps is 0")):
        with pytest.raises(ValueError, match=says):
            prepare(model, tmp_path, **how)
    with pytest.raises(ValueError, match="unknown scorer 'taste'"):
        prepare(model, tmp_path, "taste")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path):
    path, out = tmp_path / "prompts.txt", tmp_path / "tuning"
    path.write_text("a red star\na blue star\na green ring\na green star\na red ring\n")
    command = ["tune", "demo", str(path), "--out", str(out), "--steps", "4", "--try-steps", "4", "--try-steps", "2"]
    command += [
        "--try-budget",
        "0",
        "--try-guidance",
        "0:1",
        "--set",
        "prior_steps=2",
        "--guidance-scale",
        "3",
        "--negative-prompt",
        "it's grey",
        "--height",
        "64",
        "--width",
        "64",
        "--seed",
        "5",
    ]
    dry = RUN.invoke(cli.app, [*command, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "2 settings on 5 prompts" in dry.output
    assert not (out / "runs").exists()
    run = RUN.invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    shown = shlex.split(run.output.splitlines()[-1])
    assert shown[:5] == ["hsd", "generate", str(path), "--model", "demo"]
    assert shown[-4:] == ["--settings", str(out / "hsd-settings.json"), "--out", "images"]
    repeated = {"--set": "prior_steps=2", "--guidance-scale": "3.0", "--negative-prompt": "it's grey", "--seed": "5"}
    assert dict(zip(shown[5:-4:2], shown[6:-4:2], strict=True)) == repeated | {"--height": "64", "--width": "64"}
    numbers = json.loads(RUN.invoke(cli.app, [*command, "--json"]).stdout)
    assert numbers["command"] == run.output.splitlines()[-1]
    sentence = numbers["sentence"]
    assert sentence in run.output
    assert sentence.startswith(("Keep the standard settings (4 steps", "Do not share: take 2 steps"))
    bad = RUN.invoke(cli.app, [*command, "--try-guidance", "half"])
    assert "write A:B" in str(bad.exception)
