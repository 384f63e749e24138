"""Pipelines that HSD cannot drive are refused when they are loaded, by every family, and the message leads on."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

import hsd
import tiny
from families import FAMILIES, Family
from helpers import adapter_of, share_apart
from hsd.models.generic import Generic
from hsd.models.registry import adapter_class

pytestmark = pytest.mark.faults

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def load(family: Family, pipe):
    return hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))


@pytest.mark.parametrize(
    ("family", "part"), [(family, part) for family in FAMILIES for part in adapter_of(family).needs.parts]
)
def test_without_a_part(family: Family, part):
    """A part set to None, as ``from_pretrained(..., text_encoder=None)`` does."""
    pipe = family.build()
    adapter = adapter_class(family.loadable(pipe))
    for owner in adapter.pipes_of(family.loadable(pipe)):
        if hasattr(owner, part):
            setattr(owner, part, None)
    with pytest.raises(hsd.UnsupportedPipeline, match=rf"Pipeline has no {part}: load the pipeline with it"):
        load(family, pipe)


@families
def test_every_family_names_the_parts_that_it_cannot_be_without(family: Family):
    adapter = adapter_class(family.loadable(family.build()))
    pipes = adapter.pipes_of(family.loadable(family.build()))
    assert all(any(hasattr(pipe, part) for pipe in pipes) for part in adapter.needs.parts)
    # What it does not name, the pipeline itself can be without, or it is the checker of finished images.
    may_lack = {"safety_checker", "feature_extractor", "image_encoder", "image_processor", "text_encoder_3"}
    may_lack |= {"tokenizer_3", "text_encoder", "tokenizer"}  # the last two: of SDXL, see below
    may_lack |= {"pe", "pe_tokenizer"}  # which enhance prompts
    rest = {name for pipe in pipes for name in pipe.components} - set(adapter.needs.parts)
    assert rest <= may_lack


def test_sdxl_without_its_first_text_encoder():
    for part in ("text_encoder", "tokenizer"):
        pipe = tiny.sdxl()
        setattr(pipe, part, None)
        with pytest.raises(hsd.UnsupportedPipeline, match=rf"XLPipeline has no {part}: load the pipeline with it"):
            hsd.load(pipe)


@families
def test_on_the_meta_device(family: Family):
    pipe = family.to(family.build(), torch.float32)
    adapter = adapter_class(family.loadable(pipe))
    for owner in adapter.pipes_of(family.loadable(pipe)):
        for name, part in list(vars(owner).items()):
            if isinstance(part, torch.nn.Module):
                setattr(owner, name, part.to("meta"))
    with pytest.raises(hsd.UnsupportedPipeline, match=r"on the meta device.*from_pretrained"):
        load(family, pipe)


def test_one_network_on_the_meta_device():
    pipe = tiny.stable_diffusion()
    pipe.vae.to("meta")
    with pytest.raises(hsd.UnsupportedPipeline, match="StableDiffusionPipeline has a vae on the meta device"):
        hsd.load(pipe)


def test_sequential_offloading_leaves_weights_on_the_meta_device_and_is_fine():
    from accelerate import cpu_offload

    pipe = tiny.stable_diffusion()
    for name in ("unet", "text_encoder", "vae"):  # as enable_sequential_cpu_offload does; the device is the host here
        cpu_offload(getattr(pipe, name), torch.device("cpu"))
    assert any(weight.is_meta for weight in pipe.unet.parameters())
    model = hsd.load(pipe, height=32, width=32)
    expected = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    plans = [hsd.compile(["a cat"], 0.0, model=each, steps=2) for each in (model, expected)]
    found, wanted = (next(iter(hsd.stream(p, m))).pil for p, m in zip(plans, (model, expected), strict=True))
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if not f.name.startswith(("karlo", "unclip"))], ids=lambda f: f.name
)
def test_an_ip_adapter(family: Family):
    pipe = family.build()
    owner = adapter_class(family.loadable(pipe)).pipes_of(family.loadable(pipe))[-1]
    denoiser = getattr(owner, "transformer", None) or owner.unet
    denoiser.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 32, 2)])
    with pytest.raises(hsd.UnsupportedPipeline, match=r"IP-Adapter.*unload_ip_adapter"):
        load(family, pipe)


def test_an_ip_adapter_as_diffusers_loads_it():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    pipe = tiny.stable_diffusion()
    rank, width = 4, pipe.unet.config.cross_attention_dim
    state = {"image_proj": {"proj.weight": torch.zeros(rank * width, 16), "proj.bias": torch.zeros(rank * width)}}
    state["image_proj"] |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    layers = [name for name in pipe.unet.attn_processors if "attn2" in name]
    state["ip_adapter"] = {}
    for i, name in enumerate(pipe.unet.attn_processors):
        if name in layers:
            module = pipe.unet.get_submodule(name.removesuffix(".processor"))
            for key in ("to_k_ip", "to_v_ip"):
                state["ip_adapter"][f"{i}.{key}.weight"] = torch.zeros_like(module.to_k.weight)
    pipe.unet._load_ip_adapter_weights([state])
    assert any(isinstance(each, IPAdapterAttnProcessor2_0) for each in pipe.unet.attn_processors.values())
    with pytest.raises(hsd.UnsupportedPipeline, match=r"IP-Adapter.*set ip_adapter_image.*unload_ip_adapter"):
        hsd.load(pipe)
    pipe.unload_ip_adapter()
    hsd.load(pipe)  # the advice leads on


def test_a_pipeline_that_is_changed_after_it_was_loaded():
    pipe = tiny.stable_diffusion()
    model = hsd.load(pipe, height=32, width=32)
    plan = hsd.compile(["a cat"], 1.0, model=model, steps=2)
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 32, 2)])
    with pytest.raises(hsd.UnsupportedPipeline, match="IP-Adapter"):
        hsd.stream(plan, model)


@pytest.mark.parametrize(
    ("channels", "use"),
    [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth-to-image"), (7, "upscaling"), (13, "13")],
)
@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.sdxl], ids=["sd", "sdxl"])
def test_a_unet_of_another_task(build, channels, use):
    pipe = build()
    pipe.unet = type(pipe.unet).from_config({**pipe.unet.config, "in_channels": channels})
    with pytest.raises(hsd.UnsupportedPipeline, match=rf"{channels} input channels.*text to image has 4") as caught:
        hsd.load(pipe)
    assert use in str(caught.value)


@pytest.mark.parametrize("times", [2, 6])
def test_a_flux_of_another_task(times):
    """FLUX Control reads twice the channels, FLUX Fill six times as many."""
    pipe = tiny.flux()
    config = {**pipe.transformer.config, "in_channels": 64 * times, "out_channels": 64}
    pipe.transformer = type(pipe.transformer).from_config(config)
    with pytest.raises(hsd.UnsupportedPipeline, match=rf"FluxPipeline.*{64 * times} input channels.*has 64"):
        hsd.load(pipe)


def test_a_decoder_of_another_latent():
    pipe = tiny.stable_diffusion()
    pipe.vae = AutoencoderKL(latent_channels=16, block_out_channels=[32], norm_num_groups=8)
    with pytest.raises(hsd.UnsupportedPipeline, match="4 input channels, where text to image has 16"):
        hsd.load(pipe)


def test_a_unet_with_classes():
    pipe = tiny.stable_diffusion()
    config = {name: value for name, value in pipe.unet.config.items() if name != "_use_default_values"}
    pipe.unet = type(pipe.unet).from_config({**config, "num_class_embeds": 10})
    with pytest.raises(hsd.UnsupportedPipeline, match="class embedding"):
        hsd.load(pipe)


def test_an_sdxl_refiner():
    pipe = tiny.sdxl()
    config = {**pipe.unet.config}
    config["projection_class_embeddings_input_dim"] -= config["addition_time_embed_dim"]
    config["cross_attention_dim"] = pipe.text_encoder_2.config.hidden_size
    pipe.unet = type(pipe.unet).from_config(config)
    pipe.text_encoder = pipe.tokenizer = None
    with pytest.raises(hsd.UnsupportedPipeline, match="refiner's UNet.*pass the base model"):
        hsd.load(pipe)


@pytest.mark.parametrize("name", ["controlnet", "adapter", "motion_adapter"])
def test_a_network_for_a_control_image(name):
    pipe = tiny.stable_diffusion()
    setattr(pipe, name, torch.nn.Linear(2, 2))
    with pytest.raises(hsd.UnsupportedPipeline, match=f"has a {name}.*pass a pipeline without it"):
        hsd.load(pipe)


def test_a_gligen_unet_makes_images_from_text_as_in_the_pipeline():
    """It is not refused: StableDiffusionPipeline gives it no boxes, and it needs none."""
    pipe = tiny.stable_diffusion()
    config = {name: value for name, value in pipe.unet.config.items() if name != "_use_default_values"}
    pipe.unet = type(pipe.unet).from_config({**config, "attention_type": "gated"})
    assert hasattr(pipe.unet, "position_net")
    model = hsd.load(pipe, height=32, width=32)
    [found] = hsd.stream(hsd.compile(["a cat"], 0.0, model=model, steps=2, seeds=[3]), model)
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(3)}
    assert share_apart(found.pil, pipe("a cat", **options).images[0]) < 0.01


def test_a_unet_for_videos():
    from diffusers import UNetMotionModel

    pipe = tiny.stable_diffusion()
    unet = copy.copy(pipe.unet)
    unet.__class__ = type("UNetMotionModel", (type(unet),), {})
    assert UNetMotionModel.__name__ == type(unet).__name__
    pipe.unet = unet
    with pytest.raises(hsd.UnsupportedPipeline, match="UNetMotionModel.*UNet2DConditionModel"):
        hsd.load(pipe)


@pytest.mark.parametrize(
    ("kind", "relative"),
    [
        ("StableDiffusionInpaintPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionXLInpaintPipeline", "StableDiffusionXLPipeline"),
        ("StableDiffusionXLControlNetImg2ImgPipeline", "StableDiffusionXLPipeline"),
        ("StableDiffusion3InpaintPipeline", "StableDiffusion3Pipeline"),
        ("FluxFillPipeline", "FluxPipeline"),
        ("KandinskyV22InpaintCombinedPipeline", "KandinskyV22CombinedPipeline"),
        ("QwenImageEditPipeline", "QwenImagePipeline"),
    ],
)
def test_pipelines_for_other_tasks_lead_to_the_class_for_text(kind, relative):
    if not hasattr(diffusers, kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {kind}")
    pipe = object.__new__(getattr(diffusers, kind))
    with pytest.raises(hsd.UnsupportedPipeline, match=rf"{kind} has no adapter.*diffusers.{relative}.from_pipe.pipe."):
        hsd.load(pipe)


@pytest.mark.parametrize("kind", ["SanaSprintPipeline", "StableDiffusionPAGPipeline", "StableDiffusionSAGPipeline"])
def test_pipelines_for_text_are_tried_with_their_own_code(kind):
    """They make images in another way than the class whose networks they have."""
    if not hasattr(diffusers, kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {kind}")
    stock = tiny.sana() if "Sana" in kind else tiny.stable_diffusion()
    options = {} if "Sana" in kind else {"requires_safety_checker": False}
    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    parts = {name: part for name, part in stock.components.items() if name in taken}
    assert adapter_class(getattr(diffusers, kind)(**parts, **options)) is Generic


def test_a_pipeline_for_text_that_cannot_be_tried_says_why():
    pipe = object.__new__(diffusers.StableDiffusionAttendAndExcitePipeline)
    with pytest.raises(hsd.UnsupportedPipeline, match="cannot be called without token_indices") as caught:
        hsd.load(pipe)
    assert "from_pipe" not in str(caught.value)


def test_a_pipeline_with_other_networks_does_not_lead_there():
    """Sana for videos has a transformer of its own, so it cannot be made a SanaPipeline."""
    pipe = object.__new__(diffusers.SanaImageToVideoPipeline)
    with pytest.raises(hsd.UnsupportedPipeline, match="has no adapter") as caught:
        hsd.load(pipe)
    assert "from_pipe" not in str(caught.value)


def test_the_advice_for_other_tasks_leads_on():
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pipe(tiny.stable_diffusion())
    with pytest.raises(hsd.UnsupportedPipeline, match="StableDiffusionPipeline.from_pipe"):
        hsd.load(pipe)
    hsd.load(diffusers.StableDiffusionPipeline.from_pipe(pipe))


def test_an_inpainting_model_in_a_folder_is_refused_by_its_channels(tmp_path):
    """diffusers' own choice of a text-to-image class for it would leave the other five channels out."""
    pipe = tiny.stable_diffusion()
    pipe.unet = type(pipe.unet).from_config({**pipe.unet.config, "in_channels": 9})
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"))
    with pytest.raises(hsd.UnsupportedPipeline, match="9 input channels .inpainting"):
        hsd.load(tmp_path, device="cpu")
