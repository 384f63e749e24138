"""Images for all combinations of a template, in a folder, with a report: python examples/template_set.py.

Run it again after anything stopped it: only what is missing is made.
"""

from pathlib import Path

import hsd

MODEL = "kandinsky-2.2"  # or "sd-1.5", "sdxl", ..., a hub id, a folder, a pipeline object
TEMPLATE = "A portrait of __animal__ as __role__, {soft window light|candlelight}, detailed oil painting"
WILDCARDS = Path(__file__).parent / "subjects" / "wildcards"  # animal.txt and role.txt, one value on each line
SAMPLE = 200  # of 1,000 combinations; None: all
STEPS = 50
BUDGET = 0.4  # the share of the denoiser's evaluations to save; 0.2 is careful
OUT = "portraits"


def main() -> None:
    """Generate the images."""
    prompts = hsd.expand_template(TEMPLATE, wildcards=WILDCARDS, sample=SAMPLE)
    model = hsd.load(MODEL, progress=True)  # in half precision on the GPU; without one, on the CPU, which is slow
    plan = hsd.compile(prompts, budget=BUDGET, model=model, steps=STEPS, reuse=OUT, progress=True)
    print(plan)  # what it saves, and how many calls of the denoiser it takes

    hsd.generate(plan, model, OUT, progress=True)
    print(f"Look at the images: {hsd.report(OUT)}")


if __name__ == "__main__":
    main()
