"""A data set of images for the rows of a sheet: python examples/csv_to_dataset.py (pip install datasets).

The sheet has a column ``prompt``. Columns such as ``seed``, ``negative_prompt`` and ``guidance_scale`` are settings of
their row. All others are kept, and are columns of the data set.
"""

import sys
from pathlib import Path

import datasets

import hsd

SHEET = Path(__file__).parent / "prompts.csv"  # also .tsv, .jsonl, .parquet
MODEL = "sd-1.5"
STEPS = 50
BUDGET = 0.2  # the share of the denoiser's evaluations to save
OUT = "products"
SHARDS = "products-shards"  # outside of OUT


def main() -> None:
    """Generate the images, and open them as a data set."""
    prompts = hsd.read_prompts(SHEET)
    model = hsd.load(MODEL, progress=True)
    # Prompts share steps only where their settings are equal: use few different negative prompts.
    plan = hsd.compile(prompts, budget=BUDGET, model=model, steps=STEPS, reuse=OUT, progress=True)
    run = hsd.generate(plan, model, OUT, progress=True)
    if run.failed:
        sys.exit(f"{len(run.failed)} images are missing, see {OUT}/failed.jsonl. Run this again to try them again.")

    print(hsd.write_shards(OUT, SHARDS))  # WebDataset: for training on many machines
    images = datasets.load_dataset("imagefolder", data_dir=OUT, split="train")
    print(images)
    print(images[0])


if __name__ == "__main__":
    main()
