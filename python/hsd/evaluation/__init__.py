"""Measures folders of images: scores, win rates, diversity. See ``docs/evaluate.md``.

The package is not called ``evaluate``: importing one of its modules would then replace the function ``hsd.evaluate``.
"""

from __future__ import annotations

from .folder import FolderError
from .measure import evaluate
from .results import Evaluation
from .scorers import Scorer, ScorerError

__all__ = ["Evaluation", "FolderError", "Scorer", "ScorerError", "evaluate"]
