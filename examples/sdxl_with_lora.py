"""SDXL with a LoRA in half precision, loaded by diffusers: python examples/sdxl_with_lora.py (pip install peft)."""

import sys

import torch
from diffusers import StableDiffusionXLPipeline

import hsd

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
LORA, LORA_FILE = "nerijs/pixel-art-xl", "pixel-art-xl.safetensors"
LORA_WEIGHT = 0.9
PROMPTS = [
    f"pixel art of a {size} {building} in {season}"
    for size in ("small", "tall")
    for building in ("castle", "cottage", "lighthouse", "windmill", "greenhouse")
    for season in ("spring", "summer", "autumn", "winter")
]
STEPS = 30
BUDGET = 0.2  # the share of the denoiser's evaluations to save
OUT = "pixel-art"


def main() -> None:
    """Generate the images."""
    if not torch.cuda.is_available():
        sys.exit("Half precision needs a GPU, and torch finds none.")
    # Anything that diffusers does with a pipeline can be done here: another scheduler or VAE, offloading, compiling.
    pipe = StableDiffusionXLPipeline.from_pretrained(BASE, dtype=torch.float16, variant="fp16").to("cuda")
    pipe.load_lora_weights(LORA, weight_name=LORA_FILE, adapter_name="style")
    pipe.set_adapters(["style"], [LORA_WEIGHT])

    model = hsd.load(pipe, guidance_scale=7.0, negative_prompt="blurry")  # settings of the pipeline's own call
    plan = hsd.compile(PROMPTS, budget=BUDGET, model=model, steps=STEPS, reuse=OUT, progress=True)
    print(plan)
    # Images are written to OUT as they are finished. hsd.stream yields them instead.
    hsd.generate(plan, model, OUT, batch_size="auto", progress=True)


if __name__ == "__main__":
    main()
