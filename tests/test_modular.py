"""Modular pipelines: HSD runs their blocks, and gives what their own call gives."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import guiders
from diffusers.modular_pipelines.ideogram4 import encoders as ideogram4_encoders
from diffusers.modular_pipelines.krea2 import encoders as krea2_encoders
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks

import hsd
from algorithm1 import algorithm1
from device import emulated
from device.runs import case, on_the_device, run_of, same, same_images
from helpers import encoded, latents_of
from hsd.models.identity import image_identity
from hsd.models.modular import Modular, blocks
from hsd.models.modular.layout import layout_of
from hsd.probing import predict
from tiny import modular as tiny

PROMPTS = ["a cat", "a red house by the sea at night", "a cat on a mat"]
SEEDS = [3, 8, 5]
SIZE = {"height": 64, "width": 64}
STEPS = 4
LAYERS = {"inputs": {"text_encoder_out_layers": tiny.LAYERS}}
SHORT = {"max_sequence_length": 64}

CASES = {
    "flux3": (tiny.modular_flux3, LAYERS),
    "flux3-distilled": (lambda: tiny.modular_flux3(distilled=True), LAYERS),
    "flux2-klein-base": (tiny.modular_klein, LAYERS | SHORT),
    "flux2-klein": (lambda: tiny.modular_klein(distilled=True), LAYERS | SHORT),
    "krea2": (tiny.modular_krea2, SHORT),
    "krea2-turbo": (lambda: tiny.modular_krea2(turbo=True), SHORT),
    "ernie": (tiny.modular_ernie, {}),
    "qwen-image-2.1": (tiny.modular_qwen_image_21, {"guidance_scale": 4.0, "negative_prompt": "dull"}),
    "ideogram4": (
        tiny.modular_ideogram4,
        {"inputs": {"guidance_schedule": [7.0, 7.0, 5.0, 3.0]}, "max_sequence_length": 256},
    ),
    "z-image": (tiny.modular_z_image, {}),
    "qwen-image": (tiny.modular_qwen_image, {"negative_prompt": "dull and long"}),
    "flux": (tiny.modular_flux, {"guidance_scale": 5.0, "max_sequence_length": 64}),
    "flux2": (tiny.modular_flux2, {"inputs": {"text_encoder_out_layers": (10, 20, 30)}, "max_sequence_length": 64}),
    "sd3": (tiny.modular_sd3, SHORT),
    "sdxl": (tiny.modular_sdxl, {"guidance_scale": 3.0, "negative_prompt": "dull"}),
}
"""Builders and settings, by name."""


@pytest.fixture(autouse=True)
def few_layers(monkeypatch):
    """The text blocks of two families read the layers of their encoder by a global of their module."""
    monkeypatch.setattr(krea2_encoders, "KREA2_TEXT_ENCODER_SELECT_LAYERS", tiny.LAYERS)
    monkeypatch.setattr(ideogram4_encoders, "QWEN3_VL_ACTIVATION_LAYERS", tiny.LAYERS)


def stock(pipe, settings, prompts=PROMPTS, seeds=SEEDS, steps=STEPS):
    """What the pipeline's own call gives the VAE, one prompt a call; the guider's scale is set by the user there."""
    options = {**SIZE, **settings}
    options |= options.pop("inputs", {})
    scale = options.get("guidance_scale")
    own = getattr(pipe, "guider", None)
    if scale is not None and own is not None:
        del options["guidance_scale"]
        pipe.update_components(guider=own.new(guidance_scale=scale))
    try:
        with decoded_by(pipe) as seen:
            for prompt, seed in zip(prompts, seeds, strict=True):
                if own is not None:  # it would ask for no negative text where its last step of the last run had none
                    pipe.guider._step = pipe.guider._num_inference_steps = None
                generator = torch.Generator().manual_seed(seed)
                pipe(prompt=prompt, generator=generator, num_inference_steps=steps, **options)
        return [latent[0] for latent in seen]
    finally:
        if own is not None:
            pipe.update_components(guider=own)


@contextmanager
def decoded_by(pipe):
    """What a pipeline's VAE is given meanwhile."""
    seen, decode = [], pipe.vae.decode

    def record(z, *args, **kwargs):
        seen.append(z.float().clone())
        return decode(z, *args, **kwargs)

    pipe.vae.decode = record
    try:
        yield seen
    finally:
        del pipe.vae.decode


def ours(pipe, settings, prompts=PROMPTS, seeds=SEEDS, steps=STEPS, batch_size=4):
    """What HSD gives the VAE, and the model."""
    model = hsd.load(pipe, **SIZE, **settings)
    plan = hsd.compile(prompts, 0.0, model=model, steps=steps, seeds=seeds)
    latents = latents_of(plan, model, batch_size=batch_size)
    with decoded_by(pipe) as seen:
        for i in range(len(prompts)):
            [image] = model.decode(latents[i], [torch.Generator()])
            assert image.size == (64, 64)
    return [latent[0] for latent in seen], model


def apart(a, b):
    return float((a - b).norm() / b.norm())


def error(found, expected):
    assert apart(found[0], expected[1]) > 0.02  # images of other prompts are far away
    return max(apart(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_the_pipelines_own_call(name):
    build, settings = CASES[name]
    pipe = build()
    expected = stock(pipe, settings)
    before = {part: copy.copy(vars(getattr(pipe, part))) for part in ("scheduler", "guider") if hasattr(pipe, part)}
    found, model = ours(pipe, settings)
    assert error(found, expected) < (1e-3 if name == "sdxl" else 2e-5)
    assert isinstance(model, Modular)
    assert model.mixed_timesteps == (name not in ("ideogram4", "sdxl"))
    for part, state in before.items():  # the user's objects are as they were
        assert str(vars(getattr(pipe, part))) == str(state)


@pytest.mark.parametrize(
    "guider",
    [
        guiders.ClassifierFreeGuidance(guidance_scale=4.0, stop=0.5),
        guiders.ClassifierFreeGuidance(guidance_scale=4.0, start=0.3),
        guiders.ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.7),
        guiders.ClassifierFreeGuidance(guidance_scale=4.0, use_original_formulation=True),
        guiders.ClassifierFreeGuidance(guidance_scale=4.0, enabled=False),
        guiders.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2),
        guiders.AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_rescale=1.0, eta=0.5),
        guiders.AdaptiveProjectedMixGuidance(
            guidance_scale=4.0,
            adaptive_projected_guidance_momentum=None,
            adaptive_projected_guidance_rescale=1.0,
            adaptive_projected_guidance_start_step=2,
        ),
        guiders.TangentialClassifierFreeGuidance(guidance_scale=4.0),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_guiders_do_what_they_do_in_the_pipeline(guider):
    pipe = tiny.modular_ernie()
    plain = stock(pipe, {"guidance_scale": 4.0})
    pipe.update_components(guider=guider)
    expected = stock(pipe, {})
    assert apart(expected[0], plain[0]) > 0.002  # the guider matters
    pipe.guider.set_state(3, STEPS, None)  # what an earlier run left there
    found, model = ours(pipe, {})
    assert error(found, expected) < 5e-5
    always = (guiders.ClassifierFreeZeroStarGuidance, guiders.AdaptiveProjectedMixGuidance)
    assert model.mixed_timesteps == (not isinstance(guider, always) and (guider._start, guider._stop) == (0.0, 1.0))
    assert model.guided == guider._enabled


@pytest.mark.parametrize(
    ("guider", "text"),
    [
        (guiders.AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5), "momentum of -0.5"),
        (guiders.AdaptiveProjectedMixGuidance(), "momentum of -0.5"),
        (guiders.SkipLayerGuidance(skip_layer_guidance_layers=[0]), "SkipLayerGuidance changes the denoiser by hooks"),
        (guiders.PerturbedAttentionGuidance(perturbed_guidance_layers=[0]), "changes the denoiser by hooks"),
        (guiders.SmoothedEnergyGuidance(seg_guidance_layers=[0]), "changes the denoiser by hooks"),
        (type("Own", (guiders.ClassifierFreeGuidance,), {})(), "the guider Own is none of those"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_guiders_that_cannot_be_applied_are_refused(guider, text):
    pipe = tiny.modular_ernie()
    pipe.update_components(guider=guider)
    with pytest.raises(hsd.UnsupportedPipeline, match=text):
        hsd.load(pipe, **SIZE)


# ------------------------------------------------------------------------------- lanes


@pytest.mark.parametrize("name", ["flux3", "flux3-distilled", "ernie", "ideogram4"])
def test_lanes_are_independent(name):
    build, settings = CASES[name]
    verdict = hsd.models.check(build(), **SIZE, **settings)
    assert not verdict.captures


def flux3_denoiser(pipe, scale):
    """FLUX.3's denoiser without HSD and without diffusers' blocks: (latent, timestep, next one, tokens) to output."""
    side = torch.arange(4) * 0.5  # positions of the image's tokens are halved
    image = torch.stack([torch.zeros(16), side.repeat_interleave(4), side.repeat(4), torch.zeros(16)], dim=1)

    def run(x, t, following, tokens):
        ids = torch.zeros(tokens.shape[1], 4)
        ids[:, 3] = torch.arange(tokens.shape[1])
        target = {} if scale is not None else {"target_timestep": following.reshape(1) / 1000}
        return pipe.transformer(
            hidden_states=x,
            encoder_hidden_states=tokens,
            timestep=t.reshape(1) / 1000,
            img_ids=image,
            txt_ids=ids,
            return_dict=False,
            **target,
        )[0]

    return run


def flux3_tokens(pipe, prompt):
    """(1, 80 k, 3 D), all of them attended to."""
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = pipe.tokenizer.tokenizer(text).input_ids
    length = -(-len(ids) // 80) * 80
    padding = length - len(ids)
    real = torch.arange(length) < len(ids)
    hidden = pipe.text_encoder(
        input_ids=torch.tensor([ids + [pipe.tokenizer.tokenizer.pad_token_id] * padding]),
        attention_mask=real[None].long(),
        position_ids=torch.where(real, torch.arange(length), 1)[None],
        output_hidden_states=True,
    ).hidden_states
    return torch.cat([hidden[layer] for layer in tiny.LAYERS], dim=2)


@pytest.mark.parametrize("distilled", [False, True], ids=["guided", "distilled"])
@torch.no_grad()
def test_shared_steps_are_plain_algorithm_1(distilled):
    pipe = tiny.modular_flux3(distilled)
    words = "a very long text about a red house by the sea, in which it is night and a cat sleeps on a mat" * 2
    prompts = [*PROMPTS, words, f"{words}."]  # of two lengths
    model = hsd.load(pipe, **SIZE, **LAYERS)
    plan = hsd.compile(prompts, 1.5, model=model, steps=STEPS, seeds=range(5))
    assert 0.1 < plan.savings < 0.7
    assert len({flux3_tokens(pipe, prompt).shape for prompt in prompts}) == 2
    found = latents_of(plan, model)

    run = flux3_denoiser(pipe, None if distilled else 3.5)
    tokens = [flux3_tokens(pipe, prompt) for prompt in prompts]
    negative = flux3_tokens(pipe, "")
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    following = dict(zip(scheduler.timesteps.tolist(), [*scheduler.timesteps[1:], torch.tensor(0.0)], strict=True))

    def mean(leaves):
        """Each position over the prompts that have it."""
        longest = max((tokens[i] for i in leaves), key=lambda each: each.shape[1])
        at = [torch.stack([tokens[i][0, p] for i in leaves if tokens[i].shape[1] > p]) for p in range(longest.shape[1])]
        return torch.stack([each.mean(0) for each in at])[None]

    def evaluate(x, t, rows):
        conditional = run(x, t, following[float(t)], rows)
        if distilled:
            return conditional
        unconditional = run(x, t, None, negative)
        return unconditional + 3.5 * (conditional - unconditional)

    def first_noise(generator):
        return torch.randn((1, tiny.PATCHES, 4, 4), generator=generator).flatten(2).transpose(1, 2)

    expected, rows = algorithm1(
        plan.tree,
        plan.phi,
        lambda own: own.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS)),
        pipe.scheduler,
        plan.seeds,
        mean,
        evaluate,
        first_noise,
        lambda seed: torch.Generator().manual_seed(seed),
        scale_input=False,
    )
    assert rows == plan.node_steps
    assert max(apart(found[i], expected[i]) for i in expected) < 1e-5
    assert apart(found[0], expected[3]) > 0.002


def test_runs_on_the_emulated_device(monkeypatch):
    monkeypatch.setattr(
        Modular, "_any_generator", lambda self, device: torch.Generator()
    )  # the device has no generators
    build, settings = CASES["flux3"]
    family = SimpleNamespace(
        name="flux3",
        guided={},
        size=(64, 64),
        steps=2,
        build=build,
        loadable=lambda pipe: pipe,
        settings=lambda _, __: {**SIZE, **settings},
    )
    expected = case(family, PROMPTS)
    with emulated(0, 0.3) as device, on_the_device():
        device.adopt(expected.pipe)
        model = expected.load()
        assert model.device.type == "cuda"
        latents, images = run_of(expected.plan, model, False)
        assert same(latents, expected.latents[False])
        assert same_images(images, expected.images[False])


# ------------------------------------------------------------------------------- loading, identity


def test_a_folder_with_a_modular_index_is_loaded(tmp_path):
    pipe = tiny.modular_z_image()
    pipe.save_pretrained(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "model_index.json").exists()
    model = hsd.load(tmp_path / "model", **SIZE, max_sequence_length=64)
    assert isinstance(model, Modular)
    assert model.name == str(tmp_path / "model")
    expected = stock(pipe, SHORT, PROMPTS[:1], SEEDS[:1])
    plan = hsd.compile(PROMPTS[:1], 0.0, model=model, steps=STEPS, seeds=SEEDS[:1])
    with decoded_by(model.pipe) as seen:
        model.decode(latents_of(plan, model)[0], [torch.Generator()])
    assert apart(seen[0][0], expected[0]) < 1e-5


def test_images_depend_on_the_guider_and_on_the_blocks():
    pipe = tiny.modular_ernie()
    model = hsd.load(pipe, **SIZE)
    before, key = image_identity(model), model.encoding_key()
    assert before["options"]["guider"]["guidance_scale"] == 4.0
    assert "ErnieImageLoopDenoiser" in before["options"]["blocks"]
    pipe.update_components(guider=guiders.ClassifierFreeGuidance(guidance_scale=4.0, stop=0.5))
    assert image_identity(model) != before
    assert model.encoding_key() != key
    assert "tokenizer" in image_identity(hsd.load(tiny.modular_flux3(), **SIZE, **LAYERS))["tokenizers"]


def test_settings_reach_the_pipeline():
    pipe = tiny.modular_qwen_image()
    expected = stock(pipe, {"negative_prompt": "dull", "guidance_scale": 6.0})
    found, model = ours(pipe, {"negative_prompt": "dull", "guidance_scale": 6.0})
    assert error(found, expected) < 2e-5
    for other in ({}, {"negative_prompt": "dull"}, {"guidance_scale": 6.0}):
        assert apart(stock(pipe, other)[0], expected[0]) > 0.005
    assert pipe.guider.guidance_scale == 4.0  # the user's
    assert not dataclasses.replace(model, guidance_scale=1.0, negative_prompt=None).guided


def test_native_sizes():
    assert (hsd.load(tiny.modular_flux3(), **LAYERS).height, hsd.load(tiny.modular_ernie()).width) == (1024, 1024)


@pytest.mark.parametrize(
    ("build", "settings", "text"),
    [
        (tiny.modular_krea2, {"guidance_scale": 3.0, "inputs": {"image": 1}}, "inputs has image"),
        (tiny.modular_krea2, {"inputs": {"strange": 1}}, "inputs has strange, which .* does not take"),
        (tiny.modular_krea2, {"inputs": {"sigmas": [1.0]}}, "inputs has sigmas"),
        (lambda: tiny.modular_krea2(turbo=True), {"guidance_scale": 3.0}, "guidance_scale is 3: .* has no guider"),
        (lambda: tiny.modular_krea2(turbo=True), {"negative_prompt": "x"}, "negative_prompt is 'x': .* takes none"),
        (tiny.modular_z_image, {"guidance_scale": 3.0}, "the pipeline's guider is disabled"),
        (tiny.modular_z_image, {"negative_prompt": "x"}, "no guidance that would read it"),
        (tiny.modular_ernie, {"max_sequence_length": 9}, "max_sequence_length is 9: .* takes none"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_nothing_are_refused(build, settings, text):
    with pytest.raises(ValueError, match=text):
        hsd.load(build(), **SIZE, **settings)


# ------------------------------------------------------------------------------- refusals


def bare(name):
    """A pipeline of some blocks, without components."""
    return getattr(diffusers, name)().init_pipeline()


def without(part):
    pipe = tiny.modular_ernie()
    pipe.update_components(**{part: None})
    return pipe


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: bare("Flux3AutoBlocks"), "the block 'prompt_upsampler', which rewrites prompts"),
        (lambda: bare("Flux3DistilledAutoBlocks"), "the block 'prompt_upsampler"),
        (lambda: bare("QwenImageEditAutoBlocks"), "needs (image|resized_image|image_latents)|has no "),
        (lambda: bare("WanBlocks"), "WanModularPipeline has no "),
        (lambda: without("text_encoder"), "has no text_encoder, which its block 'text_encoder' needs"),
        (lambda: without("vae"), "has no vae, which its block 'decode"),
    ],
    ids=["flux3", "flux3-distilled", "edit", "video", "no-encoder", "no-vae"],
)
def test_pipelines_that_cannot_be_followed_are_refused(build, text):
    with pytest.raises(hsd.UnsupportedPipeline, match=text):
        hsd.load(build(), **SIZE)


def test_another_structure_is_refused():
    whole = diffusers.ErnieImageAutoBlocks()
    whole.sub_blocks.pop("text_encoder")
    with pytest.raises(hsd.UnsupportedPipeline, match="1 loops and 0 text_encoder blocks"):
        hsd.load(whole.init_pipeline(), **SIZE)


class Uses(ModularPipelineBlocks):
    """Blocks inside a loop, one for each use of the step."""

    def guider(self, components, block_state, i, t):
        components.guider.set_state(step=i, num_inference_steps=4, timestep=t)
        if block_state.left and i == 0:
            logger.warning("a log only")  # noqa: F821

    def following(self, components, block_state, i, t):
        timesteps = block_state.timesteps
        return timesteps[i + 1] if i + 1 < len(timesteps) else 0

    def first(self, components, block_state, i, t):
        if i == 0:
            block_state.latents = block_state.latents * 2

    def weights(self, components, block_state, i, t):
        return block_state.weights[i]

    def scaling(self, components, block_state, i, t):
        return components.scheduler.scale_model_input(block_state.latents, t)


@pytest.mark.parametrize(
    ("use", "reads"),
    [("guider", False), ("following", False), ("first", True), ("weights", True), ("scaling", True)],
)
def test_blocks_that_depend_on_the_step_are_found(use, reads):
    block = type(use, (Uses,), {"__call__": getattr(Uses, use)})()
    assert blocks._reads_step(block) == reads


# ------------------------------------------------------------------------------- conditioning


def tokens_of(generator, length, before, behind, width=3):
    """(1, length, width) and its mask (1, length): tokens at both ends, pads between them."""
    tokens = torch.randn(1, length, width, generator=generator)
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, :before], mask[0, length - behind :] = True, True
    return {"prompt_embeds": tokens, "prompt_embeds_mask": mask}


def test_masked_tokens_are_averaged_over_the_prompts_that_have_them():
    generator = torch.Generator().manual_seed(0)
    first, second = tokens_of(generator, 8, 2, 2), tokens_of(generator, 8, 4, 2)
    layout = layout_of("P", first, second)
    assert layout.kinds == {"prompt_embeds": "tokens", "prompt_embeds_mask": "mask"}
    alone = layout.values({name: row[None] for name, row in layout.rows(first, negative=False).items()})
    kept = first["prompt_embeds_mask"]
    assert torch.equal(alone["prompt_embeds_mask"], kept)
    assert torch.equal(alone["prompt_embeds"][kept], first["prompt_embeds"][kept])  # exactly, where it is read
    rows = [layout.rows(each, negative=False) for each in (first, second)]
    mean = layout.values({name: (rows[0][name] + rows[1][name])[None] / 2 for name in rows[0]})
    assert mean["prompt_embeds_mask"][0].tolist() == [True] * 4 + [False] * 2 + [True] * 2
    a, b = first["prompt_embeds"][0], second["prompt_embeds"][0]
    assert torch.allclose(mean["prompt_embeds"][0, :2], (a[:2] + b[:2]) / 2)
    assert torch.allclose(mean["prompt_embeds"][0, 2:4], b[2:4])
    assert torch.allclose(mean["prompt_embeds"][0, 6:], (a[6:] + b[6:]) / 2)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"ids": torch.arange(6)[None]}, r"gives ids, a tensor \(1, 6\) int64"),
        ({"tokens": torch.ones(2, 3, 4)}, r"gives tokens, a tensor \(2, 3, 4\) float32"),
        ({"size": "large"}, "gives size, a str"),
        ({"tokens": torch.ones(1, 3, 4), "lengths": [2]}, "cannot tell what it counts"),
        ({"tokens": torch.ones(1, 3, 4), "mask": torch.ones(1, 3).bool()}, "cannot tell what it masks"),
    ],
)
def test_what_has_no_mean_is_refused(outputs, text):
    with pytest.raises(hsd.UnsupportedPipeline, match=text):
        layout_of("P", outputs, outputs)


def test_a_negative_text_that_depends_on_the_prompt_is_refused():
    outputs = [{"negative_prompt_embeds": torch.full((1, 3, 4), float(i))} for i in range(2)]
    with pytest.raises(hsd.UnsupportedPipeline, match="depends on the prompt"):
        layout_of("P", *outputs)


def test_eta_reaches_the_scheduler():
    """SDXL's last block gives it to the scheduler's step; HSD does not run that block."""
    found = {}
    for eta in (0.0, 1.0):
        pipe = tiny.modular_sdxl()
        pipe.update_components(scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False))
        settings = {"guidance_scale": 3.0, "inputs": {"eta": eta}}
        found[eta], _ = ours(pipe, settings)
        if eta:
            for own, theirs in zip(found[eta], stock(pipe, settings), strict=True):
                assert float((own - theirs).abs().max()) < 1e-3 * float(theirs.abs().max())
    assert all(float((a - b).abs().max()) > 0.1 for a, b in zip(found[0.0], found[1.0], strict=True))


def test_a_guider_that_is_changed_in_place_is_another_one():
    pipe = tiny.modular_ernie()
    model = hsd.load(pipe, **SIZE)
    before = image_identity(model), model.encoding_key()
    pipe.guider.guidance_scale = 9.0
    assert image_identity(model) != before[0]
    assert model.encoding_key() != before[1]


def test_a_guider_that_begins_to_guide_gets_a_negative_text():
    pipe = tiny.modular_ernie()
    pipe.guider.guidance_scale = 1.0
    model = hsd.load(pipe, **SIZE)
    alone = list(hsd.stream(hsd.compile(PROMPTS, 0.0, model=model, steps=2), model))
    pipe.guider.guidance_scale = 4.0
    guided = list(hsd.stream(hsd.compile(PROMPTS, 0.0, model=model, steps=2), model))
    assert len(guided) == 3
    assert any(
        np.abs(np.asarray(a.pil, int) - np.asarray(b.pil, int)).max() > 1 for a, b in zip(alone, guided, strict=True)
    )


@pytest.mark.parametrize("name", ["flux2-klein-base", "sdxl"])
def test_probed_without_guidance_and_smaller(name, monkeypatch):
    """Above the size at which models are probed too: there the copy has never been guided."""
    build, settings = CASES[name]
    model = hsd.load(build(), **SIZE, **settings)
    for most in (predict.MOST_PIXELS, 32):
        monkeypatch.setattr(predict, "MOST_PIXELS", most)
        calls = []
        hook = model.modules()[0].register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        found = predict.predictions(model, encoded(model, PROMPTS, SEEDS))
        hook.remove()
        assert np.isfinite(found).all()
        assert len(calls) == 4  # the mean at the first level, all prompts at each of three
