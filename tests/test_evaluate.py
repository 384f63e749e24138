"""Evaluation: folders of all kinds, stored scores, numbers computed by hand, the command line."""

from __future__ import annotations

import json
import math
import os
import shutil

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hsd
from evaluate_cases import PROMPTS, Brightness, lines, measured, write
from hsd import cli
from hsd.evaluation import FolderError, ScorerError, measure
from hsd.evaluation.folder import load_image, pair, read_folder
from hsd.evaluation.stats import mean_cosine, vendi_score

RUN = CliRunner()


# Folders.


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "00000.png", "te', r"metadata.jsonl, line 3 is not JSON.*run the same command again"),
        ("\xff\xfe", r"line 3 is not JSON"),
        ("[1]", r"line 3 names no image"),
        ('{"text": "a cat"}', r"line 3 names no image"),
        ('{"file_name": "b.png"}', r"line 3 has no text for b.png"),
        ('{"file_name": "b.png", "text": " "}', r"line 3 has no text for b.png"),
        ('{"file_name": "b.png", "text": "x"}', r"b.png is missing: .*line 3"),
        ('{"file_name": "text.png", "text": "x"}', r"text.png is not an image .*line 3"),
        ('{"file_name": "cut.png", "text": "x"}', r"cut.png is not an image .*line 3"),
        ('{"file_name": "a.png", "text": "x", "index": "7"}', r"line 3: the index is '7'"),
        ('{"file_name": "a.png", "text": "x", "seed": true}', r"line 3: the seed is True"),
        ('{"file_name": "00001.png", "text": "x"}', r"line 3: the file_name '00001.png' is already in line 2"),
        ('{"file_name": "a.png", "text": "x", "index": 0}', r"line 3: the index 0 is already in line 1"),
    ],
)
def test_bad_lines_are_named_before_a_scorer_is_loaded(tmp_path, monkeypatch, line, says):
    write(tmp_path, PROMPTS[:2])
    (tmp_path / "text.png").write_text("not an image")
    shutil.copy(tmp_path / "00000.png", tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "00000.png").read_bytes()[:-25])
    with open(tmp_path / "metadata.jsonl", "ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    monkeypatch.setattr(measure, "make_scorer", lambda *_, **__: pytest.fail("loaded a scorer"))
    with pytest.raises(FolderError, match=says):
        hsd.evaluate(tmp_path)


def test_folders_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(FolderError, match="nowhere is not a folder"):
        hsd.evaluate(tmp_path / "nowhere")
    with pytest.raises(FolderError, match=r"has no metadata.jsonl"):
        hsd.evaluate(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n\n")
    with pytest.raises(FolderError, match="has no images"):
        hsd.evaluate(tmp_path)


def test_an_image_that_cannot_be_decoded_after_all(tmp_path):
    write(tmp_path, PROMPTS[:1])
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "a.jpg", "text": "x"}\n')
    with pytest.raises(FolderError, match=r"a.jpg cannot be decoded .*metadata.jsonl, line 2"):
        measured(tmp_path)


def test_transparency_is_white(tmp_path):
    write(tmp_path, PROMPTS[:3])
    PIL.Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "00000.png")
    PIL.Image.new("L", (4, 4), 70).save(tmp_path / "00001.png")
    palette = PIL.Image.new("P", (4, 4), 0)
    palette.putpalette([5, 6, 7])
    palette.save(tmp_path / "00002.png", transparency=0)
    pixels = [load_image(entry).getpixel((1, 1)) for entry in read_folder(tmp_path).entries]
    assert pixels == [(255, 255, 255), (70, 70, 70), (255, 255, 255)]


def test_pairs_by_index_whatever_the_order_of_lines(tmp_path):
    a = read_folder(write(tmp_path / "a"))
    b = read_folder(write(tmp_path / "b", order=[3, 1, 4, 0, 2]))
    assert [b.entries[i].index for i in pair(a, b)] == [0, 1, 2, 3, 4]


def test_pairs_by_text_and_seed_or_by_text_alone(tmp_path):
    twice = [*PROMPTS, *PROMPTS[::-1]]
    a = read_folder(write(tmp_path / "a", twice, fields=("seed",)))
    b = read_folder(write(tmp_path / "b", twice, order=range(9, -1, -1)))
    assert [a.entries[i].seed for i in range(10)] == [b.entries[i].seed for i in pair(a, b)]
    c = read_folder(write(tmp_path / "c", twice, fields=()))
    matched = [c.entries[i] for i in pair(a, c)]
    assert [entry.text for entry in matched] == a.prompts
    assert len({entry.file_name for entry in matched}) == 10


@pytest.mark.parametrize("fields", [("index", "seed"), ("seed",), ()])
def test_other_prompts_are_refused_by_name(tmp_path, fields):
    a = write(tmp_path / "a", fields=fields)
    b = write(tmp_path / "b", [*PROMPTS[:2], "a dog", *PROMPTS[3:]], fields=fields)
    says = r"at index 2 .*'a green cross'.*'a dog'" if fields[:1] == ("index",) else r"no image for 'a .*line \d"
    with pytest.raises(FolderError, match=says):
        measured(a, against=b)
    c = write(tmp_path / "c", PROMPTS[:3], fields=fields)
    for pairing in ((a, c), (c, a)):
        with pytest.raises(FolderError, match=r"c has no image for .*a pink heart.*a.metadata.jsonl, line 4"):
            measured(pairing[0], against=pairing[1])


# Scores on disk.


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("batches", [0, 1, 2, 4])
def test_a_resumed_run_is_a_fresh_run(tmp_path, batches):
    fresh = measured(write(tmp_path / "fresh", shift=5), batch_size=2).numbers()

    class Stops(Brightness):
        def score(self, images, prompts):
            if len(self.calls) == batches:
                raise Interrupt
            return super().score(images, prompts)

    folder, first, second = write(tmp_path / "resumed", shift=5), Stops(), Brightness()
    if batches < 3:
        with pytest.raises(Interrupt):
            measured(folder, first, batch_size=2)
    else:
        measured(folder, first, batch_size=2)
    resumed = measured(folder, second, batch_size=3).numbers()
    assert first.scored == min(5, 2 * batches)
    assert first.scored + second.scored == 5
    fresh["measured"]["folder"] = resumed["measured"]["folder"]
    assert resumed == fresh
    assert {line["file_name"]: line["text"] for line in lines(folder)} == {
        f"{i:05d}.png": prompt for i, prompt in enumerate(PROMPTS)
    }


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_a_file_of_scores_cut_anywhere_is_repaired(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    whole = measured(write(folder)).numbers()
    path = folder / "scores-brightness.jsonl"
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    scorer = Brightness()
    assert measured(folder, scorer).numbers() == whole
    # A last line that lacks only its line feed is complete.
    assert scorer.scored == 5 - content[: cut + 1].count(b"\n")
    assert sorted(map(str, lines(folder))) == sorted(map(str, map(json.loads, content.splitlines())))


def test_only_what_changed_is_scored_again(tmp_path):
    folder, scorer = write(tmp_path), Brightness()
    measured(folder, scorer)
    measured(folder, scorer)
    assert scorer.scored == 5
    PIL.Image.new("RGB", (8, 6), "white").save(folder / "00003.png")
    found = measured(folder, scorer)
    assert scorer.scored == 6
    metadata = (folder / "metadata.jsonl").read_text().replace("a blue ring", "a blue disc")
    (folder / "metadata.jsonl").write_text(metadata)
    measured(folder, scorer)
    assert scorer.scored == 7
    scorer.version = "2"
    measured(folder, scorer)
    assert scorer.scored == 12
    scorer.version = "1"
    assert measured(folder, scorer).measured.fidelity.mean == pytest.approx(found.measured.fidelity.mean, abs=1e-3)
    assert scorer.scored == 12


def test_scores_are_found_in_a_copied_folder_and_in_a_common_cache(tmp_path):
    scorer = Brightness()
    measured(write(tmp_path / "a"), scorer)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    measured(tmp_path / "b", scorer)
    assert scorer.scored == 5
    found = measured(tmp_path / "a", scorer, against=tmp_path / "b", cache=tmp_path / "cache")
    assert scorer.scored == 10
    assert found.wins.ties == 5
    assert len(lines(tmp_path / "cache")) == 5


def test_images_without_a_score_are_stored_and_counted(tmp_path):
    folder, scorer = write(tmp_path, ["a star", "why?", "a ring"]), Brightness()
    found = measured(folder, scorer)
    again = measured(folder, scorer)
    assert scorer.scored == 3
    assert found == again
    assert (found.measured.fidelity.images, found.measured.fidelity.unscored) == (2, 1)
    assert [line["score"] is None for line in lines(folder)] == [False, True, False]
    assert "1 without a score" in str(found)
    nothing = measured(write(tmp_path / "n", ["why?", "how?"]), against=write(tmp_path / "m", ["why?", "how?"]))
    assert nothing.measured.fidelity.mean is None
    assert nothing.wins.win_rate is None
    assert "none" in str(nothing)


def test_an_unwritable_cache_is_reported_before_scoring(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "file").write_text("")
    scorer = Brightness()
    with pytest.raises(hsd.OutputError, match="choose another folder"):
        measured(tmp_path / "a", scorer, cache=tmp_path / "file" / "cache")
    assert scorer.scored == 0


def test_the_folder_still_opens_as_an_imagefolder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    measured(write(tmp_path / "images"))
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "images"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(data["text"]) == sorted(PROMPTS)


# Evaluations.


def test_the_function_stays_callable():
    import hsd.evaluation.stats
    from hsd import evaluate

    assert evaluate is hsd.evaluate is hsd.evaluation.evaluate
    assert callable(evaluate)
    assert hsd.Evaluation is hsd.evaluation.Evaluation


def test_numbers_by_hand(tmp_path):
    found = measured(write(tmp_path / "a", shift=10), against=write(tmp_path / "b"))
    values = [np.asarray(PIL.Image.open(tmp_path / f"a/{i:05d}.png")).mean() / 255 for i in range(5)]
    expected = np.mean(values) - np.mean([len(p) for p in PROMPTS]) / 1e3
    assert found.measured.fidelity.mean == pytest.approx(expected)
    assert found.measured.fidelity.interval[0] < expected < found.measured.fidelity.interval[1]
    embedded = np.array([[1.0, *np.asarray(PIL.Image.open(tmp_path / f"a/{i:05d}.png"))[0, 0] / 255] for i in range(5)])
    assert found.measured.diversity.sample.mean_cosine == pytest.approx(mean_cosine(embedded))
    assert found.measured.diversity.sample.vendi == pytest.approx(vendi_score(embedded))
    assert found.measured.diversity.within_prompts is None
    assert found.wins.ties == 5  # what red gains, green loses
    assert json.loads(json.dumps(found.numbers())) == json.loads(json.dumps(found.numbers()))
    assert found.numbers()["wins"]["pairs"] == 5


def test_wins_are_of_the_first_folder(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", order=[4, 2, 0, 1, 3])
    for i in range(4):  # brighter, all but one
        PIL.Image.new("RGB", (8, 6), "white").save(a / f"{i:05d}.png")
    there, back = measured(a, against=b), measured(b, against=a)
    assert (there.wins.wins, there.wins.ties, there.wins.losses) == (4, 1, 0)
    assert (back.wins.wins, back.wins.ties, back.wins.losses) == (0, 1, 4)
    assert there.wins.win_rate == 0.8
    assert there.wins.win_rate_half_ties == 0.9
    assert there.measured == back.against
    text = str(there)
    assert "5: 4 wins, 1 ties, 0 losses" in text
    assert "80.0% (95 %: 37.6% to 96.4%)" in text  # Wilson's, of 4 of 5


def test_lines_in_another_order_change_nothing(tmp_path):
    prompts = PROMPTS * 3
    one = measured(write(tmp_path / "a", prompts), samples=4).numbers()
    order = np.random.default_rng(1).permutation(len(prompts))
    other = measured(write(tmp_path / "b", prompts, order=order), samples=4, batch_size=3).numbers()
    other["measured"]["folder"] = one["measured"]["folder"]
    assert one == other


def test_images_of_one_prompt_are_measured_among_themselves(tmp_path):
    found = measured(write(tmp_path, ["a star"] * 3 + ["a ring"] * 4 + ["a cross"]))
    within = found.measured.diversity.within_prompts
    assert (within.prompts, within.images_a_prompt) == (2, 3.5)
    pixels = Brightness().embed([PIL.Image.open(tmp_path / f"{i:05d}.png") for i in range(8)])
    groups = [pixels[:3], pixels[3:7]]
    assert within.mean_cosine == pytest.approx(np.mean([mean_cosine(group) for group in groups]))
    assert within.vendi == pytest.approx(np.mean([vendi_score(group) for group in groups]))
    assert found.measured.fidelity.prompts == 3
    assert "within prompts" in str(found)


def test_samples_are_seeded_and_the_same_in_both_folders(tmp_path):
    prompts = [f"prompt {i}" for i in range(40)]
    a, b = write(tmp_path / "a", prompts), write(tmp_path / "b", prompts, order=range(39, -1, -1))
    found = [measured(a, against=b, samples=6, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].measured.diversity != found[2].measured.diversity
    assert found[0].measured.diversity == found[0].against.diversity
    assert found[0].measured.diversity.sample.images == 6


def test_a_scorer_without_embeddings(tmp_path):
    class Constant:
        name, version = "constant", "1"

        def score(self, images, prompts):
            return np.ones(len(images), dtype=np.float32)

    found = measured(write(tmp_path), Constant())
    assert found.measured.diversity is None
    assert "does not embed" in str(found)
    assert found.measured.fidelity.interval is None  # not (1, 1), which would say that no other prompt can differ
    assert f"1 (no interval: equal in all prompts), {found.measured.fidelity.prompts} prompts" in str(found)
    assert found.numbers()["measured"]["fidelity"]["interval"] is None


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"scorer": "clip"}, ValueError, "unknown scorer 'clip': one of demo, clipscore"),
        ({"scorer": object()}, TypeError, "object, without name, version, score"),
        ({"scorer": Brightness(), "device": "cuda"}, TypeError, "device: only for scorers by name"),
        ({"scorer": "demo", "model": "x"}, ValueError, "the scorer demo has one model"),
        ({"scorer": "clipscore", "python": "x"}, ValueError, "clipscore runs in this process"),
        ({"scorer": "hpsv2", "python": "nowhere/python"}, ScorerError, "cannot run nowhere/python for hpsv2"),
        ({"samples": 1}, ValueError, "samples is 1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"tolerance": -1.0}, ValueError, "tolerance is -1.0"),
    ],
)
def test_bad_arguments(tmp_path, given, error, says):
    with pytest.raises(error, match=says):
        hsd.evaluate(write(tmp_path), **given)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"name": "../x"}, "the scorer's name is '../x'"),
        ({"version": 1}, "the version of brightness is 1"),
        ({"score": lambda images, prompts: [0.5]}, r"brightness gave scores of shape \(1,\) for 5 images"),
        ({"score": lambda images, prompts: [math.inf] * 5}, "brightness gave inf for 'a red star'"),
        ({"embed": lambda images: np.ones(5)}, r"embeddings of shape \(5,\) for 5 images"),
    ],
)
def test_bad_scorers(tmp_path, part, says):
    scorer = Brightness()
    for name, value in part.items():
        setattr(scorer, name, value)
    with pytest.raises((ScorerError, ValueError, TypeError), match=says):
        measured(write(tmp_path), scorer)


# The command line.


@pytest.fixture
def fake(monkeypatch):
    made = []

    def make(name, **how):
        made.append((name, how))
        return Brightness()

    monkeypatch.setattr(measure, "make_scorer", make)
    return made


def test_the_command(tmp_path, fake):
    a, b = write(tmp_path / "a", shift=10), write(tmp_path / "b")
    command = ["evaluate", str(a), "--against", str(b), "--batch-size", "2", "--samples", "4", "--seed", "3"]
    command += ["--device", "cpu", "--cache", str(tmp_path / "cache")]
    run = RUN.invoke(cli.app, command)
    assert run.exit_code == 0, run.output
    expected = measured(a, against=b, samples=4, seed=3)
    assert run.output == f"{expected}\n"
    printed = RUN.invoke(cli.app, [*command, "--json"]).stdout
    assert json.loads(printed) == json.loads(json.dumps(expected.numbers()))
    assert fake == 2 * [("demo", {"model": None, "device": "cpu", "python": None})]
    assert len(lines(tmp_path / "cache")) == 10
    assert os.listdir(a) == [p for p in os.listdir(a) if p.endswith((".png", ".jsonl", ".lock"))]


def test_errors_on_the_command_line(tmp_path, fake):
    run = RUN.invoke(cli.app, ["evaluate", str(tmp_path)])
    assert isinstance(run.exception, FolderError)
    assert RUN.invoke(cli.app, ["evaluate", str(tmp_path), "--scorer", "clip"]).exit_code == 2
    a, b = write(tmp_path / "a"), write(tmp_path / "b", PROMPTS[:4])
    run = RUN.invoke(cli.app, ["evaluate", str(a), "--against", str(b)])
    assert "b has no image for index 4, 'a white square'" in str(run.exception)
    assert not fake


def test_an_interrupt_keeps_the_scores(tmp_path, monkeypatch):
    class Stops(Brightness):
        def score(self, images, prompts):
            if self.calls:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    monkeypatch.setattr(measure, "make_scorer", lambda *_, **__: Stops())
    run = RUN.invoke(cli.app, ["evaluate", str(write(tmp_path)), "--batch-size", "3"])
    assert run.exit_code == 130
    assert "run the same command again" in run.output
    assert len(lines(tmp_path)) == 3
