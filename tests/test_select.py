"""Parts of a plan by name, and the clusters of a preview."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd.planning.select import clusters_at, selected, step_with


def random_plan(n: int, seed: int, metric: str = "cosine") -> hsd.Plan:
    rows = np.random.default_rng(seed).normal(size=(n, 3)) + 1.0
    return hsd.compile([f"prompt {i}" for i in range(n)], 0.9, embeddings=rows, steps=8, metric=metric)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(0, 99), st.integers(0, 7), st.sampled_from(["cosine", "euclidean"]))
def test_clusters_are_those_of_the_step(n, seed, step, metric):
    plan = random_plan(n, seed, metric)
    active, rows = plan.active(step), plan.vectors.array
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = clusters_at(plan, step)
    assert sorted(np.concatenate([cluster.prompts for cluster in found]).tolist()) == list(range(n))
    for cluster in found:
        members = [i for i in range(n) if active[i] == active[cluster.representative]]
        assert cluster.prompts.tolist() == members
        assert cluster.representative == members[0]
        distance = np.linalg.norm(rows[members] - rows[members].mean(axis=0), axis=1)
        assert distance[members.index(cluster.medoid)] == pytest.approx(distance.min(), abs=1e-9)
        assert selected(plan, [cluster.name]).tolist() == members


def test_the_last_step_with_so_few():
    plan = random_plan(10, 3)
    counts = plan.counts().tolist()
    for most in range(1, 11):
        step = step_with(plan, most)
        assert step == max([k for k, count in enumerate(counts) if count <= most], default=0)
    with pytest.raises(ValueError, match="0 clusters"):
        step_with(plan, 0)


def test_prompts_by_number():
    plan = random_plan(10, 4)
    assert selected(plan, ["3, 5-7", "9"]).tolist() == [3, 5, 6, 7, 9]
    assert selected(plan.prune([0, 5, 6]), ["5-7"]).tolist() == [5, 6]
    root = clusters_at(plan, 0)[0]
    assert selected(plan, [f"cluster:{root.representative}"]).tolist() == root.prompts.tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("7-3", "7-3: prompts are numbered 0 to 9"),
        ("10", "10: prompts are numbered 0 to 9"),
        ("cat", "'cat': write the number of a prompt"),
        ("cluster:9@99", "there is no step 99; the last one is 7"),
        ("cluster:10", "no cluster of step 0 has 10"),
    ],
)
def test_what_there_is_not(name, says):
    with pytest.raises(ValueError, match=says):
        selected(random_plan(10, 4), [name])
    with pytest.raises(ValueError, match="none of the prompts 2"):
        selected(random_plan(10, 4).prune([1]), ["2"])
