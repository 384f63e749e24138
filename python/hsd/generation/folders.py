from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import PIL.Image

from .folder import ImageFolder

Folder = ImageFolder


class Writer(Protocol):
    def add(self, index: int, image: PIL.Image.Image, extra: dict[str, Any]) -> Any: ...

    def flush(self) -> None: ...


def open_folder(out: Any, plan: Any, made_by: Any, image_format: Any) -> ImageFolder:
    return ImageFolder(out, plan, made_by, image_format)
