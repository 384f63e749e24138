"""Tables of prompts as spreadsheets, pandas and people write them; what cannot be meant is told with its line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd.prompts.files import read_prompts
from hsd.prompts.tables import SEPARATORS


def written(tmp_path, data, name="prompts.csv"):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


SHEET = [
    ["ID", "Prompt", "Seed", "Negative Prompt", "Width"],
    ["007", "a cat, asleep", 1, "blurry", 512],
    ["8", 'a "big" dog', None, None, None],
    [None, None, None, None, None],
    ["9", "thé séa\nat night", 3, None, 640],
]


def exported(separator=",", encoding="utf-8-sig", line_break="\r\n"):
    """The sheet, made by openpyxl, and exported with the rules of Excel: quotes where needed, CRLF after each row."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in SHEET:
        book.active.append(row)
    stored = io.BytesIO()
    book.save(stored)
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=line_break)
    for row in openpyxl.load_workbook(stored).active.iter_rows(values_only=True):
        writer.writerow(["" if cell is None else cell for cell in row])
    return out.getvalue().encode(encoding)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("comma.csv", exported()),
        ("europe.csv", exported(";")),
        ("unicode text.txt", exported("\t", "utf-16")),
        ("bars.csv", exported("|", "utf-8", "\n")),
        ("old mac.csv", exported(",", "utf-8", "\r\n").replace(b"\r\n", b"\r")),
        ("sheet.tsv", exported("\t", "utf-8")),
        ("SHEET.TAB", exported("\t", "utf-16")),
        ("sep.csv", b"\xef\xbb\xbfsep=;\r\n" + exported(";", "utf-8")),
        ("no ending", exported(";")),
    ],
)
def test_exports_of_a_spreadsheet(tmp_path, name, data):
    file = read_prompts(written(tmp_path, data, name))
    assert file.prompts == ["a cat, asleep", 'a "big" dog', "thé séa\nat night"]
    assert file.seeds == [1, None, 3]
    assert file.settings == [{"negative_prompt": "blurry", "width": 512}, {}, {"width": 640}]
    assert file.columns == {"ID": ["007", "8", "9"]}
    first = 3 if name.startswith("sep") else 2
    assert [place.rpartition(" ")[2] for place in file.places] == [str(first), str(first + 1), str(first + 3)]


@pytest.mark.parametrize(
    "options",
    [
        {},  # with the index, whose heading is empty
        {"index": False},
        {"index_label": "Unnamed: 0"},
        {"sep": ";", "encoding": "utf-8-sig"},
        {"sep": "\t", "encoding": "utf-16", "index": False},
        {"quoting": csv.QUOTE_ALL},
        {"lineterminator": "\r\n"},
    ],
)
def test_what_pandas_writes(tmp_path, options):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "prompt": ["a cat", "1, 2", 'q "x"'],
            "seed": [42, None, 7],
            "guidance_scale": [7.5, 3, None],
            "id": ["a", "b", "c"],
        }
    )
    frame.to_csv(tmp_path / "p.csv", **options)
    file = read_prompts(tmp_path / "p.csv")
    assert file.prompts == ["a cat", "1, 2", 'q "x"']
    assert file.seeds == [42, None, 7]  # written as 42.0
    assert file.settings == [{"guidance_scale": 7.5}, {"guidance_scale": 3.0}, {}]
    assert file.columns == {"id": ["a", "b", "c"]}


def test_columns_without_any_text_are_left_out(tmp_path):
    """Spreadsheets write them where a cell once had something."""
    file = read_prompts(written(tmp_path, "prompt;seed;;\na cat;5;;\na dog;;;\n"))
    assert (file.seeds, file.columns) == ([5, None], {})


def test_an_index_that_counts_nothing_is_kept(tmp_path):
    file = read_prompts(written(tmp_path, ",prompt\n5,a cat\n9,a dog\n"))
    assert file.columns == {"column_1": ["5", "9"]}


def test_cells_are_what_they_say(tmp_path):
    table = 'prompt,share_prior,clip_skip,timesteps,note\n12,TRUE,2.0,"[999, 1]",7\nx,no,,,\n'
    file = read_prompts(written(tmp_path, table))
    assert file.prompts == ["12", "x"]
    assert file.settings == [{"share_prior": True, "clip_skip": 2, "timesteps": (999, 1)}, {"share_prior": False}]
    assert file.columns == {"note": ["7", None]}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('prompt,seed\na cat,1\n"a dog,2\nan owl,3\n', "line 3: a quote .* is not closed"),
        ('prompt,seed\n"a\ncat",1\n"big" dog,2\n', "line 4: there is something after the closing quote"),
        ("prompt,seed\na cat,asleep,1\n", "line 2 has 3 cells, but the heading has 2: put quotes"),
        ("prompt,seed,id\na cat,1\n", "line 2 has 2 cells, but the heading has 3"),
        ('prompt,seed\n"a\ncat",1\n,2\n', "line 4 has no prompt, but seed"),
        ("prompt,seed\na cat,x\n", "line 2: the seed is 'x'"),
        ("prompt,seed\na cat,-1\n", "line 2: the seed is '-1'"),
        ('prompt;guidance_scale\na cat;"7,5"\n', "line 2: guidance_scale is '7,5'.*write 7.5 with a point"),
        ("prompt,width\na cat,0\n", "line 2: width is 0"),
        ("prompt,Prompt\na,b\n", "line 1 has two columns that are 'prompt', 'prompt' and 'Prompt'"),
        ("prompt,id,id\na,b,c\n", "line 1 has two columns that are 'id'"),
        ("prompt,negativ_prompt\na,b\n", "'negativ_prompt', which is no setting: did you mean 'negative_prompt'"),
        (
            "prompt,steps\na,20\n",
            "line 1 has the column 'steps'.*the same for all prompts.*compile. Write --column NAME=steps",
        ),
        ("caption,id\na cat,7\n", "no column 'prompt'. Its columns are: caption, id. .* --column prompt=caption"),
        ("id,title\n7,a cat\n", "--column prompt=title"),
        ("a,b\nx,y\n", "--column prompt=NAME"),
        ("prompt\n\x00", "NUL"),
        ("prompt,note\na\x1bcat,x\n", "line 2: the prompt has the control character"),
        ("", "has no prompts"),
        ("prompt,seed\n,\n", "has no prompts"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path, table, says):
    with pytest.raises(hsd.PromptError, match=says):
        read_prompts(written(tmp_path, table))


def test_windows_text_says_what_to_do(tmp_path):
    with pytest.raises(hsd.PromptError, match=r"line 2: byte 3 \(0xe9\) is not UTF-8; .*CSV UTF-8"):
        read_prompts(written(tmp_path, "prompt,seed\nthé,1\n".encode("cp1252")))


def test_columns_by_other_names(tmp_path):
    path = written(tmp_path, "Caption,prompt,No,steps\na cat,old,5,20\n")
    file = read_prompts(path, columns={"prompt": "caption", "seed": "No", "my_steps": "steps"})
    assert (file.prompts, file.seeds) == (["a cat"], [5])
    assert file.columns == {"given_prompt": ["old"], "my_steps": ["20"]}
    text = written(tmp_path, "Caption;No\na cat;5\n", "p.txt")
    assert read_prompts(text, columns={"prompt": "Caption", "seed": "No"}).seeds == [5]
    for columns, says in (
        ({"prompt": "captoin"}, "no column 'captoin': did you mean 'Caption'"),
        ({"prompt": "x"}, "its columns are: Caption, prompt, No, steps"),
    ):
        with pytest.raises(hsd.PromptError, match=says):
            read_prompts(path, columns=columns)
    for columns, kind in (({"prompt": ""}, ValueError), ({"a": "No", "b": "No"}, ValueError), (["prompt"], TypeError)):
        with pytest.raises(kind, match="columns="):
            read_prompts(path, columns=columns)


def test_keys_by_other_names(tmp_path):
    lines = [{"caption": "a cat", "n": 5, "width": 64}, {"caption": "a dog", "prompt": "old"}]
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "p.jsonl")
    file = read_prompts(path, columns={"prompt": "caption", "seed": "n"})
    assert (file.prompts, file.seeds) == (["a cat", "a dog"], [5, None])
    assert (file.settings[0], file.columns) == ({"width": 64}, {"given_prompt": [None, "old"]})
    with pytest.raises(hsd.PromptError, match="no key 'nothing': there are caption, n, prompt, width"):
        read_prompts(path, columns={"prompt": "caption", "id": "nothing"})


def test_text_that_is_a_table_is_told(tmp_path):
    heading = written(tmp_path, "caption, id\na cat, 1\na dog, 2\n", "p.txt")
    with pytest.raises(hsd.PromptError, match=r"line 1 looks like the heading of a table with commas.*prompt=caption"):
        read_prompts(heading)
    for text in ("text, caption\na cat asleep\n", "a prompt, oil\n", "prompt action, a fireman\n", "text, a cat\n"):
        assert read_prompts(written(tmp_path, text, "p.txt")).prompts == text.splitlines()
    plain = written(tmp_path, "a cat\n", "p.txt")
    with pytest.raises(hsd.PromptError, match="has no columns, so none is 'caption'"):
        read_prompts(plain, columns={"prompt": "caption"})
    with pytest.raises(hsd.PromptError, match="has no splits.*leave out --split train"):
        read_prompts(plain, split="train")


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n",;|\t'), max_size=12)
PROMPT = CELL.map(lambda text: f"a{text}b")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(PROMPT, st.none() | st.integers(0, 2**63 - 1), CELL), min_size=1, max_size=5),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_rows_come_back(tmp_path_factory, rows, separator, encoding, quoting):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=quoting)
    writer.writerows([("prompt", "seed", "note"), *rows])
    path = tmp_path_factory.mktemp("rows") / "p.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    file = read_prompts(path)
    assert file.prompts == [prompt for prompt, _, _ in rows]
    assert file.seeds == [seed for _, seed, _ in rows]
    notes = [note or None for _, _, note in rows]
    assert file.columns.get("note", [None] * len(rows)) == notes


# ------------------------------------------------------------------------------- what people tried


def test_a_row_with_the_index_of_pandas_only_is_empty(tmp_path):
    file = read_prompts(written(tmp_path, ",prompt,seed\n0,a red star,1\n1,,\n2,a blue star,\n"))
    assert file.prompts == ["a red star", "a blue star"]
    assert file.columns == {}


@pytest.mark.parametrize("name", ["width_", "Seed_"])
def test_names_are_not_stretched_to_settings(tmp_path, name):
    file = read_prompts(written(tmp_path, f"prompt,{name}\na,1\n"), columns={"mine": name})
    assert (file.seeds, file.settings, file.columns) == ([None], [{}], {"mine": ["1"]})
    with pytest.raises(hsd.PromptError, match=f"has the column '{name}', which is no setting: did you mean"):
        read_prompts(written(tmp_path, f"prompt,{name}\na,1\n"))


def test_a_cell_that_is_too_long_is_told_so(tmp_path):
    text = "x" * (csv.field_size_limit() + 1)
    with pytest.raises(hsd.PromptError, match=r"line 2: a cell has more than 131,072 characters"):
        read_prompts(written(tmp_path, f'prompt,note\na,"{text}"\n'))


def test_keys_of_json_are_found_as_headings_are(tmp_path):
    line = {"Prompt": "a cat", "Seed": 3, "Guidance Scale": 4, "ID": "7"}
    file = read_prompts(written(tmp_path, json.dumps(line) + "\n", "p.jsonl"))
    assert (file.prompts, file.seeds, file.settings) == (["a cat"], [3], [{"guidance_scale": 4}])
    assert file.columns == {"ID": ["7"]}
    file = read_prompts(written(tmp_path, json.dumps(line) + "\n", "p.jsonl"), columns={"number": "id"})
    assert file.columns == {"number": ["7"]}
    with pytest.raises(hsd.PromptError, match="line 1 has two keys that are 'prompt', 'prompt' and 'Prompt'"):
        read_prompts(written(tmp_path, '{"prompt": "a", "Prompt": "b"}\n', "p.jsonl"))


def parquet(tmp_path, **columns):
    pa, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "p.parquet"
    files.write_table(pa.table(columns), path)
    return path


def test_what_python_cannot_hold_is_told(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path, prompt=["a"], t=pa.array([2**62], pa.timestamp("us")))
    with pytest.raises(hsd.PromptError, match="column 't' has a value that Python cannot hold"):
        read_prompts(path)


def test_nan_inside_of_a_value_is_nothing(tmp_path):
    from hsd.prompts.write import write_prompts

    file = read_prompts(parquet(tmp_path, prompt=["a", ""], s=[{"v": float("nan")}, None]))
    assert file.columns == {"s": [{"v": None}]}
    write_prompts(file, tmp_path / "p.jsonl")
    assert read_prompts(tmp_path / "p.jsonl").columns == file.columns


def test_a_wildcard_file_that_nobody_asked_for_is_not_in_the_way(tmp_path):
    (tmp_path / "animal.txt").write_text("fox\nowl\n")
    (tmp_path / "notes.txt").write_bytes("für später\n".encode("latin-1"))
    (tmp_path / "config.json").write_text("3")
    assert hsd.expand_template("a __animal__", wildcards=tmp_path).prompts == ["a fox", "a owl"]
    for name, says in (("notes", "not UTF-8"), ("*", "not UTF-8|neither a list"), ("plant", "notes|config")):
        with pytest.raises(hsd.PromptError, match=says):
            hsd.expand_template(f"a __{name}__", wildcards=tmp_path)
