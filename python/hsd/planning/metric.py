"""The metric of a clustering: which one a request means, and what has to hold for it."""

from __future__ import annotations

from typing import get_args

from ..names import Linkage, Metric, TreeMetric, check_name


def resolve_metric(metric: Metric, linkage: Linkage) -> str:
    """The metric by which prompts are clustered: ``metric``, or what ``auto`` means.

    Raises
    ------
    ValueError
        For an unknown name, and for a metric that this linkage or this request cannot have.
    """
    check_name("metric", metric, Metric)
    resolved = "cosine" if metric == "auto" else metric
    if resolved not in get_args(TreeMetric):
        raise ValueError(
            f"metric {resolved!r} needs a calibrated model, and there is none: use 'cosine' or 'euclidean'"
        )
    check_linkage(resolved, linkage)
    return resolved


def check_linkage(metric: str, linkage: Linkage) -> None:
    """``ValueError`` if this linkage has no form for this metric: all but ``cosine`` are Euclidean."""
    if linkage == "centroid" and metric != "cosine":
        raise ValueError(
            f"linkage 'centroid' compares mean embeddings by cosine distance, so it has no form for metric {metric!r}: "
            "use metric 'cosine', or linkage 'ward', 'average' or 'complete'"
        )


def check_threshold_given(metric: str, tau: float | None, budget: float | None) -> None:
    """``ValueError`` if nothing says where to cut: Euclidean distances have no scale of their own, so no usual tau."""
    if metric == "euclidean" and tau is None and budget is None:
        raise ValueError(
            "metric 'euclidean' has no default tau, because it depends on the scale of the embeddings: "
            "give tau= (a distance) or budget= (the share of evaluations to save)"
        )
