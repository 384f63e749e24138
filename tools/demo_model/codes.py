"""The embedding space: a picture's vector is the sum of one fixed code per named attribute.

A contrastive image-text model has to learn such a space from millions of pairs; here it is designed. Codes of
different attributes are orthogonal, and the codes of one attribute sum to zero. So an attribute that a prompt leaves
open adds zero, which is also the mean of all its values. HSD conditions a cluster on the mean of several prompts'
embeddings: this mean is the embedding of what the prompts have in common, plus a weaker part for the attributes in
which they differ. The zero vector is the embedding of a prompt that names nothing: the null condition of guidance.
"""

from __future__ import annotations

import numpy as np
import torch

from .scenes import ATTRIBUTES

DIM = 128
SEED = 20825
# Attributes that cover many pixels or decide the composition have more weight, as in the early denoising steps.
WEIGHTS = {"count": 1.0, "place": 1.2, "relation": 1.2, "size": 0.8, "second_size": 0.8, "background": 1.4}


def make_codes() -> list[torch.Tensor]:
    """One table [number of values, 128] per attribute, in the order of ATTRIBUTES."""
    rng = np.random.default_rng(SEED)
    basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]  # orthonormal rows and columns
    tables, used = [], 0
    for name, values in ATTRIBUTES.items():
        n = len(values)
        code = basis[used : used + n]
        used += n
        code = code - code.mean(axis=0)
        code /= np.linalg.norm(code, axis=1, keepdims=True)
        # A full scene has about ten attributes; with this factor, an entry of its embedding is about 1 in size.
        tables.append(torch.tensor(code * WEIGHTS.get(name, 1.0) * (DIM / 10) ** 0.5, dtype=torch.float32))
    assert used <= DIM
    return tables


_TABLES = make_codes()
# The last row of every table is zero: it is the code of index -1, an open attribute.
_PADDED = [torch.cat([table, torch.zeros(1, DIM)]) for table in _TABLES]


def embed(rows: np.ndarray) -> torch.Tensor:
    """Embeddings of scenes; open attributes add nothing. rows: [..., 12] -> [..., 128]."""
    assert rows.shape[-1] == len(ATTRIBUTES), rows.shape
    return sum(table[torch.from_numpy(rows[..., i])] for i, table in enumerate(_PADDED))


def read(vectors: torch.Tensor) -> np.ndarray:
    """The nearest value of every attribute, also of open ones. vectors: [N, 128] -> [N, 12]."""
    return np.stack([(vectors @ table.T).argmax(dim=1).numpy() for table in _TABLES], axis=1)
