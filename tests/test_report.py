"""``hsd.report``: what is read of a folder, what is written beside it, and what is said of what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest
from bs4 import BeautifulSoup

import hsd
from hsd.evaluation import FolderError
from hsd.evaluation.folder import read_folder
from hsd.reporting import thumbs
from report_cases import AWKWARD, HOSTILE, images_of, prompts_of, value_of, write_folder, write_forks, write_record


def page(folder, name="report.html"):
    path = folder / name if name == "report.html" else folder / "__report__" / name
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def notes(folder):
    found = page(folder).select_one("section.notes")
    return "" if found is None else found.get_text(" ", strip=True)


# ------------------------------------------------------------------------------- the gallery


def test_pages_and_data(tmp_path):
    plan = write_folder(tmp_path, 12)
    first = hsd.report(tmp_path, page_size=5)
    assert first == tmp_path / "report.html"
    links = [link["href"] for link in page(tmp_path).select("nav.pages a")]
    assert links == ["report.html", "__report__/tree.html", "__report__/run.html"]
    assert all((tmp_path / link).is_file() for link in links)
    about = value_of(tmp_path, "overview")
    assert (about["images"], about["page"], about["keys"], about["ratio"]) == (12, 5, None, 1.0)
    assert about["columns"][0] == {"name": "style", "values": ["ink", "oil", "watercolour"], "counts": [4, 4, 4]}
    assert [len(value_of(tmp_path, f"images-{n}")["rows"]) for n in range(3)] == [5, 5, 2]
    images = images_of(tmp_path)
    assert [one["text"] for one in images] == plan.prompts
    assert [one["seed"] for one in images] == list(range(100, 112))
    assert [about["columns"][0]["values"][one["codes"][0]] for one in images] == plan.columns["style"]
    assert images[3]["colour"] == "6f1103"  # 3 * 37, 3 * 91, 3
    assert not list((tmp_path / "__report__" / "thumbs").glob("*.webp"))  # small images are their own thumbnails


def test_a_report_is_no_part_of_the_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    plan = write_folder(folder, 9, side=300)
    write_forks(folder, plan)
    hsd.report(folder)
    assert len(list((folder / "__report__" / "thumbs").glob("*.webp"))) == 9
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(data["text"]) == sorted(plan.prompts)
    assert len(data) == 9


def test_thumbnails_are_made_once(tmp_path, monkeypatch):
    write_folder(tmp_path, 12, side=300, made=range(8))
    read = []
    monkeypatch.setattr(
        thumbs.Thumbs, "_read", lambda self, path, old=thumbs.Thumbs._read: (read.append(path.name), old(self, path))[1]
    )
    hsd.report(tmp_path)
    assert len(read) == 8
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "__report__" / "thumbs").glob("*.webp")}
    assert len(files) == 8
    read.clear()
    write_folder(tmp_path / "more", 12, side=300)
    for index in range(8, 12):
        shutil.copy2(tmp_path / "more" / f"{index:05d}.png", tmp_path)
    shutil.copy2(tmp_path / "more" / "metadata.jsonl", tmp_path)
    hsd.report(tmp_path)
    assert sorted(read) == [f"{index:05d}.png" for index in range(8, 12)]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    with PIL.Image.open(next(iter(files))) as image:
        assert (image.format, image.size) == ("WEBP", (256, 256))


def decoded(monkeypatch):
    """The images that are opened from now on."""
    found = []
    monkeypatch.setattr(PIL.Image, "open", lambda file, old=PIL.Image.open: (found.append(file), old(file))[1])
    return found


def test_thumbnails_of_a_copied_folder_are_not_decoded_again(tmp_path, monkeypatch):
    """Its files have other times and paths; the digest of their bytes is the same."""
    write_folder(tmp_path / "a", 3, side=300)
    hsd.report(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    made = decoded(monkeypatch)
    hsd.report(tmp_path / "b")
    assert made == []
    (tmp_path / "b" / "__report__" / "thumbs" / "index.jsonl").write_text('{"file": 3}\nnonsense\n')
    hsd.report(tmp_path / "b")
    assert len(made) == 3


def test_an_image_in_both_folders_is_decoded_once(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", 3, side=300)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    made = decoded(monkeypatch)
    hsd.report(tmp_path / "a", tmp_path / "b")
    assert len(made) == 3


def test_progress_is_shown(tmp_path, monkeypatch):
    """True is taken as elsewhere: the stages are shown, where there is a terminal."""
    from hsd.work.stages import Stages

    shown = []
    monkeypatch.setattr(Stages, "__call__", lambda self, stage, fraction: shown.append((stage, fraction)))
    write_folder(tmp_path, 3)
    hsd.report(tmp_path, progress=True)
    assert shown[-1] == ("thumbnails", 1.0)


def test_a_thumbnail_that_a_power_cut_emptied_is_made_again(tmp_path):
    write_folder(tmp_path, 3, side=300)
    hsd.report(tmp_path)
    lost = next((tmp_path / "__report__" / "thumbs").glob("*.webp"))
    lost.write_bytes(b"")
    hsd.report(tmp_path)
    assert lost.stat().st_size > 0


def test_thumbnails_of_images_that_are_gone_are_removed(tmp_path):
    write_folder(tmp_path, 3, side=300)
    hsd.report(tmp_path)
    write_folder(tmp_path, 3, side=301)
    hsd.report(tmp_path)
    assert len(list((tmp_path / "__report__" / "thumbs").glob("*.webp"))) == 3


def test_an_interruption_loses_no_thumbnail(tmp_path, monkeypatch):
    write_folder(tmp_path, 6, side=300)
    hsd.report(tmp_path)
    before = sorted((tmp_path / "__report__" / "thumbs").glob("*.webp"))
    monkeypatch.setattr(thumbs.Thumbs, "_look", lambda self, picture: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hsd.report(tmp_path)
    monkeypatch.undo()
    assert sorted((tmp_path / "__report__" / "thumbs").glob("*.webp")) == before
    monkeypatch.setattr(thumbs.Thumbs, "_read", lambda self, path: pytest.fail("read again"))
    hsd.report(tmp_path)
    assert all(not one["problem"] for one in images_of(tmp_path))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16", "1"])
def test_every_kind_of_image(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    PIL.Image.new(mode, (400, 200)).save(tmp_path / f"a.{ending}")
    hsd.report(tmp_path)
    (image,) = images_of(tmp_path)
    assert (image["width"], image["height"], image["problem"]) == (400, 200, 0)
    with PIL.Image.open(tmp_path / "__report__" / "thumbs" / f"{image['thumb']}.webp") as small:
        assert small.size == (256, 128)
        assert ("A" in small.getbands()) == (mode in ("RGBA", "LA"))


def test_a_photograph_on_its_side(tmp_path):
    """Browsers turn it as its Exif says; the thumbnail has none, and is turned."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (400, 200)).save(tmp_path / "a.jpg", exif=exif)
    hsd.report(tmp_path)
    (image,) = images_of(tmp_path)
    assert (image["width"], image["height"]) == (200, 400)
    with PIL.Image.open(tmp_path / "__report__" / "thumbs" / f"{image['thumb']}.webp") as small:
        assert small.size == (128, 256)


def test_hostile_text_comes_through_unchanged(tmp_path):
    plain = [text.replace("\ud83d", "?") for text in HOSTILE]
    with open(tmp_path / "metadata.jsonl", "w", encoding="ascii") as metadata:
        for i, text in enumerate(HOSTILE):
            PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
            line = {"file_name": f"{i}.png", "text": text, "index": i, "seed": i, "remark": text, text[:40]: i}
            metadata.write(json.dumps(line) + "\n")
    failed = {"index": 99, "text": HOSTILE[0], "stage": "decode", "reason": HOSTILE[0]}
    (tmp_path / "failed.jsonl").write_text(json.dumps(failed) + "\n")
    hsd.report(tmp_path)
    assert [one["text"] for one in images_of(tmp_path)] == plain
    (remark,) = [one for one in value_of(tmp_path, "overview")["columns"] if one["name"] == "remark"]
    assert sorted(remark["values"]) == sorted(plain)
    for path in (tmp_path / "__report__").glob("*.html"):
        assert b"alert(1)</script>" not in path.read_bytes()
    assert HOSTILE[0] in page(tmp_path, "run.html").get_text()
    for path in (tmp_path / "__report__" / "data").iterdir():
        assert path.read_bytes().isascii()
        assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("name", AWKWARD)
def test_names_of_folders_and_files(tmp_path, name):
    """Each link of a page, decoded as a browser does, is the path of a file."""
    folder = tmp_path / name
    below = folder / f"sub {name}"
    below.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 8)).save(below / f"{name}.png")
    other = tmp_path / f"{name} 2"
    other.mkdir()
    shutil.copytree(below, other / below.name)
    hsd.report(folder, other)
    (image,) = images_of(folder)
    for file in ("report.html", "compare.html"):
        root = page(folder, file).html
        at = folder if file == "report.html" else folder / "__report__"
        assert Path(os.path.normpath(at / unquote(root["data-images"]) / unquote(image["url"]))).is_file()
        assert not set(root["data-images"] + image["url"]) & set("#?: <>\"'")
    (row,) = value_of(folder, "partners-0")
    assert Path(os.path.normpath(at / unquote(root["data-others"]) / unquote(row[0]))).is_file()
    assert page(folder).h1.get_text() == name


# ------------------------------------------------------------------------------- what is wrong with a folder


def test_an_unfinished_folder_with_failures(tmp_path):
    plan = write_folder(tmp_path, 12, made=[0, 3, 4, 11])
    lines = [{"index": 5, "text": "a <b>", "seed": 105, "stage": "decode", "reason": "NaN"}]
    lines.append({"index": 6, "text": "b", "seed": 106, "stage": "decode", "reason": "NaN"})
    (tmp_path / "failed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    hsd.report(tmp_path)
    assert "4 of 12 images" in page(tmp_path).header.get_text(" ", strip=True)
    assert value_of(tmp_path, "overview")["keys"] == [0, 3, 4, 11]
    run = page(tmp_path, "run.html")
    failed = run.find(id="failed-title").parent
    assert "2 could not be made" in failed.get_text()
    assert [cell.get_text() for cell in failed.select("table.plain tr > *")] == ["decode: NaN", "2"]
    assert "a <b>" in failed.get_text()
    assert value_of(tmp_path, "tree")["order"] == plan.tree.leaf_order.tolist()


def test_damaged_and_missing_images(tmp_path):
    write_folder(tmp_path, 6, side=300)
    (tmp_path / "00001.png").write_bytes(b"no image")
    data = (tmp_path / "00002.png").read_bytes()
    (tmp_path / "00002.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "00003.png").unlink()
    (tmp_path / "00004.png").unlink()
    (tmp_path / "00004.png").mkdir()
    PIL.Image.new("RGB", (300, 300), "red").save(tmp_path / "00005.png")
    hsd.report(tmp_path)
    images = images_of(tmp_path)
    assert [bool(one["problem"]) for one in images] == [False, True, True, True, False]
    said = notes(tmp_path)
    assert "metadata.jsonl names images that are missing: 00003.png." in said
    assert "3 images cannot be shown; the first is 00001.png: this is not an image that can be read." in said
    assert "1 image changed after being written" in said


def test_lines_that_cannot_be_read(tmp_path):
    write_folder(tmp_path, 3)
    with open(tmp_path / "metadata.jsonl", "ab") as metadata:
        metadata.write(b"{half a line\n[1]\n" + b"[" * 100_000 + b"\n")
        for name in ("../outside.png", "/etc/passwd", "nul\\u0000.png", "half\\ud800.png", ""):
            metadata.write(b'{"file_name": "%b", "text": "a"}\n' % name.encode())
    hsd.report(tmp_path)
    assert len(images_of(tmp_path)) == 3
    assert "8 lines of metadata.jsonl name no image in this folder" in notes(tmp_path)


@pytest.mark.parametrize("what", ["missing", "damaged", "other"])
def test_a_plan_that_cannot_be_used(tmp_path, what):
    write_folder(tmp_path, 6)
    hsd.report(tmp_path)
    assert (tmp_path / "__report__" / "tree.html").exists()
    if what == "missing":
        (tmp_path / "plan.safetensors").unlink()
    elif what == "damaged":
        (tmp_path / "plan.safetensors").write_bytes(b"nothing")
    else:
        write_folder(tmp_path / "b", prompts=[f"other {i}" for i in range(6)])
        shutil.copy(tmp_path / "b" / "plan.safetensors", tmp_path)
    hsd.report(tmp_path)
    assert not (tmp_path / "__report__" / "tree.html").exists()
    assert not (tmp_path / "__report__" / "data" / "tree.js").exists()
    assert len(images_of(tmp_path)) == 6
    assert ("so the tree is left out" in notes(tmp_path)) == (what != "missing")
    assert "Tree" not in page(tmp_path).select_one("nav.pages").get_text()


def test_a_damaged_run_record(tmp_path):
    write_folder(tmp_path, 6)
    for text in ("no json", "[]", '{"identity": 3, "runs": [3, {"seconds": 4, "versions": [], "savings": "x"}]}'):
        (tmp_path / "run.json").write_text(text)
        hsd.report(tmp_path)
        assert page(tmp_path, "run.html").find(id="steps-title") is not None
    (tmp_path / "run.json").unlink()
    hsd.report(tmp_path)
    assert "no record of a run" in page(tmp_path, "run.html").get_text()


def test_folders_without_images(tmp_path):
    with pytest.raises(FolderError, match="is not a folder"):
        hsd.report(tmp_path / "nothing")
    with pytest.raises(FolderError, match="has no images"):
        hsd.report(tmp_path)
    write_folder(tmp_path / "a", 3, made=[])
    with pytest.raises(FolderError, match=r"none of the images that it names"):
        hsd.report(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(FolderError, match="unpack them"):
        hsd.report(tmp_path / "b")
    assert not (tmp_path / "a" / "__report__").exists()


def test_a_run_that_is_running(tmp_path):
    from hsd.generation import claims

    plan = write_folder(tmp_path, 6, made=[0, 1])
    held, _ = claims.take(tmp_path, plan.kept)
    try:
        hsd.report(tmp_path)
        assert "A run is writing to this folder" in notes(tmp_path)
    finally:
        held.release()
    hsd.report(tmp_path)
    assert notes(tmp_path) == ""


def test_the_plan_of_a_shard(tmp_path):
    """A worker's folder may hold only its part, and a plan that was cut to it."""
    plan = write_folder(tmp_path, 12, made=[])
    part = plan.shard(2)[0]
    write_folder(tmp_path, 12, made=part.kept.tolist())
    part.save(tmp_path / "plan.safetensors")
    hsd.report(tmp_path)
    assert f"{len(part)} of 12 images" in page(tmp_path).header.get_text(" ", strip=True)
    assert len(value_of(tmp_path, "tree")["order"]) == 12


# ------------------------------------------------------------------------------- where it is written


def test_files_of_others_stay(tmp_path):
    write_folder(tmp_path, 3)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(hsd.OutputError, match="is not a report of HSD"):
        hsd.report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    (tmp_path / "report.html").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "__report__").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(hsd.OutputError, match="is a link or a file"):
        hsd.report(tmp_path)


def test_another_place_for_a_folder_that_cannot_be_written(tmp_path):
    write_folder(tmp_path / "images", 3)
    before = sorted(tmp_path.glob("images/*"))
    first = hsd.report(tmp_path / "images", out=tmp_path / "some where" / "report")
    assert first == tmp_path / "some where" / "report" / "report.html"
    assert sorted(tmp_path.glob("images/*")) == before
    root = page(first.parent).html
    assert root["data-images"] == "../../images/"
    assert page(first.parent, "run.html").html["data-images"] == "../../../images/"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    write_folder(tmp_path, 3)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(hsd.OutputError, match="choose another folder"):
            hsd.report(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_what_an_earlier_report_had_more_is_removed(tmp_path):
    write_folder(tmp_path / "a", 12)
    write_folder(tmp_path / "b", 12)
    hsd.report(tmp_path / "a", tmp_path / "b", page_size=2)
    hsd.report(tmp_path / "a")
    data = sorted(path.name for path in (tmp_path / "a" / "__report__" / "data").iterdir())
    assert data == ["images-0.js", "overview.js", "tree.js"]
    assert not (tmp_path / "a" / "__report__" / "compare.html").exists()


@pytest.mark.parametrize("size", [0, 501, -1])
def test_page_sizes(tmp_path, size):
    write_folder(tmp_path, 3)
    with pytest.raises(ValueError, match=f"page_size is {size}"):
        hsd.report(tmp_path, page_size=size)


# ------------------------------------------------------------------------------- figures and tree


def test_figures(tmp_path):
    plan = write_folder(tmp_path, 12)
    hsd.report(tmp_path)
    run = page(tmp_path, "run.html")
    main = {
        one.select_one(".label").contents[0].strip(): one.select_one(".value").get_text()
        for one in run.select(".figure")
    }
    assert main["Images"] == "12"
    assert main["Evaluations"] == f"{plan.node_steps:,}"
    assert main["Evaluations saved"] == f"{plan.savings:.1%}"
    assert main["Time"] == "1 min 10 s"
    assert main["Images a second"] == "0.17"
    saved = 60 * (plan.standard_node_steps - plan.node_steps) / plan.node_steps
    assert main["Time saved"] == f"{saved // 60:.0f} min {saved % 60:.0f} s"
    keys = [item.get_text(" ", strip=True) for item in run.select(".keys li")]
    assert keys == ["encode 1.0 s 1 %", "denoise 1 min 0 s 86 %", "decode 5.0 s 7 %", "other 4.0 s 6 %"]
    text = run.get_text(" ")
    assert all(word in text for word in ("DDIMScheduler", "cpu (x86_64)", "float32", "0.1.0"))
    counts = plan.counts()
    assert run.select_one(".chart svg")["aria-label"].startswith(f"{counts[0]} clusters at the first step")


def test_the_tree_is_the_plan(tmp_path):
    plan = write_folder(tmp_path, 12)
    count = write_forks(tmp_path, plan)
    hsd.report(tmp_path)
    tree = value_of(tmp_path, "tree")
    table = np.array(tree["segments"]).reshape(-1, 5)
    for at, name in enumerate(("parent", "first_step", "end_step", "leaf_begin", "leaf_end")):
        assert (table[:, at] == plan.segments[name]).all()
    assert len(tree["forks"]) == count > 0
    for number, url in tree["forks"].items():
        assert plan.segments["end_step"][int(number)] < plan.n_steps
        assert (tmp_path / url).is_file()


# ------------------------------------------------------------------------------- two folders


def test_pairs_with_scores(tmp_path):
    from evaluate_cases import Brightness, measured

    write_folder(tmp_path / "a", 6, tau=1.0)
    write_folder(tmp_path / "b", 6, tau=0.0, shift=60)
    result = measured(tmp_path / "a", Brightness(), against=tmp_path / "b")
    hsd.report(tmp_path / "a", tmp_path / "b", page_size=4)
    pairs = value_of(tmp_path / "a", "pairs")
    (scores,) = pairs["scores"]
    assert np.mean(scores["ours"]) == pytest.approx(result.measured.fidelity.mean, rel=1e-5)
    row = [
        cell.get_text(" ", strip=True)
        for cell in page(tmp_path / "a", "compare.html").select("tbody")[0].select("tr > *")
    ]
    wins = result.wins
    assert row[:1] + row[3:6] == ["brightness", str(wins.wins), str(wins.ties), str(wins.losses)]
    assert row[6].startswith(f"{wins.difference:+.3g}")
    assert [len(value_of(tmp_path / "a", f"partners-{n}")) for n in range(2)] == [4, 2]
    assert all(0 < value < 0.4 for value in pairs["differences"])
    differing = [row.th.contents[0] for row in page(tmp_path / "a", "compare.html").select("tr.differs")]
    assert "Tau" in differing
    assert "Model" not in differing


def test_scores_of_an_earlier_version_of_a_scorer(tmp_path):
    """The one that scored last counts; an image that was changed since has no score."""
    from evaluate_cases import Brightness, measured

    write_folder(tmp_path / "a", 3)
    write_folder(tmp_path / "b", 3, shift=60)
    measured(tmp_path / "a", Brightness(), against=tmp_path / "b")
    later = Brightness()
    later.version = "2"
    later.score = lambda images, prompts: [0.25] * len(images)
    measured(tmp_path / "a", later, against=tmp_path / "b")
    PIL.Image.new("RGB", (24, 24)).save(tmp_path / "a" / "00001.png")
    hsd.report(tmp_path / "a", tmp_path / "b")
    (scores,) = value_of(tmp_path / "a", "pairs")["scores"]
    assert scores["ours"] == [0.25, None, 0.25]


def test_a_report_changes_no_score_file(tmp_path):
    write_folder(tmp_path / "a", 3)
    write_folder(tmp_path / "b", 3)
    for name in "ab":
        (tmp_path / name / "scores-x.jsonl").write_text(
            'half a line\n{"digest": "d", "text": "t", "score": 1, "version": "1"}\n'
        )
    before = (tmp_path / "a" / "scores-x.jsonl").read_bytes()
    hsd.report(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "scores-x.jsonl").read_bytes() == before
    assert "No scores yet" in page(tmp_path / "a", "compare.html").get_text()


def test_folders_with_other_images(tmp_path):
    write_folder(tmp_path / "a", 6, made=[0, 2, 5])
    write_folder(tmp_path / "b", 6, made=[1, 2, 5])
    hsd.report(tmp_path / "a", tmp_path / "b")
    assert value_of(tmp_path / "a", "pairs")["paired"] == [0, 1, 1]
    assert "2 pairs; 1 images of a have none in b" in page(tmp_path / "a", "compare.html").get_text().replace("\n", "")
    write_folder(tmp_path / "c", prompts=[f"other {i}" for i in range(6)])
    with pytest.raises(FolderError, match="no image in common"):
        hsd.report(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("names", ["numbers", "same", "texts"])
def test_plain_files_beside_a_folder(tmp_path, names):
    """As made by a loop over a diffusers pipeline: no metadata, and names of some kind."""
    write_folder(tmp_path / "a", 12)
    (tmp_path / "b").mkdir()
    for i, text in enumerate(prompts_of(12)):
        name = {"numbers": f"{i}", "same": f"{i:05d}", "texts": text.replace(" ", "_")}[names]
        PIL.Image.new("RGB", (24, 24), (i, i, i)).save(tmp_path / "b" / f"{name}.jpg")
    hsd.report(tmp_path / "a", tmp_path / "b")
    assert [unquote(row[0]) for row in value_of(tmp_path / "a", "partners-0")] == [
        {"numbers": f"{i}.jpg", "same": f"{i:05d}.jpg", "texts": f"{text.replace(' ', '_')}.jpg"}[names]
        for i, text in enumerate(prompts_of(12))
    ]


def test_plain_files_alone(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "__report__").mkdir()
    for name in ("a cat.png", "below/a dog.webp", ".hidden.png", "__report__/no.png"):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / name)
    hsd.report(tmp_path)
    assert [unquote(one["url"]) for one in images_of(tmp_path)] == ["a cat.png", "below/a dog.webp"]


def test_pairing_is_that_of_evaluation(tmp_path):
    from hsd.evaluation.folder import pair, partners

    write_folder(tmp_path / "a", 6)
    write_folder(tmp_path / "b", 6)
    lines = (tmp_path / "b" / "metadata.jsonl").read_text().splitlines()
    without = [json.dumps({key: value for key, value in json.loads(line).items() if key != "index"}) for line in lines]
    (tmp_path / "b" / "metadata.jsonl").write_text("\n".join(reversed(without)) + "\n")
    a, b = read_folder(tmp_path / "a"), read_folder(tmp_path / "b")
    assert partners(a, b) == pair(a, b) != list(range(6))


def test_pairs_fall_through_to_the_text(tmp_path):
    """By index where the texts agree, then by text and seed, then by text; each image once."""
    from hsd.evaluation.folder import partners

    for name, images in {
        "a": [("same", 0), ("a red cat", 1), ("moved", 2), ("a red cat", 3), ("only here", 4)],
        "b": [("same", 9), ("moved", 2), ("other", 5), ("a red cat", 8)],
    }.items():
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "metadata.jsonl", "w") as metadata:
            for i, (text, seed) in enumerate(images):
                PIL.Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
                line = {"file_name": f"{i}.png", "text": text, "index": i, "seed": seed}
                metadata.write(json.dumps(line) + "\n")
    found = partners(read_folder(tmp_path / "a"), read_folder(tmp_path / "b"))
    assert found == [0, None, 1, 3, None]
    hsd.report(tmp_path / "a", tmp_path / "b")
    assert value_of(tmp_path / "a", "pairs")["paired"] == [1, 0, 1, 1, 0]


def test_a_folder_is_read_once(tmp_path):
    """What loops index by image is not built again at each of them."""
    from hsd.reporting.read import read_source

    write_folder(tmp_path, 3)
    source = read_source(tmp_path)
    assert source.entries is source.entries
    assert "mismatch" not in vars(source)
    assert source.mismatch is None
    assert "mismatch" in vars(source)


# ------------------------------------------------------------------------------- settings, package, command


def test_settings_of_single_prompts(tmp_path):
    settings = [{"negative_prompt": "blurry"}, {}, {"width": 64}]
    write_folder(tmp_path, 3, settings=settings)
    hsd.report(tmp_path)
    known = value_of(tmp_path, "overview")["settings"]
    assert [known[one["settings"]] for one in images_of(tmp_path)] == [
        {"negative_prompt": "blurry"},
        {},
        {"width": "64"},
    ]
    assert [one["name"] for one in value_of(tmp_path, "overview")["columns"]] == ["style"]  # animal is one value


def test_several_runs_are_added_up(tmp_path):
    plan = write_folder(tmp_path, 12)
    write_record(tmp_path, plan, images=5)
    document = json.loads((tmp_path / "run.json").read_text())
    document["runs"] = [*document["runs"], {**document["runs"][0], "images": 7, "outcome": "failed", "error": "gone"}]
    (tmp_path / "run.json").write_text(json.dumps(document))
    hsd.report(tmp_path)
    text = page(tmp_path, "run.html").get_text(" ", strip=True)
    assert "2 min 20 s" in text
    assert "in 2 runs" in text
    assert "failed: gone" in text


@pytest.mark.parametrize("n", [21, 1001])
def test_a_column_with_too_many_values_is_searched(tmp_path, n):
    names = [f"n{i}" for i in range(n)]
    write_folder(tmp_path, prompts=[f"p {i}" for i in range(n)], columns=False, side=1)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({**line, "n": names[i]}) + "\n" for i, line in enumerate(lines))
    )
    hsd.report(tmp_path)
    (column,) = value_of(tmp_path, "overview")["columns"]
    assert (column["name"], column["values"]) == ("n", None)
    assert images_of(tmp_path)[7]["codes"] == ["n7"]


def test_templates_and_assets_are_in_the_package():
    from importlib.resources import files

    below = files("hsd.reporting")
    assert {path.name for path in (below / "templates").iterdir()} >= {"base.html", "gallery.html", "tree.html"}
    assert {path.name for path in (below / "assets").iterdir()} >= {"report.css", "common.js", "theme.js"}


def test_no_script_is_newer_than_2019_or_asks_a_server():
    from importlib.resources import files

    for path in (files("hsd.reporting") / "assets").iterdir():
        text = path.read_text(encoding="utf-8")
        for word in ("?.", "??", "import ", "fetch(", "XMLHttpRequest", "innerHTML", "http://", "https://", "@import"):
            found = text.replace("http://www.w3.org/2000/svg", "")
            assert word not in found, (path.name, word)


def test_torch_is_not_needed(tmp_path):
    import subprocess
    import sys

    write_folder(tmp_path, 3)
    code = f"import sys, hsd; hsd.report({str(tmp_path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from hsd.cli import app

    write_folder(tmp_path / "a", 3)
    write_folder(tmp_path / "b", 3)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    words = ["report", str(tmp_path / "a"), "--against", str(tmp_path / "b"), "--page-size", "2", "--open"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'a' / 'report.html'}\n"
    assert opened == [(tmp_path / "a" / "report.html").as_uri()]
    assert value_of(tmp_path / "a", "overview")["page"] == 2
