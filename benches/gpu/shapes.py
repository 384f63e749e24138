"""Pipelines of the real diffusers classes at the sizes of the released models, with random weights: no network.

A benchmark of an executor needs only the shapes of a model: the same kernels run on the same sizes with any weights.
So weights are the classes' own initial ones, drawn on the device in half precision, which keep activations
near 1 (a benchmark checks that the output is finite). ``small=True`` gives the same structure at a size for a CPU.

* ``kandinsky``: all of Kandinsky 2.2 at full size (decoder, MoVQ, prior, text encoder); its image encoder, which only
  sees one black image, is smaller than the released one.
* ``sdxl``, ``flux``: denoiser and VAE at full size. Their text encoders have one or two layers, and the real width, so
  that rows of conditioning are as large as the real ones. Give embeddings to cluster by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22CombinedPipeline,
    PriorTransformer,
    StableDiffusionXLPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from hsd.conditioning.rows import Conditioning
from hsd.models import Adapter, Batch, Denoiser, Encoded, Prior, scale_row
from hsd.models.encode import encode
from hsd.models.kandinsky22 import Kandinsky22
from hsd.models.registry import adapter_class

transformers.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()

NAMES = ("kandinsky", "sdxl", "flux")

PARAMETERS = {"kandinsky": 1.253e9, "sdxl": 2.567e9, "flux": 11.90e9}
"""Parameters of the released denoisers."""

KANDINSKY_FLOPS = 1.712e12
"""Operations of one guided evaluation of Kandinsky 2.2's decoder at 512 px, a multiply-add counted as two."""

PIXELS = {"kandinsky": 512, "sdxl": 1024, "flux": 1024}
"""The side of an image that each was trained for."""


@dataclass(eq=False)
class DecoderOnly(Kandinsky22):
    """Kandinsky with image embeddings drawn at random, one per seed, for benchmarks of what comes after the prior."""

    def prior(self) -> Prior | None:
        """No prior is run."""
        return None

    def encode(self, batch: Batch) -> Encoded:
        """Random vectors in place of the prior's, one per prompt."""
        width = self.decoder.unet.config.encoder_hid_dim
        drawn = [torch.randn(width, generator=self.generator(int(seed))) for seed in batch.seeds]
        embeds = torch.stack(drawn).to(self.dtype)
        return Encoded({"image_embeds": embeds}, vectors=embeds)

    def generator(self, seed: int) -> torch.Generator:
        """A new one: no prior has drawn from it."""
        return torch.Generator().manual_seed(seed)


def build(name: str, device: torch.device | str, *, small: bool = False, **settings: Any) -> Adapter:
    """An adapter over a new pipeline: in the family's half precision on a GPU, in float32 on a CPU.

    Raises
    ------
    AssertionError
        If the denoiser does not have the released one's parameters, to 1 %.
    """
    make, half = {
        "kandinsky": (_kandinsky, torch.float16),
        "sdxl": (_sdxl, torch.float16),
        "flux": (_flux, torch.bfloat16),
    }[name]
    device = torch.device(device)
    torch.manual_seed(0)
    pipe = make(small, device, torch.float32 if device.type == "cpu" else half)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    side = 64 if small else PIXELS[name]
    # Not hsd.load, which refuses networks without weights.
    model = adapter_class(pipe)(pipe, **{"height": side, "width": side, **settings})
    if not small:
        count = sum(parameter.numel() for parameter in model.modules()[0].parameters())
        assert abs(count / PARAMETERS[name] - 1) < 0.01, f"{name} has {count:,} parameters, not {PARAMETERS[name]:,.0f}"
    return model


def without_prior(model: Kandinsky22) -> DecoderOnly:
    """The same networks and settings, with image embeddings that cost nothing."""
    return DecoderOnly(model.pipe, **model.settings)


def conditioning(model: Denoiser, prompts: list[str], seeds: Any) -> Conditioning:
    """Rows of all prompts."""
    return encode([model], np.zeros(len(prompts), np.int64), prompts, np.asarray(seeds, np.int64))


def rows(model: Adapter, lanes: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Random rows for ``denoise`` with ``lanes`` lanes, in the sizes and the dtype that ``encode`` returns."""
    how: Any = {"device": model.device, "dtype": model.dtype, "generator": generator}
    drawn = {name: torch.randn(lanes, *size, **how) for name, size in _row_sizes(model).items()}
    scale = scale_row(model.guidance_scale).to(model.device)
    return {**drawn, "guidance_scale": scale.repeat(lanes)}


def _row_sizes(model: Adapter) -> dict[str, tuple[int, ...]]:
    config = model.modules()[0].config
    if isinstance(model, Kandinsky22):
        return {"image_embeds": (config.encoder_hid_dim,), "negative_image_embeds": (config.encoder_hid_dim,)}
    if type(model.pipe) is FluxPipeline:
        tokens = f"prompt_embeds_{model.max_sequence_length}"
        size = (model.max_sequence_length, config.joint_attention_dim)
        return {tokens: size, "pooled_projections": (config.pooled_projection_dim,)}
    one = {
        "prompt_embeds": (77, config.cross_attention_dim),
        "text_embeds": (model.pipe.text_encoder_2.config.projection_dim,),
        "time_ids": (6,),
    }
    return {f"{prefix}{name}": size for name, size in one.items() for prefix in ("", "negative_")}


def inputs(model: Adapter, lanes: int, steps: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Latents, timesteps that differ from lane to lane, and rows: what ``denoise`` takes; the same for equal lanes."""
    generator = torch.Generator(model.device).manual_seed(lanes)
    latents = torch.randn(lanes, *model.latent_shape(), device=model.device, generator=generator)
    sampler = model.sampler(steps)
    step = torch.linspace(0, sampler.n_steps - 1, lanes).long()
    return latents, sampler.timesteps[step].to(model.device), rows(model, lanes, generator)


def flops(model: Adapter, lanes: int = 1) -> int:
    """Floating-point operations of one evaluation of ``lanes``, guidance included; a multiply-add counts as two.

    Counted on a copy of the denoiser without storage, so that nothing runs, and attention is counted for any kernel.
    """
    owner, name = (model.decoder, "unet") if isinstance(model, Kandinsky22) else (model.pipe, None)
    name = name or ("transformer" if type(model.pipe) is FluxPipeline else "unet")
    network = getattr(owner, name)
    with torch.device("meta"):
        twin = type(network).from_config(network.config).to(model.dtype).eval().requires_grad_(False)
    drawn = {key: row.to("meta") for key, row in rows(model, lanes).items()}
    latents, timesteps = (torch.empty(lanes, *size, device="meta") for size in (model.latent_shape(), ()))
    setattr(owner, name, twin)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.denoise(latents, timesteps, drawn)
    finally:
        setattr(owner, name, network)
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _drawn_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Networks built within it are created on the device, in ``dtype``: 12 billion weights in float32 would not fit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


# -- Kandinsky 2.2

KANDINSKY_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 8,  # the model output and its variance
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "block_out_channels": (384, 768, 1152, 1536),
    "layers_per_block": 3,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "cross_attention_dim": 768,
    "addition_embed_type": "image",
    "attention_head_dim": 64,
    "resnet_time_scale_shift": "scale_shift",
}

MOVQ: dict[str, Any] = {
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16384,
    "block_out_channels": (128, 256, 256, 512),
    "layers_per_block": 2,
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),  # attention only at the smallest size
    "norm_type": "spatial",
}


def _kandinsky(small: bool, device: torch.device, dtype: torch.dtype) -> KandinskyV22CombinedPipeline:
    unet, movq, width = KANDINSKY_UNET, MOVQ, 1280
    prior = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20}
    text = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
    image = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    if small:
        width = 32
        channels = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8}
        unet = {**unet, **channels, "encoder_hid_dim": width, "cross_attention_dim": 32, "attention_head_dim": 8}
        movq = {**movq, "block_out_channels": (32,) * 4, "layers_per_block": 1, "norm_num_groups": 8}
        prior = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
        text = {"hidden_size": width, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
        image = text
    with _drawn_on(device, dtype):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "movq": VQModel(**movq),
            "prior_prior": PriorTransformer(embedding_dim=width, **prior),
            "prior_text_encoder": CLIPTextModelWithProjection(_clip_text(width, **text)),
            "prior_image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(image_size=224, patch_size=32 if small else 14, projection_dim=width, **image)
            ),
        }
    nn.init.ones_(networks["prior_prior"].clip_std)  # with the initial zeros all image embeddings would be equal
    return KandinskyV22CombinedPipeline(
        **networks,
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            clip_sample=False,
            thresholding=True,
            sample_max_value=2.0,
            variance_type="learned_range",
        ),
        prior_tokenizer=_clip_tokenizer(),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
        prior_image_processor=CLIPImageProcessor(),
    )


# -- Stable Diffusion XL

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # the pooled text and six sizes
}


def _sdxl(small: bool, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    unet, widths = SDXL_UNET, (768, 1280)
    if small:
        widths = (32, 48)
        unet = {
            **unet,
            "sample_size": 8,
            "block_out_channels": (32, 32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "transformer_layers_per_block": 1,
            "attention_head_dim": (2, 2, 4),
            "cross_attention_dim": sum(widths),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": widths[1] + 6 * 8,
        }
    with _drawn_on(device, dtype):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**_vae(small, latent_channels=4), scaling_factor=0.13025, force_upcast=False),
            "text_encoder": CLIPTextModel(_clip_text(widths[0], **_shallow(widths[0]))),
            "text_encoder_2": CLIPTextModelWithProjection(_clip_text(widths[1], **_shallow(widths[1]))),
        }
    return StableDiffusionXLPipeline(
        **networks,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        add_watermarker=False,
    )


# -- FLUX.1 dev

FLUX_TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}


def _flux(small: bool, device: torch.device, dtype: torch.dtype) -> FluxPipeline:
    transformer, pooled, tokens = FLUX_TRANSFORMER, 768, 4096
    if small:
        pooled, tokens = 32, 48
        transformer = {
            **transformer,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": tokens,
            "pooled_projection_dim": pooled,
            "axes_dims_rope": (4, 6, 6),
        }
    t5 = T5Config(vocab_size=259, d_model=tokens, d_kv=32, d_ff=128, num_layers=1, num_heads=4)
    with _drawn_on(device, dtype):
        vae = _vae(small, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
        networks = {
            "transformer": FluxTransformer2DModel(**transformer),
            "vae": AutoencoderKL(**vae, scaling_factor=0.3611, shift_factor=0.1159),
            "text_encoder": CLIPTextModel(_clip_text(pooled, **_shallow(pooled))),
            "text_encoder_2": T5EncoderModel(t5),
        }
    return FluxPipeline(
        **networks,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=ByT5Tokenizer(extra_ids=0, model_max_length=512),
    )


# -- common parts


def _vae(small: bool, **changes: Any) -> dict[str, Any]:
    return {
        "block_out_channels": (32,) * 4 if small else (128, 256, 512, 512),
        "layers_per_block": 1 if small else 2,
        "norm_num_groups": 8 if small else 32,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "sample_size": 64 if small else 1024,
        **changes,
    }


def _clip_text(projection: int, **sizes: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=projection, **sizes
    )


def _shallow(width: int) -> dict[str, int]:
    """Two layers: SDXL uses the output of the second to last."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // 16,
        "num_hidden_layers": 2,
    }


def _clip_tokenizer() -> CLIPTokenizer:
    """One token per byte; the end token has the highest id, as CLIP's pooling requires."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
