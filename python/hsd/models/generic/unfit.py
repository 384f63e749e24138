"""Why a pipeline cannot be driven without an adapter of its own."""

from __future__ import annotations


class Unfit(Exception):
    """Something that a pipeline does and the generic adapter cannot express; the text continues "the pipeline ..."."""
