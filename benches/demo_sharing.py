"""What sharing costs the demo model: attributes still right against evaluations saved, on the built-in prompts.

    python benches/demo_sharing.py [--tau 0 0.3 0.4 0.5 0.6] [--metric auto] [--catch-up 1] [--threads 1]

The defaults are the model's: distances as calibrated, catch-up 1. `--metric cosine --catch-up 0` is the paper.

The judge is tools/demo_model/judge.py, which is not trained: it finds the drawing nearest to a picture. tau = 0 is
the baseline, standard diffusion; all settings draw from the same seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import hsd
from hsd.demo import PROMPTS
from hsd.names import Metric
from hsd.prompts.files import read_prompts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from demo_model.judge import marks
from demo_model.language import parse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tau", type=float, nargs="+", default=[0.0, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--metric", choices=get_args(Metric), default="auto")
    parser.add_argument("--catch-up", type=float)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = read_prompts(PROMPTS).prompts
    rows = np.stack([parse(prompt).row() for prompt in prompts])  # [N, 12]
    model = hsd.load("demo", device="cpu")
    print(f"{len(prompts)} prompts x {args.steps} steps, {type(model.scheduler()).__name__}")
    print(f"{'tau':>5}{'saved':>9}{'attributes right':>18}")
    for tau in args.tau:
        plan = hsd.compile(prompts, tau, model=model, steps=args.steps, metric=args.metric, catch_up=args.catch_up)
        images = sorted(hsd.stream(plan, model, batch_size=args.batch_size), key=lambda image: image.index)
        pixels = np.stack([np.asarray(image.pil) for image in images])  # [N, H, W, 3]
        right = marks(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0, rows)
        print(f"{tau:5.2f}{plan.savings:9.1%}{np.nanmean(right):18.1%}", flush=True)


if __name__ == "__main__":
    main()
