"""The paper's experiments on any model and prompts. See ``docs/results.md``."""

from __future__ import annotations

from .study import Study, reproduce

__all__ = ["Study", "reproduce"]
