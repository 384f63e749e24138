"""The tables that encoding fills: the rows of each field, and which prompts cannot be encoded."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning.rows import Conditioning, Field, Rows
from ..conditioning.spool import Spool
from ..errors import Error, PromptError
from ..replay.denoiser import Batch, Denoiser, Encoded
from ..replay.kept import with_room
from ..work.faults import HOPELESS, NOT_FINITE, described, one_by_one


class Tables:
    """The fields of a conditioning while prompts are encoded."""

    def __init__(self, prompts: Sequence[str], spool: Spool, skips: bool) -> None:
        self.gives_up = True
        """With ``skips``: raise if the first few prompts all fail."""
        self.fields: dict[str, Field] = {}
        self.vectors: NDArray[np.float32] = np.zeros((len(prompts), 0), dtype=np.float32)
        self.texts: NDArray[np.float32] | None = None
        self.failed: dict[int, str] = {}
        self._skips = skips
        self._prompts, self._n, self._spool = prompts, len(prompts), spool
        self._first: Exception | None = None
        self._kinds: set[str] = set()  # of failures: types of errors
        self.known: dict[int, dict[str, int]] = {}
        """For each variant, prompts that were encoded by an earlier call, by their text."""
        self.tells_cuts = True
        """Whether prompts that are too long are reported."""
        self._shared: dict[int, dict[str, int]] = {}
        """For each variant, the rows that all of its prompts have in common."""
        self._known_rows: dict[tuple[str, bytes], int] = {}
        """Such rows by name and digest: variants that differ in something else have one row of an image."""

    def begin(self, asked: NDArray[np.bool_], gives_up: bool) -> None:
        """Encode more prompts. Failures of a call that an error ended do not count: only those ``asked`` (N,) do."""
        self.failed = {i: reason for i, reason in self.failed.items() if asked[i]}
        self._first, self._kinds, self.gives_up = None, set(), gives_up

    def _field(self, name: str, rows: Tensor | Sequence[Tensor]) -> Field:
        if name not in self.fields:
            ragged = not isinstance(rows, Tensor)
            index = np.full(self._n, -1, dtype=np.int64)
            self.fields[name] = Field(Rows(self._spool, ragged=ragged), index)
        return self.fields[name]

    def share(self, v: int, part: Denoiser, members: NDArray[np.int64]) -> None:
        """Give ``members`` the rows that all prompts of variant ``v`` have in common, one of each field."""
        if v not in self._shared:
            self._shared[v] = {name: self._add_shared(name, row) for name, row in with_room(part.shared).items()}
        for name, row in self._shared[v].items():
            self.fields[name].index[members] = row

    def _add_shared(self, name: str, row: Tensor | Sequence[Tensor]) -> int:
        assert len(row) == 1, (name, len(row))
        if not torch.isfinite(row[0]).all():
            raise Error(f"{name}, which all prompts share, has {NOT_FINITE}: try the model in float32")
        field, value = self._field(name, row), row[0].detach().cpu().contiguous()
        key = (name, hashlib.sha256(repr((value.shape, value.dtype)).encode() + _bytes(value)).digest())
        if key not in self._known_rows:
            field.rows.append(row)
            self._known_rows[key] = len(field.rows) - 1
        return self._known_rows[key]

    def encode(self, part: Denoiser, batch: Batch, members: NDArray[np.int64]) -> None:
        """Encode a batch and add its rows. Prompts that cannot be encoded are recorded."""
        done, errors = one_by_one(range(len(batch)), lambda at: with_room(lambda: part.encode(_of_batch(batch, at))))
        reasons = {i: described(error) for i, error in errors.items()}
        for positions, encoded in done:
            at = np.array(positions)
            _check_lengths(encoded, len(at))
            tried = ~np.isin(at, list(errors))  # another prompt was in the place of each that failed
            good = _finite(encoded) & tried
            reasons |= dict.fromkeys(at[tried & ~good].tolist(), f"the encoder gave {NOT_FINITE}")
            self._add(encoded if good.all() else _picked(encoded, np.flatnonzero(good)), members[at[good]])
        for i, reason in sorted(reasons.items()):  # last, when it is known whether the others can be encoded
            self.fail(int(members[i]), reason, errors.get(i))

    def _add(self, encoded: Encoded, members: NDArray[np.int64]) -> None:
        if not len(members):
            return
        for name, rows in encoded.rows.items():
            field = self._field(name, rows)
            field.index[members] = len(field.rows) + np.arange(len(members))
            field.rows.append(rows)
        vectors = encoded.vectors.detach().float().cpu().numpy()
        if not self.any:
            self.vectors = np.zeros((self._n, vectors.shape[1]), dtype=np.float32)
        self.vectors[members] = vectors

    def add_texts(self, vectors: NDArray[np.float32], members: NDArray[np.int64]) -> None:
        """Add the vectors (n, D) of the texts that a prior reads."""
        if not vectors.shape[1]:
            return  # none of them was encoded
        if self.texts is None:
            self.texts = np.zeros((self._n, vectors.shape[1]), dtype=np.float32)
        self.texts[members] = vectors

    def conditioning(self) -> Conditioning:
        """What has been encoded."""
        return Conditioning(self.fields, self.vectors, self._spool, self.texts, self.failed)

    @property
    def any(self) -> bool:
        """Whether any prompt has been encoded."""
        return self.vectors.shape[1] > 0

    def fail(self, index: int, reason: str, error: Exception | None = None) -> None:
        """Record that a prompt cannot be encoded. Raises unless prompts may fail, and if all of the first ones do."""
        self.failed[index] = reason
        self._kinds.add(reason.partition(":")[0])
        self._first = self._first or error
        if not self._skips:
            raise PromptError(f"{self._named(index)} cannot be encoded: {reason}") from error
        if self.gives_up and not self.any and len(self.failed) >= HOPELESS and len(self._kinds) == 1:
            self.give_up(f"none of the first {len(self.failed)} prompts")

    def give_up(self, which: str) -> NoReturn:
        """Raise for all prompts that have failed; ``which`` says which ones they are."""
        first = min(self.failed)
        raise PromptError(f"{which} can be encoded; {self._named(first)}: {self.failed[first]}") from self._first

    def _named(self, index: int) -> str:
        return f"prompt {index} ({self._prompts[index]!r:.80})"

    def repeat(self, members: NDArray[np.int64], sources: NDArray[np.int64]) -> None:
        """Give ``members`` the rows of their ``sources``, which were encoded. Where one failed, all of them do."""
        if self.failed:
            pairs = zip(members.tolist(), sources.tolist(), strict=True)
            self.failed |= {i: self.failed[source] for i, source in pairs if source in self.failed}
        self._copy(members, sources)

    def fill_failed(self, members: NDArray[np.int64], others: Iterable[int]) -> None:
        """Give the failed ones of ``members`` the rows of one that was encoded, of them or of ``others``.

        All have the same settings.
        """
        lost = np.isin(members, list(self.failed))
        if lost.any():
            good = (i for i in itertools.chain(members[~lost].tolist(), others) if i not in self.failed)
            if (source := next(good, None)) is not None:
                self._copy(members[lost], source)

    def fill_rest(self) -> None:
        """Where no prompt with the same settings was encoded, nothing reads rows. Vectors have to have a direction."""
        lost = np.array(sorted(self.failed), dtype=np.int64)
        self.vectors[lost[~self.vectors[lost].any(axis=1)]] = 1.0

    def _copy(self, members: NDArray[np.int64], sources: NDArray[np.int64] | int) -> None:
        self.vectors[members] = self.vectors[sources]
        for field in self.fields.values():
            field.index[members] = field.index[sources]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(field.rows.nbytes for field in self.fields.values())

    def check_space(self, nbytes: int, left: int, done: int) -> None:
        """After a batch of ``done`` prompts with ``nbytes``: raise unless ``left`` more fit, if they are as large."""
        self._spool.check_space(nbytes // done * left)


def _of_batch(batch: Batch, at: list[int]) -> Batch:
    """The prompts of a batch at some positions."""
    if at == list(range(len(batch))):
        return batch
    prior = None if batch.prior is None else batch.prior[at]
    return Batch([batch.prompts[i] for i in at], batch.seeds[at], prior)


def _check_lengths(encoded: Encoded, n: int) -> None:
    """``Error`` unless there is one row of each field, and one vector, for each of ``n`` prompts."""
    for name, rows in encoded.rows.items():
        if len(rows) != n:
            raise Error(f"encode gave {len(rows)} rows of {name} for a batch of {n} prompts")
    if encoded.vectors.ndim != 2 or len(encoded.vectors) != n:
        raise Error(f"encode gave vectors of shape {tuple(encoded.vectors.shape)} for a batch of {n} prompts")


def _finite(encoded: Encoded) -> NDArray[np.bool_]:
    """(B,) whether all that was encoded of a prompt is finite."""
    finite = torch.isfinite(encoded.vectors).all(dim=1)  # [B]
    for rows in encoded.rows.values():
        if isinstance(rows, Tensor):
            each = torch.isfinite(rows).flatten(1).all(dim=1)
        else:
            each = torch.stack([torch.isfinite(row).all() for row in rows])
        finite = finite & each.to(finite.device)
    return finite.cpu().numpy()


def _picked(encoded: Encoded, at: NDArray[np.int64]) -> Encoded:
    """What was encoded of the prompts at some positions."""
    rows: dict[str, Tensor | Sequence[Tensor]] = {
        name: tensor[at] if isinstance(tensor, Tensor) else [tensor[i] for i in at]
        for name, tensor in encoded.rows.items()
    }
    return Encoded(rows, encoded.vectors[at])


def _bytes(tensor: Tensor) -> bytes:
    """The values of a tensor on the host, of any dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
