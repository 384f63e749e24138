"""Pictures of a plan: what they show is what the plan and its tree say, for plans of every kind."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import pytest

import hsd
from hsd.planning.charts import figure, file, html
from hsd.planning.charts.layout import Scale, merges_of
from hsd.planning.charts.savings import Curve
from hsd.planning.charts.subject import Subject
from hsd.planning.charts.tree import LARGEST, cluster_sizes

matplotlib = pytest.importorskip("matplotlib")

RANDOM = np.random.default_rng(5)
EMBEDDINGS = RANDOM.normal(size=(30, 6)) + 2 * RANDOM.normal(size=(6, 6))[np.arange(30) % 6]
MANY = RANDOM.normal(size=(3 * LARGEST, 8)) + 2 * RANDOM.normal(size=(40, 8))[np.arange(3 * LARGEST) % 40]


def compiled(embeddings=EMBEDDINGS, tau=0.8, **options):
    prompts = [f"a picture of thing number {i}" for i in range(len(embeddings))]
    return hsd.compile(prompts, tau, embeddings=embeddings, **{"steps": 12, **options})


def panels(plan):
    """The three pictures, by their titles."""
    page = plan.plot()
    found = [axes for part in page.subfigs for axes in part.axes if axes.get_title(loc="left")]
    return page, {axes.get_title(loc="left").split(" ")[0]: axes for axes in found}


PLANS = {
    "usual": lambda: compiled(),
    "many": lambda: compiled(MANY),
    "approximate": lambda: compiled(MANY, exact=False),
    "one prompt": lambda: compiled(EMBEDDINGS[:1]),
    "two prompts": lambda: compiled(EMBEDDINGS[:2]),
    "tau 0": lambda: compiled(tau=0.0),
    "tau is tiny": lambda: compiled(tau=1e-9),
    "tau is huge": lambda: compiled(tau=1e6),
    "one step": lambda: compiled(steps=1),
    "repeats": lambda: compiled(images_per_prompt=3),
    "many repeats": lambda: compiled(images_per_prompt=LARGEST),
    "all are equal": lambda: compiled(np.ones((9, 3))),
    "some are equal": lambda: compiled(EMBEDDINGS[[*range(20), 0, 0, 1]]),
    "several settings": lambda: compiled(settings=[{"guidance_scale": 3.0 + i % 3} for i in range(30)]),
    "pruned": lambda: compiled().prune([0, 5, 17]),
    "a shard of many": lambda: compiled(MANY).shard(3)[1],
    "Eq. 7": lambda: compiled(schedule="paper-eq7"),
    "steps without threshold": lambda: compiled(schedule=[1.0] * 5 + [0.0] * 7),
    "centroid": lambda: compiled(linkage="centroid"),
    "loaded": lambda: hsd.Plan._with(compiled().prune([1, 2]), compiled().prune([1, 2])._core),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_every_kind_are_drawn(name):
    plan = PLANS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, found = panels(plan)
        page.savefig(io.BytesIO(), format="png", dpi=30)
    assert set(found) == {"Savings", "Clusters", "Tree"}
    assert f"{plan.savings:.1%}" in page.get_suptitle()


@pytest.mark.parametrize("name", ["usual", "many", "pruned", "a shard of many", "repeats", "Eq. 7", "centroid"])
def test_the_curve_is_what_compiling_again_gives(name):
    plan = PLANS[name]()
    curve = Curve(Subject.of(plan))
    whole = {"usual": compiled, "pruned": compiled}.get(name)
    for tau in (0.0, 0.3 * plan.tau, plan.tau, 1.7 * plan.tau):
        core = hsd._core.Plan.compile(plan.tree, tau * (plan.phi / plan.tau)).prune(plan.kept)
        assert curve.savings(tau) == pytest.approx(1 - core.node_steps / plan.standard_node_steps, abs=1e-12)
        if whole is not None:  # without the tree of the plan: from the embeddings
            assert curve.savings(tau) == pytest.approx(whole(tau=tau).prune(plan.kept).savings, abs=1e-12)
    assert curve.savings(plan.tau) == pytest.approx(plan.savings, abs=1e-12)
    reached = curve.tau_for(0.4)
    assert curve.savings(reached) >= 0.4 > curve.savings(reached * (1 - 1e-6))


def test_every_jump_of_a_small_curve_is_drawn():
    curve = Curve(Subject.of(compiled(EMBEDDINGS[:8])))
    taus, saved = curve.points(2.0)
    assert (np.diff(saved) >= 0).all()
    for at in RANDOM.uniform(0, 2, 200):
        assert curve.savings(at) == saved[np.searchsorted(taus, at, side="right") - 1]


def test_the_plan_is_marked_where_it_is():
    plan = compiled()
    _, found = panels(plan)
    points = [tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in found["Savings"].lines]
    assert (plan.tau, plan.savings) in points
    texts = " ".join(text.get_text() for text in found["Savings"].texts)
    assert f"this plan: {plan.savings:.1%} at tau {plan.tau:.4g}" in texts


@pytest.mark.parametrize(
    "options",
    [{}, {"tau": 0.05}, {"tau": 0.3}, {"tau": 5.0}, {"linkage": "centroid", "schedule": "paper-eq7", "tau": 1.0}],
    ids=str,
)
def test_the_plans_label_is_not_on_the_curve(options):
    page, found = panels(compiled(**options))
    page.canvas.draw()
    axes = found["Savings"]
    [label] = [text for text in axes.texts if text.get_text().startswith("this plan")]
    box = matplotlib.text.Text.get_window_extent(label)  # without the annotated point
    assert axes.bbox.x0 < box.x0 < box.x1 < axes.bbox.x1 + 0.05 * axes.bbox.width
    curve = axes.lines[0]
    x, y = axes.transData.transform(curve.get_xydata()).T
    places = np.linspace(box.x0, box.x1, 200)
    heights = np.interp(places, x, y)
    assert ((heights < box.y0) | (heights > box.y1)).all()


def test_the_axis_says_where_it_is_compressed():
    tall, even = compiled(tau=0.2), compiled(tau=float(compiled().tree.heights.max()))
    axes = [panels(plan)[1]["Tree"] for plan in (tall, even)]
    assert axes[0].get_ylabel() == "height of the merge; compressed above 0.2"
    assert [0.8] in [list(line.get_ydata()) for line in axes[0].lines]  # the mark
    assert axes[1].get_ylabel() == "height of the merge"


def test_the_areas_are_the_cost():
    plan = compiled()
    _, found = panels(plan)
    standard, ran = (patch.get_data().values for patch in found["Clusters"].patches)
    assert ran.tolist() == plan.counts().tolist()
    assert standard.sum() == plan.standard_node_steps


def test_a_small_tree_has_every_merge_and_a_line_at_the_threshold():
    plan = compiled()
    _, found = panels(plan)
    axes = found["Tree"]
    bars = [
        (low[1], abs(high[0] - low[0]))
        for lines in axes.collections
        for low, high in lines.get_segments()
        if low[1] == high[1]
    ]
    scale = Scale(float(plan.phi[0]), float(plan.tree.heights.max()))
    assert sorted(y for y, _ in bars) == pytest.approx(sorted(scale(float(h)) for h in plan.tree.heights))
    lines = [float(line.get_ydata()[0]) for line in axes.lines]
    assert scale(plan.tau) in lines
    texts = [text.get_text() for text in axes.texts]
    assert f" step 0: {plan.counts()[0]} clusters" in texts
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [plan.prompts[i] for i in plan.tree.leaf_order]


@pytest.mark.parametrize("shape", ["random", "chain", "forest"])
def test_a_large_tree_has_few_merges(shape):
    n = 5000
    if shape == "chain":
        merge = np.arange(n - 1)
        merges = np.stack([np.where(merge == 0, 0, n + merge - 1), merge + 1], axis=1)
        tree = hsd.Tree.from_merges(merges, (merge + 1) / n)
    else:
        tree = compiled(RANDOM.normal(size=(n // (10 if shape == "forest" else 1), 5))).tree
        if shape == "forest":
            tree = hsd.Tree.join([tree] * 10, list(np.arange(n).reshape(10, -1)))
    few = merges_of(tree, n // LARGEST)
    assert len(few) <= LARGEST
    every = {(m.height, m.left, m.right) for m in merges_of(tree)}
    assert len(every) == int(np.isfinite(tree.heights).sum())
    least = n // LARGEST
    assert {(m.height, m.left, m.right) for m in few} == {
        (height, left, right) for height, left, right in every if min(left[1] - left[0], right[1] - right[0]) >= least
    }


def test_ranges_of_merges_are_clusters_of_the_tree():
    tree = compiled().tree
    for merge in merges_of(tree):
        above, below = tree.cut(float(np.nextafter(merge.height, np.inf))), tree.cut(merge.height)
        left, right = (tree.leaf_order[slice(*leaves)] for leaves in (merge.left, merge.right))
        assert len(np.unique(above[np.concatenate([left, right])])) == 1
        assert (above == above[left[0]]).sum() == len(left) + len(right)
        assert len(np.unique(below[left])) == len(np.unique(below[right])) == 1
        assert below[left[0]] != below[right[0]]


def test_colours_are_the_sizes_of_clusters():
    tree = compiled(MANY).tree
    heights, columns = [0.2, 0.9, 3.0], 7
    expected = []
    for height in heights:
        labels = tree.cut(height)[tree.leaf_order]
        sizes = [int((labels == label).sum()) for label in labels]
        parts = [sizes[c * len(sizes) // columns : (c + 1) * len(sizes) // columns] for c in range(columns)]
        expected.append([float(np.prod(np.power(part, 1 / len(part), dtype=float))) for part in parts])
    assert cluster_sizes(tree, heights, columns) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("first", "top"), [(1.0, 20.0), (20.0, 1.0), (1.0, 1.1), (0.0, 3.0), (2.0, 0.0)])
def test_the_scale_can_be_read_backwards(first, top):
    scale = Scale(first, top)
    places = [scale(height) for height in np.linspace(0, max(first, top), 50)]
    assert places[0] == 0
    assert places[-1] == pytest.approx(1)
    assert (np.diff(places) > 0).all()
    assert [scale.height(place) for place in places] == pytest.approx(np.linspace(0, max(first, top), 50))


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_files(tmp_path, name, begins):
    plan = compiled()
    plan.plot(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert first.startswith(begins)
    plan.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.gif", "has to end in .png, .svg, .pdf"), ("plan", "has to end in"), ("no/a.png", "there is no folder")],
)
def test_files_that_cannot_be_written_are_found_before_the_work(tmp_path, monkeypatch, name, says):
    plan = compiled()
    monkeypatch.setattr("hsd.planning.charts.draw", lambda _: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=says):
        plan.plot(tmp_path / name)


def test_without_matplotlib(tmp_path, monkeypatch):
    plan = compiled()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(hsd.Error, match=r'pip install "hsd-diffusion\[plot\]"'):
        plan.plot()
    with monkeypatch.context() as patch:
        patch.setattr("hsd.planning.charts.draw", lambda _: pytest.fail("the file was not looked at first"))
        with pytest.raises(hsd.Error, match=r'pip install "hsd-diffusion\[plot\]"'):
            plan.plot(tmp_path / "a.png")
    shown = plan._repr_html_()
    assert "<table" in shown
    assert "<img" not in shown


def test_nothing_of_the_user_changes():
    code = (
        "import sys, matplotlib, numpy as np, hsd; matplotlib.rcParams['axes.facecolor'] = 'black'; "
        "now = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}; "
        "before = now(); "
        "plan = hsd.compile(['a', 'b', 'c'], embeddings=np.random.rand(3, 4)); plan.plot(); plan._repr_html_(); "
        "assert now() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_prompts_are_shown_as_they_are():
    texts = ["a $x$ and $y", '<b>bold</b> & "more"', "日本語"]
    plan = hsd.compile(texts, embeddings=EMBEDDINGS[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.plot()
        shown = plan._repr_html_()
    _, found = panels(plan)
    assert {label.get_text() for label in found["Tree"].get_xticklabels()} == set(texts)
    assert not any(label.get_parse_math() for label in found["Tree"].get_xticklabels())
    assert "<script" not in html.table([("<script>", "a & <b>")])
    assert "&lt;b&gt;" in html.table([("name", "a & <b>")])
    assert f"{plan.node_steps:,} instead of {plan.standard_node_steps:,}" in shown


@pytest.mark.parametrize("name", ["usual", "many"])
def test_a_notebook_shows_table_and_picture(name):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    plan = PLANS[name]()
    shown, _ = formatter.format(plan)
    assert shown["text/plain"] == repr(plan)
    assert "denoiser's evaluations" in shown["text/html"].replace("&#x27;", "'")
    assert 'src="data:image/png;base64,' in shown["text/html"]
    assert len(shown["text/html"]) < 200_000


def test_a_small_picture_is_the_picture():
    page = figure.draw(Subject.of(compiled()))
    whole = hsd.work.drawing.encoded(page, "png", 60)
    part = file.small(whole)
    assert len(part) < len(whole)
    pixels = [np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"), dtype=float) for data in (whole, part)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 2
