"""Wall time of a prompt set: diffusers' own pipeline, HSD without sharing and HSD with it, all in one run.

    python benches/end_to_end.py [--prompts 64] [--steps 40] [--batch-size 16] [--tau 0.5 1.0] [--metric auto]
        [--catch-up 1] [--json FILE]

Uses the bundled model on the CPU, or on CUDA with --device cuda. The networks' time is measured within each run; the
rest is what pipeline and executor add. Each side generates and decodes all images; no files are written.
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
from hsd.prompts.files import read_prompts


class Clock:
    """Seconds spent inside some methods, and the batch entries that the denoiser evaluated."""

    def __init__(self, parts):
        self.seconds = dict.fromkeys(parts, 0.0)
        self.rows = 0
        self._undo = []
        for name, (owner, method) in parts.items():
            self._wrap(name, owner, method, count=name == "denoiser")

    def _wrap(self, name, owner, method, count):
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            if count:
                self.rows += len(kwargs["sample"] if "sample" in kwargs else args[0])
            start = time.perf_counter()
            result = original(*args, **kwargs)
            synchronize()
            self.seconds[name] += time.perf_counter() - start
            return result

        setattr(owner, method, timed)
        self._undo.append(lambda: delattr(owner, method))

    def close(self):
        for undo in self._undo:
            undo()


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(parts, work):
    clock, start = Clock(parts), time.perf_counter()
    images = work()
    synchronize()
    total = time.perf_counter() - start
    clock.close()
    return {"seconds": total, "inside": clock.seconds, "rows": clock.rows, "images": images}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tau", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--metric", default="cosine", help="auto: the default of hsd generate")
    parser.add_argument("--catch-up", type=float, default=0.0, help="1: the default of hsd generate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    args = parser.parse_args()

    prompts = read_prompts(PROMPTS).prompts[: args.prompts]
    model = hsd.load("demo", device=args.device, dtype=torch.float32)
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    parts = {
        "denoiser": (model.decoder.unet, "forward"),
        "prior": (model.prior_pipe.prior, "forward"),
        "decode": (model.decoder.movq, "decode"),
    }
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
        plan = hsd.compile(prompts, tau, model=model, metric=args.metric, catch_up=args.catch_up, steps=args.steps)
        images = sorted(hsd.stream(plan, model, batch_size=args.batch_size), key=lambda image: image.index)
        return plan, [image.pil for image in images]

    pipe(prompts[: args.batch_size], num_inference_steps=2, height=model.height, width=model.width)  # warm up
    results = {"diffusers": timed(parts, diffusers)}
    plans = {}
    for tau in [0.0, *args.tau]:
        name = f"hsd tau={tau}"
        row = timed(parts, lambda tau=tau: ours(tau))
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
    columns = ("seconds", "speed-up", "1/(1-saved)", "rows", *parts, "all else")
    print(f"{'':13}" + "".join(f"{name:>12}" for name in columns))
    table = {}
    for name, row in results.items():
        ideal = 1.0 / (1.0 - plans[name].savings) if name in plans else 1.0
        rest = row["seconds"] - sum(row["inside"].values())
        print(
            f"{name:13}{row['seconds']:12.2f}{base / row['seconds']:11.2f}x{ideal:11.2f}x{row['rows']:12}"
            + "".join(f"{seconds:12.2f}" for seconds in row["inside"].values())
            + f"{rest:12.2f}"
        )
        table[name] = {key: row[key] for key in ("seconds", "inside", "rows")}
        table[name] |= {"speed_up": base / row["seconds"], "ideal_speed_up": ideal}
    print(f"largest difference at tau = 0: {difference}/255")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "results": table}, file, indent=1)


if __name__ == "__main__":
    main()
