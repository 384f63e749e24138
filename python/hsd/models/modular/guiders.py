"""Guiders of modular pipelines: which of them HSD can apply to lanes, and copies of them.

A guider combines the denoiser's outputs for a text and for a negative text. It is a component of the pipeline and has a
state: the step that it is at. HSD works with copies, so that the user's guider keeps its state.
"""

from __future__ import annotations

import copy
from typing import Any

from ...errors import UnsupportedPipeline

_BY_ROW = frozenset(
    {
        "AdaptiveProjectedGuidance",
        "AdaptiveProjectedMixGuidance",
        "ClassifierFreeGuidance",
        "ClassifierFreeZeroStarGuidance",
        "TangentialClassifierFreeGuidance",
    }
)
"""Guiders whose output for an image follows from the denoiser's outputs for this image, at this step."""

_EVERY_STEP = frozenset(
    {
        "AdaptiveProjectedGuidance",
        "ClassifierFreeGuidance",
        "TangentialClassifierFreeGuidance",
    }
)
"""Those of them with one formula for all steps between their ``start`` and their ``stop``."""

_HOOKS = frozenset(
    {"AutoGuidance", "PerturbedAttentionGuidance", "SkipLayerGuidance", "SmoothedEnergyGuidance"},
)
"""Guiders that change the denoiser by hooks during some of its calls."""

_INSTEAD = "pass a pipeline with another guider: pipe.update_components(guider=ClassifierFreeGuidance(...))"


def check_guider(guider: Any) -> None:
    """``UnsupportedPipeline`` for a guider that HSD cannot apply; None is a pipeline without one."""
    if guider is None:
        return
    kind = type(guider).__name__
    if kind in _HOOKS:
        raise UnsupportedPipeline(
            f"the guider {kind} changes the denoiser by hooks during some of its calls, which HSD does not follow: "
            f"{_INSTEAD}"
        )
    if kind not in _BY_ROW or not type(guider).__module__.startswith("diffusers."):
        raise UnsupportedPipeline(
            f"the guider {kind} is none of those that HSD applies ({', '.join(sorted(_BY_ROW))}): {_INSTEAD}"
        )
    momentum = getattr(guider, "adaptive_projected_guidance_momentum", None)
    if momentum is not None and guider._enabled:
        raise UnsupportedPipeline(
            f"the guider {kind} has a momentum of {momentum}: its output then depends on all earlier steps, which many "
            "images may share. Pass a pipeline with adaptive_projected_guidance_momentum=None"
        )


def reads_step(guider: Any) -> bool:
    """Whether the guider's formula depends on which step it is."""
    if guider is None or not guider._enabled:
        return False
    return type(guider).__name__ not in _EVERY_STEP or (guider._start, guider._stop) != (0.0, 1.0)


def new_guider(guider: Any, scale: float | None = None, *, enabled: bool = True) -> Any:
    """A copy at no step, with another guidance scale unless it is None; off if it is not ``enabled``.

    The copy belongs to one call. A guider remembers the step that it was at last, and blocks that encode prompts ask it
    whether it needs a negative text at that step.
    """
    if guider is None:
        return None
    new = copy.copy(guider)
    new._step = new._num_inference_steps = new._timestep = None
    if scale is not None:
        new.guidance_scale = scale
    if not enabled:
        new._enabled = False
    return new


def is_guided(guider: Any) -> bool:
    """Whether the guider takes the denoiser's outputs for two texts, at some step at least."""
    return guider is not None and guider._enabled and new_guider(guider).num_conditions > 1
