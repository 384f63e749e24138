"""Quantised models as people load them: torchao, bitsandbytes, GGUF and optimum-quanto.

The stock pipeline with the same quantised network is the witness. What is quantised is the tiny pipelines' own network,
so that it is known how far the quantisation itself moves the images: much farther than HSD is from the pipeline.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import hsd
import tiny
from helpers import encoded, fresh_generators, latents_of, mean_difference, rows_of
from hsd.generation.differences import model_differences
from hsd.models import check
from hsd.models.identity import image_identity
from hsd.models.precision import in_float32, in_half_precision
from hsd.models.weights import digest, weights_of

PROMPTS = ["a cat", "a cat on a mat", "the sea at night"]
SEEDS = [11, 5, 42]
STEPS = 2

FAMILIES = {
    "sd": (tiny.stable_diffusion, "unet", {"guidance_scale": 4.0, "height": 32, "width": 32}),
    "sd3": (tiny.sd3, "transformer", {"guidance_scale": 4.0, "height": 64, "width": 64, "max_sequence_length": 64}),
}

# torch and torchao, of each other; bitsandbytes, of the dtype that its kernels take.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore::FutureWarning")


# ------------------------------------------------------------------------------- ways to quantise


def torchao(config, **options):
    def change(network):
        from torchao import quantization

        options.setdefault("set_inductor_config", False)
        quantization.quantize_(network, getattr(quantization, config)(**options))

    return change


def per_tensor(network):
    from torchao.quantization.granularity import PerTensor

    torchao("Int8DynamicActivationInt8WeightConfig", granularity=PerTensor())(network)


def bitsandbytes(make):
    """Each linear layer as diffusers replaces it; on a CPU its own ``from_pretrained`` refuses to."""

    def change(network):
        package = pytest.importorskip("bitsandbytes", reason="NOT TESTED: bitsandbytes is not installed")
        for path, layer in list(network.named_modules()):
            if type(layer) is nn.Linear:
                network.set_submodule(path, make(package.nn, layer).to("cpu"))

    return change


def four_bits(kind, nested=False):
    def make(package, layer):
        options = {"quant_type": kind, "compress_statistics": nested}
        new = package.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=layer.weight.dtype, **options
        )
        new.weight = package.Params4bit(layer.weight.data.clone(), requires_grad=False, **options)
        new.bias = layer.bias
        new.support_avx512bf16_for_cpu = False  # it would pack the weights of this CPU anew
        return new

    return bitsandbytes(make)


def eight_bits(threshold):
    def make(package, layer):
        new = package.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=threshold
        )
        new.weight = package.Int8Params(layer.weight.data.clone(), requires_grad=False)
        new.bias = layer.bias
        return new

    return bitsandbytes(make)


def quanto(kind):
    def change(network):
        package = pytest.importorskip("optimum.quanto", reason="NOT TESTED: optimum-quanto is not installed")
        package.quantize(network, weights=getattr(package, kind))
        package.freeze(network)

    return change


QUANTISED = {
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao float8": torchao("Float8WeightOnlyConfig"),
    "torchao int8-dynamic": torchao("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes nf4": four_bits("nf4"),
    "bitsandbytes fp4": four_bits("fp4"),
    "bitsandbytes nf4, nested": four_bits("nf4", nested=True),
    "bitsandbytes int8": eight_bits(0.0),
    "quanto int8": quanto("qint8"),
    "quanto float8": quanto("qfloat8"),
}

TOLERANCE = {"torchao int8-dynamic": 2e-2}
"""Of the latents' range. It rounds inputs of layers to 8 bits: what is at the edge of a step falls to one side or the
other. All others: rounding of float32."""


# ------------------------------------------------------------------------------- the pipeline is the witness


def stock(pipe, settings, output_type="latent", prompts=PROMPTS, seeds=SEEDS):
    generators = fresh_generators(seeds)
    return pipe(prompts, num_inference_steps=STEPS, generator=generators, output_type=output_type, **settings).images


def ours(model, batch_size=2):
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=batch_size)
    return plan, torch.cat([latents[i] for i in range(len(PROMPTS))])


def apart(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


@pytest.mark.parametrize(("way", "family"), [*((way, "sd") for way in QUANTISED), ("torchao int8", "sd3")])
def test_a_quantised_denoiser_gives_the_images_of_its_pipeline(way, family):
    build, part, settings = FAMILIES[family]
    pipe = build()
    plain = stock(pipe, settings)
    QUANTISED[way](getattr(pipe, part))
    expected, tolerance = stock(pipe, settings), TOLERANCE.get(way, 2e-5)
    assert apart(expected, plain) > 100 * tolerance or way in TOLERANCE
    model = hsd.load(pipe, **settings)
    before = image_identity(model)
    plan, found = ours(model)
    assert apart(found, expected) < tolerance
    assert model_differences(before, image_identity(model)) == []  # bitsandbytes moves scales in the first call
    runs = [{image.index: image.pil for image in hsd.stream(plan, model, batch_size=2)} for _ in range(2)]
    for i, image in enumerate(stock(pipe, settings, "pil")):
        assert mean_difference(runs[0][i], image) < 0.5
        assert runs[0][i].tobytes() == runs[1][i].tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_file(kind, tmp_path):
    gguf = pytest.importorskip("gguf", reason="NOT TESTED: gguf is not installed")
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    settings = {"height": 32, "width": 32, "max_sequence_length": 64}
    pipe = tiny.flux()
    plain = stock(pipe, settings)
    pipe.transformer.save_config(tmp_path / "transformer")
    write_gguf(gguf, pipe.transformer, tmp_path / "model.gguf", getattr(gguf.GGMLQuantizationType, kind))
    pipe.transformer = FluxTransformer2DModel.from_single_file(
        str(tmp_path / "model.gguf"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        config=str(tmp_path),
        subfolder="transformer",
        dtype=torch.float32,
    )
    expected = stock(pipe, settings)
    assert apart(expected, plain) > 2e-3
    model = hsd.load(pipe, **settings)
    assert apart(ours(model)[1], expected) < 2e-5
    assert str(check(model)) == ("not checked, because weights of FluxTransformer2DModel are of the type GGUFParameter")


def write_gguf(gguf, network, path, kind):
    """Matrices in the type of numbers ``kind``; the rest, and those that do not fill its blocks, in float32."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        if values.ndim == 2 and values.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ------------------------------------------------------------------------------- folders of quantised models


def test_a_folder_with_a_quantised_network(tmp_path):
    """diffusers' own way: quantised while it is loaded, saved, and loaded by HSD by its name; bfloat16 throughout."""
    from diffusers import DiffusionPipeline, PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    tiny.sd3().save_pretrained(tmp_path / "whole")
    config = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "whole", quantization_config=config, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "int8")
    settings = FAMILIES["sd3"][2]
    made, named = hsd.load(pipe, **settings), hsd.load(tmp_path / "int8", dtype=torch.bfloat16, **settings)
    assert type(named.pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    networks = {name: part for name, part in named.pipe.components.items() if isinstance(part, nn.Module)}
    assert {name: part.dtype for name, part in networks.items()} == dict.fromkeys(networks, torch.bfloat16)
    assert model_differences(image_identity(made), image_identity(named)) == []
    latents = ours(made)[1]
    assert torch.equal(ours(named)[1], latents)
    assert apart(latents, stock(pipe, settings)) < 0.1  # the pipeline steps in bfloat16, HSD in float32


def test_a_folder_that_needs_what_is_not_here_says_so(tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path)
    path = tmp_path / "unet" / "config.json"
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    with pytest.raises(hsd.UnknownModel, match=r"cannot load .*(No GPU found|bitsandbytes)"):
        hsd.load(tmp_path)


# ------------------------------------------------------------------------------- which model it is


def unet_state(change=None, scale=1.0):
    pipe = tiny.stable_diffusion()
    with torch.no_grad():
        pipe.unet.mid_block.attentions[0].proj_in.weight.mul_(scale)
        for layer in pipe.unet.modules():
            if type(layer) is nn.Linear:
                layer.weight.mul_(scale)
    if change is not None:
        change(pipe.unet)
    return image_identity(hsd.load(pipe))


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes", "quanto"])
def test_quantisations_are_told_apart(package):
    """By codes, scales and how a layer multiplies; the same one, made twice, is one model."""
    ways = {name: change for name, change in QUANTISED.items() if name.startswith(package)}
    found = {"none": unet_state(), **{name: unet_state(change) for name, change in ways.items()}}
    for one, before in found.items():
        assert model_differences(before, unet_state(ways.get(one))) == []
        for other, now in found.items():
            assert bool(model_differences(before, now)) == (one != other), (one, other)


@pytest.mark.parametrize("way", ["torchao int8", "bitsandbytes int8", "bitsandbytes nf4, nested", "quanto int8"])
def test_scales_count(way):
    """Weights twice as large have the same codes."""
    before, now = (unet_state(QUANTISED[way], scale) for scale in (1.0, 2.0))
    assert model_differences(before, now) == ["unet: other weights"]


def test_the_package_is_among_the_versions_if_it_is_used():
    import torchao as package

    assert unet_state(QUANTISED["torchao int8"])["versions"]["torchao"] == package.__version__
    assert "torchao" not in unet_state()["versions"]


def test_captured_calls_read_the_parts_of_a_weight():
    """The weight itself has no address. Where one of its parts is another tensor, calls are captured again."""
    pipe = tiny.stable_diffusion()
    QUANTISED["torchao int8"](pipe.unet)
    model, layer = hsd.load(pipe), pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    before, own, scale = model.graph_key(), layer.weight, layer.weight.scale
    assert model.graph_key() == before
    own.scale = scale.clone()
    assert model.graph_key() != before
    own.scale = scale
    layer.weight = nn.Parameter(copy.deepcopy(own.data), requires_grad=False)
    assert model.graph_key() != before
    layer.weight = own
    assert model.graph_key() == before


def test_captured_calls_read_the_scales_of_a_weight_in_4_bits():
    pipe = tiny.stable_diffusion()
    QUANTISED["bitsandbytes nf4"](pipe.unet)
    model, layer = hsd.load(pipe), pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    before, state = model.graph_key(), layer.weight.quant_state
    own = state.absmax
    state.absmax = own.clone()
    assert model.graph_key() != before
    state.absmax = own
    assert model.graph_key() == before


# ------------------------------------------------------------------------------- rows that are rounded together


def outliers(network):
    eight_bits(2.0)(network)


MIXING = {"torchao, per tensor": per_tensor, "bitsandbytes, outliers": outliers}


@pytest.mark.parametrize("way", MIXING)
def test_a_text_encoder_that_mixes_prompts_gets_one_at_a_time(way):
    pipe = tiny.stable_diffusion()
    MIXING[way](pipe.text_encoder)
    settings = FAMILIES["sd"][2]
    model = hsd.load(pipe, **settings)
    assert model.encodes_alone
    together = rows_of(encoded(model, PROMPTS, SEEDS), "prompt_embeds")
    for prompt, seed, row in zip(PROMPTS, SEEDS, together, strict=True):
        assert torch.equal(row, rows_of(encoded(model, [prompt], [seed]), "prompt_embeds")[0])
    alone = [stock(pipe, settings, prompts=[p], seeds=[s]) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert apart(ours(model)[1], torch.cat(alone)) < 2e-5
    if way == "torchao, per tensor":  # the test can fail: diffusers encodes them together
        assert apart(stock(pipe, settings), torch.cat(alone)) > 1e-3


def test_a_denoiser_that_mixes_lanes_is_named():
    pipe = tiny.stable_diffusion()
    per_tensor(pipe.unet)
    settings = FAMILIES["sd"][2]
    with pytest.warns(hsd.Notice, match=r"UNet2DConditionModel is quantised so that all rows .* batch_size=1 avoids"):
        model = hsd.load(pipe, **settings)
    assert not model.encodes_alone
    alone = torch.cat([stock(pipe, settings, prompts=[p], seeds=[s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    one_by_one, together = apart(ours(model, 1)[1], alone), apart(ours(model, 3)[1], alone)
    assert one_by_one < 2e-2  # inputs are rounded to 8 bits
    assert together > 2 * one_by_one
    with pytest.raises(hsd.models.BrokenAdapter, match="lane 0 depends on the other lanes"):
        check(model)


def test_the_threshold_of_8_bits_counts():
    assert model_differences(unet_state(eight_bits(0.0)), unet_without_notice(eight_bits(6.0))) == [
        "unet: other settings of its layers (they were changed in place)"
    ]


def unet_without_notice(change):
    with pytest.warns(hsd.Notice, match="llm_int8_threshold=0"):
        return unet_state(change)


# ------------------------------------------------------------------------------- numbers that nothing computes in


def test_float8_that_nothing_computes_in_is_refused_when_it_is_loaded():
    from diffusers.hooks import apply_layerwise_casting

    pipe = tiny.stable_diffusion()
    pipe.unet.to(torch.float8_e4m3fn)
    with pytest.raises(hsd.UnsupportedPipeline, match=r"has a unet in float8_e4m3fn.*pipe\.unet\.enable_layerwise_cas"):
        hsd.load(pipe)
    pipe = tiny.sd3()
    apply_layerwise_casting(pipe.text_encoder_3, torch.float8_e5m2, torch.bfloat16)
    with pytest.raises(hsd.UnsupportedPipeline, match=r"has a text_encoder_3 in float8_e5m2.*half precision, or quant"):
        hsd.load(pipe)
    with pytest.raises(RuntimeError):  # nor can the pipeline
        stock(pipe, FAMILIES["sd3"][2])


# ------------------------------------------------------------------------------- decoders that overflow


def casting(network):
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16)


def casting_everything(network):
    options = {"skip_modules_pattern": None, "skip_modules_classes": ()}
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16, **options)


DECODERS = {
    "half": lambda network: None,
    "layerwise casting": casting,
    "layerwise casting of all": casting_everything,
    **{way: QUANTISED[way] for way in ("torchao int8", "bitsandbytes nf4", "bitsandbytes int8")},
}


def overflowing(vae):
    """In float16, with large weights at its end, but none that a float of 8 bits could not hold."""
    vae.to(torch.float16)
    vae.decoder.conv_norm_out.weight.data.mul_(300)
    vae.decoder.conv_out.weight.data.mul_(3000)
    return vae


@pytest.mark.parametrize("way", DECODERS)
def test_a_decoder_that_overflows_is_in_float32_meanwhile(way):
    """And afterwards exactly what it was. It decodes as the same network in float32 does."""
    vae = overflowing(tiny.stable_diffusion().vae)
    DECODERS[way](vae)
    latents = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def decoded():
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0]

    half, before = decoded(), digest(weights_of(vae))
    assert half.dtype == vae.dtype == torch.float16
    assert not half.isfinite().all()
    assert in_half_precision([vae])
    with in_float32([vae]):
        image = decoded()
        assert digest(weights_of(vae)) == before
        assert image.isfinite().all()
    assert image.abs().max() > 65504
    assert digest(weights_of(vae)) == before
    assert vae.dtype == torch.float16
    assert torch.equal(decoded().nan_to_num(), half.nan_to_num())


@pytest.mark.parametrize("way", DECODERS)
def test_a_run_repairs_what_overflows(way):
    pipe = tiny.stable_diffusion()
    DECODERS[way](overflowing(pipe.vae))
    model = hsd.load(pipe, **FAMILIES["sd"][2])
    with pytest.warns(hsd.Notice, match="decoder overflows in half precision"):
        images = list(hsd.stream(hsd.compile(PROMPTS[:2], 0.0, model=model, steps=1), model))
    assert [image.upcast for image in images] == [True, True]


def groups_on_disk(folder):
    where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    return lambda network: network.enable_group_offload(
        **where, offload_type="leaf_level", offload_to_disk_path=str(folder)
    )


@pytest.mark.parametrize("way", ["quanto int8", "groups on disk"])
def test_what_cannot_be_float32_fails_by_itself(way, tmp_path):
    """The run goes on, the reason is told, and the decoder is what it was."""
    pipe = tiny.stable_diffusion()
    change = QUANTISED.get(way) or groups_on_disk(tmp_path)
    change(overflowing(pipe.vae))
    before, failures = digest(weights_of(pipe.vae)), []
    model = hsd.load(pipe, **FAMILIES["sd"][2])
    plan = hsd.compile(PROMPTS[:2], 0.0, model=model, steps=1)
    assert list(hsd.stream(plan, model, failed=failures.append)) == []
    assert [failure.stage for failure in failures] == ["decode", "decode"]
    assert "NaN or infinite values, in float32 too" in failures[0].reason
    assert digest(weights_of(pipe.vae)) == before
    assert pipe.vae.dtype == torch.float16
