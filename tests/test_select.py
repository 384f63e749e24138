"""Parts of a plan by name: clusters of a step, the prompt in the middle, and what a name means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from hsd.planning.select import clusters_at, selected, step_with

K = 8


def random_plan(seed, n=9, metric="cosine", tau=1.5):
    rng = np.random.default_rng(seed)
    # Lengths differ, so that the middle by direction is another one than by distance.
    vectors = (rng.normal(size=(3, 4))[rng.integers(3, size=n)] + 0.5 * rng.normal(size=(n, 4))) * 4 ** rng.random(
        (n, 1)
    )
    plan = hsd.compile([f"prompt {i}" for i in range(n)], tau, embeddings=vectors, steps=K, metric=metric)
    return plan, vectors


def by_hand(plan, k, metric, vectors=None):
    """Lowest prompt, prompts and the one in the middle, of each cluster of a step."""
    found = []
    active = plan.active(k).tolist()
    for segment in set(active) - {-1}:
        row = plan.segments[segment]
        prompts = [i for i in range(plan.n_prompts) if active[i] == segment]
        middle = prompts[0]
        if vectors is not None:
            rows = [vectors[i] / np.linalg.norm(vectors[i]) if metric == "cosine" else vectors[i] for i in prompts]
            mean = sum(rows) / len(rows)
            distance = [float(np.sqrt(((one - mean) ** 2).sum())) for one in rows]
            middle = prompts[int(np.argmin(distance))] if len(prompts) > 2 else prompts[0]  # of two, both are
        lowest = min(plan.tree.leaf_order[row["leaf_begin"] : row["leaf_end"]].tolist())
        found.append((lowest, prompts, middle))
    return sorted(found)


many = given(seed=st.integers(0, 10_000), n=st.integers(1, 12), metric=st.sampled_from(["cosine", "euclidean"]))


@settings(max_examples=40)
@many
def test_clusters_of_each_step(seed, n, metric):
    plan, vectors = random_plan(seed, n, metric)
    keep = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.7)
    for part in (plan, plan.prune(keep)) if len(keep) else (plan,):
        for k in range(K):
            clusters = clusters_at(part, k)
            found = [(one.representative, one.prompts.tolist(), one.medoid) for one in clusters]
            assert found == by_hand(part, k, metric, vectors)
            assert [one.name for one in clusters] == [f"cluster:{lowest}@{k}" for lowest, *_ in found]
            for one in clusters:  # a name finds the prompts of its cluster again
                assert selected(part, [one.name]).tolist() == one.prompts.tolist()


def test_the_middle_by_direction_is_not_that_by_distance():
    middles = [
        [one.medoid for metric in ("cosine", "euclidean") for one in clusters_at(random_plan(s, 9, metric, 9.0)[0], 0)]
        for s in range(5)
    ]
    assert any(len(set(one)) > 1 for one in middles)
    assert any(one[0] != 0 for one in middles)


def test_without_vectors_it_is_the_lowest(tmp_path):
    plan, _ = random_plan(3)
    assert any(one.medoid != one.prompts[0] for k in range(K) for one in clusters_at(plan, k))
    plan.save(tmp_path / "plan.safetensors")
    loaded = hsd.Plan.load(tmp_path / "plan.safetensors")
    for k in range(K):
        found = [(one.representative, one.prompts.tolist(), one.medoid) for one in clusters_at(loaded, k)]
        assert found == by_hand(plan, k, "cosine")


def test_a_cluster_is_named_by_a_prompt_that_may_not_be_kept():
    plan, _ = random_plan(3, tau=9.0)
    (one,) = clusters_at(plan.prune([4, 5, 8]), 0)
    assert (one.representative, one.prompts.tolist(), one.name) == (0, [4, 5, 8], "cluster:0@0")
    assert one.medoid in (4, 5, 8)


@settings(max_examples=30)
@many
def test_the_last_step_with_few_clusters(seed, n, metric):
    plan, _ = random_plan(seed, n, metric)
    for most in range(1, n + 2):
        few = [k for k in range(K) if len(set(plan.active(k).tolist())) <= most]
        assert step_with(plan, most) == max(few, default=0)


def test_the_first_step_where_all_have_more():
    plan, _ = random_plan(0, tau=0.0)
    assert step_with(plan, 1) == 0
    assert len(clusters_at(plan, 0)) == 9


@pytest.mark.parametrize("clusters", [0, -3])
def test_no_cluster_is_refused(clusters):
    with pytest.raises(ValueError, match=f"{clusters} clusters: there has to be at least one"):
        step_with(random_plan(0)[0], clusters)


@pytest.mark.parametrize("step", [-1, K, 99])
def test_a_step_that_is_not_there(step):
    with pytest.raises(IndexError, match=str(step)):
        clusters_at(random_plan(0)[0], step)


# -- names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["3"], [3]),
        (["5", "3", "5"], [3, 5]),
        (["2-4"], [2, 3, 4]),
        (["4-4"], [4]),
        (["0-8"], list(range(9))),
        (["7,1 , 3-4", "0"], [0, 1, 3, 4, 7]),
        ([" 08 "], [8]),
    ],
    ids=str,
)
def test_numbers_and_ranges(names, expected):
    assert selected(random_plan(0)[0], names).tolist() == expected


def test_a_cluster_without_a_step_is_that_of_the_first():
    plan, _ = random_plan(5)
    for one in clusters_at(plan, 0):
        assert selected(plan, [f"cluster:{one.representative}"]).tolist() == one.prompts.tolist()
    one, *_, other = clusters_at(plan, 4)
    both = sorted([*one.prompts.tolist(), *other.prompts.tolist()])
    assert selected(plan, [f"{one.name},{other.name}"]).tolist() == both != []


def test_of_those_that_are_kept():
    part = random_plan(0)[0].prune([1, 4, 6])
    assert selected(part, ["0-4", "8"]).tolist() == [1, 4]
    with pytest.raises(ValueError, match="none of the prompts 2-3, 8 is in this list"):
        selected(part, ["2-3", "8"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("9", "9: prompts are numbered 0 to 8"),
        ("3-9", "3-9: prompts are numbered 0 to 8"),
        ("4-3", "4-3: .*a range is FIRST-LAST"),
        ("99999999999999999999999", "99999999999999999999999: prompts are numbered 0 to 8"),
        ("-1", "'-1': write the number"),
        ("a cat", "'a cat': write the number"),
        ("", "'': write the number"),
        ("1-2-3", "'1-2-3': write the number"),
        ("1.5", "'1.5': write the number"),
        ("cluster:", "'cluster:': write the number"),
        ("cluster:x", "'cluster:x': write the number"),
        ("cluster:0@", "'cluster:0@': write the number"),
        ("cluster:0@-1", "'cluster:0@-1': write the number"),
        ("cluster:0@8", "cluster:0@8: there is no step 8; the last one is 7"),
        ("cluster:99", "cluster:99: no cluster of step 0 has 99 as its lowest prompt; --preview names them"),
    ],
)
def test_what_is_no_name(name, says):
    plan, _ = random_plan(0)
    for names in ([name], ["0", name], [f"0,{name}"]):
        with pytest.raises(ValueError, match=says):
            selected(plan, names)


def test_a_prompt_that_is_not_the_lowest_names_no_cluster():
    plan, _ = random_plan(0, tau=9.0)
    with pytest.raises(ValueError, match="cluster:4@0: no cluster of step 0 has 4 as its lowest prompt"):
        selected(plan, ["cluster:4@0"])
    assert selected(plan, ["cluster:4@7"]).tolist() == [4]
