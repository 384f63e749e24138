"""All experiments, in the order in which results list them."""

from __future__ import annotations

from typing import get_args

from ..names import ExperimentName
from . import frontier, open_questions, paper, pictures, settling
from .experiment import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "savings",
        "Savings and wins (Table 1)",
        "Evaluations saved at one tau, and how often the shared image beats the standard one for the same "
        "prompt and seed; then the same against standard diffusion with equally few evaluations an image.",
        paper.savings_needs,
        paper.savings,
    ),
    Experiment(
        "random-clusters",
        "Clusters by meaning and at random (Table 2)",
        "Does it matter that the prompts which share are similar? The tree keeps its shape and its heights, so as many "
        "steps are shared, but the prompts are exchanged in it at random.",
        paper.random_clusters_needs,
        paper.random_clusters,
    ),
    Experiment(
        "compute",
        "Quality against compute (Fig. 5)",
        "The same number of evaluations used in two ways: for shared steps, or for fewer steps of each prompt "
        "separately.",
        paper.compute_needs,
        paper.compute,
    ),
    Experiment(
        "diversity",
        "Diversity (supplement)",
        "Do images that share steps become more similar? Mean cosine of all pairs among up to 100 images of a set, "
        "and the Vendi score, by the scorer's embeddings; intervals of the differences are paired.",
        paper.diversity_needs,
        paper.diversity,
    ),
    Experiment(
        "families",
        "By family (supplement)",
        "Families are the clusters of the first step; all prompts of a family start from one latent. The savings are "
        "those of the family only.",
        paper.families_needs,
        paper.families,
    ),
    Experiment(
        "chain",
        "From the general to the special (Fig. 4)",
        "Prompts of which each is a special case of the one before should form a right-leaning chain, and their images "
        "should separate one by one.",
        pictures.chain_needs,
        pictures.chain,
    ),
    Experiment(
        "mean-embedding",
        "The mean embedding and its children (Fig. 10)",
        "What does the model draw from the mean of several embeddings?",
        pictures.mean_embedding_needs,
        pictures.mean_embedding,
    ),
    Experiment(
        "latents",
        "Latents step by step (Fig. 2)",
        "Images of related prompts should look similar in the early steps and separate late: sharing relies on this.",
        pictures.latents_needs,
        pictures.latents,
    ),
    Experiment(
        "linkage",
        "Ward, centroid or average?",
        "At equal compute: tau is chosen so that each linkage saves half of the evaluations.",
        open_questions.linkage_needs,
        open_questions.linkage,
    ),
    Experiment(
        "schedule",
        "Which schedule of the threshold?",
        "Linear against other schedules phi at equal compute. All end at 0, so no prompt shares its last step.",
        open_questions.schedule_needs,
        open_questions.schedule,
    ),
    Experiment(
        "noise",
        "Shared or independent first noise?",
        "The paper's algorithm draws a first latent for each root cluster; the authors' code uses one for all. With "
        "the model's own sampler, and with a deterministic one.",
        open_questions.noise_needs,
        open_questions.noise,
    ),
    Experiment(
        "prior",
        "Should the prior be shared?",
        "unCLIP models make an image embedding from text by diffusion. These steps can be shared too, by a tree of "
        "text embeddings.",
        open_questions.prior_needs,
        open_questions.prior,
    ),
    Experiment(
        "sampler",
        "Deterministic or stochastic sampler?",
        "The same noise schedule, with fresh noise at every step and without; each is compared with its own standard "
        "images.",
        open_questions.sampler_needs,
        open_questions.sampler,
    ),
    Experiment(
        "trunk",
        "Where should the trunk split, by size of set?",
        "Groups of neighbours in the tree share the first steps, on the mean of the group, and then all separate at "
        "once.",
        open_questions.trunk_needs,
        open_questions.trunk,
    ),
    Experiment(
        "frontier",
        "The frontier: is sharing better than fewer steps?",
        "At each number of evaluations an image: own steps, the paper's sharing, and two changes of it, each alone and "
        "both: catch-up conditioning and the model's own metric. Steps, share saved, gamma and schedule are fixed for "
        "each number of evaluations and were chosen on other prompts. With the model's own sampler and a deterministic "
        "one. Intervals over all sets are those of a stratified sample: other prompts in the same sets.",
        frontier.frontier_needs,
        frontier.frontier,
    ),
    Experiment(
        "settling",
        "How early is what settled?",
        "What the image that each step predicts shows, nothing shared: whether it is what the prompt names, and "
        "whether it is what the finished image shows. What is settled early cannot be corrected after a split.",
        settling.settling_needs,
        settling.settling,
    ),
    Experiment(
        "equal",
        "What is saved at equal quality?",
        "Shares of the evaluations saved, with and without catch-up and the model's own metric, against the same "
        f"number of steps without sharing. As good: the 95 % interval of the difference, over root clusters, is above "
        f"-{settling.MARGIN:.0%} of the standard score, for this share and all smaller ones.",
        settling.equal_needs,
        settling.equal,
    ),
    Experiment(
        "averages",
        "How should a cluster's conditioning be averaged?",
        "At equal compute: the mean (the paper), its direction with the members' length, the same about the empty "
        "prompt, and the medoid; and how strong catch-up should be.",
        settling.averages_needs,
        settling.averages,
    ),
    Experiment(
        "vectors",
        "What should prompts be clustered by?",
        "At equal compute: the model's own vector, the mean of the tokens, the calibrated map, and the model's own "
        "predictions.",
        settling.vectors_needs,
        settling.vectors,
    ),
)

NAMES = tuple(experiment.name for experiment in EXPERIMENTS)
assert get_args(ExperimentName) == NAMES
