"""Images and runs in a notebook, by IPython's own formatter."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from bs4 import BeautifulSoup

import hsd

AWKWARD = '<script>alert("1")</script> & "quotes"'


@pytest.fixture(scope="module")
def formatter():
    return pytest.importorskip("IPython.core.formatters").DisplayFormatter()


def pictures(html):
    soup = BeautifulSoup(html, "html.parser")
    assert not soup.find_all("script")
    found = []
    for image in soup.find_all("img"):
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        found.append((PIL.Image.open(io.BytesIO(base64.b64decode(data))), image["alt"]))
    return soup, found


def test_an_image(formatter):
    pixels = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    image = hsd.Image(4, AWKWARD, 17, PIL.Image.fromarray(pixels), nsfw=True)
    data, _ = formatter.format(image)
    assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(data["image/png"]))), pixels)
    soup, [(small, text)] = pictures(data["text/html"])
    assert max(small.size) == 512
    assert text == AWKWARD
    caption = soup.find("figcaption").get_text(" ")
    assert caption == f"{AWKWARD} index 4, seed 17, made black by the model's safety checker"


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    prompts = [AWKWARD, *(f"a cat with {i} tails" for i in range(14))]
    plan = hsd.compile(prompts, 0.5, model=model, steps=2)
    return hsd.generate(plan, model, tmp_path_factory.mktemp("images & more"))


def test_a_run(formatter, run):
    failed = replace(run, failed=(hsd.Failure(3, "<b>", 3, "decode", "ValueError: <i>"),), existing=2, nsfw=1)
    data, _ = formatter.format(failed)
    soup, found = pictures(data["text/html"])
    rows = {row.th.get_text(): row.td.get_text() for row in soup.find_all("tr")}
    assert rows["images"] == "15 (2 existed already)"
    assert rows["folder"] == str(run.out)
    assert rows["saved"] == f"{run.savings:.1%}"
    assert rows["evaluations"] == f"{run.node_steps:,} instead of {run.standard_node_steps:,}"
    assert "denoise" in rows["time"]
    assert rows["failed"] == "1"
    assert rows[""] == "prompt 3 ('<b>'), decode: ValueError: <i>"
    assert len(found) == 12
    assert found[0][1] == AWKWARD
    assert all(max(picture.size) <= 96 for picture, _ in found)
    assert len(data["text/html"]) < 400_000


def test_a_run_whose_folder_changed(run):
    (run.out / "00000.png").write_bytes(b"no picture")
    (run.out / "00001.png").unlink()
    (run.out.parent / "00014.png").write_bytes((run.out / "00014.png").read_bytes())
    metadata = run.out / "metadata.jsonl"
    text = metadata.read_text()
    metadata.write_text(text.replace('"00014.png"', '"../00014.png"') + "no json\n" + '{"index": 3}\n')
    _, found = pictures(run._repr_html_())
    assert 9 <= len(found) <= 12
    assert not {AWKWARD, run.plan.prompts[1], run.plan.prompts[14]} & {text for _, text in found}
    metadata.unlink()
    assert "<img" not in run._repr_html_()
    assert "<table>" in run._repr_html_()


def test_a_run_as_text(run):
    assert str(run).splitlines() == run.result().splitlines()
    first, second = run.result().splitlines()
    assert first.startswith(f"15 images in {run.out}, ")
    assert second == f"{run.node_steps:,} evaluations of the denoiser instead of 30: {run.savings:.1%} saved."
    assert str(replace(run, images=0, existing=3)).startswith(f"0 images in {run.out} (3 existed already), ")
    failures = (hsd.Failure(3, "a", 3, "decode", "x"),)
    assert str(replace(run, nsfw=2, failed=failures)).splitlines()[2:] == [
        "2 were made black by the model's safety checker.",
        "1 failed: see failed.jsonl.",
    ]
