"""Tiny diffusers pipelines with seeded random weights: complete, offline and fast, for parity tests.

Each builder returns a fresh pipeline object in float32 on the CPU; the same call gives the same weights.  Nothing is
read from disk or the network: tokenizers are built in memory (one token per byte).

Models with random weights of the default scale hardly depend on their prompt, and a parity test of such a model
proves little.  `listen` enlarges the weights through which conditioning enters; test_tiny.py checks that prompts make a
visible difference in every pipeline, and test_tiny_conditioning.py that each of their inputs does.
"""

from .cogview4 import cogview4
from .ernie_image import ernie_image, ernie_image_flow, ernie_tokenizer
from .flux import flux, flux_dev_flow, flux_schnell_flow
from .flux2 import FLUX2_LAYERS, flux2, flux2_flow, mistral_tokenizer
from .flux2_klein import flux2_klein, flux2_klein_flow
from .images import picture, sd_control, sd_from_image, sdxl_control, sdxl_from_image, with_ip_adapter
from .kandinsky5 import kandinsky5
from .kandinsky22 import K22_BETAS, k22_combined, k22_ddim, k22_ddpm, k22_decoder, k22_prior, k22_unclip
from .karlo import karlo
from .krea2 import KREA2_LAYERS, krea2, krea2_flow
from .parts import BIG_WIDTH, SD_BETAS, T5_WIDTH, WIDTH, clip_tokenizer, qwen_tokenizer, t5_tokenizer
from .pixart import pixart_dpm, pixart_sigma
from .qwen import qwen_image
from .qwen_image_21 import qwen_image_21
from .sana import gemma_tokenizer, sana, sana_dpm
from .sd3 import sd3, sd3_flow
from .sdxl import sdxl, sdxl_euler
from .stable_diffusion import sd_ddim, stable_diffusion
from .stable_unclip import stable_unclip, stable_unclip_ddim
from .z_image import z_image, z_image_flow

__all__ = [
    "BIG_WIDTH",
    "FLUX2_LAYERS",
    "K22_BETAS",
    "KREA2_LAYERS",
    "SD_BETAS",
    "T5_WIDTH",
    "WIDTH",
    "clip_tokenizer",
    "cogview4",
    "ernie_image",
    "ernie_image_flow",
    "ernie_tokenizer",
    "flux",
    "flux2",
    "flux2_flow",
    "flux2_klein",
    "flux2_klein_flow",
    "flux_dev_flow",
    "flux_schnell_flow",
    "gemma_tokenizer",
    "k22_combined",
    "k22_ddim",
    "k22_ddpm",
    "k22_decoder",
    "k22_prior",
    "k22_unclip",
    "kandinsky5",
    "karlo",
    "krea2",
    "krea2_flow",
    "mistral_tokenizer",
    "picture",
    "pixart_dpm",
    "pixart_sigma",
    "qwen_image",
    "qwen_image_21",
    "qwen_tokenizer",
    "sana",
    "sana_dpm",
    "sd3",
    "sd3_flow",
    "sd_control",
    "sd_ddim",
    "sd_from_image",
    "sdxl",
    "sdxl_control",
    "sdxl_euler",
    "sdxl_from_image",
    "stable_diffusion",
    "stable_unclip",
    "stable_unclip_ddim",
    "t5_tokenizer",
    "with_ip_adapter",
    "z_image",
    "z_image_flow",
]
