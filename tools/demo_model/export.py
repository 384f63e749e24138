"""Writing the model folders: all parts in one pipeline, in half precision, no larger than a package may ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, KandinskyV22CombinedPipeline, StableDiffusionPipeline

from .encoders import make_image_encoder, make_prior, make_text_encoder
from .movq import load_movq
from .nets import make_decoder_scheduler, make_image_processor, make_prior_scheduler, make_unet
from .token_unet import make_token_text_encoder, make_token_unet
from .token_vae import load_vae
from .training import averaged, restore
from .words import make_tokenizer

LIMIT, SD_LIMIT = 16 * 2**20, 12 * 10**6


@torch.no_grad()
def silence_grey(encoder: torch.nn.Module) -> None:
    """Makes the embedding of the pipeline's null image exactly zero, the decoder's null condition in training.

    The trained encoder gives nearly zero. Removing that one direction from the projection makes it exact.
    """
    side = encoder.config.image_size
    pooled = encoder.vision_model(torch.zeros(1, 3, side, side)).pooler_output[0]
    weight = encoder.visual_projection.weight  # [128, 96]
    weight -= torch.outer(weight @ pooled, pooled) / pooled.square().sum()


def write_legacy_vocabulary(folder: Path) -> None:
    """Adds the two files that transformers 4 needs for this tokenizer; version 5 writes only tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def build(work: Path, seed: int) -> KandinskyV22CombinedPipeline:
    """The pipeline with every stage's averaged weights."""
    tokenizer = make_tokenizer()
    unet = averaged("unet", make_unet(), work)
    with torch.no_grad():  # the variance half is not used; zeros compress well
        unet.conv_out.weight[4:] = 0
        unet.conv_out.bias[4:] = 0
    image_encoder = averaged("image", make_image_encoder(), work)
    silence_grey(image_encoder)
    return KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=make_decoder_scheduler(),
        movq=load_movq(work, seed),
        prior_prior=averaged("prior", make_prior(), work),
        prior_image_encoder=image_encoder,
        prior_text_encoder=averaged("text", make_text_encoder(tokenizer), work),
        prior_tokenizer=tokenizer,
        prior_scheduler=make_prior_scheduler(),
        prior_image_processor=make_image_processor(),
    )


def restore_all(folder: Path, work: Path) -> None:
    """Makes checkpoints of an exported model, from which every stage can continue; existing checkpoints are kept."""
    pipe = KandinskyV22CombinedPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    parts = {
        "movq": pipe.movq,
        "unet": pipe.unet,
        "text": pipe.prior_text_encoder,
        "prior": pipe.prior_prior,
        "image": pipe.prior_image_encoder,
        "decode": pipe.movq,
    }
    for name, part in parts.items():
        restore(name, part, work)


def build_sd(work: Path) -> StableDiffusionPipeline:
    """The model in Stable Diffusion's format; DDIM, since the released ones have deterministic samplers too."""
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=make_token_text_encoder(work),
        tokenizer=make_tokenizer(),
        unet=averaged("sd-unet", make_token_unet(), work),
        scheduler=DDIMScheduler.from_config(make_decoder_scheduler().config, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(work: Path, folder: Path, seed: int) -> None:
    """Replaces `folder` by the model of the working folder's checkpoints."""
    _write(build(work, seed), folder, "prior_tokenizer", LIMIT)


def export_sd(work: Path, folder: Path) -> None:
    """The same for the model in Stable Diffusion's format."""
    _write(build_sd(work), folder, "tokenizer", SD_LIMIT)


def _write(pipe: DiffusionPipeline, folder: Path, tokenizer: str, limit: int) -> None:
    pipe = pipe.to(torch.float16)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.save_pretrained(fresh)
    write_legacy_vocabulary(fresh / tokenizer)
    index = fresh / "model_index.json"
    # Without torchvision, the name of the processor's class is one that other installations do not have.
    index.write_text(index.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    if size > limit:
        raise RuntimeError(f"{fresh} has {size} bytes, more than {limit}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(folder)
    print(f"{folder}: {size / 2**20:.1f} MB", flush=True)
