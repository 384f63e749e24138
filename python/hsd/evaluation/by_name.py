"""The scorers that have a name: which class each is, and in which process it runs."""

from __future__ import annotations

from ..names import ScorerName, check_name
from .external import ExternalScorer
from .scorers import Scorer, check_scorer

IN_PROCESS = ("demo", "clipscore", "pickscore")


def make_scorer(name: str, *, model: str | None = None, device: str | None = None, python: str | None = None) -> Scorer:
    """Make a scorer by its name. Its weights are loaded when they are first needed.

    Parameters
    ----------
    model
        Another model instead of the scorer's default, for scorers that can use several.
    device
        Where the scorer runs. Default: CUDA if available, else the CPU; the demo's scorer always defaults to the CPU.
    python
        For ``vqascore``, ``hpsv2`` and ``imagereward``: the interpreter of the environment that has their package.

    Raises
    ------
    ValueError
        For an unknown name, or an argument that this scorer does not take.
    ScorerError
        If the package is missing. Says what to install.
    """
    check_name("scorer", name, ScorerName)
    if name not in IN_PROCESS:
        return ExternalScorer(name, model=model, device=device, python=python)
    if python is not None:
        raise ValueError(f"python={python!r}: {name} runs in this process")
    # Imported here, not above: these two need torch in this process, an external scorer does not.
    if name == "demo":
        if model is not None:
            raise ValueError(f"model={model!r}: the scorer demo has one model")
        from ..demo.evaluator import DemoEvaluator

        return check_scorer(DemoEvaluator(device or "cpu"))
    from .clip import ClipScore, PickScore

    return (ClipScore if name == "clipscore" else PickScore)(model, device)
