"""Cluster by your own text encoder, and choose the linkage: python examples/own_encoder_and_linkage.py.

The encoder decides only which prompts share steps. The images are made by the model, from its own encoders.
"""

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

import hsd

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LINKAGES = ("ward", "average")  # also "complete", and "centroid", the paper's
MODEL = "sdxl"
STEPS = 50
BUDGET = 0.3  # the share of the denoiser's evaluations to save
PROMPTS = [
    f"{animal} {place}"
    for animal in ("a cat", "a dog", "a fox", "an owl", "a bear", "a horse")
    for place in ("in the snow", "at the beach", "on a sofa", "in a forest")
]
OUT = "own-encoder"


def embed(prompts: list[str]) -> np.ndarray:
    """(N, D) float32: the mean of the tokens of each prompt."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER)
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(**tokens).last_hidden_state  # (N, tokens, D)
    mask = tokens["attention_mask"][..., None]
    return ((states * mask).sum(1) / mask.sum(1)).float().numpy()


def distance(plan: hsd.Plan, embeddings: np.ndarray) -> float:
    """Cosine distance of a prompt to the mean of its cluster, averaged over prompts and steps."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarities = []
    for step in range(plan.n_steps):
        cluster = plan.active(step)  # (N,)
        sums = (cluster[:, None] == cluster) @ unit  # (N, D): of the cluster of each prompt, by an (N, N) table
        similarities.append((unit * sums).sum(1) / np.linalg.norm(sums, axis=1))
    return float(1 - np.mean(similarities))


def main() -> None:
    """Compare the linkages, and generate with the one whose clusters are tighter at equal savings."""
    embeddings = embed(PROMPTS)
    plans = [hsd.compile(PROMPTS, budget=BUDGET, embeddings=embeddings, linkage=one, steps=STEPS) for one in LINKAGES]
    for linkage, plan in zip(LINKAGES, plans, strict=True):
        print(f"{linkage:8}  saves {plan.savings:.1%}  distance {distance(plan, embeddings):.4f}  tau {plan.tau:.3f}")
    chosen = min(plans, key=lambda plan: distance(plan, embeddings))

    hsd.generate(chosen, hsd.load(MODEL, progress=True), OUT, progress=True)


if __name__ == "__main__":
    main()
