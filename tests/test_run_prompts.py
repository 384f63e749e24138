"""``hsd.generate`` and ``hsd.stream`` of prompts instead of a plan."""

from __future__ import annotations

import inspect
import logging
import sys
import typing

import numpy as np
import pytest

import hsd
from helpers import PROMPTS

MADE = {"budget": 0.3, "steps": 4, "seeds": 7}


def digests(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def compiled(model):
    return hsd.compile(PROMPTS, model=model, **MADE)


def test_stream_of_prompts_is_that_of_their_plan(model, compiled):
    planned = {image.index: image for image in hsd.stream(compiled, model)}
    given = {image.index: image for image in hsd.stream(tuple(PROMPTS), model, **MADE)}
    assert given.keys() == planned.keys()
    for index, image in given.items():
        assert (image.prompt, image.seed) == (planned[index].prompt, planned[index].seed) == (PROMPTS[index], 7 + index)
        assert np.array_equal(image.pil, planned[index].pil)


def test_generate_of_prompts_continues_and_grows(model, compiled, tmp_path, caplog, monkeypatch):
    out = tmp_path / "images"
    with caplog.at_level(logging.INFO, "hsd"):
        run = hsd.generate(PROMPTS[:6], model, out, **MADE)
        assert (run.images, run.existing) == (6, 0)
        before = digests(out)
        (out / "00002.png").unlink()
        with monkeypatch.context() as patch:  # the plan is that of the folder
            patch.setattr("hsd.planning.compile.replica_tree", lambda *_, **__: pytest.fail("clustered"))
            run = hsd.generate(PROMPTS[:6], model, out, **MADE)
        assert (run.images, run.existing) == (1, 5)
        assert digests(out) == before
        assert "joins" not in caplog.text
        run = hsd.generate(PROMPTS, model, out, **MADE)
    assert (run.images, run.existing) == (2, 6)
    assert "2 new prompts join the 6 of the folder" in caplog.text
    assert digests(out).items() > before.items()
    with pytest.raises(hsd.PlanMismatch):
        hsd.generate(PROMPTS, model, out, **{**MADE, "steps": 5})


def test_a_prompt_file_has_its_seeds_and_settings(model, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,seed,guidance_scale,id\na cat,5,1.0,x\na dog,6,3.0,y\n")
    file = hsd.read_prompts(tmp_path / "prompts.csv")
    (run,) = {hsd.generate(file, model, tmp_path / "images", steps=2).plan}
    assert (run.seeds.tolist(), run.columns) == ([5, 6], {"id": ["x", "y"]})
    assert run.settings == [{"guidance_scale": 1.0}, {"guidance_scale": 3.0}]


def test_settings_of_the_model_stay_settings(model, compiled):
    (image,) = hsd.stream(["a cat"], model, steps=2, width=64, settings=[{"height": 48}])
    assert image.pil.size == (64, 48)


def test_arguments_of_compile_are_refused_with_a_plan(model, compiled, tmp_path):
    for call in (hsd.stream, lambda *args, **more: hsd.generate(*args, tmp_path / "images", **more)):
        with pytest.raises(TypeError, match="tau=, seeds= cannot be given with a plan, which has decided it"):
            call(compiled, model, tau=1.0, seeds=3)
        with pytest.raises(TypeError, match="reuse= is an argument of hsd.compile"):
            call(PROMPTS, model, reuse="images")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("prompts", "more", "error", "message"),
    [
        ("a cat", {}, TypeError, r"not one str: wrap it in \[\.\.\.\]"),
        ([], {}, hsd.PromptError, "the list of prompts is empty"),
        (["a", " "], {}, hsd.PromptError, "prompt 1 is blank"),
        (["a"], {"tau": 0.5, "budget": 0.3}, ValueError, "tau"),
        (["a"], {"steps": 0}, ValueError, "steps is 0"),
        (["a"], {"seeds": [1, 2]}, ValueError, "2 seeds"),
    ],
)
def test_bad_prompts_and_arguments_are_found_before_the_model_is_loaded(prompts, more, error, message, tmp_path):
    missing = tmp_path / "no model"
    for call in (hsd.stream, lambda *args, **more: hsd.generate(*args, tmp_path / "images", **more)):
        with pytest.raises(error, match=message):
            call(prompts, missing, **more)
    assert not (tmp_path / "images").exists()


def test_bad_options_are_found_before_prompts_are_encoded(model, monkeypatch):
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError, match="batch_size is 0"):
        hsd.stream(PROMPTS, model, batch_size=0)


def test_stages_of_prompts(model, tmp_path):
    seen = []
    hsd.generate(PROMPTS, model, tmp_path, **MADE, progress=lambda *stage: seen.append(stage))
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["encode", "cluster", "denoise", "decode", "write"]


def test_diffusers_name_of_the_steps(model):
    plan = hsd.compile(PROMPTS, 0.5, num_inference_steps=6)
    assert (plan.n_steps, hsd.compile(PROMPTS, 0.5).n_steps) == (6, 40)
    assert plan.request == hsd.compile(PROMPTS, 0.5, steps=6).request
    (image,) = hsd.stream(["a cat"], model, num_inference_steps=2)
    assert np.array_equal(image.pil, next(iter(hsd.stream(["a cat"], model, steps=2))).pil)
    with pytest.raises(ValueError, match="two names of one argument"):
        hsd.compile(PROMPTS, 0.5, steps=6, num_inference_steps=6)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        hsd.compile(PROMPTS, 0.5, num_inference_steps=0)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not keep overloads")
@pytest.mark.parametrize("function", [hsd.generate, hsd.stream])
def test_editors_know_the_arguments(function):
    """The form with prompts has the arguments of both: of hsd.compile, and of the form with a plan."""
    with_plan, with_prompts = (inspect.signature(each).parameters for each in typing.get_overloads(function))
    kinds = inspect.Parameter.KEYWORD_ONLY
    planned, given = ({n: p.default for n, p in form.items() if p.kind is kinds} for form in (with_plan, with_prompts))
    own = {n: p.default for n, p in inspect.signature(hsd.compile).parameters.items() if n not in planned}
    for name in ("prompts", "model", "reuse", "extend"):
        del own[name]
    assert given == {**own, **planned}
    implemented = inspect.signature(function).parameters
    assert {n: p.default for n, p in implemented.items() if p.kind is kinds} == planned
