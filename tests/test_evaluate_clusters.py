"""Intervals by root clusters: against closed forms, brute force and simulation, and where they must not change."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import hsd
from evaluate_cases import lines, measured, write
from hsd.evaluation import FolderError
from hsd.evaluation.clusters import FEW, Clusters, clusters_of, connected
from hsd.evaluation.stats import (
    cluster_bootstrap,
    clustered_variance,
    crossed_intervals,
    mean_intervals,
    mean_of_known,
    pair_mean_interval,
    student,
    win_rate,
)

# Groups.

labels = st.integers(1, 3).flatmap(
    lambda c: st.lists(st.tuples(*[st.integers(0, 8)] * c), min_size=1, max_size=25).map(
        lambda rows: [np.array([str(row[i]) for row in rows]) for i in range(c)]
    )
)


@given(labels)
def test_components_are_scipys(groupings):
    n = len(groupings[0])
    joined = np.zeros((n, n))
    for values in groupings:
        joined += values[:, None] == values[None, :]
    _, theirs = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(joined), directed=False)
    ours = connected(groupings)
    assert ((ours[:, None] == ours) == (theirs[:, None] == theirs)).all()


def test_what_is_one_cluster():
    prompts = ["a", "b", "c", "d", "d", "e"]
    alone = clusters_of(prompts, range(6))
    assert (alone.by, alone.count, alone.singles) == ("prompts", 5, False)
    assert clusters_of(prompts[:4], range(4)).singles
    ours = clusters_of("abcdef", [0, 0, 1, 2, 3, 3])
    assert (ours.by, ours.count, ours.few) == ("root clusters", 4, True)
    assert ours.groupings[0].tolist() == list("aacdee")
    # A difference joins the root clusters of both sides, and images of one prompt.
    twice = [f"{i:02d}" for i in range(24)] * 2
    many = clusters_of(twice, [0, 0, *range(2, 48)], [*range(47), 2])
    assert (many.by, many.count) == ("root clusters", 22)
    ends = many.groupings[0].tolist()
    assert ends[0] == ends[1] == ends[24] == ends[25] == "00"  # a trunk of the first run, and the same prompts
    assert ends[2] == ends[26] == ends[23] == ends[47] == "02"  # a trunk of the second run
    assert clusters_of("abcdef", None, [0, 0, 1, 2, 3, 3]).groupings[0].tolist() == ours.groupings[0].tolist()
    with pytest.raises(ValueError, match=r"\[6, 5\] images"):
        clusters_of(prompts, range(5))


def test_the_effective_number_of_clusters():
    assert clusters_of(range(12), np.arange(12) // 3).effective == pytest.approx(4)
    # One half is one cluster: it decides the interval almost alone.
    uneven = clusters_of(range(24), [0] * 12 + list(range(1, 13)))
    assert uneven.count == 13
    assert uneven.effective == pytest.approx(24**2 / (12**2 + 12))
    assert uneven.few


def test_crossed_only_where_components_are_too_few():
    prompts, seeds = np.tile(np.arange(30), 3), np.repeat(np.arange(3), 30)
    trunks = [f"{s}: {(p + 5 * s) // 3}" for p, s in zip(prompts, seeds, strict=True)]
    crossed = clusters_of(prompts, trunks)
    assert (crossed.by, len(crossed.groupings), crossed.count) == ("prompts and root clusters", 2, 30)
    # With the same trunks for all seeds, components are root clusters.
    same = clusters_of(prompts, [f"{s}: {p // 3}" for p, s in zip(prompts, seeds, strict=True)])
    assert (same.by, same.count) == ("root clusters", 10)
    # One trunk for everything is not crossed with prompts, which are parts of it: it shows no variation at all.
    one = clusters_of(range(9), [0] * 9)
    assert (one.by, one.count) == ("root clusters", 1)
    assert mean_intervals(np.arange(9.0), one) is None


# Intervals.


@pytest.mark.parametrize("degrees", [1, 2, 3, 8, 50, 999, 1001])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_student_is_scipys(degrees, confidence):
    assert student(degrees, confidence) == pytest.approx(scipy.stats.t.ppf(0.5 + confidence / 2, degrees), rel=2e-3)


def test_prompts_that_began_alike_do_not_narrow_the_interval():
    """Five prompts of a trunk with equal scores say as much as one: the interval is that of the trunks alone."""
    trunks = np.random.default_rng(2).normal(size=16)
    prompts = [f"{t:02d}-{i}" for t in range(16) for i in range(5)]
    scores = np.repeat(trunks, 5)
    clusters = clusters_of(prompts, np.repeat(np.arange(16), 5))
    ((low, high),) = mean_intervals(scores, clusters)
    assert (low, high) == pytest.approx(cluster_bootstrap(trunks, [f"{t:02d}" for t in range(16)])[0])
    ((narrow, narrower),) = mean_intervals(scores, clusters_of(prompts))
    assert (high - low) / (narrower - narrow) == pytest.approx(math.sqrt(5), rel=0.05)


def test_coverage_where_prompts_share_trunks():
    """300 samples of 30 trunks with 6 prompts each, most of whose noise is the trunk's."""
    rng = np.random.default_rng(7)
    trunk, prompts = np.repeat(np.arange(30), 6), np.arange(180)
    covered = {"root clusters": 0, "prompts": 0}
    for _ in range(300):
        values = rng.normal(size=30)[trunk] + 0.5 * rng.normal(size=180)
        for clusters in (clusters_of(prompts, trunk), clusters_of(prompts)):
            ((low, high),) = mean_intervals(values, clusters, resamples=400)
            covered[clusters.by] += low <= 0 <= high
    assert 0.89 < covered["root clusters"] / 300 < 0.98
    assert covered["prompts"] / 300 < 0.7


def test_coverage_with_several_seeds_of_each_prompt():
    """Prompts vary, trunks vary, and the trunks differ by seed: neither prompts nor trunks alone are enough."""
    rng = np.random.default_rng(3)
    prompts = np.tile(np.arange(48), 3)
    trunk = np.concatenate([16 * s + rng.permutation(48) // 3 for s in range(3)])
    clusters = clusters_of(prompts, trunk)
    assert clusters.by == "prompts and root clusters"
    covered = {"crossed": 0, "prompts": 0, "trunks": 0}
    widths = []
    for _ in range(300):
        values = 0.6 * rng.normal(size=48)[prompts] + rng.normal(size=48)[trunk] + 0.3 * rng.normal(size=144)
        found = {
            "crossed": mean_intervals(values, clusters)[0],
            "prompts": crossed_intervals(values, Clusters(clusters.groupings[:1], "prompts"))[0],
            "trunks": crossed_intervals(values, Clusters(clusters.groupings[1:], "root clusters"))[0],
        }
        widths.append(found["crossed"][1] - found["crossed"][0])
        for name, (low, high) in found.items():
            covered[name] += low <= 0 <= high
    assert 0.92 < covered["crossed"] / 300 < 0.98
    assert covered["prompts"] < covered["crossed"] - 8
    assert covered["trunks"] < covered["crossed"] - 8
    # In closed form: each source of variation is averaged over its own number.
    error = math.sqrt(0.36 / 48 + 1 / 48 + 0.09 / 144)
    assert np.mean(widths) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 47) * error, rel=0.05)


@given(labels, st.integers(0, 2**32 - 1))
def test_variance_is_the_definition(groupings, seed):
    """Over all pairs of images, one by one."""
    if any(len(set(values)) < 2 for values in groupings):
        return
    n = len(groupings[0])
    values = np.random.default_rng(seed).normal(size=n)
    away = values - values.mean()
    total, single = 0.0, []
    for size in range(1, len(groupings) + 1):
        for chosen in itertools.combinations(groupings, size):
            keys = list(zip(*(c.tolist() for c in chosen), strict=True))
            pairs = sum(away[i] * away[j] for i in range(n) for j in range(n) if keys[i] == keys[j])
            variance = pairs / n**2 * len(set(keys)) / (len(set(keys)) - 1)
            total -= (-1) ** size * variance
            single += [variance] if size == 1 else []
    found = clustered_variance(values[:, None], Clusters(tuple(groupings), "prompts and root clusters"))
    assert found == pytest.approx([max(total, *single)], abs=1e-12)


def test_a_mean_of_pairs_by_clusters():
    values = np.random.default_rng(1).normal(size=40)
    plain = pair_mean_interval(values)
    assert pair_mean_interval(values, clusters=clusters_of(range(40), range(40))) == plain
    low, high = pair_mean_interval(np.repeat(values, 3), clusters=clusters_of(range(120), np.repeat(np.arange(40), 3)))
    t, z = scipy.stats.t.ppf(0.975, 39), scipy.stats.norm.ppf(0.975)
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(t / z, rel=1e-3)
    assert pair_mean_interval(values, clusters=clusters_of(range(40), [0] * 40)) is None


# Standard diffusion: nothing is shared, and nothing changed.


def test_what_shares_nothing_is_resampled_as_before():
    rng = np.random.default_rng(4)
    prompts = [f"prompt {i // 2}" for i in range(40)]
    a, b = rng.normal(size=40), rng.normal(size=40)
    alone = clusters_of(prompts, range(40), np.arange(40) + 7)
    assert mean_of_known(a, alone, seed=3) == (a.mean(), cluster_bootstrap(a, prompts, seed=3)[0])
    assert win_rate(a, b, alone, seed=3) == win_rate(a, b, prompts, seed=3)
    assert win_rate(a, b, alone).interval == "bootstrap"
    single = clusters_of(range(40), range(40))
    assert win_rate(a, b, single).interval == "wilson"
    # One shared trunk, and pairs are not independent any more.
    assert win_rate(a, b, clusters_of(range(40), [0, 0, *range(2, 40)])).interval == "bootstrap"


def plan_for(folder, prompts, groups, tau):
    """Write a plan in which prompts of a group are near each other."""
    vectors = np.eye(max(groups) + 1, dtype=np.float32)[list(groups)]
    vectors += 1e-3 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    plan = hsd.compile(prompts, tau, embeddings=vectors, steps=4)
    plan.save(folder / "plan.safetensors")
    return plan


PROMPTS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("star", "ring", "cross", "disc")]
GROUPS = [i // 4 for i in range(12)]


def test_a_standard_run_is_measured_as_without_its_plan(tmp_path):
    a, b = write(tmp_path / "a", PROMPTS, shift=9), write(tmp_path / "b", PROMPTS)
    before = measured(a, against=b)
    plan_for(a, PROMPTS, GROUPS, 0.0)
    plan_for(b, PROMPTS, GROUPS, 0.0)
    assert measured(a, against=b) == before
    assert before.wins.interval == "wilson"
    assert (before.measured.fidelity.clusters, before.measured.fidelity.clustered_by) == (12, "prompts")


def test_a_shared_run_is_resampled_by_its_trunks(tmp_path):
    a, b = write(tmp_path / "a", PROMPTS, shift=9), write(tmp_path / "b", PROMPTS)
    plan = plan_for(a, PROMPTS, GROUPS, 0.3)
    assert plan.counts()[0] == 3
    found = measured(a, against=b)
    ours, theirs = found.measured.fidelity, found.against.fidelity
    assert (ours.clusters, ours.clustered_by, ours.few_clusters) == (3, "root clusters", True)
    assert (theirs.clusters, theirs.clustered_by) == (12, "prompts")
    assert (found.wins.interval, found.wins.clusters, found.wins.clustered_by) == ("bootstrap", 3, "root clusters")
    # Three clusters of four: the extremes of a bootstrap are three times the lowest and three times the highest.
    scores = {line["file_name"]: line["score"] for line in lines(a)}
    means = (
        np.mean([scores[f"{i:05d}.png"] for i in range(12)]),
        [np.mean([scores[f"{4 * g + i:05d}.png"] for i in range(4)]) for g in range(3)],
    )
    assert ours.mean == pytest.approx(means[0])
    assert ours.interval == pytest.approx((min(means[1]), max(means[1])))
    assert "by 3 root clusters; few: the intervals are rough" in str(found)
    assert found.numbers()["wins"]["clustered_by"] == "root clusters"
    # The other side's trunks count as well, and the order of lines does not.
    plan_for(b, PROMPTS, [i % 4 for i in range(12)], 0.3)
    joined = measured(a, against=b).wins
    assert joined.clustered_by == "prompts and root clusters"
    assert (joined.interval, joined.clusters, joined.few_clusters) == ("crossed", 3, True)
    assert (joined.ties, joined.win_rate_interval, joined.difference_interval) == (12, None, None)  # all are equal
    shuffled = write(tmp_path / "c", PROMPTS, shift=9, order=np.random.default_rng(1).permutation(12))
    plan_for(shuffled, PROMPTS, GROUPS, 0.3)
    assert measured(shuffled).measured.fidelity == ours


def test_a_pruned_plan_has_the_trunks_of_the_whole(tmp_path):
    plan = plan_for(write(tmp_path, PROMPTS[:6]), PROMPTS, GROUPS, 0.3)
    plan.prune(range(6)).save(tmp_path / "plan.safetensors")
    assert measured(tmp_path).measured.fidelity.clusters == 2


def test_a_plan_that_is_not_the_images(tmp_path):
    plan_for(write(tmp_path / "a", PROMPTS), [*PROMPTS[:-1], "a house"], GROUPS, 0.3)
    with pytest.raises(FolderError, match=r"not the plan of these images: for index 11, 'a green disc'.*'a house'"):
        measured(tmp_path / "a")
    plan_for(write(tmp_path / "b", PROMPTS, fields=("seed",)), PROMPTS, GROUPS, 0.3)
    with pytest.raises(FolderError, match=r"has no image; if they share no steps.*move the plan away"):
        measured(tmp_path / "b")
    (write(tmp_path / "c", PROMPTS) / "plan.safetensors").write_bytes(b"no plan")
    with pytest.raises(hsd.Error, match=r"plan.safetensors is not a plan that can be used"):
        measured(tmp_path / "c")


def test_few_is_marked_below_the_limit():
    assert not clusters_of(range(2 * FEW), np.arange(2 * FEW) // 2).few
    assert clusters_of(range(2 * FEW - 2), np.arange(2 * FEW - 2) // 2).few
