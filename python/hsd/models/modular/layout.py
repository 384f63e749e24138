"""What a text block gives for a prompt, as rows of HSD's conditioning and back.

Each prompt is encoded alone. What its encoding consists of is found out from two texts of different lengths: which
tensors have a row for each token, which are as long as the text, and which are masks.

Masks cannot be averaged as such. The tokens that a mask covers are stored with zeros in the other places, and the mask
as numbers: 1 where there is a token. In the mean of a cluster that number is the share of members with a token there.
The tokens' mean divided by it is their mean over these members, and the cluster's mask covers all places where it is
above 0. For a single prompt that changes nothing, because 1 is neither rounded nor divided by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...conditioning.rows import MASK
from ...errors import UnsupportedPipeline

Kind = Literal["vector", "tokens", "ragged", "list", "mask", "length"]
"""``vector``: (1, D); ``tokens``: (1, L, ...) of a fixed length; ``ragged``: (1, L, ...) as long as the text; ``list``:
one tensor (L, ...); ``mask``: (1, L) of 0 and 1; ``length``: a list of one number, how many tokens are not zero."""

SEEN = ".seen"
"""What is added to the name of a mask for its row of numbers; a name that ends with ``_mask`` means something else."""

NEGATIVE = "negative_"


@dataclass(frozen=True)
class Layout:
    """What the text block of a pipeline gives: kinds by name, and what belongs to what.

    Parameters
    ----------
    kinds
        By name, those for the negative text included.
    dtypes
        Of the masks.
    covers
        The tokens that a mask or a length belongs to, by its name.
    lengthy
        Names of the prompts' rows that are as long as the text.
    """

    kinds: dict[str, Kind]
    dtypes: dict[str, torch.dtype]
    covers: dict[str, str]
    lengthy: frozenset[str]

    @property
    def one_length(self) -> bool:
        """Whether some tensor is as long as the text, so that the lanes of a call have to be of one length."""
        return "ragged" in self.kinds.values()

    def names(self, *, negative: bool) -> list[str]:
        """What belongs to the negative text, or to the prompts."""
        return [name for name in self.kinds if name.startswith(NEGATIVE) == negative]

    def rows(self, outputs: dict[str, Any], *, negative: bool) -> dict[str, Tensor]:
        """One prompt's rows by name, (...) each, from what the text block gave for it."""
        found: dict[str, Tensor] = {}
        for name in self.names(negative=negative):
            kind, value = self.kinds[name], outputs[name]
            if kind == "mask":
                found[name + SEEN] = value[0].float()
            elif kind == "length":
                found[name + SEEN] = _seen(outputs[self.covers[name]][0]).float()
            else:
                found[name] = value[0]
        for mask, tokens in self.covers.items():
            if tokens in found:
                found[tokens] = found[tokens] * _wide(found[mask + SEEN], found[tokens]).to(found[tokens].dtype)
        return found

    def values(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        """What the blocks after the text block read, for B lanes: from their rows (B, ...) by name."""
        found: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            row = rows.get(name + SEEN if kind in ("mask", "length") else name)
            if row is None:  # of the negative text, without guidance
                continue
            if kind == "mask":
                found[name] = (row > 0).to(self.dtypes[name])
            elif kind == "length":
                found[name] = (row > 0).sum(1).tolist()
            elif kind == "list":
                kept = rows.get(name + MASK)
                found[name] = [one if kept is None else one[kept[i]] for i, one in enumerate(row)]
            else:
                found[name] = row
        for mask, tokens in self.covers.items():
            if tokens in found:
                share = _wide(rows[mask + SEEN], found[tokens])
                found[tokens] = (found[tokens] / torch.where(share > 0, share, 1.0)).to(found[tokens].dtype)
        return found

    def vector(self, rows: dict[str, Tensor]) -> Tensor:
        """(D,) float32: the mean of a prompt's tokens, of the first tensor that has tokens; else its first row."""
        tokens = [name for name in rows if self.kinds.get(name) in ("tokens", "ragged", "list")]
        if not tokens:
            return next(iter(rows.values())).flatten().float()
        name = tokens[0]
        mask = next((mask for mask, of in self.covers.items() if of == name), None)
        total = rows[name].float().sum(0).flatten()
        return total / (len(rows[name]) if mask is None else rows[mask + SEEN].sum().clamp(min=1))


def layout_of(pipeline: str, short: dict[str, Any], long: dict[str, Any]) -> Layout:
    """The layout of what a text block gives, from what it gave for a short and for a long text.

    Raises
    ------
    UnsupportedPipeline
        Names an output that HSD cannot store or average.
    """
    kinds: dict[str, Kind] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, value in short.items():
        kind = _kind(value, long.get(name))
        if kind is None:
            raise UnsupportedPipeline(
                f"{pipeline}: its text block gives {name}, {_described(value)}, whose mean over several prompts means "
                "nothing, or that is no row of one prompt: HSD cannot share steps between such prompts"
            )
        kinds[name] = kind
        if kind == "mask":
            dtypes[name] = value.dtype
    covers = {}
    for name, kind in kinds.items():
        if kind == "length":
            covers[name] = _counted(pipeline, name, short)
        elif kind == "mask" and kinds.get(name.removesuffix(MASK)) in ("tokens", "ragged"):
            covers[name] = name.removesuffix(MASK)
        elif kind == "mask" and (short[name].any() or long[name].any()):
            raise UnsupportedPipeline(f"{pipeline}: its text block gives {name}, and HSD cannot tell what it masks")
    for name, value in short.items():
        if name.startswith(NEGATIVE) and not _same(value, long[name]):
            raise UnsupportedPipeline(f"{pipeline}: {name}, which its text block gives, depends on the prompt")
    lengthy = {name for name, kind in kinds.items() if kind in ("ragged", "list")}
    masks = {name for name, kind in kinds.items() if kind == "mask" and short[name].shape != long[name].shape}
    return Layout(kinds, dtypes, covers, frozenset(lengthy | {name + SEEN for name in masks}))


def _kind(short: Any, long: Any) -> Kind | None:
    if isinstance(short, list) and isinstance(long, list) and len(short) == len(long) == 1:
        if isinstance(short[0], Tensor) and short[0].is_floating_point() and short[0].ndim > 1:
            return "list"
        return "length" if type(short[0]) is int else None
    if not isinstance(short, Tensor) or not isinstance(long, Tensor) or len(short) != 1 or len(long) != 1:
        return None
    if not short.is_floating_point():
        binary = all(bool(((each == 0) | (each == 1)).all()) for each in (short, long))
        return "mask" if short.ndim == 2 and binary else None
    if short.shape == long.shape:
        return "tokens" if short.ndim > 2 else "vector"
    return "ragged" if short.ndim > 2 and short.shape[2:] == long.shape[2:] else None


def _counted(pipeline: str, name: str, outputs: dict[str, Any]) -> str:
    """The tokens whose number of rows that are not zero is the length ``name``."""
    [length] = outputs[name]
    found = [
        each
        for each, value in outputs.items()
        if isinstance(value, Tensor) and value.ndim > 2 and int(_seen(value[0]).sum()) == length
    ]
    if len(found) != 1:
        raise UnsupportedPipeline(f"{pipeline}: its text block gives {name}, and HSD cannot tell what it counts")
    return found[0]


def _seen(tokens: Tensor) -> Tensor:
    """(L,) which of the tokens (L, ...) are not zero."""
    return tokens.flatten(1).ne(0).any(1)


def _wide(share: Tensor, tokens: Tensor) -> Tensor:
    """(..., L) as (..., L, 1, ...), to be multiplied with tokens (..., L, ...)."""
    return share.view(*share.shape, *(1,) * (tokens.ndim - share.ndim))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
