"""What a plan and an image say of single prompts: with whom steps were shared, what they cost, and files of images."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import numpy as np
import PIL.Image
import pytest

import hsd
from helpers import PROMPTS
from hsd.planning.rows import alone_from, node_steps_of

NAMES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def shared_by_steps(plan, index):
    """How many steps a prompt shares with each other one: counted step by step, from the clusters of the whole plan."""
    whole = plan.whole()
    found = {}
    for k in range(whole.n_steps):
        active = whole.active(k)
        for other in np.flatnonzero(active == active[index]).tolist():
            if other != index:
                found[other] = k + 1
    return found


@pytest.mark.parametrize("part", ["all", "some"])
def test_with_whom_prompts_share(plan, part):
    plan = plan if part == "all" else plan.prune([1, 4, 5])
    for index in plan.kept.tolist():
        shared = plan.shared_with(index)
        assert shared == shared_by_steps(plan, index)
        assert list(shared.items()) == sorted(shared.items(), key=lambda item: (-item[1], item[0]))
        assert max(shared.values(), default=0) == alone_from(plan)[index]
    assert any(plan.shared_with(index) for index in plan.kept.tolist())
    with pytest.raises(IndexError, match=r"prompt 9 is not one of the plan's, which are 0 to 8"):
        plan.shared_with(9)
    if part == "some":
        with pytest.raises(ValueError, match="does not keep prompt 0"):
            plan.shared_with(0)


@pytest.mark.parametrize("part", ["all", "some"])
def test_what_prompts_are_charged(plan, part):
    plan = plan if part == "all" else plan.prune([0, 1, 4])
    expected = np.zeros(plan.n_prompts)
    for k in range(plan.n_steps):  # one evaluation for each cluster of a step, divided among its prompts
        active = plan.active(k)
        for segment in set(active[active >= 0].tolist()):
            members = active == segment
            expected[members] += 1.0 / members.sum()
    assert node_steps_of(plan) == pytest.approx(expected)
    assert node_steps_of(plan).sum() == pytest.approx(plan.node_steps)


def test_to_dataframe(model):
    pytest.importorskip("pandas")
    plan = hsd.compile(
        PROMPTS[:4],
        0.9,
        model=model,
        steps=5,
        seeds=3,
        settings=[{}, {}, {"guidance_scale": 2.0}, {}],
        columns={"id": list("abcd"), "text": list("wxyz"), "cluster": [1, 2, 3, 4]},
    ).prune([0, 2, 3])
    table = plan.to_dataframe()
    own = ["index", "prompt", "seed", "cluster", "alone_from", "node_steps"]
    assert list(table.columns) == [*own, "guidance_scale", "id", "given_text", "given_cluster"]
    assert table["index"].tolist() == [0, 2, 3]
    assert table["prompt"].tolist() == [PROMPTS[0], PROMPTS[2], PROMPTS[3]]
    assert (table["seed"].tolist(), table["id"].tolist()) == ([3, 5, 6], ["a", "c", "d"])
    assert table["guidance_scale"].isna().tolist() == [True, False, True]
    assert table["node_steps"].sum() == pytest.approx(plan.node_steps)
    assert table["cluster"][1] == 2  # alone, by its setting
    for index, cluster in zip(table["index"], table["cluster"], strict=True):
        assert cluster == min([index, *plan.shared_with(index)])


def test_to_dataframe_without_pandas(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(hsd.Error, match="pip install pandas"):
        plan.to_dataframe()


@pytest.fixture(scope="module")
def with_columns(model):
    columns = {"id": ["one", "two"], "text": ["x", "y"]}
    settings = [{}, {"negative_prompt": "rain"}]
    return hsd.compile(["a cat", "a café"], 0.5, model=model, steps=3, settings=settings, columns=columns, catch_up=1)


@pytest.fixture(scope="module")
def images(with_columns, model):
    return sorted(hsd.stream(with_columns, model), key=lambda image: image.index)


def read(path):
    with PIL.Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize("ending", NAMES)
def test_a_saved_image_is_the_file_of_a_run(with_columns, images, model, tmp_path, ending):
    hsd.generate(with_columns, model, tmp_path / "images", image_format=ending)
    for image in images:
        image.save(tmp_path / f"saved.{ending}")
        assert (tmp_path / f"saved.{ending}").read_bytes() == (
            tmp_path / "images" / f"0000{image.index}.{ending}"
        ).read_bytes()
        assert read(tmp_path / f"saved.{ending}").format == NAMES[ending]


def test_endings(images, tmp_path):
    images[0].save(str(tmp_path / "a.JPEG"))
    assert read(tmp_path / "a.JPEG").format == "JPEG"
    for name in ("a", "a.gif"):
        with pytest.raises(ValueError, match=r"the ending says the format, one of \.png"):
            images[0].save(tmp_path / name)
    with pytest.raises(OSError, match="nowhere"):
        images[0].save(tmp_path / "nowhere" / "a.png")


def test_an_image_of_ones_own_has_no_text(tmp_path):
    image = hsd.Image(0, "a cat", 1, PIL.Image.new("RGB", (4, 4)))
    image.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").info == {}
    assert image.shared_with == {}


def test_images_say_with_whom_they_shared(plan, model):
    for image in hsd.stream(plan, model):
        assert image.shared_with == shared_by_steps(plan, image.index)


def test_a_pickled_image_has_no_plan(images, tmp_path, monkeypatch):
    monkeypatch.setattr(hsd.Plan, "__reduce__", lambda *_: pytest.fail("the plan was pickled"))
    image = pickle.loads(pickle.dumps(images[1]))
    assert image.shared_with == images[1].shared_with
    other = dataclasses.replace(image, pil=image.pil.resize((8, 8)))  # upscaled by somebody, say
    assert other.shared_with == images[1].shared_with
    other.save(tmp_path / "other.png")
    said = read(tmp_path / "other.png").info
    assert said["prompt"] == image.prompt
    assert "Size: 8x8" in said["parameters"]
    for one, name in ((image, "a.png"), (images[1], "b.png")):
        one.save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_reprs_are_one_short_line(images, with_columns, model, tmp_path):
    run = hsd.generate(with_columns, model, tmp_path)
    file = hsd.PromptFile(["a cat", "a dog"] * 500, [None] * 1000, [{}] * 1000, {"id": [1] * 1000})
    assert repr(images[0]) == "<hsd.Image 0: 'a cat', seed 0, 32x32>"
    assert repr(run) == f"<hsd.Run: 2 images in {tmp_path}, {run.savings:.1%} saved>"
    assert repr(file) == "<hsd.PromptFile: 1,000 prompts; columns id>"
    own = "StableDiffusionPipeline, 32 x 32, float32 on cpu, EulerAncestralDiscreteScheduler"
    assert repr(model) == f"<hsd.models.StableDiffusion: {own}>"
    assert repr(hsd.Settings(steps=4, evidence={"numbers": [0.0] * 1000})).endswith("scheduler=None)")
