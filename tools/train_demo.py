"""Trains the two demo models. All training data come from the drawing program in demo_model.

    python tools/train_demo.py all --work SCRATCH

runs every stage with its default budget, four and a quarter hours in total. Budgets are wall-clock time, on a CPU and
on a GPU (`--device cuda`): a faster machine uses more samples in the same time. Drawing always runs on the CPU.
Training was only tried on a CPU. A stage can also be run by itself, at the same time as others, and again: then it
continues from its checkpoint until the budget is used up. The stages, with the stages they need in brackets:

    movq      the autoencoder of drawings
    latents   draws and encodes the decoder's training set                 (movq)
    unet      the decoder, which needs most of the time                    (latents)
    text      prompts to embeddings
    prior     the diffusion prior over embeddings                          (text)
    image     pictures to embeddings
    decode    continues with the autoencoder's decoding half only          (movq; any time after it)
    restore   makes checkpoints of the model folder, from which other stages can continue (not part of "all")
    export    writes the model folder from the latest checkpoints          (all)

The second model, in Stable Diffusion's format, begins from the first one (`restore`, then `latents`). Its stages:

    vae       the decoding half of its autoencoder                         (movq)
    sd-unet   its denoiser, which needs most of the time                   (latents, unet, text)
    sd-export writes its folder from the latest checkpoints                (vae, sd-unet)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from demo_model.encoders import train_image, train_prior, train_text
from demo_model.export import export, export_sd, restore_all
from demo_model.movq import make_latents, train_decode, train_movq
from demo_model.token_unet import train_token_unet
from demo_model.token_vae import train_vae
from demo_model.unet import train_unet

# Minutes of wall-clock time, chosen for two cores with bfloat16 matrix units.
MINUTES = {
    "movq": 26.0,
    "decode": 34.0,
    "unet": 156.0,
    "text": 5.0,
    "prior": 15.0,
    "image": 5.0,
    "vae": 12.0,
    "sd-unet": 64.0,
}
TRAINERS: dict[str, Callable[[Path, float, int, torch.device], None]] = {
    "movq": train_movq,
    "decode": train_decode,
    "unet": train_unet,
    "text": train_text,
    "prior": train_prior,
    "image": train_image,
    "vae": train_vae,
    "sd-unet": train_token_unet,
}
STAGES = ("movq", "latents", "unet", "text", "prior", "image", "decode", "export")
SD_STAGES = ("vae", "sd-unet", "sd-export")
ROOT = Path(__file__).resolve().parents[1]
MODEL, SD_MODEL = ROOT / "python" / "hsd" / "demo" / "model", ROOT / "tools" / "models" / "demo-sd"


def main() -> None:
    """Reads the command line and runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "restore", "all", *SD_STAGES))
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and latents")
    parser.add_argument("--minutes", type=float, help="budget of this stage (default: see MINUTES)")
    parser.add_argument("--shards", type=int, default=8, help="latents: files of 4,096 pictures (default: 8)")
    parser.add_argument("--out", type=Path, help="export, restore: the folder of the model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cpu"), help="where to train (default: cpu)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage == "all" and args.minutes is not None:
        parser.error("--minutes is for a single stage")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        begin = time.monotonic()
        if stage == "latents":
            make_latents(args.work, args.shards, args.seed)
        elif stage == "export":
            export(args.work, args.out or MODEL, args.seed)
        elif stage == "sd-export":
            export_sd(args.work, args.out or SD_MODEL)
        elif stage == "restore":
            restore_all(args.out or MODEL, args.work)
        else:
            TRAINERS[stage](args.work, args.minutes or MINUTES[stage], args.seed, args.device)
        print(f"{stage}: done in {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
