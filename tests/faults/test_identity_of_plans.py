"""Images of another plan are never mixed, and the refusal names what differs."""

from __future__ import annotations

import pytest
import torch

import hsd
import tiny
from hsd.planning.differences import plan_differences
from model_changes import PROMPTS, SETTINGS

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A plan, and a folder with half of its images, made by ``tiny.stable_diffusion()``."""
    folder, model = tmp_path_factory.mktemp("half") / "out", hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2)
    hsd.generate(plan.prune([0, 2]), model, folder, progress=False)
    return plan, folder


PLANS = {
    "tau": ({"tau": 0.5}, "tau: 0.9 before, 0.5 now"),
    "budget": ({"tau": None, "budget": 0.3}, "budget: none before, 0.3 now"),
    "steps": ({"steps": 3}, "steps: 2 before, 3 now"),
    "linkage": ({"linkage": "average", "tau": 0.2}, "linkage: 'ward' before, 'average' now"),
    "metric": ({"metric": "euclidean"}, "metric: 'cosine' before, 'euclidean' now"),
    "noise": ({"noise": "shared"}, "noise: 'independent' before, 'shared' now"),
    "catch-up": ({"catch_up": 0.5}, "catch_up: none before, 0.5 now"),
    "seeds": ({"seeds": [0, 1, 7, 8]}, r"seed of prompt 2: 2 before, 7 now \(2 of 4 differ\)"),
    "prompt": (
        {"prompts": ["a cat", "a fox", "the sea", "a hat"]},
        r"prompt 1: 'a dog' before, 'a fox' now \(2 of 4 differ\)",
    ),
    "number": ({"prompts": PROMPTS[:3]}, "prompts: 4 before, 3 now"),
    "repeats": ({"images_per_prompt": 2}, r"images_per_prompt: 1 before, 2 now \(for more .*--extend"),
    "settings": (
        {"settings": [{}, {}, {"guidance_scale": 2.0}, {}]},
        r"settings of prompt 2: guidance_scale: none before, 2 now \(1 of 4 prompts differ\)",
    ),
    "embeddings": (
        {"embeddings": torch.eye(4), "metric": "cosine"},
        "encoder: 'stable-diffusion' before, 'embeddings' now",
    ),
}
"""Other arguments of ``compile``, and what the refusal names."""


@pytest.mark.parametrize(("change", "named"), PLANS.values(), ids=PLANS)
def test_another_plan_is_refused_and_what_differs_is_named(change, named, half):
    _, folder = half
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    arguments = {"prompts": PROMPTS, "tau": 0.9, "steps": 2, **change}
    plan = hsd.compile(model=model, **arguments)
    with pytest.raises(hsd.PlanMismatch, match=f"another plan.*({named}).*choose another folder"):
        hsd.generate(plan, model, folder, progress=False)


def test_another_tree_of_the_same_request():
    plans = [hsd.compile(PROMPTS, 0.9, embeddings=torch.eye(4).roll(i, 0) + i, steps=2) for i in (0, 1)]
    assert plan_differences(plans[0], plans[0].shard(2)[0]) == []
    assert "another tree: the embeddings differ" in plan_differences(*plans)[0]
