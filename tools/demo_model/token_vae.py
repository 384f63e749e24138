"""The autoencoder of the token models: Stable Diffusion's class, with the latents of the first demo model.

Its encoding half has the same layers as that of the first model, so its weights are copied, and both models have the
same latents. The decoding half differs: where Kandinsky's has a norm that reads the latents, this one has a plain norm.
It starts from the other layers and is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from diffusers.models.attention_processor import SpatialNorm

from .movq import load_movq, picture_loss, pictures
from .training import averaged, train

LOG_VARIANCE = -30.0  # the least that the class allows: its latents have no noise


def make_vae() -> AutoencoderKL:
    """Pictures [3, 64, 64] to and from latents [4, 16, 16], which are unit normal without a scaling factor."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


@torch.no_grad()
def vae_like(movq: VQModel) -> AutoencoderKL:
    """An autoencoder that encodes exactly as `movq`, and whose decoding half starts from the layers of `movq`."""
    net = make_vae()
    theirs, ours = movq.state_dict(), net.state_dict()
    for name, value in theirs.items():
        if name in ours and ours[name].shape == value.shape:
            ours[name].copy_(value)
    # Twice the channels here: the mean, and the logarithm of the variance.
    for end in ("weight", "bias"):
        ours[f"encoder.conv_out.{end}"][:4] = theirs[f"encoder.conv_out.{end}"]
        ours[f"encoder.conv_out.{end}"][4:] = 0
        ours[f"quant_conv.{end}"].zero_()
    ours["quant_conv.weight"][:4, :4] = theirs["quant_conv.weight"]
    ours["quant_conv.bias"][:4] = theirs["quant_conv.bias"]
    ours["quant_conv.bias"][4:] = LOG_VARIANCE
    # A spatial norm scales by a convolution of the latents; for latents of zero that is its bias.
    for name, module in movq.named_modules():
        if isinstance(module, SpatialNorm):
            ours[f"{name}.weight"].copy_(module.norm_layer.weight * module.conv_y.bias)
            ours[f"{name}.bias"].copy_(module.norm_layer.bias * module.conv_y.bias + module.conv_b.bias)
    net.load_state_dict(ours)
    return net


def train_vae(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 16) -> None:
    """Trains the decoding half on whole pictures; the latents are fixed, as the denoisers learn them."""
    torch.manual_seed(seed)
    net, rng = vae_like(load_movq(folder, seed)), np.random.default_rng([seed, 2])
    net.encoder.requires_grad_(False)
    net.quant_conv.requires_grad_(False)
    decoder = torch.compile(net.decoder)
    pool: list[torch.Tensor] = []

    def loss_of(step: int) -> torch.Tensor:
        if not pool:
            pool.extend(pictures(rng, 256)[1].split(batch))
        x = pool.pop().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            with torch.no_grad():
                z = net.encode(x).latent_dist.mode()
            # With this noise in training, latents still decode well when the denoiser makes small errors.
            y = decoder(net.post_quant_conv(z + 0.1 * torch.randn_like(z))).float()
        return picture_loss(x, y)

    train("vae", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=2e-3)


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder."""
    return averaged("vae", make_vae(), folder)
