"""Plans to images: streamed as they finish, or written to a folder."""

from ..tuning.passes import cost
from .results import Failure, Image, Run
from .run import generate
from .session import stream

__all__ = ["Failure", "Image", "Run", "cost", "generate", "stream"]
