"""All experiments, in the order in which results list them."""

from __future__ import annotations

from typing import get_args

from ..names import ExperimentName
from . import open_questions, paper, pictures
from .experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "savings",
        "Savings and wins (Table 1)",
        "Evaluations saved at the model's own tau, and how often the shared image beats the standard one for the same "
        "prompt and seed; then against standard diffusion with as few evaluations an image, which the same time buys.",
        paper.savings_wants,
        paper.savings,
    ),
    Experiment(
        "random-clusters",
        "Clusters by meaning and at random (Table 2)",
        "Is it the likeness of prompts that counts, or would sharing with anybody do? The tree keeps its shape and its "
        "heights, so as much is shared, but the prompts change places in it at random.",
        paper.random_clusters_wants,
        paper.random_clusters,
    ),
    Experiment(
        "compute",
        "Quality against compute (Fig. 5)",
        "The same evaluations spent in two ways: shared with other prompts, or on fewer steps of one's own.",
        paper.compute_wants,
        paper.compute,
    ),
    Experiment(
        "diversity",
        "Diversity (supplement)",
        "Do images that share steps become alike? Mean cosine of all pairs among up to 100 images of a set, "
        "and the Vendi score, by the scorer's embeddings; intervals of the differences are paired.",
        paper.diversity_wants,
        paper.diversity,
    ),
    Experiment(
        "families",
        "By family (supplement)",
        "Families are the clusters of the first step; all of their prompts start from one latent. The savings are of "
        "the family alone.",
        paper.families_wants,
        paper.families,
    ),
    Experiment(
        "chain",
        "From the general to the special (Fig. 4)",
        "Prompts of which each is a special case of the one before should make a right-leaning chain, and part one by "
        "one.",
        pictures.chain_wants,
        pictures.chain,
    ),
    Experiment(
        "mean-embedding",
        "The mean embedding and its children (Fig. 10)",
        "What does the model draw from the mean of several embeddings?",
        pictures.mean_embedding_wants,
        pictures.mean_embedding,
    ),
    Experiment(
        "latents",
        "Latents step by step (Fig. 2)",
        "Images of related prompts should look alike in the early steps and part late: that is what sharing lives on.",
        pictures.latents_wants,
        pictures.latents,
    ),
    Experiment(
        "linkage",
        "Ward, centroid or average?",
        "At equal compute: tau is chosen so that each saves half of the evaluations.",
        open_questions.linkage_wants,
        open_questions.linkage,
    ),
    Experiment(
        "schedule",
        "Which schedule of the threshold?",
        "Linear against other phi at equal compute. All end at 0, so that every prompt has its last step to itself.",
        open_questions.schedule_wants,
        open_questions.schedule,
    ),
    Experiment(
        "noise",
        "Shared or independent first noise?",
        "The paper's algorithm draws a first latent for each root cluster; the authors' code takes one for all. With "
        "the model's own sampler, and with a deterministic one.",
        open_questions.noise_wants,
        open_questions.noise,
    ),
    Experiment(
        "prior",
        "Should the prior be shared?",
        "unCLIP models make an image embedding from text by diffusion. Its steps may be shared too, by a tree of text.",
        open_questions.prior_wants,
        open_questions.prior,
    ),
    Experiment(
        "sampler",
        "Deterministic or stochastic sampler?",
        "The same noise schedule stepped with fresh noise and without; each is compared with its own standard images.",
        open_questions.sampler_wants,
        open_questions.sampler,
    ),
    Experiment(
        "trunk",
        "Where should the trunk split, by size of set?",
        "Groups of neighbours in the tree go together for a share of the steps, on the mean of all, and part at once.",
        open_questions.trunk_wants,
        open_questions.trunk,
    ),
)

NAMES = tuple(experiment.name for experiment in EXPERIMENTS)
assert get_args(ExperimentName) == NAMES
