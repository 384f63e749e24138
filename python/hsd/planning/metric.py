"""The metric of a clustering: which one a request means, and what has to hold for it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ..errors import Notice
from ..names import Linkage, Metric, check_name

if TYPE_CHECKING:
    from ..models.base import Adapter


def resolve_metric(metric: Metric, linkage: Linkage, adapter: Adapter | None = None) -> str:
    """The metric by which prompts are clustered: ``metric``, or what ``auto`` means.

    Parameters
    ----------
    metric, linkage
        The arguments of :func:`hsd.compile`.
    adapter
        The model, if prompts are clustered by its own embeddings.

    Raises
    ------
    ValueError
        For an unknown name, and for a metric that this linkage or this request cannot have.
    """
    check_name("metric", metric, Metric)
    calibration = None if adapter is None else adapter.calibration
    if metric == "auto":
        metric = "cosine" if calibration is None or linkage == "centroid" else "calibrated"
    check_linkage(metric, linkage)
    if metric in ("calibrated", "direct") and adapter is None:
        raise ValueError(
            f"metric {metric!r} asks the model how it tells prompts apart: give model=, and neither embeddings= nor "
            "encoder="
        )
    if metric == "calibrated" and calibration is None:
        raise ValueError(
            "metric 'calibrated' needs a calibrated model, and this one has no calibration: run `hsd calibrate MODEL` "
            "once, or use 'direct', 'cosine' or 'auto'"
        )
    return metric


def checked_metric(metric: str, asked: Metric, adapter: Adapter, width: int) -> str:
    """``metric``; ``cosine`` with a warning where the calibration does not belong to the model as it is now.

    ``width`` is that of the model's vectors. LoRA layers may have been added since the model was loaded.

    Raises
    ------
    ValueError
        If ``calibrated`` itself was asked for, and the calibration takes vectors of another width.
    """
    if metric != "calibrated":
        return metric
    from ..models.identity import identity_of  # here, because it imports torch

    calibration = adapter.calibration
    assert calibration is not None
    if calibration.width != width:
        what = f"takes vectors of width {calibration.width}, and those of this model have {width}"
    elif not calibration.identity.matches(identity_of(adapter)):
        what = "is that of other networks (another checkpoint, or other LoRA layers)"
    else:
        return metric
    if asked == "calibrated" and calibration.width != width:
        raise ValueError(f"the calibration of {calibration.model} {what}: run `hsd calibrate` for this model")
    used = "it is used all the same" if asked == "calibrated" else "its distances are ignored, and cosine ones are used"
    warnings.warn(
        f"the calibration of {calibration.model} {what}: {used}. Run `hsd calibrate` for this model",
        Notice,
        stacklevel=5,
    )
    return metric if asked == "calibrated" else "cosine"


def default_threshold(metric: str, adapter: Adapter) -> float:
    """The tau for the scale of a model's own distances, where none is given."""
    if metric == "cosine":
        return adapter.default_tau
    return 1.0 if adapter.calibration is None else adapter.calibration.tau


def correlation_of(metric: str, adapter: Adapter | None) -> float | None:
    """How well distances predict those of the model's own predictions; None where that was not measured."""
    calibration = None if adapter is None else adapter.calibration
    if calibration is None:
        return None
    return {"calibrated": calibration.correlation, "cosine": calibration.cosine_correlation}.get(metric)


def check_linkage(metric: str, linkage: Linkage) -> None:
    """``ValueError`` if this linkage has no form for this metric: all but ``cosine`` are Euclidean."""
    if linkage == "centroid" and metric not in ("cosine", "auto"):
        raise ValueError(
            f"linkage 'centroid' compares mean embeddings by cosine distance, so it has no form for metric {metric!r}: "
            "use metric 'cosine', or linkage 'ward', 'average' or 'complete'"
        )


def check_threshold_given(metric: str, tau: float | None, goal: object | None) -> None:
    """``ValueError`` if nothing says where to cut: Euclidean distances have no scale of their own, so no usual tau."""
    if metric == "euclidean" and tau is None and goal is None:
        raise ValueError(
            "metric 'euclidean' has no default tau, because it depends on the scale of the embeddings: "
            "give tau= (a distance) or budget= (the share of evaluations to save)"
        )
