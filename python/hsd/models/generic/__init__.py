"""Pipelines without an adapter of their own: tried with their own code, and accepted if that is proven to be right."""

from __future__ import annotations

from .adapter import Generic, reads_image, why_not

__all__ = ["Generic", "reads_image", "why_not"]
