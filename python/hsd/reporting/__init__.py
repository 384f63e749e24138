"""Pages beside the images of a folder, for people who want to look at them. See ``docs/report.md``.

The package is not called ``report``: importing one of its modules would then replace the function ``hsd.report``.
"""

from __future__ import annotations

from .make import report

__all__ = ["report"]
