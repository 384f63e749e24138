from __future__ import annotations
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
import numpy as np
from .made import Made
from .failures import Failures
from .results import Failure
from .session import Session
from .lines import alone_from
from ..models.identity import image_identity


@dataclass(frozen=True)
class Told:
    part: str
    fraction: float
    node_steps: int
    standard: int
    made: tuple[int, ...]
    failed: tuple[Failure, ...]
    nsfw: int = 0
    upcast: int = 0
    seconds: Any = None
    batch_size: int = 1


class UnitRunner:
    def __init__(self, plan: Any, adapter: Any, options: Any) -> None:
        self.plan, self.adapter, self.options = plan, adapter, options
        s = Session(plan, adapter, options)
        self.identity = image_identity(adapter, s.samplers.values(), s.catch_up)

    def open(self, writer: Any) -> None:
        self.writer = writer

    def run(self, indices: Any, *, proven: bool) -> Iterator[Told]:
        part = self.plan.prune(indices)
        s = Session(part, self.adapter, self.options)
        made = Made(self.writer, Failures(part, lambda f: None))
        alone = alone_from(self.plan)
        for image in s.images(part, None, made.failures):
            made.write(image, {"alone_from": int(alone[image.index])})
            yield Told("denoise", 0.5, 1, 1, (image.index,), ())
        yield Told("denoise", 1.0, 1, 1, (), tuple(made.failures.all))
