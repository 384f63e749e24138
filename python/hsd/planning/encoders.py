"""One vector per prompt, for clustering, when neither a model nor embeddings are given.

The default is a small, offline, static encoder: the token embeddings that the ``wordllama`` package ships (256
dimensions, distilled from language models), averaged over the tokens of a prompt, and beside the mean a small part that
depends on their order. The mean alone cannot tell "dog bites man" from "man bites dog".

The order part is the direction of the sum of the token embeddings, weighted by their position from negative to
positive. Of what was tried (products of neighbouring tokens, of all pairs with a falling weight, their antisymmetric
part), it costs the least savings for the distance that it gives to two prompts which differ in order only, and is the
only one that changes when two words far apart change places. That distance is about a sentence transformer's
(all-MiniLM-L6-v2): .030 and .011 for "a red star on a blue background" with the colours exchanged, .074 and .093 for
the dog and the man. Savings at tau 1 with 40 steps, in percent, on four prompt sets (style_variations, animals,
genai_bench, prompt_templates):

=================================  ====  ====  ====  ====
sentence transformer               85.7  44.8  40.2  77.2
mean of the tokens                 71.6  33.8  35.2  74.6
mean and order (this encoder)      71.0  33.3  34.3  74.2
=================================  ====  ====  ====  ====

2,000 prompts take well under a second. Where images are generated there is a model, and its own embeddings are used
instead (``generation/clustering.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error, PromptError

Encoder = Callable[[list[str]], Any]
"""Takes N prompts, returns (N, D) floats: NumPy, or anything that ``numpy.asarray`` reads."""


EARLIER_NAME = "wordllama-256"
"""What plans of earlier versions record for the default encoder, which was the mean alone."""

CHUNK = 4096
"""Prompts that are cut into tokens at a time: the tokens of a million prompts would take gigabytes."""

_EMBEDDED = 128
"""Prompts whose tokens are looked up at a time: their vectors stay in the cache, which is three times as fast."""


ORDER = 0.2
"""Length of the order part, where the mean has length 1. The larger, the more are paraphrases pushed apart too."""

_LEAST_ORDER = 1e-2
"""Share of the mean's length below which the order part is not scaled up to its full length: it is rounding there, as
in a prompt of one token, or of one token repeated."""


class StaticEncoder:
    """Mean of static token embeddings, and their order: ``encoder(prompts) -> (N, 512)`` float32."""

    name = "wordllama-256-order"

    def __init__(self) -> None:
        # Here, so that `import hsd` does not pay for them: a plan from embeddings or of a model needs neither.
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        # The two files are read directly: wordllama's own loader may try to download a tokenizer it ships.
        root = _package_folder("wordllama")
        self._table = load_file(root / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
        self._tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))

    def __call__(self, prompts: Sequence[str], progress: Callable[[int], object] | None = None) -> NDArray[np.float32]:
        """Embed ``prompts`` as (N, 512) float32; ``progress`` gets the number done, after every few thousand."""
        width = self._table.shape[1]
        out = np.empty((len(prompts), 2 * width), dtype=np.float32)
        for start in range(0, len(prompts), CHUNK):
            chunk = list(prompts[start : start + CHUNK])
            tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]
            empty = next((i for i, ids in enumerate(tokens, start) if not ids), None)
            if empty is not None:
                raise PromptError(f"prompt {empty} ({prompts[empty]!r}) has nothing that the default encoder reads")
            for first in range(0, len(chunk), _EMBEDDED):
                part = tokens[first : first + _EMBEDDED]
                self._embed(part, out[start + first : start + first + len(part)])
            if progress:
                progress(start + len(chunk))
        return out

    def _embed(self, tokens: list[list[int]], rows: NDArray[np.float32]) -> None:
        """Write the vectors of some prompts, given as tokens, into ``rows`` (n, 512)."""
        width = self._table.shape[1]
        counts = np.array([len(ids) for ids in tokens])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        vectors = self._table[np.concatenate(tokens)].astype(np.float32)  # (sum of counts, 256)
        mean = np.add.reduceat(vectors, starts) / counts[:, None]
        vectors *= _position_weights(counts, starts)[:, None]
        order = np.add.reduceat(vectors, starts) / counts[:, None]
        length = np.linalg.norm(mean, axis=1, keepdims=True)
        rows[:, :width] = mean / length
        least = _LEAST_ORDER * length
        rows[:, width:] = ORDER * order / np.maximum(np.linalg.norm(order, axis=1, keepdims=True), least)


def _position_weights(counts: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(sum of counts,) the weight of each token in the order part: rises over its prompt, with the sum 0.

    It is not odd about the middle: "a b b a" and "b a a b" would be equal. Sums and products only, which are rounded
    alike on all processors.
    """
    n = np.repeat(counts, counts)
    position = np.arange(len(n)) - np.repeat(starts, counts)
    x = (2 * position - (n - 1)) / np.maximum(n - 1, 1)  # -1 to 1
    weight = x + x * x / 8
    weight -= np.repeat(np.add.reduceat(weight, starts) / counts, counts)
    return weight.astype(np.float32)


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Error(f"the default encoder needs the package {name}: pip install {name}, or pass embeddings= or model=")
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=1)
def default_encoder() -> StaticEncoder:
    """The static encoder, loaded once."""
    return StaticEncoder()


def name_of(encoder: Encoder) -> str:
    """What a plan records of an encoder that was given."""
    return str(getattr(encoder, "name", None) or getattr(encoder, "__name__", type(encoder).__name__))
