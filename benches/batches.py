"""How far images depend on the batch, the order and the prompts beside them: differences in steps of 1/255.

    python benches/batches.py [--prompts 48] [--steps 20]

The bundled model on one thread of a CPU; everything is compared with calls of 16 latents. The first row is the same
call again.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import hsd
from hsd.demo import PROMPTS
from hsd.prompts.files import read_prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = hsd.load("demo", device="cpu", dtype=torch.float32)
    plan = hsd.compile(read_prompts(PROMPTS).prompts[: args.prompts], model=model, steps=args.steps)

    def made(part, **options):
        return {image.index: np.asarray(image.pil, dtype=int) for image in hsd.stream(part, model, **options)}

    expected = made(plan, batch_size=16)
    cases = {"batches of 16 again": (plan, {"batch_size": 16})}
    cases |= {f"batches of {size}": (plan, {"batch_size": size}) for size in (1, 4, 7)}
    cases["breadth first"] = (plan, {"batch_size": 16, "order": "breadth"})
    cases["every second prompt"] = (plan.prune(range(0, len(plan), 2)), {"batch_size": 16})
    print(f"{'':22}largest difference   values that differ   images that differ")
    for name, (part, options) in cases.items():
        images = made(part, **options)
        apart = np.stack([np.abs(image - expected[i]) for i, image in images.items()])
        differ = int((apart.reshape(len(apart), -1) > 0).any(axis=1).sum())
        print(f"{name:22}{apart.max():>14}/255{1e6 * (apart > 0).mean():>17.1f} ppm{differ:>14} of {len(images)}")


if __name__ == "__main__":
    main()
