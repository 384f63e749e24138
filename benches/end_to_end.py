"""Wall time of a prompt set: diffusers' own pipeline, HSD without sharing, HSD with it. One run, side by side.

    python benches/end_to_end.py [--prompts 64] [--steps 40] [--batch-size 16] [--tau 0.5 1.0] [--json FILE]

Uses the bundled model on the CPU, or on CUDA with --device cuda. The denoiser's own time is measured inside each
run, so the executor's overhead shows as what is left. Each side makes all images, decoded; nothing is written.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
import torch

import hsd
from hsd.demo import PROMPTS
from hsd.prompts import read_prompts


class DenoiserClock:
    """Seconds spent inside the UNet, and the rows it saw."""

    def __init__(self, unet):
        self.seconds, self.rows = 0.0, 0
        self._hooks = [
            unet.register_forward_pre_hook(self._start, with_kwargs=True),
            unet.register_forward_hook(self._stop),
        ]

    def _start(self, _, args, kwargs):
        self.rows += len(kwargs["sample"] if "sample" in kwargs else args[0])
        self._began = time.perf_counter()

    def _stop(self, *_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._began

    def close(self):
        for hook in self._hooks:
            hook.remove()


def timed(unet, work):
    clock, start = DenoiserClock(unet), time.perf_counter()
    images = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    total = time.perf_counter() - start
    clock.close()
    return {"seconds": total, "denoiser_seconds": clock.seconds, "rows": clock.rows, "images": images}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tau", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    args = parser.parse_args()

    prompts = read_prompts(PROMPTS)[: args.prompts]
    model = hsd.load("demo", device=args.device, dtype=torch.float32)
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    unet = model.decoder.unet
    seeds = range(len(prompts))

    def diffusers():
        images = []
        for start in range(0, len(prompts), args.batch_size):
            part = slice(start, start + args.batch_size)
            images += pipe(
                prompts[part],
                num_inference_steps=args.steps,
                prior_num_inference_steps=model.prior_steps,
                guidance_scale=model.guidance_scale,
                prior_guidance_scale=model.prior_guidance_scale,
                height=model.height,
                width=model.width,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            ).images
        return images

    def ours(tau):
        plan = hsd.compile(prompts, tau, model=model, steps=args.steps)
        images = sorted(hsd.stream(plan, model, batch_size=args.batch_size), key=lambda image: image.index)
        return plan, [image.pil for image in images]

    pipe(prompts[: args.batch_size], num_inference_steps=2, height=model.height, width=model.width)  # warm up
    results = {"diffusers": timed(unet, diffusers)}
    plans = {}
    for tau in [0.0, *args.tau]:
        name = f"hsd tau={tau}"
        row = timed(unet, lambda tau=tau: ours(tau))
        plans[name], row["images"] = row["images"]
        results[name] = row

    reference = np.stack([np.array(image, dtype=np.int16) for image in results["diffusers"]["images"]])
    at_zero = np.stack([np.array(image, dtype=np.int16) for image in results["hsd tau=0.0"]["images"]])
    difference = int(np.abs(reference - at_zero).max())
    assert difference <= 2, f"at tau = 0 the images differ by {difference}/255"
    for name, plan in plans.items():
        guided = 2 if model.guidance_scale > 1 else 1
        assert results[name]["rows"] == guided * plan.node_steps

    base = results["diffusers"]["seconds"]
    print(
        f"{len(prompts)} prompts x {args.steps} steps, batch {args.batch_size}, {model.height} px, {args.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'':16}{'seconds':>9}{'speed-up':>10}{'1/(1-saved)':>13}{'rows':>9}{'outside the denoiser':>22}")
    table = {}
    for name, row in results.items():
        ideal = 1.0 / (1.0 - plans[name].savings) if name in plans else 1.0
        outside = 1.0 - row["denoiser_seconds"] / row["seconds"]
        print(
            f"{name:16}{row['seconds']:9.2f}{base / row['seconds']:9.2f}x{ideal:12.2f}x{row['rows']:9}{outside:21.1%}"
        )
        table[name] = {
            "seconds": row["seconds"],
            "denoiser_seconds": row["denoiser_seconds"],
            "rows": row["rows"],
            "speed_up": base / row["seconds"],
            "ideal_speed_up": ideal,
        }
    print(f"largest difference at tau = 0: {difference}/255")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "results": table}, file, indent=1)


if __name__ == "__main__":
    main()
