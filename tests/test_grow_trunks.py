"""Trunks of a set that grows: the same images whatever is kept, and fewer evaluations where more is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import hsd
import tiny
from disk import check_lines, check_pixels, images
from helpers import PROMPTS, make_scheduler
from hsd.generation.trunks import TRUNKS, TrunkFolder

NEW = ["a cat in the sun", "the sea by night", "a purple elephant"]
LATER = ["a cat on a red mat", "a small dog, asleep"]
LISTS = [PROMPTS, PROMPTS + NEW, PROMPTS + NEW + LATER]
STEPS = 5


def run(prompts, model, out, gamma, **options):
    """Continue a folder with a list. One lane a call, so that equal numbers are computed equally."""
    plan = hsd.compile(prompts, 0.9, model=model, steps=STEPS, seeds=100, catch_up=gamma, extend=out)
    return hsd.generate(plan, model, out, batch_size=1, progress=False, **options)


KINDS = [("dpm++2m", 0.0), ("euler-ancestral", 1.0)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def grown(request, tmp_path_factory):
    """A model, gamma, and a folder of the eight with all trunks: its copies grow."""
    name, gamma = request.param
    model = hsd.load(tiny.stable_diffusion(make_scheduler(name, tiny.sd_ddim().config)), height=32, width=32)
    out = tmp_path_factory.mktemp("grown") / "images"
    assert run(PROMPTS, model, out, gamma, keep_trunks=True).record["trunks"]["kept"] > 2
    plain = out.with_name("plain")
    shutil.copytree(out, plain, ignore=shutil.ignore_patterns(TRUNKS))
    steps = [run(prompts, model, plain, gamma).node_steps for prompts in LISTS[1:]]
    return model, gamma, out, plain, steps


def copy_of(out, tmp_path, name="copy"):
    shutil.copytree(out, tmp_path / name)
    return tmp_path / name


def test_images_do_not_depend_on_what_is_kept(grown, tmp_path):
    model, gamma, out, plain, steps = grown
    kept_all, few, full = copy_of(out, tmp_path), tmp_path / "few", TrunkFolder(out)
    budget = 2 * full.read(next(iter(full._places))).nbytes + 4000
    run(PROMPTS, model, few, gamma, keep_trunks=budget)
    assert 0 < TrunkFolder(few).used <= budget < full.used
    for i, prompts in enumerate(LISTS[1:]):
        most = run(prompts, model, kept_all, gamma, keep_trunks=True)
        some = run(prompts, model, few, gamma, keep_trunks=budget)
        assert most.node_steps <= some.node_steps <= steps[i]
        for result in (most, some):
            assert result.images == len(prompts) - len(LISTS[i])
            assert result.node_steps + result.record["trunks"]["node_steps_saved"] == steps[i]
        assert most.node_steps < steps[i]
    assert images(kept_all) == images(few) == images(plain)
    check_lines(kept_all, hsd.Plan.load(kept_all / "plan.safetensors"))


def test_any_of_them_may_be_missing(grown, tmp_path, monkeypatch):
    """Random trunks are not found, and random images are made again: from states in any place of a path."""
    model, gamma, out, plain, _ = grown
    full = copy_of(out, tmp_path, "full")
    for prompts in LISTS[1:]:
        run(prompts, model, full, gamma, keep_trunks=True)
    names, rng, saved = list(images(plain)), np.random.default_rng(5), set()
    contains = TrunkFolder.__contains__
    for attempt in range(3):
        path = copy_of(full, tmp_path, str(attempt))
        for name in rng.choice(names, size=6, replace=False):
            (path / name).unlink()
        hidden = {key for key in TrunkFolder(path)._places if rng.random() < 0.5}

        def known(self, key, hidden=hidden):
            return key not in hidden and contains(self, key)

        monkeypatch.setattr(TrunkFolder, "__contains__", known)
        result = run(LISTS[-1], model, path, gamma)
        assert result.images == 6
        check_pixels(path, plain, within=1)  # fewer are encoded at once, which rounds differently
        saved.add(result.record["trunks"]["node_steps_saved"])
    assert max(saved) > 0
    assert len(saved) > 1


@pytest.mark.parametrize("what", ["damaged", "removed", "of others", "all damaged"])
def test_what_became_of_the_files_changes_no_image(grown, tmp_path, what, monkeypatch):
    model, gamma, out, plain, steps = grown
    path = copy_of(out, tmp_path)
    (block,) = (path / TRUNKS).glob("block-*")
    data = block.read_bytes()
    if what == "removed":
        shutil.rmtree(path / TRUNKS)
    elif what == "of others":
        (path / TRUNKS / "notes.txt").write_text("mine")
        (path / TRUNKS / "block-0000000000000000.safetensors").write_bytes(b"of others" * 50)
    elif what == "damaged":
        with monkeypatch.context() as patch:  # the one that is read last
            read, keys = TrunkFolder.read, []
            patch.setattr(TrunkFolder, "read", lambda self, key: keys.append(key) or read(self, key))
            run(LISTS[1], model, copy_of(out, tmp_path, "other"), gamma)
        state = TrunkFolder(out).read(keys[-1]).state.numpy().tobytes()
        assert data.count(state) == 1
        block.write_bytes(data.replace(state, bytes(len(state))))
    else:
        header = 8 + int.from_bytes(data[:8], "little")
        block.write_bytes(data[:header] + bytes(byte ^ 1 for byte in data[header:]))
    if what == "removed":
        result = run(LISTS[1], model, path, gamma)
        assert "trunks" not in result.record
    else:
        with pytest.warns(hsd.Notice, match="damaged or gone|cannot be read"):
            result = run(LISTS[1], model, path, gamma)
    assert (result.node_steps == steps[0]) == (what in ("removed", "all damaged"))
    expected = {name: data for name, data in images(plain).items() if int(name[:5]) < len(LISTS[1])}
    assert images(path) == expected
    assert what != "of others" or (path / TRUNKS / "notes.txt").read_text() == "mine"


def test_an_old_image_is_made_again_from_a_trunk(grown, tmp_path):
    model, gamma, out, _, _ = grown
    path = copy_of(out, tmp_path)
    for name in ("00001.png", "00005.png"):
        (path / name).unlink()
        result = run(PROMPTS, model, path, gamma)
        assert result.images == 1
        assert result.node_steps + result.record["trunks"]["node_steps_saved"] == STEPS
        check_pixels(path, out, within=1)  # one is encoded alone, which rounds differently
    # Also from the larger plan, whose segments are cut where new prompts fork.
    run(LISTS[1], model, path, gamma)
    before = copy_of(path, tmp_path, "before")
    (path / "00001.png").unlink()
    assert run(LISTS[1], model, path, gamma).node_steps < STEPS
    check_pixels(path, before, within=1)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (-1, ValueError, "keep_trunks is -1"),
        (1.5, TypeError, "keep_trunks has to be True, False or a number of bytes, not 1.5"),
        ("all", TypeError, "not 'all'"),
        (None, TypeError, "not None"),
    ],
)
def test_bad_values(model, tmp_path, value, error, says):
    plan = hsd.compile(["a cat", "a dog"], 0.9, model=model, steps=2)
    with pytest.raises(error, match=says):
        hsd.generate(plan, model, tmp_path / "images", keep_trunks=value)
    assert not (tmp_path / "images").exists()


def test_a_url_keeps_none(model):
    plan = hsd.compile(["a cat", "a dog"], 0.9, model=model, steps=2)
    with pytest.raises(ValueError, match="keep_trunks needs a folder on a disk, and out is 'memory://trunks'"):
        hsd.generate(plan, model, "memory://trunks", keep_trunks=True)
