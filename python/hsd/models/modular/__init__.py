"""Any diffusers ``ModularPipeline`` that makes images from text: one adapter, which reads the pipeline's blocks."""

from __future__ import annotations

from .adapter import Modular

__all__ = ["Modular"]
