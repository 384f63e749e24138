"""``hsd bench``: a model measured on this machine."""

from .report import Report
from .run import bench

__all__ = ["Report", "bench"]
