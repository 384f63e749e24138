"""Plans to images: streamed as they finish, or written to a folder."""

from .passes import cost
from .session import Image, Run, generate, stream

__all__ = ["Image", "Run", "cost", "generate", "stream"]
