"""The denoiser of `demo-sd`: Stable Diffusion's UNet, conditioned on the tokens of a prompt by cross-attention.

It is trained as the released ones are: on the text encoder's last hidden states, which stay as they are, with some
prompts dropped. It never sees a mean of two prompts. So what sharing does to it is not what it was trained for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .codes import DIM
from .language import describe
from .nets import LATENT_SIDE, make_decoder_scheduler, make_text_encoder, make_unet
from .scenes import Scene
from .training import averaged, train
from .unet import Latents, velocity_batch
from .words import make_tokenizer

NULL_SHARE, PARTIAL_SHARE = 0.1, 0.25


def make_token_unet() -> UNet2DConditionModel:
    """Latents [4, 16, 16] and tokens [32, 128] to a velocity [4, 16, 16]."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=DIM,
        attention_head_dim=(2, 3, 3),  # heads of 32 channels; the class's argument is the number of heads
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
    )


@torch.no_grad()
def warm(net: UNet2DConditionModel, folder: Path) -> UNet2DConditionModel:
    """`net` with the weights of all layers that the first model's denoiser has too: convolutions and the timestep's."""
    theirs, ours = averaged("unet", make_unet(), folder).state_dict(), net.state_dict()
    for name, value in ours.items():
        if name in theirs and name.startswith("conv_out"):
            value.copy_(theirs[name][: len(value)])
        elif name in theirs and theirs[name].shape == value.shape and "attentions" not in name:
            value.copy_(theirs[name])
    net.load_state_dict(ours)
    return net


def make_token_text_encoder(folder: Path) -> CLIPTextModel:
    """The trained text encoder, as the class that Stable Diffusion has: without its projection."""
    whole = averaged("text", make_text_encoder(make_tokenizer()), folder)
    assert isinstance(whole, CLIPTextModelWithProjection)
    net = CLIPTextModel(whole.config)
    body = getattr(net, "text_model", net)  # transformers 4 has one module more around it
    body.load_state_dict(whole.text_model.state_dict())
    return net.eval().requires_grad_(False)


class Texts:
    """Prompts of scenes, in any wording, tokenized; some leave attributes open and some are dropped."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def of(self, rng: np.random.Generator, rows: np.ndarray) -> torch.Tensor:
        """Token ids [N, 32] of prompts that the scenes [N, 12] are pictures of."""
        n = len(rows)
        kind = rng.random(n)
        left_open = (rng.random(rows.shape) < rng.random((n, 1))) & (kind < PARTIAL_SHARE)[:, None]
        left_open[:, 0] = False
        texts = [describe(Scene.from_row(row), rng) for row in np.where(left_open, -1, rows)]
        texts = ["" if k > 1 - NULL_SHARE else text for k, text in zip(kind, texts, strict=True)]
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_token_unet(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 64) -> None:
    """Velocity regression over all timesteps on the cached latents."""
    torch.manual_seed(seed)
    data, texts = Latents(folder), Texts()
    text_encoder = make_token_text_encoder(folder).to(device)
    net = warm(make_token_unet(), folder)
    net.set_attn_processor(AttnProcessor())  # plain products are faster for sequences this short
    compiled = torch.compile(net)  # 1.4 times as fast on a CPU; without bfloat16 units, float32 is faster too
    signal = make_decoder_scheduler().alphas_cumprod  # [1000]

    def loss_of(step: int) -> torch.Tensor:
        rng, rows, t, noisy, target = velocity_batch(data, signal, seed, step, batch)
        ids = texts.of(rng, rows).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            with torch.no_grad():
                tokens = text_encoder(ids).last_hidden_state
            out = compiled(noisy.to(device), t.to(device), tokens, return_dict=False)[0]
        return F.mse_loss(out.float(), target.to(device))

    train("sd-unet", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)
