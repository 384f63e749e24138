"""Adapters of other packages: the one of docs/adapters.md, registered and announced; the errors for broken ones."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)

import hsd
import tiny
from families import FAMILIES
from helpers import fresh_generators, latents_of, mean_difference
from hsd.models import Adapter, BrokenAdapter, check, load, register, registry
from tiny.decoders import consistency_decoder, with_decoder
from tiny.parts import T5_WIDTH, autoencoder, listen, quiet, seeded, t5_encoder, t5_tokenizer

DOCS = Path(__file__).parents[1] / "docs" / "adapters.md"
PROMPTS = ["a cat", "a dog on a mat", "the sea"]
SEEDS = [4, 9, 1]
SETTINGS = {"guidance_scale": 3.0, "height": 64, "width": 32}


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    registry._announced.cache_clear()
    yield
    registry._announced.cache_clear()


@pytest.fixture
def pipe():
    transformer = seeded(
        lambda: AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=64,
            out_channels=4,
        )
    )
    listen(transformer, ("attn.add_k_proj", "attn.add_v_proj", "context_embedder"), 4.0)
    return quiet(
        AuraFlowPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=copy.deepcopy(t5_encoder()),
            vae=copy.deepcopy(autoencoder()),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    )


@pytest.fixture
def adapter():
    """The class that docs/adapters.md shows, from its text."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    namespace = {"__name__": "documented"}
    exec(compile(source, str(DOCS), "exec", dont_inherit=True), namespace)
    return namespace["AuraFlow"]


def test_the_documented_adapter_gives_the_pipelines_images(pipe, adapter):
    register(adapter)
    reference = pipe(
        PROMPTS, num_inference_steps=4, generator=fresh_generators(SEEDS), output_type="latent", **SETTINGS
    )
    model = load(pipe, **SETTINGS)
    assert type(model) is adapter
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=4, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    scale = reference.images.abs().max()
    assert (reference.images[0] - reference.images[1]).abs().max() > 0.01 * scale
    for i, expected in enumerate(reference.images):
        assert (latents[i] - expected).abs().max() < 2e-5 * scale
    shared = hsd.compile(PROMPTS, 1.0, model=model, steps=4)
    assert shared.savings > 0
    assert len(list(hsd.stream(shared, model))) == 3


def test_the_documented_adapter_passes_the_check(pipe, adapter):
    register(adapter)
    assert check(pipe, **SETTINGS).captures


def test_it_can_be_stepped_by_another_scheduler(pipe, adapter):
    register(adapter)
    model, other = load(pipe, **SETTINGS), FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert model.with_scheduler(other).scheduler() is other
    assert model.scheduler() is pipe.scheduler


def test_it_takes_settings_of_single_prompts(pipe, adapter):
    register(adapter)
    own = [{}, {"negative_prompt": "blurry"}, {"guidance_scale": 1.0}]
    model = load(pipe, **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=3, seeds=SEEDS, settings=own)
    images = {image.index: image.pil for image in hsd.stream(plan, model)}
    for i, settings in enumerate(own):
        called = {"negative_prompt": "", **SETTINGS, **settings}
        expected = pipe(PROMPTS[i], num_inference_steps=3, generator=fresh_generators(SEEDS[i : i + 1]), **called)
        assert mean_difference(images[i], expected.images[0]) < 0.5


def announce(folder, monkeypatch, source, target="aura_plugin:AuraFlow"):
    """A package on the path, as pip would install it."""
    (folder / "aura_plugin.py").write_text(source)
    info = folder / "aura_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aura-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hsd.adapters]\nAuraFlowPipeline = {target}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "aura_plugin", raising=False)


def test_an_installed_package_announces_its_adapter(pipe, tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    announce(tmp_path, monkeypatch, source)
    model = load(pipe, **SETTINGS)
    assert type(model).__module__ == "aura_plugin"
    assert "AuraFlowPipeline" in registry.supported()
    plan = hsd.compile(PROMPTS, 1.0, model=model, steps=3)
    assert len(list(hsd.stream(plan, model))) == 3


def test_a_package_whose_adapter_cannot_be_loaded_is_named(pipe, tmp_path, monkeypatch):
    announce(tmp_path, monkeypatch, "import no_such_module")
    with pytest.raises(hsd.Error, match=r"AuraFlowPipeline in aura-plugin \(aura_plugin:AuraFlow\).*no_such_module"):
        load(pipe)


def test_a_package_whose_adapter_is_no_adapter_is_named(pipe, tmp_path, monkeypatch):
    announce(tmp_path, monkeypatch, "AuraFlow = dict")
    with pytest.raises(hsd.Error, match=r"aura-plugin.*cannot be used: .* is not a subclass of hsd\.models\.Adapter"):
        load(pipe)


def test_built_in_pipelines_do_not_ask_packages(monkeypatch):
    entry = EntryPoint("StableDiffusionPipeline", "no_such_module:X", "hsd.adapters")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert type(load(tiny.stable_diffusion())).__name__ == "StableDiffusion"


def test_a_pipeline_without_adapter_names_the_nearest_and_the_five_methods():
    class Sound(DiffusionPipeline):
        def __call__(self, seconds):
            raise NotImplementedError

    with pytest.raises(hsd.UnsupportedPipeline) as caught:
        load(Sound())
    text = str(caught.value)
    assert text.startswith("Sound has no adapter; the nearest that has is ")
    assert "The generic adapter is of no use: Sound has a call without prompt." in text
    for method in ("encode", "scheduler", "latent_shape", "denoise", "decode", "docs/adapters.md", "register"):
        assert method in text


# The bundled model is a Kandinsky 2.2, saved; and a folder does not hold the sizes of a tiny Kandinsky 5.
SAVED = [family for family in FAMILIES if family.name not in ("kandinsky-2.2", "kandinsky-5")]


@pytest.mark.parametrize("family", SAVED, ids=lambda family: family.name)
def test_a_folder_is_loaded_as_what_it_says_it_is(family, tmp_path):
    family.build().save_pretrained(tmp_path)
    model = load(tmp_path, **family.settings(family.guided, family.size))
    assert type(model) is type(load(family.build(), **family.settings(family.guided, family.size)))
    assert model.dtype == torch.float32
    plan = hsd.compile(PROMPTS[:2], 0.0, model=model, steps=3)
    assert len(list(hsd.stream(plan, model))) == 2


def test_a_subclass_is_driven_unless_it_calls_otherwise():
    class Renamed(StableDiffusionPipeline):
        pass

    class Other(StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    components = tiny.stable_diffusion().components
    assert type(load(Renamed(**components, requires_safety_checker=False))).__name__ == "StableDiffusion"
    with pytest.raises(hsd.UnsupportedPipeline, match="Other is a StableDiffusionPipeline with its own __call__"):
        load(Other(**components, requires_safety_checker=False))


def test_registering_what_is_no_adapter():
    with pytest.raises(TypeError, match="is not a subclass"):
        register(dict)

    class Half(Adapter):
        pipelines = ("X",)

        def encode(self, batch):
            raise NotImplementedError

    with pytest.raises(TypeError, match="Half lacks decode, denoise, latent_shape, scheduler"):
        register(Half)


def test_registering_without_saying_what_for(adapter):
    adapter.pipelines = ()
    with pytest.raises(TypeError, match=r"AuraFlow\.pipelines is \(\): name the pipeline classes"):
        register(adapter)


class Remembering(torch.nn.Module):
    """A step cache as people patch them in: every second call returns a mix with the previous call."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.last = inner, None

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args, **kwargs):
        (output,) = self.inner(*args, **kwargs)
        if self.last is not None and self.last.shape == output.shape:
            output = (output + self.last) / 2
        self.last = output
        return (output,)


def test_the_check_finds_what_is_remembered():
    pipe = tiny.stable_diffusion()
    check(pipe)
    pipe.unet = Remembering(pipe.unet)
    with pytest.raises(BrokenAdapter, match=r"denoise: .*off by"):
        check(pipe)


def test_the_check_finds_rows_that_depend_on_the_batch(monkeypatch):
    pipe = tiny.stable_diffusion()
    model = load(pipe)
    whole = type(model).encode

    def centred(self, batch):
        encoded = whole(self, batch)
        tokens = encoded.rows["prompt_embeds"]
        return type(encoded)({"prompt_embeds": tokens - tokens.mean(0)}, encoded.vectors)

    monkeypatch.setattr(type(model), "encode", centred)
    with pytest.raises(BrokenAdapter, match="prompt_embeds of prompt 0 depends on the other prompts"):
        check(model)


def test_the_check_finds_lanes_that_do_not_mix(monkeypatch):
    model = load(tiny.stable_diffusion())
    evaluate = type(model).denoise
    monkeypatch.setattr(type(model), "denoise", lambda self, x, t, rows: evaluate(self, x, t[:1].expand(len(t)), rows))
    with pytest.raises(BrokenAdapter, match="mixed_timesteps = False"):
        check(model)
    monkeypatch.setattr(type(model), "mixed_timesteps", False)
    check(model)


def test_the_check_finds_a_decoder_that_draws_from_elsewhere(monkeypatch):
    model = load(with_decoder(tiny.stable_diffusion(), consistency_decoder))
    check(model)
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda self, latents, generators: decode(self, latents, None))
    with pytest.raises(BrokenAdapter, match="decode gives another image .*generators that it is given"):
        check(model)


def test_what_is_built_in_is_named_as_it_says():
    for pipeline in registry.BUILT_IN:
        adapter = registry.adapter_named(pipeline)
        assert issubclass(adapter, Adapter)
        assert pipeline in adapter.pipelines
    assert sorted(registry.BUILT_IN) == sorted(registry.supported())


def test_a_diffusers_that_lacks_a_pipeline_drives_the_others(monkeypatch):
    def import_module(name, package):
        if name == ".flux2":
            raise ImportError("cannot import name 'compute_empirical_mu'")
        return importlib.import_module(name, package)

    monkeypatch.setattr(registry, "import_module", import_module)
    with pytest.raises(hsd.Error, match=r"adapter of Flux2Pipeline .* diffusers [\d.]+ .*compute_empirical_mu.*latest"):
        registry.adapter_named("Flux2Pipeline")
    assert registry.adapter_named("FluxPipeline").__name__ == "Flux"
