"""Syntax of other programs in prompts gets one hint; plain text gets none."""

from __future__ import annotations

import pytest

from helpers import SHARED, needs_shared
from hsd.demo import PROMPTS
from hsd.prompts.files import read_prompts
from hsd.prompts.hints import hint_for


def hint(*prompts):
    return hint_for(list(prompts), [f"line {i + 1}" for i in range(len(prompts))])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("# animals", "comments"),
        ("#animals", "comments"),
        ("// animals", "comments"),
        ("a (cat:1.2) on a mat", "weights"),
        ("a (red cat: 0.8)", "weights"),
        ("a ((cat))", "weights"),
        ("a [[cat]]", "weights"),
        ("a (cat)1.3", "weights"),
        ("a (cat)++ on a mat", "weights"),
        ("cat::2 dog::-1", "weights"),
        ("a [cat:dog:0.5]", "changes"),
        ("a [cat|dog]", "changes"),
        ("a {cat|dog}", "choices"),
        ("a {2$$red|blue|green} cat", "choices"),
        ("a {animal} at night", "placeholders"),
        ("a ${animal} at night", "placeholders"),
        ("a __animal__ on a __place/indoor__", "wildcards"),
        ("a cat <lora:ink:0.8>", "networks"),
        ("a cat <hypernet:ink:0.8>", "networks"),
        ("a cat <embedding:bad>", "networks"),
        ("a cat, embedding:bad", "networks"),
        ("a cat BREAK a dog", "BREAK or AND"),
        ("a cat AND a dog", "BREAK or AND"),
        ("a cat --ar 16:9", "options"),
        ("a cat --no dog --v 6", "options"),
        ("Negative prompt: dull", "Negative prompt"),
        ("Steps: 20, Sampler: Euler a", "Negative prompt: or Steps"),
        ("a caf\ufffd", "lost characters"),
    ],
)
def test_syntax_of_other_programs(prompt, says):
    message = hint("a dog", prompt, "a cow")
    assert message is not None
    assert says in message
    assert "in 1 (first: line 2)" in message


PLAIN = """\
a cat #sunset
#1 dad
#ff0000 wall
(a cat)
a cat (small)
C++ code on a screen
12:30 (noon: lunch)
a [cat]
{
a_b__c
snake_case
<cat-toy> on a mat
CATS AND DOGS
AND
a 16:9 photo
a cat -- a dog
a {big cat}
ratio 1:2
5 + 3
BREAKING NEWS
http://x.org
1. a cat
:)"""


@pytest.mark.parametrize("prompt", PLAIN.splitlines())
def test_plain_text(prompt):
    assert hint("a dog", prompt, "a cow") is None


def test_one_message_for_all():
    message = hint("# one", "a (cat:1.2)", "# two", "{a|b} (c:2)")
    assert message.count("first:") == 3
    assert "comments (#, //) in 2 (first: line 1); weights such as (cat:1.2) or ((cat)) in 2 (first: line 2)" in message


def test_choices_are_expanded_elsewhere():
    advice = "expand choices and wildcards with --template @FILE (hsd.expand_template)"
    assert advice in hint("a {cat|dog}")
    assert advice in hint("a __cat__")
    assert advice not in hint("a (cat:1.2)")


def test_marks_of_a_list():
    assert "numbers (1.) in 3 (first: line 1)" in hint("1. a cat", "2. a dog", "3. a cow")
    assert "marks (-) in 2" in hint("- a cat", "- a dog")
    assert "quotes in 2" in hint('"a cat",', '"a dog"')
    assert "the heading prompt in 1" in hint("prompt", "a cat")
    assert hint("1. a cat", "a dog") is None
    assert hint('"a cat"', "a dog") is None
    assert hint("prompt") is None


def test_the_demo_prompts_have_none():
    file = read_prompts(PROMPTS)
    assert hint_for(file.prompts, file.places) is None


@needs_shared
def test_the_real_prompts_have_none():
    for path in (SHARED / "prompts").glob("*.txt"):
        file = read_prompts(path)
        assert hint_for(file.prompts, file.places) is None
