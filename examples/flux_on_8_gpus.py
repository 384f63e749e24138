"""FLUX on 8 GPUs of one machine: python examples/flux_on_8_gpus.py (pip install "hsd-diffusion[distributed]").

The weights take about 34 GB of each GPU. Run it again after anything stopped it, also with fewer GPUs: only what is
missing is made.
"""

import sys
from pathlib import Path

import torch

import hsd

MODEL = "black-forest-labs/FLUX.1-dev"  # accept its licence on the hub, then: hf auth login
GPUS = 8
PROMPTS = hsd.expand_template(
    "A photo of {a fox|an owl|a bear|a wolf|a lynx|a deer|a badger|a hare|an otter|a crow} "
    "{in a pine forest|on a frozen lake|in a meadow|on a rock|beside a river|under an oak}, "
    "{at sunrise|at noon|at dusk|in fog|in rain|in snow|under the moon|in a storm}"
)  # or a list of texts, or hsd.read_prompts("prompts.csv")
STEPS = 28
BUDGET = 0.2  # the share of the denoiser's evaluations to save
OUT = Path("animals").absolute()  # the working directory of a worker may be another


def make_plan(model, progress):
    """Compile the prompts. The worker that is ready first does it, with its model, so this process loads none."""
    return hsd.compile(PROMPTS, budget=BUDGET, model=model, steps=STEPS, reuse=OUT, progress=progress)


def main() -> None:
    """Generate the images."""
    if torch.cuda.device_count() < GPUS:
        sys.exit(f"{GPUS} GPUs are asked for, and torch finds {torch.cuda.device_count()}: change GPUS.")
    hsd.distributed.generate(
        make_plan,
        MODEL,  # each worker loads it once. Or a function that returns a pipeline, such as one with a LoRA.
        OUT,
        workers=GPUS,
        batch_size=4,  # enough for an H100, see docs/gpu.md
        max_sequence_length=128,  # tokens: enough for short prompts, and a quarter of the memory of the default
        progress=True,
    )


if __name__ == "__main__":
    main()
