"""Files of prompts through the commands: errors before the folder is claimed, columns in the metadata, notices."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import hsd
from hsd import cli
from hsd.demo import PROMPTS

RUN = CliRunner()
TEXTS = PROMPTS.read_text().splitlines()[:4]


def lines(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects)


def generate(path, out, *more):
    return RUN.invoke(cli.app, ["generate", str(path), "--out", str(out), "--steps", "2", "--batch-size", "4", *more])


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"guidance_scale": "7,5"}, "line 2: guidance_scale is '7,5'"),
        ({"width": 0}, "line 2: width is 0"),
        ({"negative_prompt": ["dull"]}, "line 2: negative_prompt is"),
        ({"clip_skip": 1}, r"line 2: Kandinsky22 has no setting 'clip_skip'"),
        ({"prior_steps": 0}, "line 2: prior_steps is 0"),
        ({"guidance_interval": [0.5, 0.2]}, "line 2: guidance_interval"),
    ],
)
def test_a_corrected_file_continues(tmp_path, own, says):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "images"
    path.write_text(lines({"prompt": TEXTS[0]}, {"prompt": TEXTS[1], **own}))
    failed = generate(path, out)
    assert isinstance(failed.exception, (ValueError, TypeError)), failed.output
    with pytest.raises(type(failed.exception), match=says):
        raise failed.exception
    assert not (out / "plan.safetensors").exists()
    assert not (out / "run.json").exists()
    path.write_text(lines({"prompt": TEXTS[0]}, {"prompt": TEXTS[1], "guidance_scale": 3}))
    fine = generate(path, out)
    assert fine.exit_code == 0, fine.output
    assert "2 images in" in fine.output


def test_settings_of_all_prompts_are_checked_before_the_folder_is_claimed(tmp_path):
    path, out = tmp_path / "prompts.txt", tmp_path / "images"
    path.write_text("\n".join(TEXTS))
    for option, says in (
        (["--set", "guidance_scale=7,5"], "guidance_scale is '7,5'"),
        (["--set", "guidance_scale=NaN"], "guidance_scale is nan"),
        (["--set", "guidance_scale=null"], "guidance_scale is None"),
        (["--width", "0"], "width is 0"),
        (["--set", "prior_steps=2.5"], "prior_steps is 2.5"),
        (["--set", "prior_steps=2", "--set", "prior_steps=3"], "prior_steps is given twice"),
    ):
        failed = generate(path, out, *option)
        with pytest.raises((ValueError, TypeError), match=says):
            raise failed.exception
        assert list(out.iterdir()) == []


def test_columns_reach_the_metadata(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    path, out = tmp_path / "prompts.jsonl", tmp_path / "images"
    rows = [
        {
            "prompt": text,
            "seed": i + 5.0,
            "id": f"a{i}",
            "score": i / 2,
            "tags": ["x", i],
            "index": 7,
            "file_name": "y.png",
        }
        for i, text in enumerate(TEXTS)
    ]
    del rows[1]["score"]
    path.write_text(lines(*rows))
    result = generate(path, out)
    assert result.exit_code == 0, result.output
    notice = "id, score, tags, index, file_name: no settings of the model; kept as columns of metadata.jsonl"
    assert result.stderr.count(notice) == 1
    entries = sorted(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()), key=lambda e: e["index"])
    assert [entry["seed"] for entry in entries] == [5, 6, 7, 8]
    assert [entry["id"] for entry in entries] == ["a0", "a1", "a2", "a3"]
    assert [entry["score"] for entry in entries] == [0.0, None, 1.0, 1.5]
    assert entries[0]["tags"] == '["x", 0]'
    assert [entry["given_index"] for entry in entries] == [7] * 4
    assert [entry["given_filename"] for entry in entries] == ["y.png"] * 4
    assert [entry["text"] for entry in entries] == TEXTS
    table = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"image", "text", "id", "score", "tags", "given_index", "given_filename"} <= set(table.column_names)
    assert len(table) == 4

    plain = tmp_path / "plain.jsonl"
    plain.write_text(lines(*({"prompt": row["prompt"], "seed": row["seed"]} for row in rows)))
    changed = tmp_path / "changed.jsonl"
    changed.write_text(lines(*({**row, "id": f"b{i}"} for i, row in enumerate(rows))))
    monkeypatch.setattr("hsd.models.encode.encode", lambda *_, **__: pytest.fail("encoded again"))
    for path, ids in ((plain, "a"), (changed, "b")):
        again = generate(path, out)  # columns decide nothing: it is the same plan
        assert again.exit_code == 0, again.output
        assert "0 images in" in again.output
        entries = sorted(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()), key=lambda e: e["index"])
        assert [entry["id"] for entry in entries] == [f"{ids}{i}" for i in range(4)]


def test_plan_says_what_is_taken_literally(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# animals\na (cat:1.2)\na {cat|dog}\n")
    result = RUN.invoke(cli.app, ["plan", str(path), "--model", "stand-in"])
    assert result.exit_code == 0
    assert result.stderr.count("some prompts hold what models do not know") == 1
    assert f"comments (#, //) in 1 (first: {path}, line 1)" in result.stderr
    assert "models do not know" not in result.stdout
    path.write_text("a cat\na dog\n")
    assert RUN.invoke(cli.app, ["plan", str(path), "--model", "stand-in"]).stderr == ""


def test_unknown_keys_do_not_cost_savings(tmp_path):
    path = tmp_path / "prompts.jsonl"
    savings = []
    for more in ({}, {"id": 1}):
        path.write_text(lines(*({"prompt": text, **dict.fromkeys(more, i)} for i, text in enumerate(TEXTS))))
        result = RUN.invoke(cli.app, ["plan", str(path), "--model", "stand-in", "--json"])
        savings.append(json.loads(result.stdout)["savings"])
    assert savings[0] == savings[1] > 0


def test_cut_prompts_are_said_once(tmp_path):
    path, out = tmp_path / "prompts.txt", tmp_path / "images"
    path.write_text("\n".join([*TEXTS, "a red star " * 30]))
    for result in (generate(path, out), RUN.invoke(cli.app, ["plan", str(path), "--model", "demo", "--steps", "2"])):
        assert result.exit_code == 0, result.output
        said = [line for line in result.stderr.splitlines() if "longer than the model reads" in line]
        assert len(said) == 1, result.stderr
        assert said[0].startswith("hsd: 1 of 5 prompts is longer than the model reads (32 tokens): prompt 4; the end")


def test_a_model_from_elsewhere_has_its_settings_in_files(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines({"prompt": "a", "glow": 2}, {"prompt": "b", "id": 3}))
    file = hsd.read_prompts(path)
    assert list(file.columns) == ["glow", "id"]
    own = file.with_settings(("width", "glow"))
    assert own.settings == [{"glow": 2}, {}]
    assert list(own.columns) == ["id"]
    with pytest.raises(hsd.PromptError, match="line 1 has 'glow', which is no setting: did you mean 'glows'"):
        file.with_settings(("glows",))
