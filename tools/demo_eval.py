"""Measures the demo model: the share of attributes for which its pictures show what the prompt names.

    python tools/demo_eval.py --count 128 --sheet sheet.png
    python tools/demo_eval.py --count 2000 --held-out --evaluator
    python tools/demo_eval.py --count 512 --held-out --evaluator --autoencoder
    python tools/demo_eval.py --model tools/models/demo-sd --steps 30 --count 512 --held-out --evaluator

Prompts are full scenes in any wording; half of them (or all) are combinations that were not in the training set. The
pictures come from the stock diffusers pipeline of the model's folder. The judge compares them with drawings
(demo_model/judge.py), or the bundled evaluator recognises what they show. About 0.5 s per picture. With `--autoencoder`
the pictures are drawings that were only encoded and decoded by the autoencoder: no denoiser can be better than that.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from demo_model.draw import draw, random_jitter
from demo_model.judge import marks
from demo_model.language import describe
from demo_model.scenes import ATTRIBUTES, COLUMN, COUNTS, Scene, sample
from hsd.demo.evaluator import DemoEvaluator

MODEL = Path(__file__).resolve().parents[1] / "python" / "hsd" / "demo" / "model"


SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "euler": EulerDiscreteScheduler}


def generate(pipe: DiffusionPipeline, prompts: list[str], seed: int, **options: float) -> torch.Tensor:
    """Pictures [N, 3, 64, 64] in 0..1, in batches of 16, with one generator per prompt."""
    parts = []
    for begin in range(0, len(prompts), 16):
        some = prompts[begin : begin + 16]
        generators = [torch.Generator().manual_seed(seed + begin + i) for i in range(len(some))]
        out = pipe(some, height=64, width=64, generator=generators, output_type="np", **options)
        parts.append(torch.from_numpy(np.asarray(out.images)).permute(0, 3, 1, 2))
    return torch.cat(parts).float()


@torch.no_grad()
def reconstruct(pipe: DiffusionPipeline, drawings: torch.Tensor) -> torch.Tensor:
    """Drawings [N, 3, 64, 64] in 0..1, encoded and decoded; prints the reconstruction error in dB."""
    parts = []
    for some in drawings.split(64):
        if isinstance(pipe, StableDiffusionPipeline):
            decoded = pipe.vae.decode(pipe.vae.encode(some * 2 - 1).latent_dist.mode())
        else:
            decoded = pipe.movq.decode(pipe.movq.encode(some * 2 - 1).latents, force_not_quantize=True)
        parts.append(decoded.sample / 2 + 0.5)
    images = torch.cat(parts).clamp(0, 1)
    print(f"reconstruction {-10 * torch.log10((images - drawings).square().mean()):.1f} dB")
    return images


def sheet(images: torch.Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """A contact sheet. images: [N, 3, H, W] in 0..1, N a multiple of `columns`."""
    n, _, h, w = images.shape
    grid = images.view(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, 3)
    picture = Image.fromarray((grid.clamp(0, 1) * 255).round().byte().numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Images [N, 3, H, W] in 0..1 as Pillow images, which the evaluator takes."""
    arrays = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def main() -> None:
    """Reads the command line, generates pictures, evaluates them and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=64, help="prompts, a multiple of 16")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prior-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--prior-guidance", type=float, default=1.0)
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="another one than the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--held-out", action="store_true", help="only combinations that were not in the training set")
    parser.add_argument("--evaluator", action="store_true", help="let the bundled evaluator judge")
    parser.add_argument(
        "--autoencoder", action="store_true", help="measure drawings that were encoded and decoded, generate none"
    )
    parser.add_argument("--sheet", type=Path, help="write a PNG: drawing, picture, drawing, picture, …")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", FutureWarning)

    rng = np.random.default_rng([args.seed, 1])
    half = 0 if args.held_out else args.count // 2
    rows = np.concatenate([sample(rng, half, split="train"), sample(rng, args.count - half, split="held-out")])
    prompts = [describe(Scene.from_row(row), rng) for row in rows]
    pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32, local_files_only=True)
    if args.scheduler is not None:
        pipe.scheduler = SCHEDULERS[args.scheduler].from_config(pipe.scheduler.config)
    prior = {"prior_num_inference_steps": args.prior_steps, "prior_guidance_scale": args.prior_guidance}
    pipe.set_progress_bar_config(disable=True)
    begin = time.monotonic()
    if args.autoencoder:
        images = reconstruct(pipe, draw(rows, random_jitter(rng, args.count)))
    else:
        images = generate(
            pipe,
            prompts,
            args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            **({} if isinstance(pipe, StableDiffusionPipeline) else prior),
        )
    seconds = time.monotonic() - begin
    right = DemoEvaluator().marks(pictures(images), prompts) if args.evaluator else marks(images, rows)
    columns = {
        name: part for name, part in (("trained", slice(0, half)), ("held out", slice(half, None))) if right[part].size
    }
    print(f"{'attribute':14}" + "".join(f"{name:>9}" for name in columns))
    shown = {name: right[:, i : i + 1] for i, name in enumerate(ATTRIBUTES) if args.evaluator or name != "count"}
    single = rows[:, COLUMN["count"]] == COUNTS.index("single")
    shown |= {"single objects": np.where(single[:, None], right, np.nan), "all": right}
    for name, values in shown.items():
        print(f"{name:14}" + "".join(f"{np.nanmean(values[part]):9.1%}" for part in columns.values()))
    print(f"{seconds / args.count:.2f} s per picture on {torch.get_num_threads()} threads")
    if args.sheet is not None:
        both = torch.stack([draw(rows), images], dim=1).flatten(0, 1)
        sheet(both, 16).save(args.sheet)


if __name__ == "__main__":
    main()
