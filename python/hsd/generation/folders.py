from __future__ import annotations
from typing import Any
from .folder import ImageFolder

Folder = ImageFolder


def open_folder(out: Any, plan: Any, made_by: Any, image_format: Any) -> ImageFolder:
    return ImageFolder(out, plan, made_by, image_format)
