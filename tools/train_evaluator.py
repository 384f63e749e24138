"""Trains the bundled evaluator on a CPU. All training data are degraded drawings.

    python tools/train_evaluator.py --work SCRATCH

continues from its checkpoint after an interruption, writes python/hsd/demo/evaluator.safetensors, and measures it on
drawings of combinations that were not in the training set. `--minutes 0` only writes and measures again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from demo_model.draw import draw, random_jitter
from demo_model.evaluator_data import Drawings, degrade
from demo_model.scenes import ATTRIBUTES, sample
from demo_model.training import averaged, train
from hsd.demo.evaluator import WEIGHTS, Reader


class Learner(nn.Module):
    """The evaluator's network with batch norms: it learns faster, and `fold` merges them into the weights later."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader()
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels) for conv in self.reader.convs)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures [N, 3, 64, 64] in -1..1 to logits by attribute."""
        for conv, norm in zip(self.reader.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.reader.answer(self.reader.pool(x))


def loss_of(logits: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the attributes that the scenes have. logits: [N, values] each; rows: [N, 12]."""
    losses = [
        F.cross_entropy(part.float(), rows[:, i], ignore_index=-1, reduction="sum")
        for i, part in enumerate(logits.values())
    ]
    return torch.stack(losses).sum() / (rows >= 0).sum()


@torch.no_grad()
def fold(learner: Learner, drawings: Drawings, batches: int = 64) -> Reader:
    """The averaged network, with the batch norms merged into the convolutions.

    The norms' statistics are measured again, as averaging the weights does not average them.
    """
    for norm in learner.norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    learner.train()
    for _ in range(batches):
        learner(drawings.batch(64)[1] * 2 - 1)
    learner.eval()
    for conv, norm in zip(learner.reader.convs, learner.norms, strict=True):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight *= scale[:, None, None, None]
        conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
    return learner.reader


@torch.no_grad()
def measure(net: Reader, count: int, seed: int, *, degraded: bool) -> np.ndarray:
    """The share of each attribute [12] that is recognised correctly, on drawings of held-out combinations."""
    rng = np.random.default_rng([seed, 2])
    right, known = np.zeros(len(ATTRIBUTES)), np.zeros(len(ATTRIBUTES))
    for _ in range(0, count, 50):
        rows = sample(rng, 50, split="held-out")
        x = draw(rows, random_jitter(rng, 50))
        parts = net((degrade(x) if degraded else x) * 2 - 1).values()
        found = torch.stack([part.argmax(dim=1) for part in parts], dim=1).numpy()
        right += ((found == rows) & (rows >= 0)).sum(axis=0)
        known += (rows >= 0).sum(axis=0)
    return right / known


def main() -> None:
    """Reads the command line, trains, writes and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=22.0, help="budget of wall-clock time, including earlier runs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=2000, help="held-out drawings to measure on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    learner = Learner().to(memory_format=torch.channels_last)
    drawings = Drawings(np.random.default_rng(args.seed))

    def loss(step: int) -> torch.Tensor:
        rows, x = drawings.batch(args.batch)
        x = (x * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner(x)
        return loss_of(logits, rows)

    if args.minutes > 0:
        train("evaluator", learner, loss, folder=args.work, minutes=args.minutes, batch=args.batch, peak=4e-3)
    net = fold(averaged("evaluator", Learner(), args.work), drawings)
    halves = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(halves, args.out)
    net.load_state_dict(halves)  # what is measured is what was written
    torch.manual_seed(args.seed)
    plain, degraded = (measure(net, args.count, args.seed, degraded=on) for on in (False, True))
    print(f"{'attribute':14} {'drawings':>8} {'degraded':>8}")
    for i, name in enumerate(ATTRIBUTES):
        print(f"{name:14} {plain[i]:8.2%} {degraded[i]:8.2%}")
    print(f"{'mean':14} {plain.mean():8.2%} {degraded.mean():8.2%}")
    print(f"{sum(v.numel() for v in halves.values()):,} numbers, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
