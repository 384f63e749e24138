"""The tokenizer: a real CLIP byte-pair tokenizer in which every word of the scene language is one token.

All other text is split into bytes, so any prompt can be tokenized, but the model only understands its own language.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

MAX_TOKENS = 32
END = "</w>"
_WORD_LIST = """
    a an the and in on at of to with style picture drawing background side corner
    left right above below under next beside top bottom center middle
    circle disc square triangle diamond star heart cross plus ring shape
    red orange yellow green blue purple violet pink white black
    small tiny little medium large big huge
    plain dotted striped checkered flat outline shaded glowing
"""
WORDS = tuple(_WORD_LIST.split())


def merges_for(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, learned on `words` until each of them is a single symbol.

    Learning and tokenizing apply the same merges in the same order, so a word that ends as one symbol here is
    one token there, whatever the other words are.
    """
    split = [(*word[:-1], word[-1] + END) for word in sorted(set(words))]
    merges = []
    while any(len(symbols) > 1 for symbols in split):
        pairs = Counter(pair for symbols in split for pair in pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(symbols, best) for symbols in split]
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the demo model; the end token has the highest id, as CLIP's pooling requires."""
    letters = sorted(ByteLevel.alphabet())
    merges = merges_for(WORDS)
    tokens = letters + [letter + END for letter in letters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens), "two merges give one token"
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
