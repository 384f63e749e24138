"""WebDataset shards: what others read from them, the same bytes for the same images, and nothing of others lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

import hsd
from disk import MADE_BY, fill, images, lines, make_plan
from hsd import cli
from hsd.demo import PROMPTS
from hsd.generation.folder import ImageFolder
from hsd.generation.forks import read_forks
from hsd.generation.shards import LIST, check_shards

COLUMNS = {"style": ["oil"] * 3 + ["ink"] * 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images with a column, among whose prompts is one that is not Latin."""
    path = tmp_path_factory.mktemp("folder") / "images"
    fill(path, make_plan(columns=COLUMNS))
    return path


def written(path):
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.parametrize("per_shard", [3, 8, 1000])
def test_every_image_is_there_once_with_its_bytes(folder, tmp_path, per_shard):
    shards = hsd.write_shards(folder, tmp_path / "tar", per_shard=per_shard)
    assert (shards.images, shards.missing, shards.kept) == (8, 0, 0)
    assert [shard.images for shard in shards.shards] == {3: [3, 3, 2], 8: [8], 1000: [8]}[per_shard]
    assert [shard.name for shard in shards.shards] == [f"images-{i:06d}.tar" for i in range(len(shards.shards))]
    found = {}
    for shard in shards.shards:
        own = members(tmp_path / "tar" / shard.name)
        assert not found.keys() & own.keys()
        found |= own
    assert list(found)[:4] == ["00000.png", "00000.txt", "00000.json", "00001.png"]
    assert {name: data for name, data in found.items() if name.endswith(".png")} == images(folder)
    for entry in lines(folder):
        key = f"{entry['index']:05d}"
        assert found[f"{key}.txt"].decode() == entry["text"]
        assert json.loads(found[f"{key}.json"]) == entry


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_webdataset_reads_them(folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    hsd.write_shards(folder, tmp_path / "tar", per_shard=3)
    data = webdataset.WebDataset(str(tmp_path / "tar" / "images-{000000..000002}.tar"), shardshuffle=False)
    samples = list(data.decode("pil"))
    assert [sample["__key__"] for sample in samples] == [f"{i:05d}" for i in range(8)]
    for sample, entry in zip(samples, lines(folder), strict=True):
        assert (sample["txt"], sample["json"]) == (entry["text"], entry)
        with PIL.Image.open(folder / entry["file_name"]) as image:
            assert np.array_equal(np.array(sample["png"]), np.array(image))


@pytest.mark.parametrize("empty", [False, True])
def test_datasets_reads_them(tmp_path, monkeypatch, empty):
    """Where a column is empty for some images, it has to be told the types, which it infers from five of them."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    styles = [None] * 7 + ["ink"] if empty else COLUMNS["style"]
    fill(tmp_path / "images", make_plan(columns={"style": styles}))
    hsd.write_shards(tmp_path / "images", tmp_path / "tar", per_shard=3)
    options = {"data_files": str(tmp_path / "tar" / "*.tar"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    if empty:
        of_json = {name: datasets.Value("string") for name in ("file_name", "text", "digest", "style")}
        of_json |= {name: datasets.Value("int64") for name in ("index", "seed", "size", "alone_from")}
        features = {"png": datasets.Image(), "json": of_json}
        features |= {name: datasets.Value("string") for name in ("txt", "__key__", "__url__")}
        options["features"] = datasets.Features(features)
    data = datasets.load_dataset("webdataset", **options)
    assert list(data["txt"]) == [entry["text"] for entry in lines(tmp_path / "images")]
    assert [row["index"] for row in data["json"]] == list(range(8))
    assert [row["style"] for row in data["json"]] == styles
    assert data[0]["png"].size == (16, 16)


@pytest.mark.parametrize(("image_format", "ending"), [("jpeg", "jpg"), ("webp", "webp")])
def test_other_formats(tmp_path, image_format, ending):
    fill(tmp_path / "images", make_plan(), MADE_BY, image_format)
    hsd.write_shards(tmp_path / "images", tmp_path / "tar")
    found = members(tmp_path / "tar" / "images-000000.tar")
    assert {name: data for name, data in found.items() if name.endswith(ending)} == images(tmp_path / "images")


def test_the_same_images_give_the_same_bytes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "00000.png", (1, 1))
    for source, out in ((folder, "a"), (tmp_path / "copy", "b")):
        hsd.write_shards(source, tmp_path / out, per_shard=3)
    assert written(tmp_path / "a") == written(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "images-000001.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.isreg()) == (0o644, True)


def test_the_list_says_what_is_there(folder, tmp_path):
    shards = hsd.write_shards(folder, tmp_path / "tar", per_shard=3)
    document = json.loads((tmp_path / "tar" / LIST).read_text())
    assert (document["images"], document["per_shard"]) == (8, 3)
    for told, shard in zip(document["shards"], shards.shards, strict=True):
        data = (tmp_path / "tar" / told["name"]).read_bytes()
        expected = {"name": shard.name, "images": shard.images, "size": len(data)}
        assert told == {**expected, "sha256": hashlib.sha256(data).hexdigest()}


# ------------------------------------------------------------------------------- again


def test_what_is_right_is_kept_and_the_rest_replaced(folder, tmp_path):
    out = tmp_path / "tar"
    hsd.write_shards(folder, out, per_shard=3)
    expected, inode = written(out), {name: os.stat(out / name).st_ino for name in os.listdir(out)}
    assert hsd.write_shards(folder, out, per_shard=3).kept == 3
    assert {name: os.stat(out / name).st_ino for name in os.listdir(out)} == inode  # nothing is written
    os.truncate(out / "images-000000.tar", 99)
    (out / "images-000001.tar").unlink()
    assert hsd.write_shards(folder, out, per_shard=3).kept == 1
    assert written(out) == expected
    (out / "README.md").write_text("mine")
    assert hsd.write_shards(folder, out, per_shard=8).kept == 0
    assert sorted(os.listdir(out)) == ["README.md", "images-000000.tar", LIST]
    assert (out / "README.md").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_in_the_place_of_a_shard(folder, tmp_path, kind):
    out, kept = tmp_path / "tar", tmp_path / "someones"
    hsd.write_shards(folder, out)
    path = out / "images-000000.tar"
    path.rename(kept)
    path.mkdir() if kind == "folder" else path.symlink_to(kept)
    before = kept.read_bytes()
    hsd.write_shards(folder, out)
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == before == kept.read_bytes()


def test_images_that_are_missing_are_left_out(folder, tmp_path):
    plan = make_plan()
    fill(tmp_path / "images", plan.prune([1, 2, 5]))
    shards = hsd.write_shards(tmp_path / "images", tmp_path / "tar")
    assert (shards.images, shards.missing) == (3, 5)
    fill(tmp_path / "images", plan)
    again = hsd.write_shards(tmp_path / "images", tmp_path / "tar")
    assert (again.images, again.missing, again.kept) == (8, 0, 0)


@pytest.mark.parametrize("how", ["cut", "other bytes", "removed", "link"])
def test_a_damaged_image_is_told_and_in_no_shard(folder, tmp_path, how):
    source, out = tmp_path / "images", tmp_path / "tar"
    shutil.copytree(folder, source)
    for name in ("00004.png", "00007.png"):
        path = source / name
        if how == "cut":
            os.truncate(path, 20)
        elif how == "other bytes":
            path.write_bytes(bytes(path.stat().st_size))
        else:
            path.rename(tmp_path / name)
            path.symlink_to(tmp_path / name) if how == "link" else None
    with pytest.raises(hsd.Error, match=r"images of .* damaged \(00004.png; 00007.png\).*generate into the same"):
        hsd.write_shards(source, out, per_shard=3)
    assert sorted(os.listdir(out)) == ["images-000000.tar", LIST]
    assert json.loads((out / LIST).read_text())["shards"] == []
    fill(source, make_plan(columns=COLUMNS))
    assert hsd.write_shards(source, out, per_shard=3).kept == 1
    hsd.write_shards(folder, tmp_path / "other", per_shard=3)
    assert written(out) == written(tmp_path / "other")


def test_an_image_that_was_damaged_since_is_told_once(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    hsd.write_shards(tmp_path / "images", tmp_path / "tar")
    os.truncate(tmp_path / "images" / "00004.png", 20)
    with pytest.raises(hsd.Error, match=r"damaged \(00004.png\)"):
        hsd.write_shards(tmp_path / "images", tmp_path / "tar")


# ------------------------------------------------------------------------------- where


@pytest.mark.parametrize("where", [".", "tar", "a/b", "..", "../images/../images/tar"])
def test_shards_are_not_inside_of_the_images_nor_around_them(folder, where):
    with pytest.raises(hsd.OutputError, match="have to lie outside of each other"):
        hsd.write_shards(folder, folder / where)


def test_a_link_does_not_hide_where_a_folder_is(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(hsd.OutputError, match="have to lie outside of each other"):
        check_shards(folder, tmp_path / "link" / "tar")


@pytest.mark.parametrize("file", ["images-000000.tar", "notes.txt", LIST])
def test_a_folder_of_someone_else_is_refused_and_stays(folder, tmp_path, file):
    (tmp_path / file).write_text("[]")
    with pytest.raises(hsd.OutputError, match=f"no shards of HSD \\({file}\\): choose another folder"):
        hsd.write_shards(folder, tmp_path)
    assert written(tmp_path) == {file: b"[]"}


def test_shards_of_other_images_are_refused_and_stay(folder, tmp_path):
    fill(tmp_path / "other", make_plan(["a cat", "a dog"]))
    hsd.write_shards(tmp_path / "other", tmp_path / "tar")
    before = written(tmp_path / "tar")
    with pytest.raises(hsd.OutputError, match="holds the shards of other images"):
        hsd.write_shards(folder, tmp_path / "tar")
    assert written(tmp_path / "tar") == before


def test_a_folder_that_is_none_of_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(hsd.Error, match=r"empty is no folder of images of hsd.generate"):
        hsd.write_shards(tmp_path / "empty", tmp_path / "tar")
    assert not (tmp_path / "tar").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(hsd.OutputError, match="file: it is not a folder"):
        check_shards(tmp_path / "images", tmp_path / "file")


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hsd.work.files, "_sync", full)
        with pytest.raises(hsd.OutputError, match=r"No space left on device.*free some disk space"):
            hsd.write_shards(folder, tmp_path / "tar")
    assert [name for name in os.listdir(tmp_path / "tar") if name.endswith("tar")] == []
    assert hsd.write_shards(folder, tmp_path / "tar").images == 8


def test_it_needs_no_torch(folder, tmp_path):
    code = (
        f"import sys, hsd; hsd.write_shards({str(folder)!r}, {str(tmp_path / 'tar')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def command(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS.read_text().splitlines()[:6]))

    def run(*options):
        fixed = ["generate", tmp_path / "prompts.txt", "--out", tmp_path / "images", "--steps", "3", "--tau", "3"]
        return CliRunner().invoke(cli.app, [str(option) for option in (*fixed, *options)])

    return run


def test_the_command_writes_them_when_the_run_ends(command, tmp_path):
    run = command("--tar", tmp_path / "tar", "--keep-forks", "--format", "jpeg")
    assert run.exit_code == 0, run.output
    assert f"6 images in 1 shard in {tmp_path / 'tar'}." in run.output
    found = members(tmp_path / "tar" / "images-000000.tar")
    assert {name: data for name, data in found.items() if name.endswith(".jpg")} == images(tmp_path / "images")
    assert read_forks(tmp_path / "images") != []
    shutil.rmtree(tmp_path / "tar")
    again = command("--tar", tmp_path / "tar", "--format", "jpg")
    assert (again.exit_code, "0 images in" in again.output) == (0, True)  # the run is finished already
    assert members(tmp_path / "tar" / "images-000000.tar") == found


def test_the_command_refuses_before_the_run(command, tmp_path):
    run = command("--tar", tmp_path / "images" / "tar")
    assert run.exit_code != 0
    assert isinstance(run.exception, hsd.OutputError)
    assert not (tmp_path / "images").exists()


def test_the_command_refuses_shards_of_other_images_before_the_run(command, folder, tmp_path):
    hsd.write_shards(folder, tmp_path / "tar")
    run = command("--tar", tmp_path / "tar")
    assert isinstance(run.exception, hsd.OutputError)
    assert "shards of other images: choose another folder, or remove that one" in str(run.exception)
    assert not (tmp_path / "images").exists()


def test_the_command_says_what_is_missing(command, tmp_path, monkeypatch):
    add = ImageFolder.add

    def broken(self, index, *rest):
        if index == 3:
            raise ValueError("no")
        return add(self, index, *rest)

    monkeypatch.setattr(ImageFolder, "add", broken)
    run = command("--tar", tmp_path / "tar")
    assert run.exit_code == 3
    assert re.search(r"5 images in 1 shard in .* \(1 of 6 does not exist\)", run.output)
