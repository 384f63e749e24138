"""What people do to their pipelines: LoRA, compiled and wrapped denoisers, attention, offloading, step caches.

Every change is made to the pipeline as diffusers documents it; the stock pipeline with the same change is the witness.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    LayerSkipConfig,
    apply_layer_skip,
    apply_layerwise_casting,
    apply_pyramid_attention_broadcast,
)
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

import hsd
import tiny
from helpers import fresh_generators, latents_of, mean_difference
from hsd.models import BrokenAdapter, load

PROMPTS = ["a cat", "a cat on a mat", "the sea at night"]
SEEDS = [11, 5, 42]
STEPS = 4
SETTINGS = {"guidance_scale": 4.0, "height": 32, "width": 32}


def stock(pipe, output_type="latent"):
    generators = fresh_generators(SEEDS)
    return pipe(PROMPTS, num_inference_steps=STEPS, generator=generators, output_type=output_type, **SETTINGS).images


def ours(pipe, tau=0.0):
    model = load(pipe, **SETTINGS)
    plan = hsd.compile(PROMPTS, tau, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    return torch.cat([latents[i] for i in range(len(PROMPTS))])


def assert_follows(pipe, tolerance=2e-5):
    """HSD's latents are those of the pipeline as it now is; returns them."""
    reference = stock(pipe)
    found = ours(pipe)
    assert (found - reference).abs().max() < tolerance * reference.abs().max()
    return reference


def changed(a, b):
    return float((a - b).norm() / b.norm())


def load_lora(pipe, name, rank=4, seed=0):
    """A LoRA for UNet and text encoder.

    PEFT itself adds the text encoder's part, as transformers would, because transformers may need a later PEFT than is
    installed.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_v"], init_lora_weights=False)
    text = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    donor = tiny.stable_diffusion().unet
    donor.add_adapter(config)
    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(donor).items()}
    pipe.load_lora_weights(state, adapter_name=name)
    inject_adapter_in_model(text, pipe.text_encoder, adapter_name=name)


def test_lora():
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    load_lora(pipe, "style")
    with_lora = assert_follows(pipe)
    assert changed(with_lora, plain) > 0.05
    pipe.set_adapters(["style"], [0.5])
    half = assert_follows(pipe)
    assert changed(half, with_lora) > 0.01
    pipe.fuse_lora()
    assert changed(assert_follows(pipe), half) < 1e-3
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert changed(assert_follows(pipe), plain) < 1e-5


def test_two_loras_together():
    pipe = tiny.stable_diffusion()
    load_lora(pipe, "one", seed=0)
    load_lora(pipe, "two", seed=1)
    pipe.set_adapters(["one", "two"], [0.7, 0.6])
    both = assert_follows(pipe)
    pipe.set_adapters(["one"], [0.7])
    assert changed(assert_follows(pipe), both) > 0.01


def test_a_lora_loaded_after_the_plan_was_compiled_is_seen():
    """Its text encoder's part changes the embeddings, which a plan compiled with the model stores."""
    pipe = tiny.stable_diffusion()
    model = load(pipe, **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    load_lora(pipe, "style")
    expected = stock(pipe, "pil")
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, image in enumerate(expected):
        assert mean_difference(images[i], image) < 0.5


@pytest.mark.parametrize("in_place", [True, False], ids=["module.compile()", "torch.compile(module)"])
def test_a_compiled_denoiser(in_place):
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    if in_place:
        pipe.unet.compile(backend="eager", dynamic=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager", dynamic=True)
    assert changed(assert_follows(pipe), plain) < 1e-5
    assert ours(pipe, tau=1.0).shape == plain.shape
    torch._dynamo.reset()


class Wrapped(torch.nn.Module):
    """A denoiser in a user's module, which forwards attributes as such wrappers do."""

    def __init__(self, inner, gain):
        super().__init__()
        self.inner, self.gain, self.rows = inner, gain, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, sample, *args, **kwargs):
        self.rows += len(sample)
        (output,) = self.inner(sample, *args, **kwargs)
        return (self.gain * output,)


def test_a_wrapped_denoiser():
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    pipe.unet = Wrapped(pipe.unet, gain=0.9)
    assert changed(assert_follows(pipe), plain) > 0.02
    pipe.unet.rows = 0
    ours(pipe)
    assert pipe.unet.rows == 2 * len(PROMPTS) * STEPS


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(2)], ids=lambda p: type(p).__name__)
def test_attention_processors(processor):
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    pipe.unet.set_attn_processor(processor)
    assert changed(assert_follows(pipe), plain) < 1e-4


def test_attention_slicing_and_freeu():
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    pipe.enable_attention_slicing(1)
    assert changed(assert_follows(pipe), plain) < 1e-4


def test_channels_last_and_layerwise_casting():
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    pipe.unet.to(memory_format=torch.channels_last)
    assert changed(assert_follows(pipe), plain) < 1e-4
    apply_layerwise_casting(pipe.unet, storage_dtype=torch.float16, compute_dtype=torch.float32)
    assert 0 < changed(assert_follows(pipe), plain) < 0.05


def test_cpu_offload():
    """On the CPU the hooks move nothing, and run all the same."""
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert changed(assert_follows(pipe), plain) < 1e-5
    plan = hsd.compile(PROMPTS, 0.0, model=load(pipe, **SETTINGS), steps=STEPS, seeds=SEEDS)
    images = {image.index: image.pil for image in hsd.stream(plan, load(pipe, **SETTINGS))}
    for i, expected in enumerate(stock(pipe, "pil")):
        assert mean_difference(images[i], expected) < 0.5


def test_after_a_run_offloaded_modules_go_back(monkeypatch):
    pipe = tiny.stable_diffusion()
    pipe.enable_model_cpu_offload(device="cpu")
    freed = []
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(self))
    model = load(pipe, **SETTINGS)
    images = hsd.stream(hsd.compile(PROMPTS, 0.0, model=model, steps=2), model)
    next(images)
    assert not freed
    images.close()  # also where the user stops early
    assert freed == [pipe]


def test_offloaded_kandinsky_pair():
    pair = (tiny.k22_prior(), tiny.k22_decoder())
    plan = hsd.compile(PROMPTS, 0.5, model=load(pair, height=64, width=64, prior_steps=2), steps=STEPS)
    plain = latents_of(plan, load(pair, height=64, width=64, prior_steps=2))
    for part in pair:
        part.enable_model_cpu_offload(device="cpu")
    offloaded = latents_of(plan, load(pair, height=64, width=64, prior_steps=2))
    for i, latent in plain.items():
        assert changed(offloaded[i], latent) < 1e-5


def test_group_offloading():
    pipe = tiny.stable_diffusion()
    plain = stock(pipe)
    device = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    assert changed(assert_follows(pipe), plain) < 1e-5


def test_vae_slicing_and_tiling():
    pipe = tiny.stable_diffusion()
    pipe.vae.enable_slicing()
    plan = hsd.compile(PROMPTS, 0.0, model=load(pipe, **SETTINGS), steps=STEPS, seeds=SEEDS)
    images = {image.index: image.pil for image in hsd.stream(plan, load(pipe, **SETTINGS))}
    for i, expected in enumerate(stock(pipe, "pil")):
        assert mean_difference(images[i], expected) < 0.5


def test_a_step_cache_in_a_unet_is_refused():
    pipe = tiny.stable_diffusion()
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(0, 1000),
        cross_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    model = load(pipe, **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.5, embeddings=torch.eye(3), steps=STEPS)
    with pytest.raises(hsd.UnsupportedPipeline, match=r"UNet2DConditionModel \(.*\) has a step cache .*disable_cache"):
        hsd.stream(plan, model)


def test_hooks_that_remember_nothing_are_let_through():
    pipe = tiny.sd3()
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    hsd.stream(hsd.compile(PROMPTS, 0.0, embeddings=torch.eye(3), steps=2), load(pipe, height=64, width=64))


CACHES = {
    "first-block": FirstBlockCacheConfig(threshold=0.1),
    "faster": FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=lambda: 500,
        is_guidance_distilled=True,
    ),
    "pyramid": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    ),
    "mag": MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4)),
    "taylor": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
}


@pytest.mark.parametrize("name", CACHES)
def test_step_caches_of_diffusers_are_refused_and_turned_off_again(name):
    pipe = tiny.flux()
    model = load(pipe, height=64, width=64)
    plan = hsd.compile(PROMPTS, 0.5, model=model, steps=2)
    pipe.transformer.enable_cache(CACHES[name])
    with pytest.raises(hsd.UnsupportedPipeline, match=r"has a step cache .*FluxTransformer2DModel\.disable_cache\(\)"):
        hsd.stream(plan, model)
    pipe.transformer.disable_cache()
    assert len(list(hsd.stream(plan, model))) == len(PROMPTS)


def test_attention_backends():
    pipe = tiny.flux()
    model = load(pipe, height=64, width=64)
    plan = hsd.compile(PROMPTS, 0.5, model=model, steps=2)
    plain = latents_of(plan, model)
    pipe.transformer.set_attention_backend("_native_math")
    other = latents_of(plan, model)
    for i, latent in plain.items():
        assert changed(other[i], latent) < 1e-4


def like_deep_cache(block):
    """Wrap a block's ``forward`` as DeepCache does: every second call gets the output of the call before."""
    inner, kept = block.forward, []

    def wrapped(*args, **kwargs):
        if kept:
            return kept.pop()
        kept.append(inner(*args, **kwargs))
        return kept[0]

    block.forward = wrapped
    return inner


def test_a_replaced_forward_is_named_and_checked():
    pipe = tiny.stable_diffusion()
    model = load(pipe)
    inner = like_deep_cache(pipe.unet.down_blocks[0])
    for given in (pipe, model):  # also one that was loaded before
        with pytest.warns(hsd.Notice, match=r"UNet2DConditionModel.down_blocks.0 has a forward .* take it off"):
            hsd.load(given)
    with (
        pytest.warns(hsd.Notice, match="hsd.models.check"),
        pytest.raises(BrokenAdapter, match=r"denoise of .* fails: .*Error"),
    ):
        hsd.models.check(pipe)
    pipe.unet.down_blocks[0].forward = inner
    hsd.load(pipe)  # no notice: the block's own is back


def test_forwards_of_known_libraries_are_not_named():
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = tiny.stable_diffusion()
    add_hook_to_module(pipe.unet.mid_block, ModelHook())
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert "forward" in vars(pipe.unet.mid_block)
    hsd.load(pipe)
    remove_hook_from_module(pipe.unet.mid_block)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    hsd.load(pipe)
