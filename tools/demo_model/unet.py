"""Training the decoder: noise to latents, conditioned on an image embedding or on means of several, as in clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnAddedKVProcessor

from .codes import DIM, embed
from .nets import make_decoder_scheduler, make_unet
from .scenes import COLUMN, COUNTS, N_VALUES, clean
from .training import train

NULL_SHARE, MIXED_SHARE, PARTIAL_SHARE = 0.1, 0.25, 0.2
MOST_RELATIVES = 8
NOISE = 0.15
SINGLE_SHARE = 0.5  # share of samples with a single object, independent of their share among the drawings
# Layout and background are decided at high noise and are learned early. The outlines of the shapes are decided later,
# so half of the samples are from these timesteps.
OUTLINES, OUTLINES_SHARE = (50, 600), 0.5


def conditions(rng: np.random.Generator, rows: np.ndarray) -> torch.Tensor:
    """Embeddings that the full scenes `rows` can be pictures of. rows: [N, 12] -> [N, 128].

    Most name all attributes. Some leave attributes open. Some are means over related scenes, one of which is the
    picture's: a cluster has such a condition. Some are zero, the null condition of guidance.
    """
    n, width = rows.shape
    kind = rng.random(n)
    left_open = rng.random((n, width)) < rng.random((n, 1))
    partial = (kind < PARTIAL_SHARE)[:, None]
    e = embed(np.where(partial & left_open, -1, rows))

    mixed = np.flatnonzero((kind >= PARTIAL_SHARE) & (kind < PARTIAL_SHARE + MIXED_SHARE))
    m = len(mixed)
    others = np.floor(rng.random((m, MOST_RELATIVES, width)) * N_VALUES).astype(np.int64)
    related = np.where(left_open[mixed][:, None], others, rows[mixed][:, None])
    related[:, 0] = rows[mixed]
    related = clean(related.reshape(-1, width)).reshape(m, MOST_RELATIVES, width)
    weight = np.arange(MOST_RELATIVES) < rng.integers(2, MOST_RELATIVES + 1, (m, 1))
    weight = torch.from_numpy(weight / weight.sum(axis=1, keepdims=True)).float()  # [m, 8]
    e[mixed] = torch.einsum("mk,mkd->md", weight, embed(related))

    # The prior is not exact, and the decoder should tolerate its errors.
    e += NOISE * torch.from_numpy(rng.random((n, 1))).float() * torch.randn(n, DIM)
    e[torch.from_numpy(kind > 1 - NULL_SHARE)] = 0
    return e


class Latents:
    """The cached training set; shards that are written during training are added when they appear."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts, self.paths = folder, [], set()
        self.refresh()
        if not self.paths:
            raise FileNotFoundError(f"{folder}: no latents; run the stage 'latents' first")

    def refresh(self) -> None:
        """Reads new shards."""
        fresh = sorted(set(self.folder.glob("latents-*.pt")) - self.paths)
        if fresh:
            self.paths.update(fresh)
            self.parts += [torch.load(path, weights_only=True) for path in fresh]
            self.rows = torch.cat([part["rows"] for part in self.parts]).numpy()  # [N, 12]
            self.latents = torch.cat([part["latents"] for part in self.parts])  # [N, 4, 16, 16], half
            single = self.rows[:, COLUMN["count"]] == COUNTS.index("single")
            self.by_count = np.flatnonzero(single), np.flatnonzero(~single)
            print(f"unet: {len(self.rows)} pictures", flush=True)

    def pick(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Indices [n] of random pictures, a fixed share of them of single objects."""
        single = rng.random(n) < SINGLE_SHARE
        rank = rng.random(n)
        return np.where(single, *(some[(rank * len(some)).astype(np.int64)] for some in self.by_count))


def timesteps(rng: np.random.Generator, n: int, end: int) -> torch.Tensor:
    """Timesteps [n] in 0..end-1: uniform, but half of them where outlines are decided."""
    low, high = np.where(rng.random((n, 1)) < OUTLINES_SHARE, OUTLINES, (0, end)).T
    return torch.from_numpy((low + rng.random(n) * (high - low)).astype(np.int64))


def velocity_batch(
    data: Latents, signal: torch.Tensor, seed: int, step: int, batch: int
) -> tuple[np.random.Generator, np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step's samples: random numbers to go on with, scenes [N, 12], timesteps [N], noisy latents and velocities.

    Every step has its own random numbers, so a resumed run uses the same as an uninterrupted one. `signal`: [1000].
    """
    rng = np.random.default_rng([seed, step])
    torch.manual_seed(1_000_003 * seed + step)
    if step % 200 == 0:
        data.refresh()
    pick = data.pick(rng, batch)
    x, noise = data.latents[torch.from_numpy(pick)].float(), torch.randn(batch, 4, 16, 16)
    t = timesteps(rng, batch, len(signal))
    a, b = (v[t].sqrt()[:, None, None, None] for v in (signal, 1 - signal))
    return rng, data.rows[pick], t, a * x + b * noise, a * noise - b * x


def train_unet(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 64) -> None:
    """Velocity regression over all timesteps on the cached latents."""
    torch.manual_seed(seed)
    data = Latents(folder)
    net = make_unet()
    # The fused attention kernel is slower than plain products for sequences this short.
    net.set_attn_processor(AttnAddedKVProcessor())
    signal = make_decoder_scheduler().alphas_cumprod  # [1000]

    def loss_of(step: int) -> torch.Tensor:
        rng, rows, t, noisy, target = velocity_batch(data, signal, seed, step, batch)
        added = {"image_embeds": conditions(rng, rows).to(device)}
        with torch.autocast(device.type, torch.bfloat16):
            out = net(noisy.to(device), t.to(device), None, added_cond_kwargs=added, return_dict=False)[0]
        return F.mse_loss(out[:, :4].float(), target.to(device))

    train("unet", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)
