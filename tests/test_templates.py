"""Templates: the list and the order of dynamicprompts, counted without making it, and drawn the same anywhere."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections import Counter
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hsd
from hsd.prompts.template_nodes import below
from hsd.prompts.templates import Templates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wildcards")
    (path / "animal.txt").write_text("fox\n# not this\ncat\n\nfox\n")
    (path / "colour.txt").write_text("red\n{light|dark} green\n")
    (path / "sea").mkdir()
    (path / "sea" / "fish.txt").write_text("${size} shark\ncod\n")
    (path / "art.yaml").write_text("art:\n  style: [ink, oil, wash]\n  one: solo\n")
    (path / "list.json").write_text('["one", {"text": "two", "weight": 3}, "0.5::three"]')
    (path / "nested.txt").write_text("__animal__ cub\nowl\n")
    return path


def others(template, folder, most=3000):
    """What dynamicprompts makes of it."""
    generators = pytest.importorskip("dynamicprompts.generators")
    wildcards = pytest.importorskip("dynamicprompts.wildcards")
    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)
    manager = wildcards.WildcardManager(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what pyparsing calls deprecated
        return generators.CombinatorialPromptGenerator(manager, ignore_whitespace=True).generate(template, most)


@pytest.mark.parametrize(
    "template",
    [
        "a plain prompt, (weighted:1.2) [and so on]",
        "A {oil|watercolour} painting of {a robot|__animal__}, {in a forest|at sea}",
        "{a|b}{c|d}",
        "{a|{b|c}} d",
        "{a|a|b}",
        "{{a|b}|{b|c}}",
        "x {a|}y{|b}",
        "{ a | b } c",
        "{0.5::a|2::b}",
        "{a::b|c}",
        "{2$$a|b|c}",
        "{1-2$$, $$a|b|c}",
        "x {0-1$$a|b}",
        "{-2$$a|b|c}",
        "{2-$$ and $$a|b|c}",
        "{5$$a|b}",
        "{2$$a|a|b}",
        "{2$${a|b}|{a|c}}",
        "{2$$ $${a|b} x|c|{d|e|f}}",
        "{2$$, $$|a|b} x",
        "x {3-2$$a|b|c}",
        "__animal__ and __animal__",
        "{2$$ and $$__animal__}",
        "{2$$ and $$__colour__}",
        "{2$$__animal__|owl}",
        "__sea/fish(size=big)__",
        "${size={big|small}}__fish__",
        "__art/style__ __art/*__",
        "__s*/*(size=big)__",
        "__nested__",
        "${a={x|y}}${a} ${a}",
        "${a=x}${b=${a} y}${b}",
        "${a:{x|y}} z",
        "${ a = x }${ a }",
        "{x|y}${a=z}${a}",
        "a # comment",
        "a {b|c} # comment\nand d",
        "http://x {a|b}",
        "a | b",
        "{(a|b)}",
        "a dog{0.3:: in a hat|0.7:: on a mat}",
        "5{2:: b|c}",
        "5{ 2:: b| 3::c}",
        "a{1::  |b}c",
        "{cat|cat }s, {x|y}",
        "{a |a}{b|c}",
        "{{a|b} |a}z",
        "x{2$$a|a |b}y",
        "x{2$${a |a}|b}y",
        "{0::a|b} {0::x|y}",
    ],
)
def test_the_list_of_dynamicprompts(folder, template):
    assert hsd.expand_template(template, wildcards=folder).prompts == others(template, folder)


WORDS = st.sampled_from(["a", "b", "c", "red fox", "x,y"])
BEFORE = st.sampled_from(["", "", " ", "2::", "0.5:: ", " 1::  "])  # of an option: a space, a weight
AFTER = st.sampled_from(["", "", " "])
PARTS = st.recursive(
    WORDS | st.sampled_from(["__animal__", "__colour__", "${v}", "__nested__"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(st.tuples(BEFORE, inner, AFTER).map("".join), min_size=1, max_size=3).map(
            lambda options: "{" + "|".join(options) + "}"
        ),
        st.tuples(
            st.sampled_from(["1", "2", "1-2", "-2", "2-", "0-1"]),
            st.sampled_from(["", " and $$", ", $$"]),
            st.lists(inner, min_size=1, max_size=3),
        ).map(lambda parts: "{" + parts[0] + "$$" + parts[1] + "|".join(parts[2]) + "}"),
    ),
    max_leaves=7,
)


def counted(template, folder):
    """The template, if it has combinations and not too many."""
    assume(not re.search(r"2-\$\$[^|{}]*__\w+__}", template))  # dynamicprompts has a mistake in {2-$$__animal__}
    try:
        found = Templates(template, folder)
    except hsd.PromptError:  # it has no combination, such as {2$$a|a}; dynamicprompts ends with an error of its own
        assume(False)
    assume(found.count <= 500)
    return found


@settings(max_examples=60, deadline=None)
@given(PARTS, st.sampled_from(["x", "{1|2}", "__animal__"]))
def test_any_list_of_dynamicprompts(folder, template, variable):
    template = "${v=" + variable + "} p " + template
    found = counted(template, folder)
    file = found.expand()
    try:
        theirs = others(template, folder)
    except RuntimeError:  # its own mistake: an option such as {2$$a|a}, which gives nothing, with a space after it
        assume(False)
    assert file.prompts == theirs
    assert found.count == len(file.prompts)
    assert [found.templates[0].at(i)[0] for i in range(0, found.count, 7)] == file.prompts[::7]


@settings(max_examples=50, deadline=None)
@given(PARTS, st.integers(0, 5), st.integers(1, 12))
def test_what_is_drawn_is_among_all(folder, template, seed, number):
    found = counted("${v={1|2}} p " + template, folder)
    every = found.expand()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hsd.Notice)  # fewer than asked for, where combinations are alike
        drawn = found.expand(number, seed)
    assert len(set(drawn.prompts)) == len(drawn.prompts) or number >= found.count
    assert len(drawn.prompts) == min(number, len(set(every.prompts))) or number >= found.count
    assert set(drawn.prompts) <= set(every.prompts)


def test_choices_are_columns(folder):
    file = hsd.expand_template(
        "A {oil|ink} {2$$ and $$__animal__} with {a {hat|cap}|__animal__}, {x}", wildcards=folder
    )
    assert list(file.columns) == ["choice_1", "animal", "choice_2", "choice_3", "animal_2"]
    assert file.prompts[0] == "A oil cat and fox with a hat, x"
    assert [values[0] for values in file.columns.values()] == ["oil", "cat and fox", "a hat", "hat", None]
    assert [values[3] for values in file.columns.values()] == ["oil", "cat and fox", "fox", None, "fox"]
    assert file.places[1] == "the template, combination 2"
    named = hsd.expand_template("${mood={calm|wild}}a ${mood} __sea/fish(size=big)__ {y|z}", wildcards=folder)
    assert list(named.columns) == ["mood", "sea_fish", "choice_1"]


def test_columns_never_become_settings(tmp_path):
    for name in ("width", "seed", "glow", "prompt"):
        (tmp_path / f"{name}.txt").write_text("1\n2\n")
    file = hsd.expand_template("__width__ __seed__ __glow__ __prompt__", wildcards=tmp_path)
    assert list(file.columns) == ["width_choice", "seed_choice", "glow", "prompt_choice"]
    assert file.with_settings(["glow", "widths"]) is file
    assert file.seeds_from(5) == 5


def test_a_variable_chosen_once():
    file = hsd.expand_template("${c=!{red|blue}}a ${c} cat, a ${c} {dog|fox}")
    assert file.prompts[1:3] == ["a red cat, a red fox", "a blue cat, a blue dog"]
    assert file.columns["c"] == ["red", "red", "blue", "blue"]
    kept = hsd.expand_template("${c=x}${c?=y}${d?=z}${c} ${d}")
    assert kept.prompts == ["x z"]
    two = hsd.expand_template("${c=!{red|blue}}${d=!{big|small}}{${c}|${d}} ${c} ${d}")
    assert len(two.prompts) == 8
    assert two.prompts[2] == "red red small"


def test_escapes_and_plain_characters():
    file = hsd.expand_template(r"\{a\|b\} 100% \__x\__ $5 \#1 \\ a_b \(c\) {\|x\}|y}")
    assert file.prompts[0] == r"{a|b} 100% __x__ $5 #1 \ a_b \(c\) |x}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("a {b|c", r"column 3: this \{ is not closed"),
        ("a b}", r"column 4: a \} closes nothing"),
        ("a {}", "column 3: there is nothing between"),
        ("a {~b|c}", "column 4: ~ names a sampler"),
        ("a {2$$@b|c}", None),
        ("a __~animal__", "column 5: ~ names a sampler"),
        ("a %{b...$$c}", "column 3: wrapping"),
        ("a $$ b", r"column 3: \$\$ stands only after a range"),
        ("a {b$$c|d}", r"column 5: \$\$ stands only after a range"),
        ("a /* b */", "column 3: comments in"),
        ("a #b", "column 3: # begins a comment"),
        ("a __b", "column 3: __ begins a wildcard"),
        ("a __${x}__", "column 3: names of wildcards that are made of other parts"),
        ("a __{x|y}__", "column 3: names of wildcards that are made of other parts"),
        ("a ${x} b", r"column 3: \$\{x\} has no value.*there are: none"),
        ("a ${1x}", "column 3: this is no variable"),
        ("${x=a|b}", r"column 6: a \| needs its own braces"),
        ("a ${x=b", r"column 3: this \$\{ is not closed"),
        ("{a|${x=b}c}", r"column 4: \$\{x=...\} stands inside"),
        ("${x=${x}} ${x}", r"\$\{x\} contains itself"),
        ("{-1::a|b}", "column 2: the weight is -1"),
        ("{0::a|0::b}", "column 1: all weights are 0"),
        ("{2$${a}|{a}}", "has no combination"),
        ("{a|b}\nc {d|e", "line 2, column 3: this"),
        ("a __anmal__", "has no wildcard 'anmal': did you mean __animal__"),
        ("a __animal(x)__", "write __name"),
        ("{a|}", "combination 2 is blank"),
        ("{" * 60 + "a" + "}" * 60, "nested deeper than 50"),
        ("", "combination 1 is blank"),
    ],
)
def test_what_is_no_template_is_refused_with_its_column(folder, template, says):
    if says is None:
        assert hsd.expand_template(template, wildcards=folder).prompts == ["a @b,c", "a c,@b"]
        return
    with pytest.raises(hsd.PromptError, match=says):
        hsd.expand_template(template, wildcards=folder)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("w.txt", "__w__ x\n", "__w__ contains itself"),
        ("w.txt", "a\n{b\n", r"w.txt, line 2, column 1: this \{"),
        ("w.txt", b"\xe9\n", "line 1: byte 1"),
        ("w.json", "[1, [2]]", "item 2 is a list"),
        ("w.json", '[{"text": 1}]', "item 1: write a text"),
        ("w.json", '[{"text": "a", "weight": -1}]', "the weight is -1"),
        ("w.json", "[", "is not JSON"),
        ("w.yaml", "a: [", "is not YAML"),
        ("w.yaml", "5", "neither a list"),
        ("w.txt", "# nothing\n", "has no wildcard 'w': there are"),
        ("w.txt", "0::a\n0::b\n", "all weights of __w__ are 0"),
    ],
)
def test_wildcard_files_that_cannot_be_meant(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(hsd.PromptError, match=says):
        hsd.expand_template("a __w__", wildcards=tmp_path)


def test_folders_of_wildcards(folder, tmp_path):
    with pytest.raises(hsd.PromptError, match=r"column 1: __animal__ is a wildcard: give .*--wildcards FOLDER"):
        hsd.expand_template("__animal__")
    with pytest.raises(hsd.PromptError, match="it is no folder"):
        hsd.expand_template("a", wildcards=tmp_path / "none")
    assert hsd.expand_template("__list__", wildcards=folder).prompts == ["one", "three", "two"]  # each of them once


def test_the_count_needs_no_expansion(folder):
    """A million million combinations, and each can be made by its number."""
    template = "__colour__ " + "{a|b|c|d|e|f|g|h|i|j}" * 12 + "{3$$a|b|{c|d}|e}"
    found = Templates(template, folder)
    assert found.count == 3 * 10**12 * (math.perm(3, 3) + 2 * 3 * math.perm(3, 2))  # with c or d, in three places
    at = found.templates[0].at
    assert at(0)[0] == "red aaaaaaaaaaaaa,b,c"
    assert at(found.count - 1)[0] == "dark green jjjjjjjjjjjje,d,b"
    with pytest.raises(hsd.PromptError, match=rf"has {found.count:,} combinations: give sample="):
        hsd.expand_template(template, wildcards=folder)


def test_large_choices_have_an_order():
    """More arrangements than are compared: their number and their order are those of a plain loop."""
    options = "|".join(f"{{{i}|{i}x}}" if i % 5 == 0 else str(i) for i in range(30))
    found = Templates(f"{{4$${options}}}")
    counts = [2 if i % 5 == 0 else 1 for i in range(30)]
    total = [1, 0, 0, 0, 0]
    for count in counts:
        total = [total[0], *(total[k] + count * total[k - 1] for k in range(1, 5))]
    assert found.count == math.factorial(4) * total[4] > 100_000
    at = found.templates[0].at
    assert [at(i)[0] for i in range(4)] == ["0,1,2,3", "0x,1,2,3", "0,1,2,4", "0x,1,2,4"]
    assert at(found.count - 1)[0] == "29,28,27,26"
    some = [at(i)[0] for i in range(0, found.count, found.count // 5000)]
    assert len(set(some)) == len(some)


def test_an_option_that_gives_nothing_is_not_drawn():
    """It would be drawn for ever."""
    file = hsd.expand_template("{x|y|{2$$a|a}} {1|2|3}", sample=4)
    assert len(set(file.prompts)) == 4


def test_samples():
    template = "{0|1|2|3|4|5|6|7|8|9}" * 15
    first = hsd.expand_template(template, sample=50, seed=1)
    assert len(set(first.prompts)) == 50
    assert first.prompts == hsd.expand_template(template, sample=50, seed=1).prompts
    assert first.prompts[:20] == hsd.expand_template(template, sample=20, seed=1).prompts
    assert first.prompts != hsd.expand_template(template, sample=50, seed=2).prompts
    assert first.prompts[:2] == ["407490204222893", "521440152705350"]  # on every machine, in every version of Python
    assert first.places[4] == "the template, sample 5"
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="sample is"):
            hsd.expand_template("{a|b}", sample=bad)
    assert hsd.expand_template("{a|b|c}", sample=9).prompts == ["a", "b", "c"]


def test_choices_of_samples_are_those_of_the_list(folder):
    """Also where a first draw is not kept, because two of its options had the same text."""
    found = Templates("${m=!{x|y}}${m} {2$$, $${a|b}|{a|z}|{a|q}} {__animal__|c}", folder)
    every, drawn = found.expand(), found.expand(60, 1)
    assert list(drawn.columns) == list(every.columns)
    assert len(drawn.prompts) == 60 < found.count
    for prompt, values in zip(drawn.prompts, zip(*drawn.columns.values(), strict=True), strict=True):
        mood, both, *single, last, animal = values
        assert prompt == f"{mood} {both} {last}"
        assert sum(one is not None for one in single) == 2
        assert animal in (last, None)


def test_weights_are_for_drawing():
    template = "{8::a|1::b|0::c} " + "{0|1|2|3|4|5|6|7|8|9}" * 6
    drawn = hsd.expand_template(template, sample=2000, seed=3).columns["choice_1"]
    counts = Counter(drawn)
    assert counts["c"] == 0
    assert 8 * 0.8 < counts["a"] / counts["b"] < 8 * 1.25
    # Where what is drawn gets rare, the rest is still found.
    assert set(hsd.expand_template("{1000000::a|1::b|0::c|d}", sample=3).prompts) == {"a", "b", "d"}


@pytest.mark.parametrize("template", ["{0::a|b} {0::x|y}", "{1-2$$0::a|b} {y|0::x}", "{0::{a|c}|b} y"])
def test_weight_0_is_never_drawn(template, tmp_path):
    (tmp_path / "w.txt").write_text("0::a\nb\n")
    for text in (template, "__w__ {0::x|y}"):
        with pytest.warns(hsd.Notice, match="1 different prompts were found, and not 2"):
            file = hsd.expand_template(text, sample=2, wildcards=tmp_path)
        assert file.prompts == ["b y"]
        assert set(file.columns) == set(hsd.expand_template(text, wildcards=tmp_path).columns)
    with pytest.raises(hsd.PromptError, match="column 3: 2 options are to be drawn, and 1 have a weight above 0"):
        hsd.expand_template("a {2$$0::a|b|0::c}", sample=2)


def test_a_sample_of_few_prompts_among_many_combinations_ends(monkeypatch):
    """A walk over all combinations would never end."""
    monkeypatch.setattr("hsd.prompts.templates.MOST", 500)
    with pytest.warns(hsd.Notice, match="different prompts were found, and not 50"):
        found = hsd.expand_template("{very |}" * 30 + "cat", sample=50).prompts
    assert 5 < len(set(found)) == len(found) < 50
    unused = "".join(f"${{x{i}=!{{a|b|c|d|e|f|g|h|i|j}}}}" for i in range(9))
    with pytest.warns(hsd.Notice, match="2 different prompts were found, and not 5"):
        found = hsd.expand_template(unused + "hello {a|b}", sample=5).prompts
    assert set(found) == {"hello a", "hello b"}
    # Where they are rare but there, they are found.
    assert len(hsd.expand_template("{1000000::a|b}" * 30, sample=50).prompts) == 50


def test_ranges_of_many_digits():
    assert hsd.expand_template("{" + "9" * 5001 + "$$a|b}").prompts == ["a,b", "b,a"]
    assert hsd.expand_template("{1-" + "0" * 20 + "1$$a|b}").prompts == ["a", "b"]


def test_several_templates():
    file = hsd.expand_template(["a {b|c}", "{d|e} f"])
    assert file.prompts == ["a b", "a c", "d f", "e f"]
    assert file.columns["template"] == ["a {b|c}", "a {b|c}", "{d|e} f", "{d|e} f"]
    assert file.columns["choice_1"] == ["b", "c", "d", "e"]
    assert file.places[2] == "template 2, combination 1"
    with pytest.raises(hsd.PromptError, match="there is no template"):
        hsd.expand_template([])


def test_integers_below():
    """Made of random.random() alone, and all of them are met."""
    random = Random(5)
    assert {below(random, 5) for _ in range(200)} == set(range(5))
    large = 10**40 + 7
    drawn = [below(random, large) for _ in range(300)]
    assert all(0 <= value < large for value in drawn)
    assert 0.4 < sum(drawn) / 300 / large < 0.6
    assert below(random, 1) == 0
