"""Models that are placed as people place them: offloading, layerwise casting, ``device_map``, compiled modules.

The stock pipeline, placed in the same way, is the witness. On a CPU hooks move nothing, and run all the same.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers import DiffusionPipeline
from torch import nn

import hsd
import tiny
from device import emulated
from device.runs import on_the_device, padded, run_of, same
from helpers import fresh_generators, latents_of, mean_difference
from hsd.generation.differences import model_differences
from hsd.models import check
from hsd.models.identity import image_identity

PROMPTS = ["a cat", "a cat on a mat", "the sea at night"]
SEEDS = [11, 5, 42]
STEPS = 2
CPU = torch.device("cpu")

FAMILIES = {
    "sd": (tiny.stable_diffusion, "unet", {"guidance_scale": 4.0, "height": 32, "width": 32}),
    "sd3": (tiny.sd3, "transformer", {"guidance_scale": 4.0, "height": 64, "width": 64, "max_sequence_length": 64}),
}


def networks_of(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


# ------------------------------------------------------------------------------- ways to place a pipeline


def whole(action):
    def change(pipe, part, folder):
        action(pipe)
        return pipe

    return change


def of_denoiser(action):
    def change(pipe, part, folder):
        action(getattr(pipe, part))
        return pipe

    return change


def sequentially(pipe):
    """As ``enable_sequential_cpu_offload`` does; the device is the host here."""
    for network in networks_of(pipe).values():
        cpu_offload(network, CPU)


def in_groups(**options):
    where = {"onload_device": CPU, "offload_device": CPU}
    return lambda pipe_or_network: pipe_or_network.enable_group_offload(**where, **options)


def groups_on_disk(pipe, part, folder):
    for name, network in networks_of(pipe).items():
        if hasattr(network, "enable_group_offload"):  # each has its own folder: all of them use the same names of files
            in_groups(offload_type="leaf_level", offload_to_disk_path=str(folder / name))(network)
    return pipe


def loaded_with(device_map):
    def change(pipe, part, folder):
        pipe.save_pretrained(folder)
        found = DiffusionPipeline.from_pretrained(folder, device_map=device_map)
        found.set_progress_bar_config(disable=True)
        return found

    return change


def denoiser_partly_on_disk(pipe, part, folder):
    network = getattr(pipe, part)
    network.save_pretrained(folder / "network")
    places = {name: ("cpu", "disk")[i % 2] for i, (name, _) in enumerate(network.named_children())}
    kind = type(network)
    placed = kind.from_pretrained(folder / "network", device_map=places, offload_folder=folder / "offloaded")
    setattr(pipe, part, placed)
    return pipe


def casting(network):
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def casting_in_groups(network):
    casting(network)
    in_groups(offload_type="leaf_level")(network)


PLACED = {
    "model offload": whole(lambda pipe: pipe.enable_model_cpu_offload(device="cpu")),
    "sequential offload": whole(sequentially),
    "groups, leaves": whole(in_groups(offload_type="leaf_level")),
    "groups, blocks": whole(in_groups(offload_type="block_level", num_blocks_per_group=1)),
    "groups on disk": groups_on_disk,
    "device_map balanced": loaded_with("balanced"),
    "device_map of the denoiser": denoiser_partly_on_disk,
    "layerwise casting": of_denoiser(casting),
    "layerwise casting in groups": of_denoiser(casting_in_groups),
    "compiled blocks": of_denoiser(lambda network: network.compile_repeated_blocks(backend="eager", dynamic=True)),
}

MOVE_NOTHING = {"device_map balanced", "compiled blocks"}


# ------------------------------------------------------------------------------- the pipeline is the witness


def stock(pipe, settings, output_type="latent"):
    generators = fresh_generators(SEEDS)
    return pipe(PROMPTS, num_inference_steps=STEPS, generator=generators, output_type=output_type, **settings).images


def apart(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


WITH_SD3 = ("model offload", "groups, leaves", "device_map of the denoiser", "layerwise casting")
"""Three text encoders, and a transformer."""


@pytest.mark.parametrize(("way", "family"), [*((way, "sd") for way in PLACED), *((way, "sd3") for way in WITH_SD3)])
def test_a_placed_model_gives_the_images_of_its_pipeline(way, family, tmp_path):
    build, part, settings = FAMILIES[family]
    unplaced = build()
    plain, identity = stock(unplaced, settings), image_identity(hsd.load(unplaced, **settings))
    pipe = PLACED[way](build(), part, tmp_path)
    expected = stock(pipe, settings)
    is_cast = way.startswith("layerwise")
    assert (apart(expected, plain) > 1e-3) == is_cast
    model = hsd.load(pipe, **settings)
    before = image_identity(model)
    assert model_differences(identity, before) == ([f"{part}: other weights"] if is_cast else [])
    assert model.offloads == (way not in MOVE_NOTHING)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    latents = latents_of(plan, model, batch_size=2)
    assert apart(torch.cat([latents[i] for i in range(len(PROMPTS))]), expected) < 2e-5
    assert model_differences(before, image_identity(model)) == []
    runs = [{image.index: image.pil for image in hsd.stream(plan, model, batch_size=2)} for _ in range(2)]
    for i, image in enumerate(stock(pipe, settings, "pil")):
        assert mean_difference(runs[0][i], image) < 0.5
        assert runs[0][i].tobytes() == runs[1][i].tobytes()
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["groups, leaves", "layerwise casting"])
def test_calls_that_convert_or_move_weights_are_not_captured(way, tmp_path):
    """They would be read from where they were in the call that was captured."""
    build, part, settings = FAMILIES["sd"]
    model = hsd.load(PLACED[way](build(), part, tmp_path), **settings)
    assert str(check(model)) == "cannot capture, because hooks move or convert the model's weights for each call"
    assert model.graph_key() is None


def test_components_on_two_devices():
    """As ``device_map="balanced"`` places them on a machine with two GPUs: hooks move what goes in and comes out."""
    settings = FAMILIES["sd"][2]
    pipe = tiny.stable_diffusion()
    with padded():
        plan = hsd.compile(PROMPTS, 0.8, model=hsd.load(pipe, **settings), steps=STEPS)
        expected = run_of(plan, hsd.load(pipe, **settings), False)
    with emulated(0, 0.5), on_the_device():
        for name, index in (("text_encoder", 0), ("vae", 0), ("unet", 1)):
            dispatch_model(getattr(pipe, name), {"": index}, force_hooks=True)
        model = hsd.load(pipe, **settings)
        assert model.device == torch.device("cuda", 0)
        assert {weight.device.index for weight in pipe.unet.parameters()} == {1}
        assert all(map(same, run_of(plan, model, False), expected))


# ------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_in_half_precision_is_that_in_all_its_networks(family, tmp_path):
    """And it is the pipeline that diffusers loads, so that noise is drawn in the same dtype."""
    build, _, settings = FAMILIES[family]
    build().save_pretrained(tmp_path)
    model = hsd.load(tmp_path, dtype=torch.bfloat16, **settings)
    pipe = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {name: part.dtype for name, part in networks_of(model.pipe).items()} == dict.fromkeys(
        networks_of(pipe), torch.bfloat16
    )
    assert model.dtype == model.noise_dtype == torch.bfloat16
    assert model_differences(image_identity(hsd.load(pipe, **settings)), image_identity(model)) == []


def test_a_text_encoder_in_another_dtype_than_the_denoiser():
    """The noise is drawn in the text encoder's dtype. The pipeline itself refuses to multiply the two; HSD converts."""
    pipe, settings = tiny.stable_diffusion(), FAMILIES["sd"][2]
    pipe.text_encoder.to(torch.bfloat16)
    model = hsd.load(pipe, **settings)
    assert (model.dtype, model.noise_dtype) == (torch.float32, torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        stock(pipe, settings)
    plan = hsd.compile(PROMPTS, 0.0, model=model, steps=STEPS, seeds=SEEDS)
    assert len(list(hsd.stream(plan, model))) == len(PROMPTS)
