"""Prompt sets and their plans: real prompts with a sentence transformer's embeddings, where available."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import Report

import hsd
from hsd.demo import PROMPTS
from hsd.planning.encoders import default_encoder
from hsd.prompts.files import read_prompts

FILES = {
    "styles": "style_variations",
    "animals": "animals",
    "genai_bench": "genai_bench",
    "templates": "prompt_templates",
}
"""Sets by name: 100, 500, 1,600 and 2,000 prompts; the four of the paper's evaluation."""

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""A folder next to the repository."""

BUNDLED = "bundled"


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and what to cluster them by."""

    name: str
    prompts: list[str]
    embeddings: np.ndarray

    def plan(self, tau: float, steps: int) -> hsd.Plan:
        """Clustered by the embeddings: those of a model with random weights have no meaning."""
        return hsd.compile(self.prompts, tau, embeddings=self.embeddings, steps=steps)


def prompt_sets(names: list[str], data: Path, most: int | None, report: Report) -> list[PromptSet]:
    """The available sets, the first ``most`` prompts of each; the bundled prompts if none is."""
    found = []
    for name in names:
        text = data / "prompts" / f"{FILES[name]}.txt"
        rows = data / "embeddings" / f"{FILES[name]}.minilm384.npy"
        if not (text.is_file() and rows.is_file()):
            report.skip(f"prompt set {name}", f"{text.name} or {rows.name} is not in the folder given by --data")
            continue
        prompts, embeddings = text.read_text(encoding="utf-8").splitlines(), np.load(rows)
        assert len(prompts) == len(embeddings), (name, len(prompts), len(embeddings))
        found.append(PromptSet(name, prompts[:most], embeddings[:most]))
    if not found:
        prompts = list(read_prompts(PROMPTS).prompts)[:most]
        report.say(f"USING the {len(prompts)} bundled prompts and hsd's default encoder instead")
        found.append(PromptSet(BUNDLED, prompts, default_encoder()(prompts)))
    return found


def made_up(n: int) -> PromptSet:
    """``n`` prompts around one centre for every 25 of them, to see what grows with their number."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(2, n // 25), 64))
    points = centres[np.arange(n) % len(centres)] + 0.3 * random.standard_normal((n, 64))
    return PromptSet(f"{n} made up", [f"prompt {i}" for i in range(n)], points.astype(np.float32))
