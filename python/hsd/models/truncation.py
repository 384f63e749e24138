"""Prompts that are longer than a model reads: how many, which, and what is lost. Said once, before they are encoded.

A text encoder reads a fixed number of tokens, and diffusers leaves out what is longer. Some models have several, with
different limits: a prompt counts as cut where no encoder reads all of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from ..errors import Notice
from ..work.text import shortened
from .base import Adapter

Ids = Callable[[list[str]], list[list[int]]]
"""Texts to the ids of all their tokens, those that are added before and after included."""

_NAMED = 10
"""Prompts that a message names by index."""

_BLOCK = 4096
"""Prompts that are tokenized at once."""


@dataclass(frozen=True)
class Cut:
    """One prompt that is cut."""

    index: int
    tokens: int
    """Its length."""
    limit: int
    """What is read of it at most; both counts have the tokens that the model itself adds."""
    _lost: Callable[[], str] = field(repr=False, compare=False)

    @property
    def lost(self) -> str:
        """The end of the prompt, which has no effect."""
        return self._lost().strip()


@dataclass(frozen=True)
class Reader:
    """How one text encoder of a model reads prompts."""

    ids: Ids
    decode: Callable[[list[int]], str]
    limit: int
    keeps_end: bool
    """Whether the last token, an end mark, is kept when a text is cut. Else the end of a template is cut first."""

    def cuts(self, prompts: list[str]) -> dict[int, Cut]:
        """The prompts that are cut, by their place in the list."""
        after = 1 if self.keeps_end else self._template_end()
        out = {}
        for i, ids in enumerate(self.ids(prompts)):
            room = self.limit - 1 if self.keeps_end else self.limit
            if len(ids) - after > room:
                out[i] = Cut(i, len(ids), self.limit, partial(self.decode, list(ids[room : len(ids) - after])))
        return out

    def _template_end(self) -> int:
        """Number of tokens that are added after every prompt."""
        one, other = self.ids(["a", "b"])
        return next((n for n, (x, y) in enumerate(zip(one[::-1], other[::-1], strict=False)) if x != y), 0)


def cut_prompts(adapter: Adapter, prompts: Sequence[str]) -> list[Cut]:
    """The prompts whose end no text encoder of the model reads; empty for a family that is not known here.

    10,000 prompts take one to two seconds of one core.
    """
    readers = _readers(adapter)
    out: list[Cut] = []
    for begin in range(0, len(prompts) if readers else 0, _BLOCK):
        block = list(prompts[begin : begin + _BLOCK])
        found = [reader.cuts(block) for reader in readers]
        for i in sorted(set.intersection(*map(set, found))):
            most = max((cuts[i] for cuts in found), key=lambda cut: cut.limit)
            out.append(replace(most, index=begin + i))
    return out


def report_cuts(
    variants: Sequence[Any], variant: NDArray[np.int64], prompts: Sequence[str], chosen: NDArray[np.bool_]
) -> None:
    """Warn once of all prompts among the ``chosen`` ones that are cut, and once of cut negative prompts.

    ``variants`` and ``variant`` as for :func:`encode`.
    """
    groups: dict[str, list[int]] = {}
    for v, part in enumerate(variants):
        if isinstance(part, Adapter):
            groups.setdefault(_key(part), []).append(v)
    cuts: list[Cut] = []
    negatives: list[Cut] = []
    for members in groups.values():
        first: Adapter = variants[members[0]]
        indices = np.flatnonzero(chosen & np.isin(variant, members))
        try:
            found = cut_prompts(first, [prompts[int(i)] for i in indices])
        except Exception:  # a tokenizer that raises for one prompt: encoding names it, here it is only a message
            continue
        cuts += [replace(cut, index=int(indices[cut.index])) for cut in found]
        texts = {getattr(variants[v], "negative_prompt", None) for v in members if variants[v].guided}
        negatives += cut_prompts(first, sorted(text for text in texts if isinstance(text, str)))
    if cuts:
        warn(_message(sorted(cuts, key=lambda cut: cut.index), int(chosen.sum())), Notice, stacklevel=5)
    if negatives:
        warn(
            f"the negative prompt is longer than the model reads ({negatives[0].limit} tokens): its end has no effect: "
            f"{shortened(negatives[0].lost)!r}",
            Notice,
            stacklevel=5,
        )


def _message(cuts: list[Cut], total: int) -> str:
    named = ", ".join(str(cut.index) for cut in cuts[:_NAMED])
    more = f" and {len(cuts) - _NAMED:,} more" if len(cuts) > _NAMED else ""
    limits = " or ".join(str(limit) for limit in sorted({cut.limit for cut in cuts}))
    are = "prompt is" if total == 1 else f"prompts {'is' if len(cuts) == 1 else 'are'}"
    which = "prompt" if len(cuts) == 1 else "prompts"
    return (
        f"{len(cuts):,} of {total:,} {are} longer than the model reads ({limits} tokens): {which} "
        f"{named}{more}; the end has no effect, of prompt {cuts[0].index}: {shortened(cuts[0].lost)!r}"
    )


def _key(adapter: Adapter) -> str:
    """Equal for variants of one model that read prompts alike."""
    names = ("max_sequence_length", "clean_caption", "complex_human_instruction", "prompt_2", "prompt_3")
    return repr([getattr(adapter, name, None) for name in names])


@contextlib.contextmanager
def without_other_reports() -> Iterator[None]:
    """Without what diffusers' pipelines say about each batch with a prompt that is cut."""

    def keep(record: logging.LogRecord) -> bool:
        return "was truncated because" not in str(record.msg)

    handlers = list(logging.getLogger("diffusers").handlers)
    for handler in handlers:
        handler.addFilter(keep)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep)


# ------------------------------------------------------------------------------- families


def _readers(adapter: Adapter) -> list[Reader]:
    """The text encoders that read the prompt itself, for the pipelines that are built in."""
    for pipeline in adapter.pipelines:
        if pipeline in _OF_PIPELINE:
            return _OF_PIPELINE[pipeline](adapter)
    return []


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    out: list[list[int]] = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    return out


def _plain(tokenizer: Any, limit: int, change: Callable[[list[str]], list[str]] = list) -> Reader:
    """CLIP and T5: the prompt between marks."""
    return Reader(lambda texts: _ids(tokenizer, change(texts)), _decoder(tokenizer), limit, keeps_end=True)


def _templated(tokenizer: Any, limit: int, change: Callable[[list[str]], list[str]]) -> Reader:
    """Language models: the prompt inside a text."""
    return Reader(lambda texts: _ids(tokenizer, change(texts)), _decoder(tokenizer), limit, keeps_end=False)


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def _clip(pipe: Any, tokenizer: Any) -> Reader:
    def with_inversions(texts: list[str]) -> list[str]:  # a token of a textual inversion may be several
        convert = getattr(pipe, "maybe_convert_prompt", None)
        return texts if convert is None else list(convert(texts, tokenizer))

    return _plain(tokenizer, tokenizer.model_max_length, with_inversions)


def _clips(*names: str) -> Callable[[Adapter], list[Reader]]:
    """CLIP's tokenizers by name; those that the pipeline has."""

    def readers(adapter: Adapter) -> list[Reader]:
        pipes = adapter.pipes()
        found = [(pipe, getattr(pipe, name, None)) for pipe in pipes for name in names]
        return [_clip(pipe, tokenizer) for pipe, tokenizer in found if tokenizer is not None]

    return readers


def _sdxl(adapter: Any) -> list[Reader]:
    own = ["tokenizer"] if getattr(adapter, "prompt_2", None) else ["tokenizer", "tokenizer_2"]
    return _clips(*own)(adapter)


def _sd3(adapter: Any) -> list[Reader]:
    readers, pipe = _sdxl(adapter), adapter.pipe
    if pipe.text_encoder_3 is not None and not getattr(adapter, "prompt_3", None):
        readers.append(_plain(pipe.tokenizer_3, adapter.max_sequence_length))
    return readers


def _flux(adapter: Any) -> list[Reader]:
    readers, pipe = _clips("tokenizer")(adapter), adapter.pipe
    if not getattr(adapter, "prompt_2", None):
        readers.append(_plain(pipe.tokenizer_2, adapter.max_sequence_length))
    return readers


def _flux2(adapter: Any) -> list[Reader]:
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    pipe = adapter.pipe

    def ids(texts: list[str]) -> list[list[int]]:
        messages = format_input(texts, system_message=pipe.system_message)
        found = pipe.tokenizer.apply_chat_template(
            messages, add_generation_prompt=False, tokenize=True, return_dict=True, padding=False
        )
        out: list[list[int]] = found["input_ids"]
        return out

    return [Reader(ids, _decoder(pipe.tokenizer), adapter.max_sequence_length, keeps_end=False)]


def _flux2_klein(adapter: Any) -> list[Reader]:
    return [Reader(adapter._chats, _decoder(adapter.pipe.tokenizer), adapter.max_sequence_length, keeps_end=False)]


def _krea2(adapter: Any) -> list[Reader]:
    pipe = adapter.pipe  # which adds the end of the chat after it has cut a prompt
    start, end = pipe.prompt_template_encode_start_idx, pipe.prompt_template_encode_num_suffix_tokens
    begin = pipe.prompt_template_encode_prefix
    limit = adapter.max_sequence_length + start - end
    return [_templated(pipe.tokenizer, limit, lambda texts: [begin + text for text in texts])]


def _ernie_image(adapter: Any) -> list[Reader]:
    tokenizer = adapter.pipe.tokenizer
    return [_templated(tokenizer, tokenizer.model_max_length, list)]


def _cleaned(adapter: Any) -> Callable[[list[str]], list[str]]:
    return lambda texts: list(adapter.pipe._text_preprocessing(texts, clean_caption=adapter.clean_caption))


def _pixart(adapter: Any) -> list[Reader]:
    return [_plain(adapter.pipe.tokenizer, adapter.max_sequence_length, _cleaned(adapter))]


def _sana(adapter: Any) -> list[Reader]:
    tokenizer, limit, clean = adapter.pipe.tokenizer, adapter.max_sequence_length, _cleaned(adapter)
    before = ""
    if adapter.complex_human_instruction:
        before = "\n".join(adapter.complex_human_instruction)
        limit += len(tokenizer.encode(before)) - 2  # as the pipeline counts
    return [_templated(tokenizer, limit, lambda texts: [before + text for text in clean(texts)])]


def _qwen(adapter: Any) -> list[Reader]:
    pipe = adapter.pipe
    limit = min(pipe.tokenizer_max_length, adapter.max_sequence_length) + pipe.prompt_template_encode_start_idx
    return [_templated(pipe.tokenizer, limit, lambda texts: [pipe.prompt_template_encode.format(t) for t in texts])]


def _z_image(adapter: Any) -> list[Reader]:
    tokenizer = adapter.pipe.tokenizer

    def chats(texts: list[str]) -> list[str]:
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for text in texts
        ]

    return [_templated(tokenizer, adapter.max_sequence_length, chats)]


def _kandinsky5(adapter: Any) -> list[Reader]:
    from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean

    pipe = adapter.pipe
    limit = pipe.prompt_template_encode_start_idx + adapter.max_sequence_length

    def ids(texts: list[str]) -> list[list[int]]:
        cleaned = [pipe.prompt_template.format(prompt_clean(text)) for text in texts]
        return _ids(pipe.tokenizer.tokenizer, cleaned)  # of a processor

    return [Reader(ids, _decoder(pipe.tokenizer), limit, keeps_end=False)]


def _cogview4(adapter: Any) -> list[Reader]:
    return [_templated(adapter.pipe.tokenizer, adapter.max_sequence_length, list)]


_OF_PIPELINE: dict[str, Callable[[Any], list[Reader]]] = {
    "CogView4Pipeline": _cogview4,
    "ErnieImagePipeline": _ernie_image,
    "FluxPipeline": _flux,
    "Flux2Pipeline": _flux2,
    "Flux2KleinPipeline": _flux2_klein,
    "Kandinsky5T2IPipeline": _kandinsky5,
    "KandinskyV22CombinedPipeline": _clips("tokenizer"),
    "Krea2Pipeline": _krea2,
    "PixArtSigmaPipeline": _pixart,
    "QwenImagePipeline": _qwen,
    "SanaPipeline": _sana,
    "StableDiffusionControlNetPipeline": _clips("tokenizer"),
    "StableDiffusionImg2ImgPipeline": _clips("tokenizer"),
    "StableDiffusionPipeline": _clips("tokenizer"),
    "StableDiffusion3Pipeline": _sd3,
    "StableDiffusionXLControlNetPipeline": _sdxl,
    "StableDiffusionXLImg2ImgPipeline": _sdxl,
    "StableDiffusionXLPipeline": _sdxl,
    "StableUnCLIPPipeline": _clips("tokenizer", "prior_tokenizer"),
    "UnCLIPPipeline": _clips("tokenizer"),
    "ZImagePipeline": _z_image,
}
