"""Files of prompts: what is taken and as what, and what is refused with its line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd.planning.columns import renamed
from hsd.planning.prompts import make_seeds
from hsd.prompts.files import read_prompts
from hsd.prompts.known_settings import meant

LINES = '{"prompt": "a cat", "seed": 7, "width": 64}\n\n{"prompt": "a dog"}\n'


def written(tmp_path, data, name="prompts.txt"):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# ------------------------------------------------------------------------------- JSON, by name and by content


@pytest.mark.parametrize(
    "name",
    ["p.jsonl", "p.JSONL", "p.ndjson", "p.NDJSON", "p.jsonl.txt", "p.json", "p.txt", "p", "p.prompts", "a.b.jsonl.TXT"],
)
def test_json_lines_under_any_name(tmp_path, name):
    file = read_prompts(written(tmp_path, LINES, name))
    assert file.prompts == ["a cat", "a dog"]
    assert file.seeds == [7, None]
    assert file.settings == [{"width": 64}, {}]
    assert file.places[1].endswith("line 3")


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.txt"])
@pytest.mark.parametrize(
    "text",
    [
        '["a cat", {"prompt": "a dog", "seed": 3}]',
        '[\n  "a cat",\n  {\n    "prompt": "a dog",\n    "seed": 3\n  }\n]\n',
        ' \n[ {"prompt": "a cat"}, \r\n {"seed": "3", "prompt": "a dog"} ]',
    ],
)
def test_a_json_list(tmp_path, name, text):
    file = read_prompts(written(tmp_path, text, name))
    assert file.prompts == ["a cat", "a dog"]
    assert file.seeds == [None, 3]


def test_one_object_over_several_lines(tmp_path):
    for name in ("p.json", "p.txt"):
        file = read_prompts(written(tmp_path, '{\n  "prompt": "a cat",\n  "seed": 3\n}\n', name))
        assert (file.prompts, file.seeds) == (["a cat"], [3])


def test_json_on_standard_input(monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    assert read_prompts("-").prompts == ["a cat", "a dog"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'a cat\n{"prompt": "a dog"}\n')))
    with pytest.raises(hsd.PromptError, match="standard input, line 2 is JSON, but the lines before it are text"):
        read_prompts("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(hsd.PromptError, match="standard input: it is closed"):
        read_prompts("-")


@pytest.mark.parametrize(
    "line",
    [
        "{a|b} cat",
        "{animal} at night",
        "[a cat] on a mat",
        "[cat:dog:0.5]",
        "[[cat]]",
        "[1] a cat",
        "['90s photo",
        "(a cat)",
        "<lora:x:1> cat",
        '"a cat"',
        "- a cat",
        "# a cat",
    ],
)
def test_what_only_resembles_json_is_text(tmp_path, line):
    assert read_prompts(written(tmp_path, f"{line}\na dog\n")).prompts == [line, "a dog"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a cat"\n{"prompt": "a dog"}\n', "line 1 is not JSON"),
        ('{"prompt": "a cat"}\n{"prompt": "a dog",}\n', "line 2 is not JSON"),
        ('{"prompt": "a cat"}\na dog\n', r"line 2 is not JSON .*write one object per line"),
        ("{'prompt': 'a cat'}\n", "line 1 is not JSON"),
        ('{"prompt": "a cat"} {"prompt": "a dog"}\n', "line 1 is not JSON"),
        ('{"prompts": ["a cat"]}\n', "line 1 has no prompt"),
        ('{"text": "a cat"}\n', "line 1 has no prompt"),
        ('["a cat",\n "a dog"', r"line 2 is not JSON: a comma or the end of the list is missing"),
        ('["a cat"\n "a dog"]', "line 2 is not JSON: a comma"),
        ('["a cat",\n 3]', "line 2 has no prompt"),
        ('["a cat",\n ""]', "line 2 has no prompt"),
        ('["a cat",\n]', "line 2 is not JSON"),
        ('["a cat"]\n["a dog"]', "line 2: there is something after the end of the list"),
        ('["a cat", "a dog', "line 1 is not JSON"),
        ("[\n", "is not JSON"),
        ("[]", "has no prompts"),
        ("{}", "line 1 has no prompt"),
        ("['a cat', 'a dog']", "line 1 is not JSON"),
        ('{"prompt": "a cat", "prompt": "a dog"}', "'prompt' twice"),
        ('{"prompt": "a cat", "id": {"a": 1, "a": 2}}', "'a' twice"),
        ('{"prompt": "a cat", "guidance_scale": NaN}', "NaN is no number in JSON; leave the key out, or write null"),
        ('{"prompt": "a cat", "guidance_scale": -Infinity}', "-Infinity is no number"),
        ('{"prompt": "a cat", "guidance_scale": 1e999}', "1e999 is too large"),
        ('{"prompt": "a cat", "seed": ' + "9" * 5000 + "}", "an integer of 5000 digits is too large"),
        ('{"prompt": "a cat", "id": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: it is nested too deep"),
        ('{"prompt": "a cat", "": 3}', "line 1 has a key without a name"),
        ('{"prompt": "a \\ud800 cat"}', "line 1: the prompt has a lone surrogate at character 2"),
        ('{"prompt": "a cat", "id": "\\udfff"}', "line 1 has a lone surrogate"),
        ('{"prompt": "a \\u0000 cat"}', "line 1: the prompt has a NUL at character 2"),
        ('{"prompt": "\\u200b\\ufeff\\u00ad"}', "line 1 has no prompt"),
        ('{"prompt": 3}', "line 1 has no prompt"),
        ('{"prompt": null}', "line 1 has no prompt"),
        ('{"prompt": ["a cat"]}', "line 1 has no prompt"),
    ],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.txt"])
def test_json_that_is_refused(tmp_path, name, text, says):
    with pytest.raises(hsd.PromptError, match=says) as raised:
        read_prompts(written(tmp_path, text, name))
    assert len(str(raised.value)) < 600


# ------------------------------------------------------------------------------- text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["a cat", "", "  thé séa\t", "\u732b"]) + end
    assert read_prompts(written(tmp_path, text.encode(encoding))).prompts == ["a cat", "thé séa", "\u732b"]
    lines = end.join(['{"prompt": "thé"}', '{"prompt": "\u732b"}'])
    assert read_prompts(written(tmp_path, lines.encode(encoding))).prompts == ["thé", "\u732b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_damaged_utf16(tmp_path, encoding):
    data = "a cat\na dog\n".encode(encoding) + b"\x61"
    with pytest.raises(hsd.PromptError, match=f"line 3: byte {len(data)} of the file is not {encoding.upper()}"):
        read_prompts(written(tmp_path, data))


def test_too_many_keys(tmp_path):
    text = "\n".join(json.dumps({"prompt": "a", f"key {i}": i}) for i in range(1001))
    with pytest.raises(hsd.PromptError, match="line 1001: the file has more than 1,000 different keys"):
        read_prompts(written(tmp_path, text))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(tmp_path, encoding):
    with pytest.raises(hsd.PromptError, match="looks like UTF-16 without a byte order mark: save it as UTF-8"):
        read_prompts(written(tmp_path, "a cat\nthé sea\n".encode(encoding)))


def test_marks_inside_a_file(tmp_path):
    assert read_prompts(written(tmp_path, "\ufeffa cat\n\ufeffa dog\n\ufeff\n")).prompts == ["a cat", "a dog"]
    assert read_prompts(written(tmp_path, '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n')).prompts == ["a", "b"]
    with pytest.raises(hsd.PromptError, match="line 2 has a byte order mark at character 5: two files were joined"):
        read_prompts(written(tmp_path, "a fox\na cat\ufeffa dog\n"))


def test_lines_that_show_nothing_are_blank(tmp_path):
    blank = ["", " ", "\t", "\u200b", "\u00ad\u2060", "\ufeff", "\u3000", "\u2800", "\u3164", "\ufe0f", "\u200e\u200f"]
    assert read_prompts(written(tmp_path, "\n".join(["a cat", *blank, "a dog"]))).prompts == ["a cat", "a dog"]
    with pytest.raises(hsd.PromptError, match="has no prompts"):
        read_prompts(written(tmp_path, "\n".join(blank)))
    for text in ("\U0001f408", "?", "\u732b", "\U0001f469\u200d\U0001f52c"):  # these show something
        assert read_prompts(written(tmp_path, text)).prompts == [text]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a\0b", "line 2: byte 2 is NUL"),
        ("a \x1b[1m cat", r"line 2 has the control character U\+001B at character 2"),
        ("a\x92cat", r"line 2 has the control character U\+0092"),
        ("a\x0bb", r"line 2 has the separator U\+000B at character 1, which some editors show as a line break"),
        ("a\x0cb", r"separator U\+000C"),
        ("a\x1cb", r"separator U\+001C"),
        ("a\x85b", r"separator U\+0085"),
        ("a\u2028b", r"separator U\+2028"),
        ("a\u2029b", r"separator U\+2029"),
        ("a" * 2_000_000, "line 2 has 2,000,000 characters, which is no prompt"),
    ],
)
def test_lines_that_cannot_be_meant(tmp_path, line, says):
    with pytest.raises(hsd.PromptError, match=says):
        read_prompts(written(tmp_path, f"fine\n{line}\n"))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.parquet", b"PAR1....", "as a Parquet file"),
        ("p.xlsx", b"PK\x03\x04", "a .xlsx file by its name, which is not read: save the sheet as CSV"),
        ("P.ODS", b"PK\x03\x04", "save the sheet as CSV"),
        ("p.yaml", b"- a cat\n", "a .yaml file"),
        ("p.jsonl.gz", b"\x1f\x8b\x08", "a .gz file"),
        ("p.txt", b"PAR1\x15\x04", "is a Parquet file"),
        ("p.txt", b"PK\x03\x04\x14", "a ZIP archive or an Office document"),
        ("p", b"\x1f\x8b\x08", "compressed by gzip"),
        ("p.jsonl", b"%PDF-1.7", "a PDF"),
        ("p", b"\x89PNG\r\n", "an image"),
        ("p", b"<!DOCTYPE html><html>", "a web page"),
        ("p", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_other_files(tmp_path, name, data, says):
    with pytest.raises(hsd.PromptError, match=says):
        read_prompts(written(tmp_path, data, name))


def test_a_comma_is_no_table(tmp_path):
    lines = ["a prompt, oil on canvas", "prompt action, a fireman", "red, green; blue"]
    for line in lines:
        assert read_prompts(written(tmp_path, line)).prompts == [line]


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_prompts_or_a_prompt_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "p"
    for name in ("p.txt", "p.json", "p.jsonl"):
        path = path.with_name(name)
        path.write_bytes(data)
        try:
            file = read_prompts(path)
        except hsd.PromptError:
            continue
        hsd.planning.prompts.check_prompts(file.prompts)
        assert len(file.prompts) == len(file.seeds) == len(file.settings) == len(file.places) > 0


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["prompt", "seed", "width", "guidance_scale", "negative_prompt", "id", "guidance_interval"])


@given(st.lists(st.dictionaries(_KEYS | st.text(max_size=8), _JSON | st.just("a cat"), max_size=4), max_size=4))
@settings(deadline=None, max_examples=150)
def test_any_json_is_prompts_or_a_prompt_error(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    for text in ("\n".join(json.dumps(one) for one in objects), json.dumps(objects, indent=1)):
        path.write_text(text)
        try:
            file = read_prompts(path)
        except hsd.PromptError:
            continue
        embeddings = np.arange(1.0, 1 + 3 * len(file.prompts)).reshape(-1, 3)
        seeds = [seed or 0 for seed in file.seeds]
        columns = renamed(file.columns)
        plan = hsd.compile(
            file.prompts, embeddings=embeddings, steps=2, seeds=seeds, settings=file.settings, columns=columns
        )
        assert plan.columns.keys() == columns.keys()


# ------------------------------------------------------------------------------- seeds, settings, columns


@pytest.mark.parametrize("seed", ["3", "3.0", '"3"', '"3.0"', "3e0"])
def test_whole_seeds(tmp_path, seed):
    assert read_prompts(written(tmp_path, f'{{"prompt": "a cat", "seed": {seed}}}')).seeds == [3]


@pytest.mark.parametrize("seed", ["null", '""'])
def test_empty_seeds_are_not_given(tmp_path, seed):
    assert read_prompts(written(tmp_path, f'{{"prompt": "a cat", "seed": {seed}}}')).seeds == [None]


@pytest.mark.parametrize(
    "seed", ["3.5", '"3,0"', "-1", "true", "[3]", str(2**63), "1e18", '"three"', '"1_0"', '"\u0663"']
)
def test_bad_seeds(tmp_path, seed):
    with pytest.raises(hsd.PromptError, match=r"line 1: the seed is .*not an integer in 0\.\."):
        read_prompts(written(tmp_path, f'{{"prompt": "a cat", "seed": {seed}}}'))


def test_seeds_in_python():
    pandas = pytest.importorskip("pandas")
    assert make_seeds(3.0, 2).tolist() == [3, 4]
    for seeds in (
        [3.0, 4],
        np.array([3.0, 4.0]),
        pandas.Series([3.0, 4.0]),
        pandas.Series([3, 4]),
        (np.int32(3), 4),
        range(3, 5),
        iter([3, 4]),
    ):
        out = make_seeds(seeds, 2)
        assert out.dtype == np.int64
        assert out.tolist() == [3, 4]
    assert make_seeds(np.array(3), 2).tolist() == [3, 4]
    for bad in ("34", ["3", "4"], [3.0, float("nan")], [True, 2], [3.0, 2.0**60], None):
        with pytest.raises(TypeError, match="seed"):
            make_seeds(bad, 2)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ('"width": 64.0', {"width": 64}),
        ('"width": "64"', {"width": 64}),
        ('"width": "64.0"', {"width": 64}),
        ('"guidance_scale": 5', {"guidance_scale": 5.0}),
        ('"guidance_scale": "7.5"', {"guidance_scale": 7.5}),
        ('"negative_prompt": ""', {"negative_prompt": ""}),
        ('"negative_prompt": null, "width": null, "guidance_scale": ""', {}),
        ('"share_prior": "TRUE"', {"share_prior": True}),
        ('"share_prior": 0.0', {"share_prior": False}),
        ('"guidance_interval": [0, 0.6]', {"guidance_interval": (0.0, 0.6)}),
        ('"original_size": [512.0, 512]', {"original_size": (512, 512)}),
    ],
)
def test_settings_as_tables_write_them(tmp_path, given, taken):
    own = read_prompts(written(tmp_path, f'{{"prompt": "a cat", {given}}}')).settings[0]
    assert own == taken
    assert {name: type(value) for name, value in own.items()} == {name: type(value) for name, value in taken.items()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('"width": 64.5', r"width is 64.5: it has to be a whole number"),
        ('"width": 0', "width is 0: it has to be at least 1"),
        ('"height": -8', "height is -8: it has to be at least 1"),
        ('"height": 1000000', "height is 1000000: it has to be at most 65,535"),
        ('"width": true', "width is True: it has to be a whole number"),
        ('"width": "wide"', r"width is 'wide' \(str\): it has to be a whole number"),
        ('"guidance_scale": "7,5"', r"guidance_scale is '7,5' \(str\): it has to be a number; write 7.5 with a point"),
        ('"guidance_scale": "nan"', "guidance_scale is 'nan'"),
        ('"guidance_scale": [5]', r"guidance_scale is \[5\] \(list\): it has to be a number"),
        ('"guidance_scale": false', "guidance_scale is False: it has to be a number"),
        ('"negative_prompt": ["dull", "dark"]', r"negative_prompt is \['dull', 'dark'\] \(list\): it has to be text"),
        ('"negative_prompt": 3', r"negative_prompt is 3 \(int\): it has to be text"),
        ('"negative_prompt": "a\\u0000"', "negative_prompt is .*it has a NUL"),
        ('"original_size": 512', "original_size is 512 .*it has to be 2 values, each a whole number"),
        ('"share_prior": "maybe"', "share_prior is 'maybe' .*it has to be true or false"),
        ('"widht": 64', "'widht', which is no setting: did you mean 'width'"),
        ('"Width": "wide"', r"width is 'wide' \(str\): it has to be a whole number"),
        ('"guidance_scal": 5', "did you mean 'guidance_scale'"),
        ('"negativ_promt": "dull"', "did you mean 'negative_prompt'"),
        ('"negative": "dull"', "did you mean 'negative_prompt'"),
        ('"Prompt": "a dog"', "two keys that are 'prompt', 'prompt' and 'Prompt': rename one"),
        ('"seeds": 3', "did you mean 'seed'"),
        ('"steps": 30', "'steps', which is no setting: it is the same for all prompts"),
    ],
)
def test_settings_that_are_refused_with_their_line(tmp_path, given, says):
    text = '{"prompt": "fine"}\n\n{"prompt": "a cat", ' + given + "}\n"
    with pytest.raises(hsd.PromptError, match=f"line 3.*{says}"):
        read_prompts(written(tmp_path, text))


@pytest.mark.parametrize(
    "name", ["id", "style", "weight", "prompt_id", "category", "size", "image", "data", "sampler", "tag"]
)
def test_names_that_are_no_typing_errors(name):
    assert meant(name) is None


def test_unknown_keys_do_not_break_sharing(tmp_path):
    prompts = ["a red star", "a red star on a hill", "a blue star", "a blue star on a hill"]
    plain = read_prompts(written(tmp_path, "\n".join(prompts)))
    lines = [json.dumps({"prompt": p, "id": i, "tags": [i], "seed": i}) for i, p in enumerate(prompts)]
    labelled = read_prompts(written(tmp_path, "\n".join(lines)))
    assert labelled.columns == {"id": [0, 1, 2, 3], "tags": [[0], [1], [2], [3]]}
    plans = [
        hsd.compile(file.prompts, 1.0, seeds=file.seeds_from(0), settings=file.settings, columns=file.columns)
        for file in (plain, labelled)
    ]
    assert plans[0].savings == plans[1].savings > 0
    assert plans[0].fingerprint == plans[1].fingerprint
    assert plans[1].columns == {"id": [0, 1, 2, 3], "tags": ["[0]", "[1]", "[2]", "[3]"]}
    path = tmp_path / "plan.safetensors"
    plans[1].save(path)
    assert hsd.Plan.load(path).columns == plans[1].columns


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"guidance_scale": 5}, {"guidance_scale": 5.0}),
        ({}, {"negative_prompt": None}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"original_size": (1, 2)}, {"original_size": [1, 2.0]}),
        ({"width": np.int64(64)}, {"width": 64}),
        ({"guidance_scale": np.float32(5)}, {"guidance_scale": 5}),
        ({"original_size": np.array([1, 2])}, {"original_size": (1, 2)}),
        ({"eta": 0.0}, {"eta": -0.0}),
    ],
)
def test_equal_settings_are_equal(one, other):
    embeddings = np.array([[1.0, 0.1], [1.0, 0.0]])
    plan = hsd.compile(["a", "b"], 1.0, embeddings=embeddings, settings=[one, other], steps=4)
    assert len(plan.settings) == 1
    assert plan.savings > 0
    again = hsd.compile(["a", "b"], 1.0, embeddings=embeddings, settings=[other, one], steps=4)
    assert again.fingerprint == plan.fingerprint
    different = hsd.compile(["a", "b"], 1.0, embeddings=embeddings, settings=[one, {"width": 8}], steps=4)
    assert len(different.settings) == 2
    assert different.savings == 0


def test_names_of_columns():
    columns = {"file_name": ["a"], "text": ["b"], "given_text": ["c"], "x_file_name": ["d"], "width": [1], "id": [2]}
    out = renamed(columns, ["width"])
    assert [value for (value,) in out.values()] == ["a", "b", "c", "d", 1, 2]
    assert list(out) == ["given_filename", "given_given_text", "given_text", "x_filename", "given_width", "id"]


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"id": [1]}, ValueError, "column 'id' has 1 values for 2 prompts"),
        ({"id": "ab"}, ValueError, "column 'id'"),
        (["id"], TypeError, "columns= has to map names"),
        ({"id": [1, object()]}, TypeError, "column 'id' cannot be saved as JSON"),
        ({"id": 3}, ValueError, "column 'id' has one value"),
        ({"id": [1, float("inf")]}, TypeError, "column 'id' cannot be saved as JSON"),
    ],
)
def test_bad_columns(columns, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(["a", "b"], embeddings=np.eye(2), columns=columns)


def test_columns_of_a_table():
    columns = {"id": np.array([4, 5]), "score": [0.5, float("nan")], "none": [None, None], "mixed": [1, "b"]}
    plan = hsd.compile(["a", "b"], embeddings=np.eye(2), columns=columns, images_per_prompt=2)
    assert plan.columns == {"id": [4, 4, 5, 5], "score": [0.5, 0.5, None, None], "mixed": ["1", "1", '"b"', '"b"']}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"prompt": "a cat"},\n{"prompt": "a dog"}\n', "line 1 ends with a comma: remove it"),
        (b'{"caption": "a cat"}\n', "line 1 has no prompt: rename 'caption' to 'prompt'"),
        (b"a cat\n\0", "line 2: byte 1 is NUL"),
    ],
)
def test_what_is_nearly_right_is_said_as_it_is(tmp_path, data, says):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data)
    with pytest.raises(hsd.Error, match=re.escape(says)):
        hsd.read_prompts(path)
