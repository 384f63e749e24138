"""Settings that are arguments of the pipelines' own calls do what they do there, at tau = 0."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextModel

import hsd
import tiny
from families import FAMILIES, Family
from families.measure import PROMPTS, SEEDS
from helpers import adapter_of, fresh_generators, latents_of, share_apart

BY_NAME = {family.name: family for family in FAMILIES}


def families_with(setting: str) -> list[Family]:
    """Those whose adapter has the setting."""
    return [family for family in FAMILIES if setting in adapter_of(family).setting_names()]


def hsd_load(family: Family, pipe: Any, **more: Any) -> hsd.models.Adapter:
    return hsd.load(family.loadable(pipe), **family.settings({**family.guided, **more}, family.size))


def each_with(*settings: str) -> Any:
    cases = [(family, name) for name in settings for family in families_with(name)]
    return pytest.mark.parametrize(("family", "name"), [pytest.param(f, n, id=f"{f.name}-{n}") for f, n in cases])


# -- the texts of other encoders


@each_with("prompt_2", "prompt_3")
def test_a_text_for_another_encoder(family: Family, name: str):
    pipe = family.build()
    expected = call(family, pipe, {name: ["a castle on a hill"] * len(PROMPTS)})
    found = latents(family, pipe, {name: "a castle on a hill"})
    assert near(found, expected, family)
    assert not near(call(family, pipe, {}), expected, family)


@each_with("negative_prompt_2", "negative_prompt_3")
def test_a_negative_text_for_another_encoder(family: Family, name: str):
    pipe = family.build()
    both = {"negative_prompt": "dull"}
    expected = call(family, pipe, {**both, name: ["blurry"] * 3})
    assert near(latents(family, pipe, {**both, name: "blurry"}), expected, family)
    assert not near(latents(family, pipe, both), expected, family)


@each_with("prompt_2", "prompt_3")
def test_an_empty_text_is_none_as_in_a_call_of_the_pipeline_with_one_prompt(family: Family, name: str):
    pipe = family.build()
    found = latents(family, pipe, {name: ""})
    assert near(found, latents(family, pipe, {}), family)


def call(family: Family, pipe: Any, settings: dict[str, Any], *, steps: int | None = None) -> torch.Tensor:
    """The stock pipeline's latents; ``settings`` are its arguments as they are."""
    options = {k: v for k, v in settings.items() if k != "negative_prompt"}
    guided = {k: v for k, v in {**family.guided, **settings}.items() if k not in options}
    generators = fresh_generators(SEEDS)
    with text_model(pipe):
        found = family.call(pipe, PROMPTS, generators, guided, family.size, steps or family.steps, "latent", **options)
    return found.float()


@contextlib.contextmanager
def text_model(pipe: Any):
    """transformers 5 has no ``text_model`` in a CLIPTextModel, where diffusers' pipelines look for the last norm."""
    encoder = getattr(pipe, "text_encoder", None)
    lacks = isinstance(encoder, CLIPTextModel) and not hasattr(encoder, "text_model")
    if lacks:
        vars(encoder)["text_model"] = encoder
    yield
    if lacks:
        del vars(encoder)["text_model"]


def latents(family: Family, pipe: Any, settings: dict[str, Any], **options: Any) -> torch.Tensor:
    model = hsd_load(family, pipe, **settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, seeds=SEEDS, **{"steps": family.steps, **options})
    found = latents_of(plan, model, batch_size=2)
    return torch.cat([found[i] for i in range(len(plan))])


def near(found: torch.Tensor, expected: torch.Tensor, family: Family, factor: float = 1.0) -> bool:
    return bool((found - expected).abs().max() < factor * family.tolerance * expected.abs().max())


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux"])
def test_a_negative_text_that_the_pipeline_would_not_use_is_refused(name: str):
    family = BY_NAME[name]
    with pytest.raises(ValueError, match="negative_prompt_2 is given without negative_prompt.*give both"):
        hsd_load(family, family.build(), negative_prompt=None, negative_prompt_2="blurry")
    hsd_load(family, family.build(), negative_prompt="dull", negative_prompt_2="blurry")


def test_texts_of_single_prompts():
    """Prompts of one call may differ in them; they never share, since their settings differ."""
    pipe = tiny.sdxl()
    own = [{"prompt_2": "a castle"}, {"prompt_2": "a ship", "clip_skip": 1}, {}]
    model = hsd.load(pipe)
    plan = hsd.compile(["a cat"] * 3, 100.0, model=model, steps=3, seeds=[4, 4, 4], settings=own)
    assert plan.savings == 0.0
    assert len({hsd.load(model, **each).call_key() for each in own}) == 1
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=3)}
    for i, settings in enumerate(own):
        stock = pipe("a cat", generator=fresh_generators([4]), num_inference_steps=3, **settings).images[0]
        assert share_apart(images[i], stock) < 0.01
        assert share_apart(images[(i + 1) % 3], stock) > 0.1


# -- clip_skip


@each_with("clip_skip")
def test_clip_skip(family: Family, name: str):
    pipe = family.build()
    plain, expected = call(family, pipe, {}), call(family, pipe, {name: 1})
    assert near(latents(family, pipe, {name: 1}), expected, family)
    assert not near(plain, expected, family)
    assert near(latents(family, pipe, {name: 0}), plain, family)
    assert not hasattr(pipe.text_encoder, "text_model") or "text_model" not in vars(pipe.text_encoder)
    model, plain = hsd_load(family, pipe, clip_skip=1), hsd_load(family, pipe)
    batch = [hsd.compile(PROMPTS, 1.0, model=each, steps=family.steps, seeds=SEEDS) for each in (model, plain)]
    assert batch[0].fingerprint == batch[1].fingerprint  # prompts are clustered by the pooled vector either way


@each_with("clip_skip")
@pytest.mark.parametrize("value", [-1, 3, 40])
def test_a_clip_skip_of_too_many_layers(family: Family, name: str, value: int):
    with pytest.raises(ValueError, match=rf"clip_skip is {value}: the text encoder has layers for 0 to \d"):
        hsd_load(family, family.build(), **{name: value})


# -- timesteps and sigmas

FLOW = ["cogview-4"]
"""Families that give timesteps and noise levels both, which the schedulers of flow matching alone take."""

TIMESTEPS = [950, 700, 420, 160, 30]
SIGMAS = [1.0, 0.8, 0.55, 0.2]


@each_with("timesteps")
def test_timesteps(family: Family, name: str):
    pipe = family.build()
    if family.name not in FLOW:
        pipe.scheduler = DPMSolverMultistepScheduler(**tiny.SD_BETAS)
    expected = call(family, pipe, {name: TIMESTEPS}, steps=5)
    model = hsd_load(family, pipe, timesteps=TIMESTEPS)
    plan = hsd.compile(PROMPTS, 0.0, model=model, seeds=SEEDS)  # steps= is not used
    assert plan.n_steps == plan.request["steps"] == len(TIMESTEPS) - family.begin(len(TIMESTEPS))
    assert near(latents(family, pipe, {name: TIMESTEPS}), expected, family)
    assert not near(call(family, pipe, {}, steps=5), expected, family)


@each_with("sigmas")
def test_sigmas(family: Family, name: str):
    pipe = family.build()
    sigmas = SIGMAS
    if family.name == "sana":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif "timesteps" in type(hsd_load(family, pipe)).setting_names() and family.name not in FLOW:
        pipe.scheduler, sigmas = EulerDiscreteScheduler(**tiny.SD_BETAS), [14.6, 6.3, 2.1, 0.9, 0.0]
    expected = call(family, pipe, {name: sigmas}, steps=4)
    forms = (list, np.array, tuple) if family.name == "stable-diffusion" else (list,)  # read in the same way by all
    for given in [form(sigmas) for form in forms]:
        assert near(latents(family, pipe, {name: given}, steps=17), expected, family)
    assert not near(call(family, pipe, {}, steps=4), expected, family)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (DDPMScheduler, "timesteps", TIMESTEPS),
        (HeunDiscreteScheduler, "timesteps", TIMESTEPS),
        (EulerDiscreteScheduler, "timesteps", TIMESTEPS),
        (UniPCMultistepScheduler, "sigmas", [14.6, 6.3, 2.1, 0.9]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_schedulers_that_take_them(kind, name, value):
    family = BY_NAME["stable-diffusion"]
    pipe = family.build()
    options = {"clip_sample": False} if kind is DDPMScheduler else {}
    if name == "sigmas":
        options["use_karras_sigmas"] = False
    pipe.scheduler = kind(**tiny.SD_BETAS, **options)
    try:
        expected = call(family, pipe, {name: value})
    except ValueError:
        with pytest.raises(hsd.UnsupportedScheduler, match=kind.__name__):
            latents(family, pipe, {name: value})
        return
    assert near(latents(family, pipe, {name: value}), expected, family)


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
def test_a_scheduler_that_does_not_take_them_is_named(name):
    family = BY_NAME["stable-diffusion"]
    pipe = family.build()
    assert isinstance(pipe.scheduler, DDIMScheduler)
    model = hsd_load(family, pipe, **{name: [900, 500, 100]})
    with pytest.raises(
        hsd.UnsupportedScheduler, match=rf"DDIMScheduler does not take {name}=\[900.*does not take {name}"
    ):
        hsd.compile(PROMPTS, 0.0, model=model)
    with pytest.raises(ValueError, match="does not support custom"):
        call(family, pipe, {name: [900, 500, 100]})  # nor does the pipeline take them


def test_timesteps_that_a_scheduler_refuses():
    family = BY_NAME["stable-diffusion"]
    pipe = family.build()
    pipe.scheduler = DDPMScheduler(**tiny.SD_BETAS, clip_sample=False)
    model = hsd_load(family, pipe, timesteps=[10, 500])
    with pytest.raises(
        hsd.UnsupportedScheduler, match=r"DDPMScheduler does not take timesteps=\[10, 500\]: .*descending"
    ):
        hsd.compile(PROMPTS, 0.0, model=model)


@pytest.mark.parametrize("name", ["flux", "flux-2"])
def test_sigmas_that_the_pipeline_would_not_use_are_refused(name):
    family = BY_NAME[name]
    pipe = family.build()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    pipe.scheduler = DPMSolverMultistepScheduler(**flow, flow_shift=1.0)
    model = hsd_load(family, pipe, sigmas=SIGMAS)
    with pytest.raises(hsd.UnsupportedScheduler, match=r"use_flow_sigmas=True.*leave sigmas out"):
        hsd.compile(PROMPTS, 0.0, model=model)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"timesteps": [900, 100], "sigmas": [1.0, 0.5]}, ValueError, "both given"),
        ({"timesteps": []}, ValueError, "at least one number"),
        ({"sigmas": [1.0, float("nan")]}, ValueError, "finite"),
        ({"timesteps": 900}, TypeError, "list of numbers"),
        ({"timesteps": "900"}, TypeError, "timesteps"),
        ({"sigmas": ["1"]}, TypeError, "sigmas"),
    ],
)
def test_bad_timesteps(settings, error, says):
    with pytest.raises(error, match=says):
        hsd.load(tiny.stable_diffusion(), **settings)


def test_prompts_with_timesteps_of_their_own():
    pipe = tiny.stable_diffusion(DPMSolverMultistepScheduler(**tiny.SD_BETAS))
    model = hsd.load(pipe, height=32, width=32)
    own = [{"timesteps": [900, 500, 100]}, {"timesteps": [700, 400, 20]}, {}]
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=3, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, each in enumerate(own):
        options = {**each, "num_inference_steps": 3, "height": 32, "width": 32}
        assert (
            share_apart(images[i], pipe(PROMPTS[i], generator=fresh_generators([SEEDS[i]]), **options).images[0]) < 0.01
        )
    own[0] = {"timesteps": [900, 500, 300, 100]}
    with pytest.raises(ValueError, match=r"different numbers of steps: 4 with \[900, 500, 300, ...\], 3 with"):
        hsd.compile(PROMPTS, 0.0, model=model, steps=3, settings=own)


def test_a_plan_of_another_number_of_steps_does_not_fit_timesteps():
    pipe = tiny.stable_diffusion(DPMSolverMultistepScheduler(**tiny.SD_BETAS))
    plan = hsd.compile(PROMPTS, 1.0, embeddings=np.eye(len(PROMPTS)), steps=7)
    with pytest.raises(hsd.PlanMismatch, match="compile the plan with model="):
        hsd.stream(plan, hsd.load(pipe, height=32, width=32, timesteps=TIMESTEPS))


# -- the scale of LoRAs


def add_lora(module: torch.nn.Module) -> int:
    """A LoRA on attention's linear layers of a network; how many got one."""
    names = ("to_q", "to_v", "q_proj", "v_proj", "qkv")
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=list(names), init_lora_weights=False), module)
    return sum(hasattr(part, "lora_A") for part in module.modules())


@each_with("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
def test_the_scale_of_loras(family: Family, name: str):
    pipe = family.build()
    assert add_lora(family.denoiser(pipe))
    if name != "attention_kwargs":
        assert add_lora(pipe.text_encoder)
    whole = call(family, pipe, {})
    for scale in (0.4, 0.0):
        expected = call(family, pipe, {name: {"scale": scale}})
        assert not near(expected, whole, family, 100)
        assert near(latents(family, pipe, {name: {"scale": scale}}), expected, family, 10)  # random LoRAs magnify
    assert near(latents(family, pipe, {}), whole, family, 10)  # and the scales are put back


def test_prompts_with_scales_of_their_own_run_in_passes_of_their_own():
    pipe = tiny.stable_diffusion()
    add_lora(pipe.unet)
    model = hsd.load(pipe, height=32, width=32)
    own = [{"cross_attention_kwargs": {"scale": scale}} for scale in (0.2, 0.2, 1.0)]
    assert len({hsd.load(model, **each).call_key() for each in own}) == 2
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=3, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, each in enumerate(own):
        options = {**each, "num_inference_steps": 3, "height": 32, "width": 32}
        assert (
            share_apart(images[i], pipe(PROMPTS[i], generator=fresh_generators([SEEDS[i]]), **options).images[0]) < 0.01
        )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"scale": 0.5, "gligen": {}}, "gligen.*Leave it out"),
        ({"ip_adapter_masks": None}, "IP-Adapters"),
        ({"other": 1}, "scale of LoRAs only"),
        ({"scale": "0.5"}, "finite number"),
        ({"scale": float("inf")}, "finite number"),
        (0.5, "mapping"),
    ],
)
def test_other_attention_arguments_are_refused(value, says):
    with pytest.raises(TypeError, match=says):
        hsd.load(tiny.stable_diffusion(), cross_attention_kwargs=value)


# -- folders of earlier versions


def test_settings_that_came_later_are_recorded_only_where_they_are_used():
    pipe = tiny.sdxl()
    assert not {"prompt_2", "timesteps", "cross_attention_kwargs", "guidance_interval"} & set(hsd.load(pipe).settings)
    assert hsd.load(pipe, prompt_2="a castle").settings["prompt_2"] == "a castle"
    assert "clip_skip" in hsd.load(pipe).settings
