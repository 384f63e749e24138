"""What image files say of themselves: everything that made them, where other programs look for it."""

from __future__ import annotations

import json
import re

import numpy as np
import PIL.Image
import pytest
from PIL import ExifTags

import hsd
import tiny
from disk import MADE_BY, fill, images, lines, make_plan, picture
from hsd.generation.image_text import Text

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As AUTOMATIC1111's web interface reads the last line, and what was made to be read by it."""

MADE = {
    "name": "stable-diffusion-1.5",
    "settings": {
        "guidance_scale": 7.5,
        "negative_prompt": "blurry, low: quality",
        "height": 512,
        "eta": 0.0,
        "sigmas": [1.0, 0.5],
        "note": 'x: "y", z',
    },
    "scheduler": {"class": "DDIMScheduler", "config": {"beta_end": 0.012}, "given": False},
    "pipeline": ["StableDiffusionPipeline"],
    "versions": {"hsd": "9.9", "torch": "2"},
    "catch_up": 0.25,
}

AWKWARD = {
    "commas": "a cat, 'a dog': a \"sea\", \\ and / more",
    "lines": "a cat\non a mat\r\n\nin the rain",
    "german": "ein Schloß im Grünen",
    "many scripts": "一只猫 в лесу \u05d7\u05ea\u05d5\u05dc 🐈\u200d⬛ café",
    "long": "猫, " * 40_000,
    "long and latin": "a cat, " * 40_000,
}


def read(text):
    """The fields of ``parameters``, by that program's rules."""
    *prompts, last = text.split("\n")
    found = {name: json.loads(value) if value.startswith('"') else value for name, value in PAIR.findall(last)}
    at = next((i for i, line in enumerate(prompts) if line.startswith("Negative prompt:")), len(prompts))
    negative = "\n".join(prompts[at:]).removeprefix("Negative prompt:").strip()
    return {**found, "prompt": "\n".join(prompts[:at]), "negative": negative}


def comment_of(image):
    """The comment as piexif reads it, which such programs use: UTF-16 is big-endian, whatever the file is."""
    raw = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert raw.startswith(b"UNICODE\0")
    return raw[8:].decode("utf-16-be")


def made(tmp_path, texts, image_format="png", model=MADE, **options):
    plan = make_plan(texts, **options)
    fill(tmp_path, plan, model, image_format)
    return plan


@pytest.mark.parametrize("name", AWKWARD)
def test_a_png_says_everything(tmp_path, name):
    prompt = AWKWARD[name]
    plan = made(tmp_path, [prompt, "a dog"])
    with PIL.Image.open(tmp_path / "00000.png") as image:
        text = image.text
        assert np.array_equal(np.array(image), np.array(picture(plan, 0)))
    assert (text["prompt"], text["seed"], text["Software"]) == (prompt, "100", "hsd")
    assert list(text) == ["prompt", "seed", "Software", "parameters", "hsd"]
    assert read(text["parameters"]) == {
        "prompt": prompt,
        "negative": "blurry, low: quality",
        "Steps": "6",
        "Sampler": "DDIMScheduler",
        "CFG scale": "7.5",
        "Seed": "100",
        "Size": "16x16",
        "Model": "stable-diffusion-1.5",
        "Version": "hsd 9.9",
        "HSD tau": "0.9",
        "HSD catch-up": "0.25",
        "HSD index": "0",
        "eta": "0.0",
        "sigmas": "[1.0, 0.5]",
        "note": 'x: "y", z',
    }
    assert json.loads(text["hsd"]) == {
        "prompt": prompt,
        "seed": 100,
        "index": 0,
        "model": "stable-diffusion-1.5",
        "pipeline": ["StableDiffusionPipeline"],
        "scheduler": "DDIMScheduler",
        "steps": 6,
        "tau": 0.9,
        "catch_up": 0.25,
        "noise": "independent",
        "hsd": "9.9",
        "settings": MADE["settings"],
        "columns": {},
    }


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
@pytest.mark.parametrize("name", AWKWARD)
def test_other_formats_say_it_in_exif(tmp_path, name, image_format):
    prompt = AWKWARD[name]
    made(tmp_path, [prompt, "a dog"], image_format)
    with PIL.Image.open(tmp_path / f"00000.{image_format}") as image:
        found, exif = read(comment_of(image)), image.getexif()
        assert exif[ExifTags.Base.Software] == "hsd"
        assert ExifTags.Base.Orientation not in exif
        assert exif.endian == ">"  # some read comments in the order of the file
    assert (found["Seed"], found["CFG scale"], found["negative"]) == ("100", "7.5", "blurry, low: quality")
    if image_format == "jpg" and len(prompt) > 1_000:  # no room: the line of metadata has all of it
        assert found["prompt"] == prompt[:7_997] + "..."
        assert lines(tmp_path)[0]["text"] == prompt
    else:
        assert found["prompt"] == prompt
        assert json.loads(exif[ExifTags.Base.ImageDescription])["prompt"] == prompt


def test_a_jpeg_without_any_room_is_written(tmp_path):
    huge = {**MADE, "settings": {f"setting {i}": "x" * 100 for i in range(2_000)}}
    made(tmp_path, ["a cat", "a dog"], "jpg", huge)
    with PIL.Image.open(tmp_path / "00000.jpg") as image:
        assert dict(image.getexif()) == {ExifTags.Base.Software: "hsd"}


def test_settings_and_columns_of_each_prompt(tmp_path):
    settings = [{"guidance_scale": 2.0, "negative_prompt": "noise"}, {}]
    made(tmp_path, ["a cat", "a dog"], settings=settings, columns={"style": ["oil", "ink"], "size": [3, 4]})
    first, second = (PIL.Image.open(tmp_path / f"0000{i}.png").text for i in range(2))
    assert read(first["parameters"])["CFG scale"] == "2"
    assert read(first["parameters"])["negative"] == "noise"
    assert json.loads(first["hsd"])["settings"] == {**MADE["settings"], **settings[0]}
    assert json.loads(first["hsd"])["columns"]["style"] == "oil"
    assert read(second["parameters"])["CFG scale"] == "7.5"
    assert json.loads(second["hsd"])["columns"]["style"] == "ink"
    assert set(json.loads(second["hsd"])["columns"].values()) == {"ink", 4}
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [(line["guidance_scale"], line["negative_prompt"]) for line in lines] == [
        (2.0, "noise"),
        (7.5, MADE["settings"]["negative_prompt"]),  # what the prompt was made with, which is the model's
    ]


def test_a_scheduler_that_was_given_is_told_in_full(tmp_path):
    given = {**MADE, "scheduler": {**MADE["scheduler"], "given": True}}
    made(tmp_path, ["a cat", "a dog"], model=given)
    text = PIL.Image.open(tmp_path / "00000.png").text
    assert json.loads(text["hsd"])["scheduler_config"] == {"beta_end": 0.012}


def test_a_model_of_which_little_is_known(tmp_path):
    """As earlier versions recorded it."""
    made(tmp_path, ["a cat", "a dog"], model=MADE_BY)
    found = read(PIL.Image.open(tmp_path / "00000.png").text["parameters"])
    assert (found["Model"], found["CFG scale"], found["Version"]) == ("painted", "3.0", f"hsd {hsd.__version__}")
    assert "Sampler" not in found


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_the_same_call_writes_the_same_bytes(tmp_path, image_format):
    for name in ("a", "b"):
        made(tmp_path / name, ["a cat", "猫"], image_format)
    assert images(tmp_path / "a") == images(tmp_path / "b") != {}


def test_images_of_an_earlier_version_stay(tmp_path, monkeypatch):
    plan = make_plan()
    with monkeypatch.context() as earlier:
        earlier.setattr(Text, "options", lambda self, pil_format: {})
        fill(tmp_path, plan.prune([0, 1]), MADE)
    before = images(tmp_path)
    missing, repaired = fill(tmp_path, plan, MADE)
    assert (sorted(missing), repaired) == (list(range(2, plan.n_prompts)), [])
    assert {name: data for name, data in images(tmp_path).items() if name in before} == before
    assert "parameters" in PIL.Image.open(tmp_path / "00002.png").text


def test_a_real_run_can_be_repeated_from_what_an_image_says(tmp_path):
    """Without sharing, an image depends on what its file says alone."""
    pipe = tiny.stable_diffusion()
    model = hsd.load(pipe, height=32, width=48, guidance_scale=3.0)
    plan = hsd.compile(["a cat", "a dog"], 0.0, model=model, steps=4, seeds=[7, 8], settings=[{}, {"eta": 0.5}])
    hsd.generate(plan, model, tmp_path, progress=False)
    with PIL.Image.open(tmp_path / "00001.png") as image:
        told, expected = json.loads(image.text["hsd"]), np.array(image)
        assert read(image.text["parameters"])["Size"] == "48x32"
    again = hsd.load(pipe, **{name: value for name, value in told["settings"].items() if value is not None})
    one = hsd.compile([told["prompt"]], told["tau"], model=again, steps=told["steps"], seeds=[told["seed"]])
    (made_again,) = hsd.stream(one, again)
    assert np.abs(np.array(made_again.pil).astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/home/someone/models/mine", "mine"),
        ("./mine", "mine"),
        ("~/models/mine", "mine"),
        ("someone/mine", "someone/mine"),
        ("sd-1.5", "sd-1.5"),
    ],
)
def test_an_image_does_not_say_where_a_model_is_kept(tmp_path, name, told):
    made(tmp_path, ["a cat", "a dog"], model={**MADE, "name": name})
    text = PIL.Image.open(tmp_path / "00000.png").text
    assert json.loads(text["hsd"])["model"] == read(text["parameters"])["Model"] == told
    assert told == name or name not in str(text)


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_half_a_surrogate_pair_is_escaped(tmp_path, image_format):
    """Prompts have none; a setting from a program may."""
    made(tmp_path, ["a cat", "a dog"], image_format, {**MADE, "settings": {"negative_prompt": "a \ud83d cat"}})
    with PIL.Image.open(tmp_path / f"00000.{image_format}") as image:
        text = image.text["parameters"] if image_format == "png" else comment_of(image)
    assert read(text)["negative"] == "a \\ud83d cat"
