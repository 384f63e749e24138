"""CLIPScore and PickScore: cosines of a transformers CLIP model, by the formulas of their authors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer

from .scorers import ScorerError

# Pillow's resizing, not torchvision's: they differ, and torchvision may or may not be installed.
try:
    from transformers import CLIPImageProcessorPil as _ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as _ImageProcessor

_TOKENS = 77
"""The tokens of a prompt that CLIP reads; the rest is cut off, as in the code of both papers."""


class _Clip:
    """A CLIP model and its processor, in float32, so that a score does not depend on the device."""

    name = "clip"
    default = ""
    processor_of: str | None = None
    """Where the default model's processor is, if it is not with the model."""

    def __init__(self, model: str | None = None, device: str | None = None):
        self.model_id = model or self.default
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def version(self) -> str:
        """The formula and the model."""
        return f"{type(self).__name__} 1, {self.model_id}"

    @cached_property
    def _model(self) -> Any:
        return self._load(CLIPModel, self.model_id, dtype=torch.float32).to(self.device).eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._load(CLIPTokenizer, self._processor_id)

    @cached_property
    def _processor(self) -> Any:
        return self._load(_ImageProcessor, self._processor_id)

    @property
    def _processor_id(self) -> str:
        return self.processor_of if self.processor_of and self.model_id == self.default else self.model_id

    def _load(self, kind: Any, model: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(model, **options)
        except (OSError, ValueError) as error:
            raise ScorerError(
                f"{self.name} cannot load {model} ({str(error).strip().splitlines()[0]}): "
                "name a transformers CLIP model, by its hub id or folder"
            ) from None

    def embed(self, images: Sequence[PIL.Image.Image]) -> NDArray[np.float64]:
        """(n, D) projected image embeddings of unit length."""
        with torch.inference_mode():
            pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
            return self._unit(self._model.get_image_features(pixel_values=pixels.to(self.device)))

    def _embed_texts(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        with torch.inference_mode():
            tokens = self._tokenizer(
                list(prompts), padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
            ).to(self.device)
            return self._unit(
                self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            )

    def _cosines(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray((self.embed(images) * self._embed_texts(prompts)).sum(axis=1))

    @staticmethod
    def _unit(features: Any) -> NDArray[np.float64]:
        # A tensor (n, D); since transformers 5 an output object whose pooler_output is that tensor.
        rows = getattr(features, "pooler_output", features).double().cpu().numpy()
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class ClipScore(_Clip):
    """2.5 max(cos, 0): Hessel et al., CLIPScore, EMNLP 2021, equation 1; 0 to 2.5, in practice 0.5 to 1.

    The prompt is used unchanged, without the "A photo depicts" that the authors put before captions. Papers on image
    generation often report 100 max(cos, 0) instead, which is 40 times this score.
    """

    name = "clipscore"
    default = "openai/clip-vit-base-patch32"

    def score(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) scores."""
        return 2.5 * np.maximum(self._cosines(images, prompts), 0.0)


class PickScore(_Clip):
    """exp(logit scale) cos: Kirstain et al., Pick-a-Pic, NeurIPS 2023; the published model's scale is 100."""

    name = "pickscore"
    default = "yuvalkirstain/PickScore_v1"
    processor_of = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

    def score(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) scores."""
        scale = float(self._model.logit_scale.detach().double().exp())
        return scale * self._cosines(images, prompts)
