"""The generic adapter: pipelines for which HSD has no adapter, driven by their own code, or refused with the reason."""

from __future__ import annotations

import copy
import gc
import inspect
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Lumina2Pipeline,
    StableDiffusionPipeline,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance, TangentialClassifierFreeGuidance
from torch import nn

import hsd
import tiny
from algorithm1 import algorithm1
from families.base import masked_mean
from helpers import encoded, fresh_generators, latents_of, mean_difference, rows_of, share_apart
from hsd.models import BrokenAdapter, check, load
from hsd.models.generic import Generic, adapter, proof
from hsd.models.generic.formula import RESCALES, Formula
from hsd.models.generic.sources import Timestep
from hsd.probing.predict import unguided
from tiny import unadapted

PROMPTS = ["a cat", "a much longer prompt about a dog", 'a sign that says "open"']
SEEDS = [11, 5, 42]
STEPS = 4
SIZE = {"height": 64, "width": 64}
TOLERANCE = 2e-5
"""Largest error of a latent in float32, as a share of its range."""

SHORT = {"max_sequence_length": 64}
INSTRUCTED = {"max_sequence_length": 256}
"""Lumina 2 writes an instruction before the prompt."""
CASES = {
    "aura-flow": (unadapted.aura_flow, SHORT),
    "aura-flow-negative": (unadapted.aura_flow, {**SHORT, "negative_prompt": "blurry", "guidance_scale": 2.3}),
    "chroma": (unadapted.chroma, SHORT),
    "hidream": (unadapted.hidream, {"max_sequence_length": 77}),
    "hunyuan-image": (unadapted.hunyuan_image, {}),
    "hunyuan-image-distilled": (lambda: unadapted.hunyuan_image(distilled=True), {}),
    "longcat-image": (unadapted.longcat_image, {}),
    "lumina2": (unadapted.lumina2, INSTRUCTED),
}


@pytest.fixture(autouse=True)
def no_notices():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*has no adapter of its own")
        yield


def stock(pipe, prompt, seed, settings, output_type="latent", steps=STEPS):
    """The result of the pipeline's own call for one prompt."""
    options = dict(settings)
    if "enable_prompt_rewrite" in inspect.signature(type(pipe).__call__).parameters:
        options["enable_prompt_rewrite"] = False
    if isinstance(options.get("negative_prompt"), str):
        options["negative_prompt"] = [options["negative_prompt"]]
    generator = fresh_generators([seed])
    return pipe([prompt], generator=generator, num_inference_steps=steps, output_type=output_type, **SIZE, **options)[0]


def ours(pipe_or_model, settings=None, prompts=PROMPTS, seeds=SEEDS):
    model = load(pipe_or_model, **SIZE, **(settings or {})) if settings is not None else pipe_or_model
    plan = hsd.compile(prompts, 0.0, model=model, steps=STEPS, seeds=seeds)
    latents = latents_of(plan, model, batch_size=2)
    return model, [latents[i] for i in range(len(prompts))]


def apart(a, b):
    """Largest difference, as a share of the range of ``b``."""
    return float((a - b.reshape(a.shape)).abs().max() / b.abs().max())


# ------------------------------------------------------------------------------- what it drives


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_pipelines_images(name):
    build, settings = CASES[name]
    pipe = build()
    model, latents = ours(pipe, settings)
    assert type(model) is Generic
    expected = [stock(pipe, prompt, seed, settings) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert apart(expected[0], expected[1]) > 0.01  # the comparison can fail
    for own, theirs in zip(latents, expected, strict=True):
        assert apart(own, theirs) < TOLERANCE
    [image] = stock(pipe, PROMPTS[1], SEEDS[1], settings, "pil")
    [own] = model.decode(expected[1], fresh_generators(SEEDS[1:2]))
    assert share_apart(own, image) < 1e-3


FAMILIES = {
    "stable-diffusion-xl": lambda: tiny.sdxl(tiny.sdxl_euler()),  # its inputs are scaled, and some are in a dictionary
    "z-image": tiny.z_image,
    "qwen-image": tiny.qwen_image,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_what_an_adapter_of_its_own_gives(name):
    pipe = FAMILIES[name]()
    settings = {"negative_prompt": "blurry"}
    dedicated, expected = ours(pipe, settings)
    assert type(dedicated) is not Generic
    model, latents = ours(Generic(pipe, **SIZE, **settings))
    assert model.guided
    assert model.one_length == (name == "qwen-image")
    for own, theirs in zip(latents, expected, strict=True):
        assert apart(own, theirs) < TOLERANCE


def test_what_a_subclass_does_in_its_own_call_is_followed():
    class Brighter(StableDiffusionPipeline):
        def __call__(
            self, prompt=None, num_inference_steps=50, generator=None, output_type="pil", height=None, width=None
        ):
            options = {"num_inference_steps": num_inference_steps, "generator": generator, "guidance_scale": 2.5}
            return super().__call__(prompt, height, width, output_type=output_type, **options)

    pipe = Brighter(**tiny.stable_diffusion().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    model, latents = ours(pipe, {})
    assert type(model) is Generic
    for own, prompt, seed in zip(latents, PROMPTS, SEEDS, strict=True):
        assert apart(own, stock(pipe, prompt, seed, {})) < TOLERANCE


def test_it_shares_steps_as_the_plain_algorithm_does():
    """Lumina 2: means of tokens under a mask, evaluated by the network alone."""
    prompts, seeds = ["a cat", "a cat on a mat", "a dog", "the sea by day, in oil", "the sea"], [7, 3, 9, 1, 4]
    pipe, rng = unadapted.lumina2(), np.random.default_rng(5)
    model = load(pipe, **SIZE, **INSTRUCTED)
    vectors = rng.normal(size=(2, 12))[[0, 0, 0, 1, 1]] + 0.4 * rng.normal(size=(5, 12))
    plan = hsd.compile(prompts, 1.0, embeddings=vectors, model=model, steps=STEPS, seeds=seeds)
    assert plan.savings > 0.1
    tokens = []
    for prompt in prompts:
        embeds, mask, negative, negative_mask = pipe.encode_prompt(prompt, max_sequence_length=256)
        tokens.append(embeds[:, mask[0] > 0])

    def evaluate(x, t, text):
        def run(tokens, mask):
            time = (1 - t / 1000).expand(1)
            return -pipe.transformer(x, time, tokens, mask.bool()).sample

        c, u = run(text, torch.ones(text.shape[:2])), run(negative, negative_mask)
        guided = u + 4.0 * (c - u)
        return guided * c.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)

    with torch.no_grad():
        expected, _ = algorithm1(
            plan.tree,
            plan.phi,
            lambda scheduler: scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=None),
            pipe.scheduler,
            seeds,
            lambda leaves: masked_mean([tokens[leaf] for leaf in leaves]),
            evaluate,
            lambda generator: torch.randn((1, 4, 8, 8), generator=generator),
            lambda seed: torch.Generator().manual_seed(seed),
            scale_input=False,
        )
    latents = latents_of(plan, model, batch_size=2)
    for i in range(len(prompts)):
        assert apart(latents[i], expected[i]) < TOLERANCE


def test_another_scheduler_steps_it():
    pipe = unadapted.aura_flow()
    model = load(pipe, **SIZE, **SHORT).with_scheduler(FlowMatchHeunDiscreteScheduler(shift=2.0))
    _, latents = ours(model)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=2.0)
    for own, prompt, seed in zip(latents, PROMPTS, SEEDS, strict=True):
        assert apart(own, stock(pipe, prompt, seed, SHORT)) < TOLERANCE


def by_position(scheduler, steps, device, **options):
    scheduler.set_timesteps(steps, device)
    return scheduler.timesteps, steps


def test_a_pipeline_may_give_the_device_by_position(monkeypatch):
    monkeypatch.setattr("diffusers.pipelines.lumina2.pipeline_lumina2.retrieve_timesteps", by_position)
    pipe = unadapted.lumina2()
    _, latents = ours(pipe, INSTRUCTED, PROMPTS[:1], SEEDS[:1])
    assert apart(latents[0], stock(pipe, PROMPTS[0], SEEDS[0], INSTRUCTED)) < TOLERANCE


def test_a_scheduler_that_cannot_be_set_on_the_host_is_the_reason(unproven):
    class Elsewhere(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
            if device == "cpu":  # a pipeline gives a torch.device
                raise ValueError("no such device")
            super().set_timesteps(num_inference_steps, device, sigmas, mu)

    pipe = unadapted.lumina2()
    pipe.scheduler = Elsewhere.from_config(pipe.scheduler.config)
    with pytest.raises(hsd.UnsupportedPipeline, match="has a scheduler that cannot be driven: no such device"):
        load(pipe, **SIZE)


def test_another_scheduler_takes_no_part_in_the_proof():
    """Other guidance is learnt anew, with the pipeline's own scheduler: it is the pipeline's call that is compared."""
    pipe, other = unadapted.lumina2(), FlowMatchHeunDiscreteScheduler(shift=2.0)
    model = load(load(pipe, **SIZE).with_scheduler(other), guidance_scale=1.0)
    assert not model.guided
    assert model.scheduler() is other


def test_prompts_have_settings_of_their_own():
    pipe = unadapted.aura_flow()
    model = load(pipe, **SIZE, **SHORT)
    own = [{}, {"guidance_scale": 1.0}, {"negative_prompt": "blurry"}]
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, settings in enumerate(own):
        [expected] = stock(pipe, PROMPTS[i], SEEDS[i], {**SHORT, **settings}, "pil")
        assert mean_difference(images[i], expected) < 0.5


@pytest.mark.parametrize(("build", "settings", "calls"), [(unadapted.aura_flow, SHORT, 2), (unadapted.lumina2, {}, 1)])
def test_a_probe_has_the_conditional_output_alone(build, settings, calls):
    """Of AuraFlow, which evaluates both prompts in one call, and of Lumina 2, which makes a call for each."""
    pipe = build()
    model = load(pipe, **SIZE, **settings)
    conditioning = encoded(model, PROMPTS[:1], SEEDS[:1])
    rows = conditioning.mean(np.array([0]))
    rows = {name: row[None] for name, row in rows.items()}
    noise, t = model.first_noise(fresh_generators([3])[0]), model.sampler(STEPS).timesteps[:1]
    network, given = model.modules()[0], []
    handle = network.register_forward_hook(lambda module, args, output: given.append(output[0]))
    output, _ = unguided(model).denoise(noise, t, rows)
    handle.remove()
    [alone] = given
    assert len(alone) == calls
    assert torch.equal(output, model._recipe.formula.sign * alone[model._recipe.formula.conditional % calls][None])
    guided, _ = model.denoise(noise, t, rows)
    assert apart(output, guided) > 1e-4


def test_the_pipeline_is_left_as_it_was():
    pipe = unadapted.aura_flow()
    before = dict(vars(pipe))
    model = load(pipe, **SIZE, **SHORT)
    plan = hsd.compile(PROMPTS, 1.0, model=model, steps=3)
    assert len(list(hsd.stream(plan, model))) == 3
    assert vars(pipe) == before


def test_half_precision_is_rounded_as_the_pipeline_does():
    """Chroma's timestep is rounded before it is divided, which shows in half precision alone."""
    pipe = unadapted.chroma().to(torch.bfloat16)
    model, latents = ours(pipe, SHORT, PROMPTS[:2], SEEDS[:2])
    for own, prompt, seed in zip(latents, PROMPTS[:2], SEEDS[:2], strict=True):
        expected = stock(pipe, prompt, seed, SHORT).float()
        assert float((own - expected).norm() / expected.norm()) < 0.05
    [time] = {each.time for call in model._recipe.calls for each in call.values() if isinstance(each, Timestep)}
    assert (time.form, time.first) == ("t / n", True)


def test_a_scale_near_another_number_is_kept_in_half_precision():
    """1.02 is as near to 1 as bfloat16 can say: it is the setting that is meant, not no guidance."""
    model = load(unadapted.lumina2().to(torch.bfloat16), **SIZE, guidance_scale=1.02)
    assert sorted(model._recipe.formula.weights) == pytest.approx([-0.02, 1.02], abs=1e-9)


def test_masks_say_which_tokens_a_mean_counts():
    model = load(unadapted.lumina2(), **SIZE, **INSTRUCTED)
    rows = rows_of(encoded(model, PROMPTS, SEEDS), model._recipe.main)
    assert len({len(row) for row in rows}) == 3


# ------------------------------------------------------------------------------- from a folder, on the command line


def test_a_folder_is_driven_and_checked(tmp_path):
    unadapted.aura_flow().save_pretrained(tmp_path)
    model = load(tmp_path, **SIZE, **SHORT)
    assert (type(model), model.name) == (Generic, str(tmp_path))
    assert model.decoded_size() == (64, 64)
    check(model)


def test_the_check_takes_prompts_of_one_length():
    check(Generic(tiny.qwen_image(), **SIZE, negative_prompt=" "))


# ------------------------------------------------------------------------------- the proof


class OneTime(nn.Module):
    """A network that takes the time of its first row for all of them."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    @property
    def dtype(self):
        return self.inner.dtype

    @property
    def device(self):
        return self.inner.device

    def forward(
        self, hidden_states, encoder_hidden_states=None, timestep=None, attention_kwargs=None, return_dict=True
    ):
        return self.inner(hidden_states, encoder_hidden_states, timestep[:1].expand(len(timestep)), None, return_dict)


class OfOthers(OneTime):
    """A network that gives each row something of the others."""

    def forward(
        self, hidden_states, encoder_hidden_states=None, timestep=None, attention_kwargs=None, return_dict=True
    ):
        (output,) = self.inner(hidden_states, encoder_hidden_states, timestep, None, return_dict)
        return (output + 0.1 * output.mean(0, keepdim=True),)


class Remembering(OneTime):
    """A network that adds something of its previous output."""

    last = None

    def forward(
        self, hidden_states, encoder_hidden_states=None, timestep=None, attention_kwargs=None, return_dict=True
    ):
        (output,) = self.inner(hidden_states, encoder_hidden_states, timestep, None, return_dict)
        before, self.last = self.last, output.clone()
        return (output if before is None or before.shape != output.shape else 0.7 * output + 0.3 * before,)


@pytest.fixture
def unproven(monkeypatch):
    monkeypatch.setattr(proof, "_proven", {})


def patched(network):
    pipe = unadapted.aura_flow()
    pipe.transformer = network(pipe.transformer)
    return pipe


def test_a_network_with_one_time_for_all_rows_gets_lanes_of_one_step(unproven):
    pipe = patched(OneTime)
    model, latents = ours(pipe, SHORT)
    assert not model.mixed_timesteps
    for own, prompt, seed in zip(latents, PROMPTS, SEEDS, strict=True):
        assert apart(own, stock(pipe, prompt, seed, SHORT)) < TOLERANCE


@pytest.mark.parametrize("network", [OfOthers, Remembering])
def test_a_network_whose_rows_are_not_independent_is_refused(network, unproven):
    with pytest.raises(
        hsd.UnsupportedPipeline, match="AuraFlowPipeline has no adapter.*another output in a call with a second"
    ):
        load(patched(network), **SIZE, **SHORT)


def test_a_wrong_recipe_is_found_out(unproven, monkeypatch):
    """The proof does not rest on what was learnt: with a wrong formula the latents are others."""
    own = Formula.of
    monkeypatch.setattr(
        Formula, "of", lambda self, outputs: own(self, outputs) * (1.01 if outputs[0].dtype == torch.float32 else 1)
    )
    with pytest.raises(hsd.UnsupportedPipeline, match="gives other latents for 'a cat' than HSD after 3 steps, off by"):
        load(unadapted.aura_flow(), **SIZE, **SHORT)


def test_the_proof_is_announced_and_made_once(unproven):
    with pytest.warns(hsd.Notice, match="AuraFlowPipeline has no adapter of its own.*2 prompts of 3 steps"):
        load(unadapted.aura_flow(), **SIZE, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hsd.Notice)
        load(unadapted.aura_flow(), **SIZE, **SHORT, guidance_scale=2.0)


def test_what_is_learnt_holds_for_the_parts_it_was_learnt_with(monkeypatch):
    learnt, own = [], Generic._learn
    monkeypatch.setattr(Generic, "_learn", lambda self: learnt.append(self) or own(self))
    pipe = unadapted.aura_flow()
    for _ in range(2):
        load(pipe, **SIZE, **SHORT)
    assert len(learnt) == 1
    pipe.transformer.register_to_config(pos_embed_max_size=49)  # the configuration of a network, in place
    load(pipe, **SIZE, **SHORT)
    assert len(learnt) == 2
    monkeypatch.setattr(adapter, "id", lambda part: 0, raising=False)  # as if ids were given out again
    load(pipe, **SIZE, **SHORT)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    gc.collect()
    load(pipe, **SIZE, **SHORT)
    assert len(learnt) == 4
    load(pipe, **SIZE, **SHORT)
    assert len(learnt) == 4


@pytest.mark.parametrize("build", [unadapted.aura_flow, unadapted.longcat_image])
def test_each_size_has_images_of_its_own_size(build, unproven):
    """With one proof, and where latents are rows of tokens."""
    pipe = build()
    for size in ((64, 64), (128, 64), (64, 128)):
        model = load(pipe, height=size[0], width=size[1])
        assert model.decoded_size() == size
        [image] = model.decode(torch.zeros(1, *model.latent_shape()), fresh_generators(SEEDS[:1]))
        assert image.size == size[::-1]
    assert len(proof._proven) == 1


def test_a_size_that_is_not_asked_for_follows_from_the_latents():
    found = proof._Proof(True, (64, 128), 100)
    assert found.size_at((4, 100), (None, None)) == (128, 256)
    assert found.size_at((4, 100), (256, 128)) == (256, 128)
    assert found.size_at((4, 100), (256, 512)) == (128, 256)  # diffusers may make other sizes than it is asked for


@pytest.mark.parametrize("rescale", RESCALES)
def test_a_formula_is_found_from_outputs(rescale):
    from hsd.models.generic.formula import formulas_of
    from hsd.models.generic.rehearsal import _outputs_alike

    draw = _outputs_alike(0, torch.Generator().manual_seed(0))
    outputs = [draw(torch.zeros(()), (2, 4, 8, 8)) for _ in range(2)]
    for sign in (1.0, -1.0):
        formula = Formula((-2.5, 3.5), sign, rescale, 1)
        assert formula in formulas_of(outputs, formula.of(outputs), 1, [3.5])


def test_of_two_scales_the_nearest_is_meant():
    from hsd.models.generic.formula import _snapped

    assert _snapped(4.021, 0.1, [[4.0, 4.02], [4.021]]) == 4.02
    assert _snapped(4.021, 0.1, [[7.0], [4.0]]) == 4.0
    assert _snapped(4.021, 0.1, [[], []]) == 4.02


# ------------------------------------------------------------------------------- what it refuses


GUIDERS = {
    "momentum": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    "interval": ClassifierFreeGuidance(guidance_scale=3.0, start=0.1, stop=0.8),
    "late": ClassifierFreeGuidance(guidance_scale=3.0, start=0.0, stop=0.8),
    "tangential": TangentialClassifierFreeGuidance(guidance_scale=3.0),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_guidance_that_no_formula_says_is_refused(name):
    reason = {
        "momentum": "at step 2 something else than",
        "interval": "evaluates the network 2 times at step 2 of 20, and 1 times at the first",
        "late": "evaluates the network 1 times at step 16 of 20, and 2 times at the first",
        "tangential": "no formula known here",
    }[name]
    with pytest.raises(
        hsd.UnsupportedPipeline, match=f"HunyuanImagePipeline has no adapter.*{reason}.*docs/adapters.md"
    ):
        load(unadapted.hunyuan_image(guider=GUIDERS[name]), **SIZE)


def test_guidance_that_ends_early_is_refused():
    class Truncated(Lumina2Pipeline):
        def __call__(
            self, prompt=None, num_inference_steps=30, generator=None, output_type="pil", height=None, width=None
        ):
            options = {"num_inference_steps": num_inference_steps, "generator": generator, "cfg_trunc_ratio": 0.5}
            return super().__call__(prompt, width, height, output_type=output_type, **options)

    with pytest.raises(hsd.UnsupportedPipeline, match="1 times at step 10 of 20, and 2 times at the first"):
        load(unadapted.lumina2(Truncated), **SIZE)


class Altered(AuraFlowPipeline):
    """AuraFlow, whose network is given something else besides."""

    change = staticmethod(lambda generator, step: None)

    def __call__(self, prompt=None, num_inference_steps=50, generator=None, output_type="pil", height=None, width=None):
        network, step = self.transformer, 0

        def called(*args, **kwargs):
            nonlocal step
            step += 1
            return network(*args, **kwargs, **{"extra": self.change(generator, step - 1)})

        own = Counting(called, network)
        self.__dict__["transformer"] = own
        try:
            return super().__call__(
                prompt,
                num_inference_steps=num_inference_steps,
                generator=generator,
                output_type=output_type,
                height=height,
                width=width,
                max_sequence_length=64,
            )
        finally:
            self.__dict__["transformer"] = network


class Counting:
    def __init__(self, called, network):
        self.called, self.network = called, network

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, *args, **kwargs):
        return self.called(*args, **kwargs)


class Extra(OneTime):
    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        timestep=None,
        attention_kwargs=None,
        return_dict=True,
        extra=None,
    ):
        return self.inner(hidden_states, encoder_hidden_states, timestep, None, return_dict)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda generator, step: torch.full((1,), float(step % 3)), "a extra that changes from step to step"),
        (lambda generator, step: generator[0].initial_seed() * torch.ones(1, 2), "a extra that depends on the seed"),
        (lambda generator, step: object(), "a extra of type object"),
    ],
)
def test_arguments_that_no_recipe_makes_are_refused(change, reason):
    pipe = Altered(**unadapted.aura_flow().components)
    pipe.transformer = Extra(pipe.transformer)
    pipe.change = change
    with pytest.raises(hsd.UnsupportedPipeline, match=reason):
        load(pipe, **SIZE)


def test_two_networks_are_refused():
    class Two(DiffusionPipeline):
        def __init__(self, transformer, transformer_2, scheduler, vae):
            super().__init__()
            self.register_modules(transformer=transformer, transformer_2=transformer_2, scheduler=scheduler, vae=vae)

        def __call__(self, prompt, num_inference_steps=3, generator=None, output_type="pil"):
            raise AssertionError

    parts = {name: unadapted.aura_flow().components[name] for name in ("transformer", "scheduler", "vae")}
    with pytest.raises(
        hsd.UnsupportedPipeline, match="Two has transformer and transformer_2, where one network is expected"
    ):
        load(Two(**parts, transformer_2=parts["transformer"]))


def test_an_error_of_the_pipeline_is_the_reason():
    with pytest.raises(hsd.UnsupportedPipeline, match=r"cannot be called with one prompt \(ValueError: .*divisible"):
        load(unadapted.aura_flow(), height=65, width=64)


def test_settings_that_the_pipeline_has_not_are_named():
    with pytest.raises(TypeError, match="AuraFlowPipeline has no setting 'true_cfg_scale': its call does not take it"):
        load(unadapted.aura_flow(), **SIZE, true_cfg_scale=3.0)
    with pytest.raises(TypeError, match="Generic has no setting 'cfg_trunc_ratio'"):
        load(unadapted.lumina2(), **SIZE, cfg_trunc_ratio=0.5)


def test_a_prompt_that_the_pipeline_treats_otherwise_fails(monkeypatch):
    """Found for each prompt when it is encoded, whatever the rehearsed prompts showed."""
    pipe = unadapted.aura_flow()
    model = load(pipe, **SIZE, **SHORT)
    own = type(pipe).encode_prompt

    def otherwise(self, prompt=None, negative_prompt=None, **options):
        return own(self, prompt, "ugly" if any("dog" in each for each in prompt) else negative_prompt, **options)

    monkeypatch.setattr(type(pipe), "encode_prompt", otherwise)
    with pytest.raises(hsd.PromptError, match=r"prompt 1 .*another encoder_hidden_states than for other prompts"):
        encoded(model, PROMPTS[:2], SEEDS[:2])


def test_the_check_refuses_what_the_proof_has_not_seen():
    """A network that is patched after the proof is found by the check, as for every adapter."""
    pipe = unadapted.aura_flow()
    model = load(pipe, **SIZE, **SHORT)
    pipe.transformer = Remembering(pipe.transformer)
    with pytest.raises(BrokenAdapter, match="denoise"):
        check(model)
