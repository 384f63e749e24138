"""``benches/demo_models.py``: what it puts side by side, on a small setting of both demo models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hsd.reproduction.results import Column, Estimate, Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))

import demo_models


def test_rows_with_equal_keys_stand_in_one_line():
    columns = (Column("what", "text"), Column("score"), Column("more", "signed"))
    first = Table("t", "T", columns, (("a", Estimate(1.0), 0.1), ("b", Estimate(2.0), 0.2)))
    second = Table("t", "T", columns, (("b", Estimate(3.0), 0.3), ("c", Estimate(4.0), 0.4)))
    found = demo_models.beside("both", {"x": first, "y": second}, 1, ("more",))
    assert [(column.title, column.kind) for column in found.columns] == [
        ("what", "text"),
        ("x: more", "signed"),
        ("y: more", "signed"),
    ]
    assert found.rows == (("a", 0.1, None), ("b", 0.2, 0.3), ("c", None, 0.4))


def test_families_of_a_set_together():
    titles = ("set", "family of", "prompts", "saved", "standard", "shared", "difference", "wins", "ties", "losses")
    columns = tuple(Column(title) for title in titles)
    rows = (
        ("objects", "a", 3, 0.4, 1.0, 0.9, -0.1, 0, 2, 1),
        ("objects", "b", 1, 0.2, 0.5, 0.8, 0.3, 1, 0, 0),
        ("scenes", "(5 that share with none)", 5, 0.0, 1.0, 1.0, 0.0, 0, 5, 0),
    )
    table = demo_models.by_set(Table("families", "F", columns, rows))
    objects, scenes = table.rows
    assert "| objects | 2 |" in table.markdown()
    assert objects == ("objects", 2, 4, pytest.approx(0.35), pytest.approx(0.0), 1, 2, 1)
    assert scenes == ("scenes", 0, 0, None, None, 0, 0, 0)


def test_both_models_in_one_document(tmp_path, capsys):
    words = ["--steps", "3", "--limit", "2", "--studies", "demo", "demo-sd", "--only", "settling"]
    demo_models.main([str(tmp_path / "out"), *words, "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "side-by-side.md").read_text()
    assert text.strip() in printed
    assert "demo: settled at" in text
    assert "demo-sd: score settled at" in text
    studies = json.loads((tmp_path / "found.json").read_text())["studies"]
    assert set(studies) == {"demo", "demo-sd"}
    for name in studies:
        rows = studies[name]["settling"]["rows"]
        assert [row[0] for row in rows] == [1, 2, 3]
        # The last prediction is the finished image.
        score, low, high = rows[-1][-1][0], *rows[-1][-1][1]
        assert low <= score <= high
        assert score == pytest.approx(studies[name]["settled"]["rows"][-1][2][0])
    assert (tmp_path / "out" / "settling.png").stat().st_size > 10_000
