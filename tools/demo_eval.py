"""Measures the demo model: how many attributes of its pictures are the ones the prompt asked for.

    python tools/demo_eval.py --count 128 --sheet sheet.png

Prompts are full scenes in any wording, half of them combinations that training never saw. The pictures come from
the stock diffusers pipeline; the judge compares them with drawings (demo_model/judge.py). About 0.5 s a picture.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import KandinskyV22CombinedPipeline
from PIL import Image

from demo_model.draw import draw
from demo_model.judge import marks
from demo_model.language import describe
from demo_model.scenes import ATTRIBUTES, Scene, sample

MODEL = Path(__file__).resolve().parents[1] / "python" / "hsd" / "demo" / "model"


def generate(pipe: KandinskyV22CombinedPipeline, prompts: list[str], seed: int, **options: float) -> torch.Tensor:
    """Pictures [N, 3, 64, 64] in 0..1, in batches of 16, one generator a prompt."""
    parts = []
    for begin in range(0, len(prompts), 16):
        some = prompts[begin : begin + 16]
        generators = [torch.Generator().manual_seed(seed + begin + i) for i in range(len(some))]
        out = pipe(some, height=64, width=64, generator=generators, output_type="np", **options)
        parts.append(torch.from_numpy(np.asarray(out.images)).permute(0, 3, 1, 2))
    return torch.cat(parts).float()


def sheet(images: torch.Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """A contact sheet. images: [N, 3, H, W] in 0..1, N a multiple of `columns`."""
    n, _, h, w = images.shape
    grid = images.view(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, 3)
    picture = Image.fromarray((grid.clamp(0, 1) * 255).round().byte().numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    """Reads the command line, generates, judges and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=64, help="prompts, a multiple of 16")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prior-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--prior-guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sheet", type=Path, help="write a PNG: drawing, picture, drawing, picture, …")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", FutureWarning)

    rng = np.random.default_rng([args.seed, 1])
    half = args.count // 2
    rows = np.concatenate([sample(rng, half, split="train"), sample(rng, args.count - half, split="held-out")])
    prompts = [describe(Scene.from_row(row), rng) for row in rows]
    pipe = KandinskyV22CombinedPipeline.from_pretrained(args.model, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    begin = time.monotonic()
    images = generate(
        pipe,
        prompts,
        args.seed,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        prior_num_inference_steps=args.prior_steps,
        prior_guidance_scale=args.prior_guidance,
    )
    seconds = time.monotonic() - begin
    right = marks(images, rows)
    print(f"{'attribute':14} {'trained':>8} {'held out':>8}")
    for i, name in enumerate(ATTRIBUTES):
        if name != "count":
            print(f"{name:14} {np.nanmean(right[:half, i]):8.1%} {np.nanmean(right[half:, i]):8.1%}")
    print(f"{'all':14} {np.nanmean(right[:half]):8.1%} {np.nanmean(right[half:]):8.1%}")
    print(f"{seconds / args.count:.2f} s a picture on {torch.get_num_threads()} threads")
    if args.sheet is not None:
        both = torch.stack([draw(rows), images], dim=1).flatten(0, 1)
        sheet(both, 16).save(args.sheet)


if __name__ == "__main__":
    main()
