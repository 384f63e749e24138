"""Every argument of the calls of the supported pipelines, and how HSD gives it, or why it does not.

An argument is one of three: a setting of the family, of the same name; given in another way (:data:`GIVEN`); or refused
(:data:`REFUSED`). The families share these tables, the error messages are made from them, and a test compares them with
the signatures of the installed diffusers, so that a new argument has to be decided on.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import diffusers

from ..prompts.known_settings import meant
from ..prompts.pipeline_arguments import ELSEWHERE as ELSEWHERE
from ..prompts.pipeline_arguments import GIVEN as GIVEN
from ..prompts.pipeline_arguments import OF_A_RUN, PRIOR_STEPS, of_a_run
from ..prompts.pipeline_arguments import REFUSED as REFUSED
from .base import Adapter
from .registry import BUILT_IN, PAIRS, adapter_named

FOR_ONE: dict[tuple[str, str], str] = {
    ("QwenImagePipeline", "guidance_scale"): (
        "it is for models distilled with it, which diffusers' transformer cannot run: the setting true_cfg_scale guides"
    ),
    ("KandinskyV22PriorPipeline", "num_inference_steps"): PRIOR_STEPS,
    ("KandinskyV22PriorPipeline", "guidance_scale"): "the setting prior_guidance_scale",
}
"""What is said of an argument of one pipeline instead of what the tables say of its name."""

Kind = Literal["setting", "given", "refused"]


@dataclass(frozen=True)
class Decision:
    """What HSD does with an argument of a pipeline's call."""

    kind: Kind
    text: str
    """How it is given, or why not and what to do; empty for a setting."""


def pipelines_of(adapter: type[Adapter]) -> list[Any]:
    """The diffusers classes that a built-in adapter drives: for Kandinsky also those of the pair."""
    pairs = [name for pair, combined in PAIRS.items() if combined in adapter.pipelines for name in pair]
    return [getattr(diffusers, name) for name in (*adapter.pipelines, *pairs)]


def arguments_of(pipeline: Any) -> list[str]:
    """Names of the arguments of a pipeline's call."""
    parameters = list(inspect.signature(pipeline.__call__).parameters.values())[1:]
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]


def decision(adapter: type[Adapter], pipeline: Any, argument: str) -> Decision | None:
    """What HSD does with an argument; None if nobody has decided on it."""
    special = FOR_ONE.get((pipeline.__name__, argument))
    if special is not None:
        return Decision("given" if special.startswith("the setting") else "refused", special)
    if argument in adapter.setting_names():
        return Decision("setting", "")
    if argument in GIVEN:
        return Decision("given", GIVEN[argument])
    return Decision("refused", REFUSED[argument]) if argument in REFUSED else None


def why_no_setting(adapter: type[Adapter], name: str) -> str:
    """Why a family has no setting of this name, and what to do instead; ends without a full stop."""
    for pipeline in pipelines_of(adapter) if adapter.__module__.startswith(__package__ or "") else ():
        if name in arguments_of(pipeline):
            found = decision(adapter, pipeline, name)
            if found is not None and found.kind == "refused":
                return found.text
    accepted = adapter.setting_names()
    if name in GIVEN:
        return f"here it is {GIVEN[name]}"
    known = {**REFUSED, **ELSEWHERE}.get(name)
    if known is not None:
        scale = next((f'{each}={{"scale": ...}}' for each in accepted if each.endswith("attention_kwargs")), "a scale")
        return known.format(scale=scale) if "{scale}" in known else known
    owners = [family.__name__ for family in _families() if name in family.setting_names()]
    if owners:
        return f"its pipeline does not take it; {', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it"
    other = of_a_run(name) or meant(name, accepted)
    if other is not None and "did you mean" not in other:
        return other
    near = difflib.get_close_matches(name, accepted, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if other is not None and any(repr(one) in other for one in accepted):
        return other
    of_run = difflib.get_close_matches(name, OF_A_RUN, n=1, cutoff=0.8)
    if of_run:
        return f"did you mean {of_run[0]!r} of hsd.generate?"
    return "it is no argument of a pipeline that HSD knows"


def _families() -> list[type[Adapter]]:
    """The built-in adapters that this version of diffusers can run."""
    return [each for name in BUILT_IN if hasattr(diffusers, name) and (each := adapter_named(name)) is not None]
