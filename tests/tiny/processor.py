"""A processor of texts, in place of Qwen-VL's.

Those have processors of images and videos too, which cannot be imported without torchvision.
"""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin  # diffusers looks for it here when it loads a pipeline with a TextProcessor

VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


class TextProcessor(ProcessorMixin):
    """The processor of `Qwen2VLProcessor` and its successors for texts without images."""

    return_mm_token_type_ids = True

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None, **options: Any) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = VISION_TOKENS[2:]
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(VISION_TOKENS[2:])
