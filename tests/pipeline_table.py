"""What is tested of each pipeline, and the errors.

``python tests/pipeline_table.py`` measures it all and writes docs/pipelines.md, and the list of pipelines in
docs/models.md.
With ``--arguments`` it writes only the part of docs/pipelines.md that lists the arguments, which measures nothing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch

from families import FAMILIES, Family
from families.measure import owner, parity, sharing, with_scheduler
from hsd.models import arguments
from hsd.models.registry import BUILT_IN, adapter_named

DOCS = Path(__file__).parents[1] / "docs" / "pipelines.md"
MODELS = DOCS.with_name("models.md")
SHARED_TAU = 0.4

HEADER = """# Pipelines

<!-- Written by `python tests/pipeline_table.py`; do not edit. -->

Every pipeline is tested in miniature: the classes of diffusers {version} with seeded random weights, {steps} steps, on
the CPU. An error is the largest difference in a latent, relative to its largest value, over three prompts:

- **guided, unguided, negative, oblong**: at tau = 0, compared with the pipeline's own call with the same seeds, in
  float32: with guidance, without guidance, with a negative prompt, and with another image shape. Decoded images are
  compared too.
- **bfloat16**: the same with the pipeline in bfloat16, as a root mean square. Most pipelines round their latents after
  every step and HSD does not, so this is the pipeline's own rounding error.
- **shared**: at tau = {tau}, compared with a plain Algorithm 1 (one row in each call, one copy of the scheduler for
  each cluster) around the pipeline's networks.

Tests also compare lanes at different steps in one call with the same lanes in calls of one, and the number of rows that
the denoiser sees with the plan's. A dash means that the pipeline does not have it, or that it is measured with the
pipeline's own scheduler only.

| pipeline | scheduler | guided | unguided | negative | oblong | bfloat16 | shared |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


ARGUMENTS = """
## Arguments of the pipelines

What can be passed to a pipeline's call is a setting here, is given in another way, or is refused by name. Settings go
to `hsd.load`, `hsd.generate` and `--set NAME=VALUE`, and to single prompts by a prompt file or the `settings=` of
`hsd.compile`. A setting means what it means in the pipeline, and is tested against the pipeline's own call. Settings
that only HSD has, such as `guidance_interval`, are in italics.

Prompts with different settings never share steps: a `prompt_2` or `clip_skip` of its own makes a prompt a group of its
own. Where `timesteps` or `sigmas` are set, `steps` is not used. `cross_attention_kwargs` and the other attention kwargs
take `{"scale": 0.7}`, the weight of every loaded LoRA, and nothing else.

"""


def label(family: Family, scheduler: str | None) -> str:
    """The first cells of a row: pipeline and scheduler, by class."""
    pipe = with_scheduler(family, scheduler)
    name = " + ".join(type(part).__name__ for part in (pipe if isinstance(pipe, tuple) else (pipe,)))
    kind = type(getattr(owner(pipe), family.scheduler)).__name__
    detail = "" if scheduler is None else f" ({scheduler})"
    return f"| {name} | {kind}{detail} |"


def row(family: Family, scheduler: str | None) -> str:
    """Measure one row."""
    guided, size = family.guided, family.size
    errors: list[float | None] = [parity(family, with_scheduler(family, scheduler), guided, size).error]
    if scheduler is None:
        negative = None if family.negative is None else {**guided, **family.negative}
        errors += [
            parity(family, family.build(), family.unguided, size).error,
            None if negative is None else parity(family, family.build(), negative, size).error,
            None if family.oblong is None else parity(family, family.build(), guided, family.oblong).error,
            parity(family, family.to(family.build(), torch.bfloat16), guided, size).root_mean_square,
        ]
    else:
        errors += [None] * 4
    measured = scheduler is None or scheduler == family.schedulers[0]
    errors.append(sharing(family, scheduler, SHARED_TAU).error if measured else None)
    return " ".join([label(family, scheduler), *("- |" if e is None else f"{e:.0e} |" for e in errors)])


def arguments_section() -> str:
    """The part of docs/pipelines.md about arguments."""
    settings = ["| pipeline | settings |", "| --- | --- |"]
    others: dict[tuple[str, str], dict[str, None]] = {}
    for name in BUILT_IN:
        adapter = adapter_named(name)
        assert adapter is not None
        taken = set()
        for pipeline in arguments.pipelines_of(adapter):
            for argument in arguments.arguments_of(pipeline):
                found = arguments.decision(adapter, pipeline, argument)
                assert found is not None, (name, argument)
                if found.kind == "setting":
                    taken.add(argument)
                else:
                    special = (pipeline.__name__, argument) in arguments.FOR_ONE
                    where = f" (`{pipeline.__name__}`)" if special else ""
                    others.setdefault((found.kind, found.text), {})[f"`{argument}`{where}"] = None
        own = [f"`{each}`" if each in taken else f"*`{each}`*" for each in sorted(adapter.setting_names())]
        settings.append(f"| {name} | {', '.join(own)} |")
    given, refused = (
        [f"| {', '.join(names)} | {text} |" for (each, text), names in others.items() if each == kind]
        for kind in ("given", "refused")
    )
    return ARGUMENTS + "\n".join(
        [
            *settings,
            "",
            "| argument | here |",
            "| --- | --- |",
            *given,
            "",
            "| argument that is refused | why, and what to do |",
            "| --- | --- |",
            *refused,
            "",
        ]
    )


def document() -> str:
    """The text of docs/pipelines.md."""
    steps = " to ".join(map(str, sorted({family.steps for family in FAMILIES})))
    rows = [row(family, scheduler) for family in FAMILIES for scheduler in (None, *family.schedulers)]
    return (
        HEADER.format(version=diffusers.__version__, steps=steps, tau=SHARED_TAU)
        + "\n".join(rows)
        + "\n"
        + arguments_section()
    )


def models(text: str) -> str:
    """The text of docs/models.md, with its list of pipelines as the families give it."""
    head = "| pipeline | clustered by |\n| --- | --- |\n"
    rows = sorted(f"| {family.title} | {family.clustered_by} |\n" for family in FAMILIES)
    return re.sub(re.escape(head) + r"(\|.*\n)*", lambda _: head + "".join(rows), text)


if __name__ == "__main__":
    if "--arguments" in sys.argv:
        measured = DOCS.read_text().split(ARGUMENTS.splitlines()[1])[0].rstrip("\n") + "\n"
        DOCS.write_text(measured + arguments_section())
        sys.exit()
    torch.set_num_threads(1)
    MODELS.write_text(models(MODELS.read_text()))
    DOCS.write_text(document())
    print(f"wrote {DOCS} and {MODELS}")
