"""The embedding space: a picture's vector is the sum of one fixed code a stated attribute.

A contrastive image-text model would have to discover this space from millions of pairs; we may simply design it.
Codes of different attributes are orthogonal and those of one attribute sum to zero, so an unsaid attribute adds
nothing *and* is the mean of everything it could have been. The mean of several prompts' embeddings, which is what
HSD conditions a cluster on, therefore is the embedding of what the prompts have in common plus a weaker trace of
where they differ, and the zero vector is the embedding of nothing at all: the null condition of guidance.
"""

from __future__ import annotations

import numpy as np
import torch

from .scenes import ATTRIBUTES

DIM = 128
SEED = 20825
# What covers many pixels or decides the composition weighs more, as it does in the early denoising steps.
WEIGHTS = {"count": 1.0, "place": 1.2, "relation": 1.2, "size": 0.8, "second_size": 0.8, "background": 1.4}


def make_codes() -> list[torch.Tensor]:
    """One table [number of values, 128] an attribute, in the order of ATTRIBUTES."""
    rng = np.random.default_rng(SEED)
    basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]  # orthonormal rows and columns
    tables, used = [], 0
    for name, values in ATTRIBUTES.items():
        n = len(values)
        code = basis[used : used + n]
        used += n
        code = code - code.mean(axis=0)
        code /= np.linalg.norm(code, axis=1, keepdims=True)
        # A full scene says about ten attributes; this makes an entry of its embedding about 1 in size.
        tables.append(torch.tensor(code * WEIGHTS.get(name, 1.0) * (DIM / 10) ** 0.5, dtype=torch.float32))
    assert used <= DIM
    return tables


_TABLES = make_codes()
# A last row of zeros in every table serves index -1, unsaid.
_PADDED = [torch.cat([table, torch.zeros(1, DIM)]) for table in _TABLES]


def embed(rows: np.ndarray) -> torch.Tensor:
    """Embeddings of scenes, said attributes only. rows: [..., 12] -> [..., 128]."""
    assert rows.shape[-1] == len(ATTRIBUTES), rows.shape
    return sum(table[torch.from_numpy(rows[..., i])] for i, table in enumerate(_PADDED))


def read(vectors: torch.Tensor) -> np.ndarray:
    """The nearest value of every attribute, whether said or not. vectors: [N, 128] -> [N, 12]."""
    return np.stack([(vectors @ table.T).argmax(dim=1).numpy() for table in _TABLES], axis=1)
