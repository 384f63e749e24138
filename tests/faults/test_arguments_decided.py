"""Every argument of every supported pipeline's call is a setting, is given in another way, or is refused by name."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import hsd
import pipeline_table
import tiny
from families import FAMILIES, Family
from hsd.models import arguments
from hsd.models.registry import BUILT_IN, adapter_class, adapter_named

pytestmark = pytest.mark.faults

CASES = [(name, pipeline) for name in BUILT_IN for pipeline in arguments.pipelines_of(adapter_named(name))]


def adapter_of(family: Family):
    return adapter_class(family.loadable(family.build()))


@pytest.mark.parametrize(("name", "pipeline"), [pytest.param(n, p, id=p.__name__) for n, p in CASES])
def test_every_argument_is_decided_on(name, pipeline):
    adapter = adapter_named(name)
    taken = arguments.arguments_of(pipeline)
    assert "num_inference_steps" in taken or "decoder_num_inference_steps" in taken
    undecided = [each for each in taken if arguments.decision(adapter, pipeline, each) is None]
    assert not undecided, f"decide on them in hsd/prompts/pipeline_arguments.py, or make them settings: {undecided}"


def test_the_check_can_fail():
    adapter = adapter_named("FluxPipeline")
    [pipeline] = arguments.pipelines_of(adapter)
    assert arguments.decision(adapter, pipeline, "a_new_argument") is None


def test_no_entry_is_left_over():
    """Every entry of the tables decides on an argument of some pipeline."""
    used = set()
    for name, pipeline in CASES:
        for each in arguments.arguments_of(pipeline):
            if (pipeline.__name__, each) in arguments.FOR_ONE:
                used.add((pipeline.__name__, each))
            elif arguments.decision(adapter_named(name), pipeline, each).kind != "setting":
                used.add(each)
    taken = {each for _, pipeline in CASES for each in arguments.arguments_of(pipeline)}
    settings = {each for name, _ in CASES for each in adapter_named(name).setting_names()}
    assert {*arguments.GIVEN, *arguments.REFUSED, *arguments.FOR_ONE} - used <= settings
    assert not set(arguments.GIVEN) & set(arguments.REFUSED)
    assert not set(arguments.ELSEWHERE) & (taken | settings)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_not_a_setting_is_refused_by_name(family: Family):
    adapter = adapter_of(family)
    pipe = family.loadable(family.build())
    seen = 0
    for pipeline in arguments.pipelines_of(adapter):
        for name in arguments.arguments_of(pipeline):
            found = arguments.decision(adapter, pipeline, name)
            if name in adapter.setting_names():
                continue
            with pytest.raises(TypeError, match=f"{adapter.__name__} has no setting '{name}': .") as caught:
                hsd.load(pipe, **{name: 1})
            assert found.text in str(caught.value) or found.kind == "given"
            assert "did you mean" not in str(caught.value)
            seen += 1
    assert seen > 5


@pytest.mark.parametrize(("name", "pipeline"), [pytest.param(n, p, id=p.__name__) for n, p in CASES])
def test_settings_have_the_defaults_of_the_pipeline(name, pipeline):
    """Whoever sets nothing gets what the pipeline gives. An empty negative prompt and none are the same there.

    A size of None is the model's own, which Z-Image's pipeline fixes at 1024.
    """
    adapter = adapter_named(name)
    own = {field.name: field.default for field in dataclasses.fields(adapter)}
    for argument, parameter in inspect.signature(pipeline.__call__).parameters.items():
        found = arguments.decision(adapter, pipeline, argument)
        if found is None or found.kind != "setting" or argument in ("height", "width"):
            continue
        default = parameter.default if not isinstance(parameter.default, list) else tuple(parameter.default)
        assert own[argument] == default or {own[argument], default} == {None, ""}, argument


@pytest.mark.parametrize(
    ("pipe", "name", "says"),
    [
        (tiny.flux, "clip_skip", "its pipeline does not take it; .*StableDiffusionXL.* have it"),
        (tiny.stable_diffusion, "prompt_2", "Flux, .*StableDiffusion3, .*StableDiffusionXL.* have it"),
        (tiny.flux2, "negative_prompt", "does not take it; .*Flux, "),
        (tiny.flux2, "image", "images from text alone"),
        (tiny.sdxl, "denoising_end", "run the base model to its end"),
        (tiny.sd3, "skip_guidance_layers", "third time.*leave it out"),
        (tiny.stable_diffusion, "lora_scale", r'cross_attention_kwargs=\{"scale": ...\}'),
        (tiny.stable_diffusion, "latents", "seeds="),
        (tiny.stable_diffusion, "num_inference_steps", "here it is steps="),
        (tiny.stable_diffusion, "guidance_scal", "did you mean 'guidance_scale'"),
        (tiny.stable_diffusion, "strength", "does not take it; StableDiffusionImageToImage, .* have it"),
        (tiny.stable_diffusion, "image", "from text alone.*docs/images.md"),
        (tiny.flux, "ip_adapter_image", "Stable Diffusion and SDXL"),
        (tiny.stable_diffusion, "nonsense", "no argument of a pipeline that HSD knows"),
    ],
)
def test_the_message_leads_on(pipe, name, says):
    with pytest.raises(TypeError, match=rf"has no setting '{name}': {says}|has no setting '{name}': .*{says}"):
        hsd.load(pipe(), **{name: 1})


def test_settings_of_single_prompts_are_refused_by_name_too():
    model = hsd.load(tiny.flux(), height=32, width=32)
    with pytest.raises(TypeError, match="clip_skip.*does not take it"):
        hsd.compile(["a cat"], 1.0, model=model, settings=[{"clip_skip": 1}])


def test_the_docs_list_what_is_decided():
    text = pipeline_table.DOCS.read_text()
    assert text.endswith(pipeline_table.arguments_section()), "run python tests/pipeline_table.py --arguments"
