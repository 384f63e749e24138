"""What the pictures read of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._core import Tree
from ..summary import STANDS_IN


@dataclass(frozen=True)
class Subject:
    """The part of a plan that is drawn. ``Plan`` imports this folder, so this is not a plan."""

    prompts: list[str]
    """The N prompts of the tree."""
    kept: NDArray[np.int64]
    """Indices of the prompts whose images the plan generates."""
    tree: Tree
    tau: float
    phi: NDArray[np.float64]
    """(K,) the thresholds."""
    counts: NDArray[np.int64]
    """(K,) active clusters of the kept prompts."""
    about: str
    """A line of text about how the prompts were compared."""

    @classmethod
    def of(cls, plan: Any) -> Subject:
        """The part of an :class:`hsd.Plan`."""
        about = f"Prompts compared by {plan.request['encoder']}, {plan.metric} distances, {plan.tree.linkage} linkage."
        if plan.is_estimate:
            about = f"{about} {STANDS_IN[0].upper()}{STANDS_IN[1:]}."
        return cls(plan.prompts, plan.kept, plan.tree, plan.tau, plan.phi, plan.counts(), about)

    @property
    def n_prompts(self) -> int:
        """N."""
        return len(self.prompts)

    @property
    def n_steps(self) -> int:
        """K."""
        return len(self.phi)

    @property
    def node_steps(self) -> int:
        """Evaluations of the denoiser on one latent."""
        return int(self.counts.sum())

    @property
    def standard_node_steps(self) -> int:
        """The same without sharing."""
        return len(self.kept) * self.n_steps

    @property
    def savings(self) -> float:
        """1 - node_steps / standard_node_steps."""
        return 1.0 - self.node_steps / self.standard_node_steps
