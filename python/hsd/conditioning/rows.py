"""What the denoiser is conditioned on: stored rows of each prompt, and their mean for a cluster.

The mean of a cluster, tensor by tensor, is the arithmetic mean of its members' rows, accumulated in float32:

* rows of one shape (vectors, and token sequences that the denoiser reads to the end): entry by entry, position by
  position;
* rows of different lengths (token sequences that the denoiser reads under a mask): at every position, over the
  members that have a token there. The mean is as long as its longest member, and its mask covers exactly that.
  Counting an absent token as zeros would shrink the end of every mean towards zero. No text encoder produces such
  embeddings.

So a cluster of one prompt has exactly the row of the prompt, and so has a cluster of equal prompts, which share a row.
The order of the members does not matter: rows are added in the order in which they are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as attribute

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import Error
from .spool import Chunk, Spool

MASK = "_mask"
"""A ragged field ``name`` comes with ``name_mask``: which positions hold a token."""

_CHUNK_BYTES = 4 << 20
"""Bytes of rows that are stored and averaged at a time: bounds the additional memory."""


class Rows:
    """Rows of one tensor, (...) each; of differing lengths, (L_i, ...), if they are ``ragged``.

    Rows are appended, then sealed by the first read.
    """

    def __init__(self, spool: Spool, *, ragged: bool) -> None:
        self.ragged = ragged
        self._spool = spool
        self._chunks: list[Chunk] = []
        self._pending: list[Tensor] = []  # not stored yet, (T, ...) each
        self._pending_bytes = 0
        self._chunk: list[int] = []  # chunk of each row, and where the row begins and ends in it
        self._begin: list[int] = []
        self._end: list[int] = []
        self._filled = 0  # total length of the pending rows
        self.nbytes = 0
        self.longest = 0
        self.dtype = torch.float32
        self._shape: tuple[int, ...] = ()  # of a row, without its length if it is ragged

    def __len__(self) -> int:
        return len(self._chunk)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) the length of each row; 1 if they are not ragged."""
        return np.array(self._end, dtype=np.int64) - np.array(self._begin, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row; of the longest, if they are ragged."""
        return (self.longest, *self._shape) if self.ragged else self._shape

    def append(self, batch: Tensor | Sequence[Tensor]) -> None:
        """Add rows: a tensor (B, ...), or B tensors (L_i, ...) where they are ragged."""
        rows = list(batch) if self.ragged else list(batch[:, None])  # type: ignore[call-overload]
        for row in rows:
            row = row.detach().cpu()
            if not len(self):
                self.dtype, self._shape = row.dtype, tuple(row.shape[1:])
            if (row.dtype, tuple(row.shape[1:])) != (self.dtype, self._shape):
                raise Error(
                    f"conditioning of shape {tuple(row.shape[1:])} {row.dtype}, but {self._shape} {self.dtype} before: "
                    "prompts whose settings change its shape cannot be in one plan"
                )
            self._pending.append(row)
            self._pending_bytes += row.nbytes
            self.nbytes += row.nbytes
            self._chunk.append(len(self._chunks))
            self._begin.append(self._filled)
            self._filled += len(row)
            self._end.append(self._filled)
            self.longest = max(self.longest, len(row))
            if self._pending_bytes >= _CHUNK_BYTES:
                self._seal()

    def __getitem__(self, i: int) -> Tensor:
        """Row ``i``, (...) or (L_i, ...)."""
        self._seal()
        row = self._spool.read(self._chunks[self._chunk[i]], self._begin[i], self._end[i])
        return row if self.ragged else row[0]

    def mean(self, index: NDArray[np.int64], weights: NDArray[np.float64]) -> Tensor:
        """Sum of ``weights[j]`` times row ``index[j]``, over their sum at each position; (...) or (L, ...).

        ``index`` ascends. Weights are positive.
        """
        if len(index) == 1:
            return self[int(index[0])]
        self._seal()
        length = max(self._end[i] - self._begin[i] for i in index)
        total = torch.zeros((length, *self._shape), dtype=torch.float32)
        weight = torch.zeros(length, dtype=torch.float64)
        for chunk, at in self._by_chunk(index):
            spans = [(self._begin[i], self._end[i]) for i in index[at]]
            if self.ragged:
                for (begin, end), w in zip(spans, weights[at].tolist(), strict=True):
                    total[: end - begin].add_(self._spool.read(chunk, begin, end).float(), alpha=w)
                    weight[: end - begin] += w
            else:  # all rows have length 1: read them together
                picked = self._spool.pick(chunk, [begin for begin, _ in spans])  # [n, ...]
                scale = torch.from_numpy(weights[at])
                total[0] += torch.tensordot(scale.float(), picked.float(), dims=1)
                weight[0] += scale.sum()
        mean = (total / weight.to(torch.float32).view(-1, *(1,) * len(self._shape))).to(self.dtype)
        return mean if self.ragged else mean[0]

    def _by_chunk(self, index: NDArray[np.int64]) -> Iterator[tuple[Chunk, slice]]:
        """Runs of ``index`` that lie in one chunk."""
        chunks = np.array([self._chunk[i] for i in index])
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        for begin, end in zip(starts, [*starts[1:], len(index)], strict=True):
            yield self._chunks[chunks[begin]], slice(int(begin), int(end))

    def _seal(self) -> None:
        if self._pending:
            self._chunks.append(self._spool.put(torch.cat(self._pending)))
            self._pending, self._pending_bytes, self._filled = [], 0, 0


@dataclass(frozen=True)
class Field:
    """One tensor of the conditioning: its rows, and the row of each prompt."""

    rows: Rows
    index: NDArray[np.int64]
    """(N,) row of each prompt, -1 where it was not encoded. Prompts with equal conditioning may share a row."""


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of N prompts, on the host: in memory up to a limit, on disk beyond it.

    Attributes
    ----------
    fields
        Fields by name. A prompt may lack some: without guidance there is no unconditional embedding.
    vectors
        (N, D) float32, one vector per prompt: what the prompts are clustered by. Zeros where the
        encoding of a prompt was not asked for.
    spool
        Where the rows are stored.
    texts
        Where a prior draws what prompts are conditioned on: (N, D) float32, one vector per prompt of the text that the
        prior reads. Equal texts have equal ones, whatever their seeds. None: ``vectors`` are of the text.
    failed
        Prompts that could not be encoded, with the reason. They take no part in means. Each has the row and vector of
        another prompt in the place of its own, so that it can be looked up like any other.
    seconds
        How long it took to encode a prompt, on average; 0 if that is not known.
    padded
        Whether :meth:`mean` pads rows of differing lengths, and gives their mask.
    """

    fields: dict[str, Field]
    vectors: NDArray[np.float32]
    spool: Spool
    texts: NDArray[np.float32] | None = None
    failed: dict[int, str] = attribute(default_factory=dict)
    seconds: float = 0.0
    padded: bool = True

    @property
    def n_prompts(self) -> int:
        """N."""
        return len(self.vectors)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of :meth:`mean`."""
        out: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, field in self.fields.items():
            out[name] = (field.rows.shape, field.rows.dtype)
            if field.rows.ragged and self.padded:
                out[name + MASK] = ((field.rows.longest,), torch.bool)
        return out

    def split(
        self, prompts: NDArray[np.int64], differing: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], Conditioning]:
        """Conditioning that all ``prompts`` (n,) have in common, one row (1, ...) by name, and the rest that differs.
        Fields ``differing`` are among the rest whatever the prompts have.

        Fields that only other prompts have are in neither.
        """
        fields = {name: field for name, field in self.fields.items() if field.index[prompts[0]] >= 0}
        own = {name: field for name, field in fields.items() if name in differing or np.ptp(field.index[prompts]) > 0}
        common = {name: field for name, field in fields.items() if name not in own}
        shared, rest = (replace(self, fields=part) for part in (common, own))
        return {name: row[None] for name, row in shared.mean(prompts[:1]).items()}, rest

    def each(self, prompts: Iterable[int], device: torch.device) -> dict[str, Tensor]:
        """(B, ...) by name on ``device``: the row of each of B ``prompts`` by itself, all of one shape."""
        rows = [self.mean(np.array([prompt])) for prompt in prompts]
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def mean(self, prompts: NDArray[np.int64]) -> dict[str, Tensor]:
        """The mean row of ``prompts`` (n,), each (...); where lengths differ, padded with zeros, with its mask.

        This is what a cluster is conditioned on: the mean embedding of the paper's Algorithm 1. Prompts that could
        not be encoded do not count.
        """
        if self.failed:
            encoded = prompts[~np.isin(prompts, list(self.failed))]
            prompts = encoded if len(encoded) else prompts
        out = {}
        for name, field in self.fields.items():
            index, counts = np.unique(field.index[prompts], return_counts=True)
            assert index[0] >= 0, f"{name} of a prompt that was not encoded"
            mean = field.rows.mean(index, counts / counts.sum())
            if field.rows.ragged and self.padded:
                length = len(mean)
                padded = mean.new_zeros(field.rows.shape)
                padded[:length] = mean
                out[name] = padded
                out[name + MASK] = torch.arange(field.rows.longest) < length
            else:
                out[name] = mean
        return out
