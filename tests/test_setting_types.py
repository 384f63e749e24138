"""Values of settings against types, and the table of known settings against the adapters."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsd.models import shared_image
from hsd.models.loading import load
from hsd.models.registry import BUILT_IN, adapter_named
from hsd.models.setting_types import setting_types, typed_settings
from hsd.models.stable_diffusion import StableDiffusion
from hsd.prompts.known_settings import KNOWN
from hsd.prompts.setting_values import check_value, whole_number

IMAGES = set(shared_image.NAMES)

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]


@pytest.mark.parametrize(
    ("kind", "value", "out"),
    [
        (int, 64, 64),
        (int, 64.0, 64),
        (int, np.float32(64), 64),
        (int, -0.0, 0),
        (int | None, None, None),
        (int | None, 64.0, 64),
        (float, 5, 5.0),
        (float, np.int8(5), 5.0),
        (float | None, 5, 5.0),
        (bool, np.bool_(True), True),
        (bool | float, True, True),
        (bool | float, 1, 1.0),
        (str, np.str_("a"), "a"),
        (str | None, "7.5", "7.5"),
        (str | list[str], ["a"], ["a"]),
        (list[float], (1, 2), [1.0, 2.0]),
        (list[int] | None, np.array([1, 2]), [1, 2]),
        (tuple[int, int], [1.0, 2], (1, 2)),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (tuple[str, ...] | None, ["a"], ("a",)),
        (dict[str, Any], {"a": 1}, {"a": 1}),
        (dict[str, float] | None, {"scale": 1}, {"scale": 1.0}),
        (Literal["a", "b"], "b", "b"),
        (Union[int, None], 3, 3),  # noqa: UP007
        (Any, [object], [object]),
        ("a type that nobody knows", {1, 2}, {1, 2}),
        (range, "anything", "anything"),
        (list[range], "anything", "anything"),
    ],
)
def test_values_that_fit(kind, value, out):
    got = check_value("x", value, kind)
    assert got == out
    assert type(got) is type(out)


@pytest.mark.parametrize(
    ("kind", "value", "error", "says"),
    [
        (int, "64", TypeError, r"x is '64' \(str\): it has to be a whole number; write 64 without quotes"),
        (int, True, TypeError, "x is True: it has to be a whole number"),
        (int, 1.5, TypeError, "x is 1.5: it has to be a whole number"),
        (int, None, TypeError, "x is None"),
        (int, 2**63, ValueError, "too large"),
        (int, 1e300, TypeError, "x is 1e"),
        (float, "nan", TypeError, "x is 'nan'"),
        (float, float("nan"), ValueError, "finite"),
        pytest.param(float, 10**5000, ValueError, "x is an integer of .* bits: it is too large", id="huge"),
        (float, 1j, TypeError, "x is 1j"),
        (bool, 1, TypeError, "x is 1 .*true or false"),
        (bool, "true", TypeError, "true or false"),
        (str, None, TypeError, "x is None: it has to be text"),
        (str, b"a", TypeError, "text"),
        (str | None, 3, TypeError, r"x is 3 \(int\): it has to be text or None"),
        (list[float], 3.0, TypeError, "a list of values, each a number"),
        (list[float], "abc", TypeError, "a list of values"),
        (list[float], [1, "a"], TypeError, "a list of values"),
        (list[float], [1, float("inf")], ValueError, "finite"),
        (tuple[int, int], (1, 2, 3), TypeError, "2 values, each a whole number"),
        (dict[str, float], {"a": "b"}, TypeError, "an object of names and values"),
        (dict[str, float], {"a": float("nan")}, ValueError, "finite"),
        (dict[str, Any], [1], TypeError, "an object of names and values"),
        (Literal["a", "b"], "c", TypeError, "one of 'a', 'b'"),
    ],
)
def test_values_that_do_not_fit(kind, value, error, says):
    with pytest.raises(error, match=says) as raised:
        check_value("x", value, kind)
    assert len(str(raised.value)) < 300


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.complex_numbers() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(_ANYTHING, st.sampled_from([*KNOWN.values(), int | None, list[float] | None, str | list[str]]), st.booleans())
def test_any_value_fits_or_is_refused(value, kind, from_file):
    try:
        out = check_value("x", value, kind, from_file)
    except (TypeError, ValueError):
        return
    again = check_value("x", out, kind, from_file)
    assert again == out  # and is as it is then
    assert type(again) is type(out)


@given(st.integers() | st.floats() | st.text(max_size=6) | st.integers().map(str) | st.floats().map(str))
def test_whole_numbers_are_what_was_written(value):
    for from_file in (False, True):
        found = whole_number(value, from_file)
        if found is None:
            continue
        assert from_file or not isinstance(value, str)
        assert float(found) == float(value)
        assert abs(found) <= 2**53 or str(found) == str(value).strip().lstrip("+0")


# ------------------------------------------------------------------------------- adapters


def _parts(kind):
    """The types of a union, without None; lists and tuples as lists of what they hold."""
    if get_origin(kind) in (Union, types.UnionType):
        return {part for one in get_args(kind) for part in _parts(one)} - {"None"}
    if get_origin(kind) in (list, tuple):
        return {f"list of {part}" for one in get_args(kind) if one is not Ellipsis for part in _parts(one)}
    return {"None" if kind in (None, type(None)) else getattr(kind, "__name__", str(kind))}


@pytest.mark.parametrize("pipeline", BUILT_IN)
def test_the_known_settings_are_those_of_the_families(pipeline):
    adapter = adapter_named(pipeline)
    kinds = setting_types(adapter)
    assert kinds.keys() == set(adapter.setting_names())
    assert not KNOWN.keys() & IMAGES  # those are of a set, not of a prompt, and "image" is a column of many data sets
    missing = kinds.keys() - KNOWN.keys() - IMAGES
    assert not missing, f"add {missing} to hsd/prompts/known_settings.py, so that files of prompts may give them"
    for name, kind in ((name, kinds[name]) for name in kinds.keys() - IMAGES):
        assert _parts(kind) <= _parts(KNOWN[name]), f"{name} has another type in hsd/prompts/known_settings.py"


@dataclass(eq=False)
class Foreign(StableDiffusion):
    """An adapter from elsewhere, with types that are not found or not known here."""

    odd: Nothing | None = None
    strange: range = range(3)
    bare = 3
    plain: int = 3


def test_adapters_from_elsewhere():
    assert setting_types(Foreign).keys() == set(Foreign.setting_names()) - {"odd"}
    own = {"odd": object(), "strange": "anything", "plain": 4.0}
    assert typed_settings(Foreign, own) == {**own, "plain": 4}
    with pytest.raises(TypeError, match="plain is 'x'"):
        typed_settings(Foreign, {"plain": "x"})


def test_several_values_are_checked_when_the_adapter_is_made(model):
    """What an adapter says about its own comes first, and what it converts is fine."""

    @dataclass(eq=False)
    class Own(StableDiffusion):
        size: tuple[int, int] = (1, 1)
        layers: list[int] | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if isinstance(self.size, str):
                self.size = tuple(int(side) for side in self.size.split("x"))

    made = Own(model.pipe, height=32, width=32)
    assert load(made, size="3x4").size == (3, 4)
    assert load(made, size=[3, 4.0], layers=(1, 2.0)).layers == [1, 2]
    with pytest.raises(TypeError, match="layers is 5 .*: it has to be a list of values, each a whole number"):
        load(made, layers=5)
    with pytest.raises(TypeError, match=r"size is \(1, 2, 3\) .*2 values"):
        load(made, size=(1, 2, 3))
