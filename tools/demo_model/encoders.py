"""Training the three small networks around the decoder: text encoder, prior, image encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .codes import DIM, embed
from .language import describe
from .movq import pictures
from .nets import make_image_encoder, make_prior, make_prior_scheduler, make_text_encoder
from .scenes import Scene, sample
from .training import averaged, train
from .words import make_tokenizer

EMPTY_SHARE = 0.03  # share of empty prompts; their embedding is zero
DROPPED_SHARE = 0.25  # share of prompts that are replaced by the empty one for the prior
MOST_GUIDANCE = 4.0
POOL = 8192


class Prompts:
    """An endless stream of tokenized prompts and their embeddings, from a pool that is replaced after four uses."""

    def __init__(self, seed: int, batch: int) -> None:
        self.rng, self.batch, self.left = np.random.default_rng(seed), batch, 0
        self.tokenizer = make_tokenizer()

    def _renew(self) -> None:
        rows = sample(self.rng, POOL)
        # Half of the prompts name all attributes, the others leave some open.
        left_open = self.rng.random(rows.shape) < self.rng.random((POOL, 1)) * (self.rng.random((POOL, 1)) < 0.5)
        left_open[:, 0] = False
        rows = np.where(left_open, -1, rows)
        texts = [describe(Scene.from_row(row), self.rng) for row in rows]
        self.targets = embed(rows)
        for i in np.flatnonzero(self.rng.random(POOL) < EMPTY_SHARE):
            texts[i], self.targets[i] = "", 0
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        self.ids, self.mask = encoded.input_ids, encoded.attention_mask.bool()
        self.left = 4 * POOL // self.batch

    def next(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids [B, 32], mask [B, 32], embeddings [B, 128]."""
        if self.left == 0:
            self._renew()
        self.left -= 1
        pick = torch.from_numpy(self.rng.integers(0, POOL, self.batch))
        return self.ids[pick], self.mask[pick], self.targets[pick]


def train_text(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 128) -> None:
    """Trains prompt to embedding, by regression; the embedding of the empty prompt is zero."""
    torch.manual_seed(seed)
    net = make_text_encoder(make_tokenizer())
    prompts = Prompts(seed, batch)

    def loss_of(step: int) -> torch.Tensor:
        ids, _, target = prompts.next()
        with torch.autocast(device.type, torch.bfloat16):
            out = net(ids.to(device)).text_embeds
        return F.mse_loss(out.float(), target.to(device))

    train("text", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)


def train_prior(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 128) -> None:
    """Trains text to image embedding, by diffusion. Some prompts are dropped, as guidance needs it.

    Guidance moves the early, noisy estimates past the embedding and away from the unguided estimate. A prior that was
    not trained on such inputs ends at twice the right length. So half of the inputs here are moved in the same way, by
    up to the usual guidance scale of 4, with the right embedding as the target.
    """
    torch.manual_seed(seed)
    text = averaged("text", make_text_encoder(make_tokenizer()), folder).to(device)
    net = make_prior()
    torch.nn.init.normal_(net.positional_embedding, std=0.02)
    torch.nn.init.normal_(net.prd_embedding, std=0.02)
    net.clip_std.data.fill_(1.0)  # embeddings are about unit normal by design
    net.clip_mean.requires_grad_(False)
    net.clip_std.requires_grad_(False)
    prompts = Prompts(seed + 1, batch)
    empty = prompts.tokenizer("", padding="max_length", return_tensors="pt")
    signal = make_prior_scheduler().alphas_cumprod

    def loss_of(step: int) -> torch.Tensor:
        ids, mask, target = prompts.next()
        dropped = torch.rand(batch, 1) < DROPPED_SHARE
        ids = torch.where(dropped, empty.input_ids, ids)
        mask = torch.where(dropped, empty.attention_mask.bool(), mask)
        t = torch.randint(0, len(signal), (batch,))
        a, b = (v[t].sqrt()[:, None] for v in (signal, 1 - signal))
        push = (MOST_GUIDANCE - 1) * torch.rand(batch, 1) * (torch.rand(batch, 1) < 0.5)
        guess = torch.rand(batch, 1) * target[torch.randperm(batch)]
        pushed = target + push * (target - guess)
        noisy = (a * pushed + b * torch.randn(batch, DIM)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                encoded = text(ids.to(device))
            out = net(
                noisy,
                t.to(device),
                proj_embedding=encoded.text_embeds,
                encoder_hidden_states=encoded.last_hidden_state,
                attention_mask=mask.to(device),
            ).predicted_image_embedding
        return F.mse_loss(out.float(), target.to(device))

    train("prior", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)


def train_image(folder: Path, minutes: float, seed: int, device: torch.device, batch: int = 64) -> None:
    """Trains picture to embedding, by regression; the target of an even grey picture, which is no scene, is zero."""
    torch.manual_seed(seed)
    net = make_image_encoder()
    rng = np.random.default_rng(seed)
    pool: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss_of(step: int) -> torch.Tensor:
        if not pool:
            rows, x = pictures(rng, 512)
            target = embed(rows)
            grey = torch.from_numpy(rng.random(512) < 0.01)
            x[grey], target[grey] = 0, 0
            for _ in range(2):  # every drawing is used twice, as drawing takes as long as a training step
                pool.extend(zip(x.split(batch), target.split(batch), strict=True))
        x, target = (part.to(device) for part in pool.pop())
        with torch.autocast(device.type, torch.bfloat16):
            out = net(x).image_embeds
        return F.mse_loss(out.float(), target)

    train("image", net, loss_of, folder=folder, minutes=minutes, device=device, batch=batch, peak=1e-3)
