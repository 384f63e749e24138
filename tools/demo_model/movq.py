"""Training the autoencoder, and scaling its latents to unit variance afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.attention_processor import SpatialNorm
from torch import nn

from .draw import SIDE, draw, random_jitter
from .nets import make_movq
from .scenes import sample
from .training import averaged, train

CROP = 32


def pictures(rng: np.random.Generator, n: int) -> tuple[np.ndarray, torch.Tensor]:
    """`n` random training scenes [n, 12] and their drawings [n, 3, 64, 64] in -1..1."""
    rows = sample(rng, n)
    return rows, draw(rows, random_jitter(rng, n)) * 2 - 1


def _fast_spatial_norm(self: SpatialNorm, f: torch.Tensor, zq: torch.Tensor) -> torch.Tensor:
    # 1x1 convolutions commute with nearest-neighbour upsampling; doing them first is several times faster.
    scale, shift = (F.interpolate(conv(zq), size=f.shape[-2:], mode="nearest") for conv in (self.conv_y, self.conv_b))
    return torch.addcmul(shift, self.norm_layer(f), scale)


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Error of pictures `y` for the drawings `x`, both [N, 3, H, W]: in values and in differences of neighbours."""
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(x), _edges(y), strict=True))
    return (x - y).abs().mean() + 0.5 * edges


def _loss(net: VQModel, x: torch.Tensor, z: torch.Tensor, noise: float) -> torch.Tensor:
    """Error of the picture that is decoded from noisy latents."""
    # With this noise in training, latents still decode well when the denoiser makes small errors.
    noisy = z + noise * z.detach().float().std() * torch.randn_like(z)
    return picture_loss(x, net.decode(noisy, force_not_quantize=True).sample.float())


def _crops(rng: np.random.Generator, x: torch.Tensor) -> torch.Tensor:
    """Four crops of each picture in random order, shifted so that borders appear at every position."""
    shift = rng.integers(-16, 17, 2)
    corners = [np.clip(np.array(corner) * CROP + shift, 0, SIDE - CROP) for corner in np.ndindex(2, 2)]
    crops = torch.cat([x[:, :, i : i + CROP, j : j + CROP] for i, j in corners])
    return crops[torch.from_numpy(rng.permutation(len(crops)))]


def train_movq(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 64) -> None:
    """Trains to reproduce crops of drawings: with crops, there are more steps per minute than with whole pictures."""
    torch.manual_seed(seed)
    SpatialNorm.forward = _fast_spatial_norm
    net, rng = make_movq(), np.random.default_rng(seed)
    pool: list[torch.Tensor] = []

    def loss_of(step: int) -> torch.Tensor:
        if not pool:
            pool.extend(_crops(rng, pictures(rng, 256)[1]).split(batch))
        x = pool.pop().to(device)
        with torch.autocast(device.type, torch.bfloat16):
            z = net.encode(x).latents
            return _loss(net, x, z, 0.05) + 1e-4 * z.float().square().mean()

    train("movq", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=2e-3)


def train_decode(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 16) -> None:
    """Continues with the decoding half only, on whole pictures; the latents are fixed, as the denoiser learns them."""
    torch.manual_seed(seed)
    SpatialNorm.forward = _fast_spatial_norm
    net, rng = averaged("movq", make_movq(), folder), np.random.default_rng([seed, 1])
    for part in (net.post_quant_conv, net.decoder):
        part.requires_grad_(True)
    pool: list[torch.Tensor] = []

    def loss_of(step: int) -> torch.Tensor:
        if not pool:
            pool.extend(pictures(rng, 256)[1].split(batch))
        x = pool.pop().to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                z = net.encode(x).latents
            return _loss(net, x, z, 0.1)

    train("decode", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)


@torch.no_grad()
def normalise(net: VQModel, rng: np.random.Generator) -> VQModel:
    """Folds the latents' mean and deviation into the 1x1 convolutions around them, exactly.

    Kandinsky 2.2 has no scaling factor: the denoiser works on unscaled latents, so they must be about unit
    normal. The decoder uses a latent in the post-quant convolution and in every spatial norm.
    """
    z = net.encode(pictures(rng, 512)[1]).latents.float()
    mean, std = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    net.quant_conv.weight /= std[:, None, None, None]
    net.quant_conv.bias.copy_((net.quant_conv.bias - mean) / std)
    readers: list[nn.Conv2d] = [net.post_quant_conv]
    for module in net.modules():
        if isinstance(module, SpatialNorm):
            readers += [module.conv_y, module.conv_b]
    for conv in readers:
        weight = conv.weight[:, :, 0, 0]
        conv.bias += weight @ mean
        conv.weight *= std[None, :, None, None]
    return net


def load_movq(folder: Path, seed: int) -> VQModel:
    """The trained, normalised autoencoder, with the decoding half of the stage `decode` if there is one.

    The encoding half is the same in both, so both give the same latents.
    """
    name = "decode" if (folder / "decode.pt").exists() else "movq"
    return normalise(averaged(name, make_movq(), folder), np.random.default_rng(seed))


def make_latents(folder: Path, shards: int, seed: int, per_shard: int = 4096) -> None:
    """Draws and encodes the decoder's training set in shards; existing shards are kept."""
    net = load_movq(folder, seed).to(memory_format=torch.channels_last)
    for i in range(shards):
        path = folder / f"latents-{i:03}.pt"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, i])
        parts = []
        for _ in range(per_shard // 256):
            rows, x = pictures(rng, 256)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                parts.append((torch.from_numpy(rows), net.encode(x).latents.half()))
        rows_all, z_all = (torch.cat(p) for p in zip(*parts, strict=True))
        torch.save({"rows": rows_all, "latents": z_all}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"latents: {(i + 1) * per_shard} pictures", flush=True)
