"""The paper's figures that show images (Decatur et al., arXiv 2508.21032): Figs. 2, 4 and 10."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..demo import MODELS as DEMO_MODELS
from ..evaluation.folder import load_image, read_folder
from ..evaluation.stats import cluster_bootstrap
from ..generation.streaming import stream
from ..models.encode import encoded, remember
from ..planning.clustering import build_tree
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..planning.rows import alone_from
from . import plots
from .experiment import EVALUATIONS, SAVED, Needed
from .lab import GeneratedSet, Lab, PromptSet, Skipped, Variant
from .results import Cell, Column, Estimate, Figure, Result, Table
from .trees import in_order, joins_one, lowest_clusters, nearly_equal, splits_at, tau_above_root
from .watching import Trace, watch

CHAIN = ("animal", "dog", "curly hair dog", "Portuguese water dog")
"""The prompts of the paper's Fig. 4, from the general to the special."""

DEMO_CHAIN = ("a shape", "a star", "a red star", "a large red star")
"""The same in the demo model's language. Not every such list gives a chain: if "a large red star in the center" is
added, "a large red star" is more similar to "a red star" than to it, and the two most special are not merged first."""

RELATED = 4
"""Least number of prompts of a family. A lowest node with this many leaves has at most 2 * RELATED - 2."""

FAMILIES = 6
"""Largest number of families that are compared with each other: 24 prompts."""

COLUMNS = 8
"""Number of steps that are shown."""

_THUMBNAIL = 96
_SHARED = "tab:orange"


# -- Fig. 4


def chain_needs(lab: Lab) -> Needed:
    """The chain, standard and with the first step shared by all of its prompts."""
    prompt_set = chain_set(lab)
    tree = lab.plan(prompt_set, Variant(tau=lab.tau)).tree
    return [(prompt_set, Variant()), (prompt_set, Variant(tau=tau_above_root(tree)))]


def chain(lab: Lab) -> list[Result]:
    """Fig. 4: a tree that leans to the right, and images that separate one by one."""
    standard, shared = (lab.generate(*one) for one in chain_needs(lab))
    plan, tree = shared.plan, shared.plan.tree
    joins = joins_one(tree)
    leaning = bool(joins.all())
    caption = (
        f"{len(plan.prompts)} prompts from the general to the special, clustered by {lab.model.name}'s own embeddings: "
        f"{'a right-leaning chain' if leaning else 'not a chain'} ({joins.sum()} of {len(joins)} merges join a single "
        "prompt to all that was merged before). Top: the tree, with the height of each merge and the step at which it "
        f"splits again (tau {plan.tau:g}: all share the first step). Below: the standard images, and the shared images "
        "with the step from which each is alone, that is, shares no lane."
    )
    return [
        Figure("chain", caption, _png(_chain_figure(standard, shared))),
        _merges(plan, joins),
        Table(
            "chain",
            "The chain as a whole",
            (
                Column("prompts", "count"),
                Column("a chain", "text"),
                Column("from the special to the general", "text"),
                Column("tau"),
                EVALUATIONS,
                Column("standard", "count"),
                SAVED,
            ),
            (
                (
                    len(plan.prompts),
                    _yes(leaning),
                    _yes(leaning and in_order(tree)),
                    plan.tau,
                    shared.evaluations,
                    standard.evaluations,
                    plan.savings,
                ),
            ),
        ),
    ]


def chain_set(lab: Lab) -> PromptSet:
    """Prompts of which each is a special case of the one before."""
    name = "general-to-special"
    while name in {prompt_set.name for prompt_set in lab.first_sets}:
        name += "-"
    return PromptSet(name, DEMO_CHAIN if lab.model.name in DEMO_MODELS else CHAIN)


def _merges(plan: Plan, joins: NDArray[np.bool_]) -> Table:
    """The merges, in the order of the tree."""
    tree = plan.tree
    names = [f'"{prompt}"' for prompt in plan.prompts]
    rows: list[tuple[Cell, ...]] = []
    for j, (children, height) in enumerate(zip(np.sort(tree.merges, axis=1), tree.heights, strict=True)):
        one, other = (names[child] for child in children)
        rows.append((j + 1, one, other, float(height), splits_at(plan, height), _yes(bool(joins[j]))))
        names.append(f"merge {j + 1}")
    columns = (
        Column("merge", "count"),
        Column("of", "text"),
        Column("and", "text"),
        Column("height"),
        Column("splits at step", "count"),
        Column("joins one prompt", "text"),
    )
    return Table("chain-merges", "Merges of the chain, lowest first", columns, tuple(rows))


def _chain_figure(standard: GeneratedSet, shared: GeneratedSet) -> Any:
    plan = shared.plan
    order, single_from, n = plan.tree.leaf_order, alone_from(plan), plan.n_prompts
    figure = plots.figure(1.3 * n + 0.4, 5.2)
    grid = figure.add_gridspec(3, n, height_ratios=(1.5, 1.3, 1.3))
    _dendrogram(figure.add_subplot(grid[0, :]), plan)
    for row, one in enumerate((standard, shared), start=1):
        pictures = [load_image(entry) for entry in read_folder(one.folder).entries]
        for column, prompt in enumerate(order):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, pictures[prompt])
            if row == 1:
                axes.set_title(_wrapped(plan.prompts[prompt], 18), fontsize=8)
            else:
                axes.set_xlabel(f"alone from step {single_from[prompt]}", fontsize=8)
            if column == 0:
                axes.set_ylabel("standard" if row == 1 else "shared", fontsize=9)
    return figure


def _dendrogram(axes: Any, plan: Plan) -> None:
    """Draw the tree as brackets; its leaves are at x = 0, 1, ... in leaf order."""
    tree, n = plan.tree, plan.n_prompts
    x, y = np.zeros(2 * n - 1), np.zeros(2 * n - 1)
    x[tree.leaf_order] = np.arange(n)
    for j, ((a, b), height) in enumerate(zip(tree.merges, tree.heights, strict=True)):
        x[n + j], y[n + j] = (x[a] + x[b]) / 2, height
        axes.plot([x[a], x[a], x[b], x[b]], [y[a], height, height, y[b]], color="0.3", linewidth=1.2)
        text = f"{height:.2f}, splits at step {splits_at(plan, height)}"
        # White background, as the text covers the line from the merge to its parent.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        at = {"textcoords": "offset points", "ha": "center", "zorder": 3}
        axes.annotate(text, (x[n + j], height), (0, 3), fontsize=7, bbox=box, **at)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(0, 1.12 * float(tree.heights.max(initial=1e-9)))
    axes.set_xticks([])
    axes.set_ylabel("height", fontsize=9)
    axes.tick_params(labelsize=7)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


# -- Fig. 10


def mean_embedding_needs(lab: Lab) -> Needed:
    """None: :func:`mean_embedding` generates its few images itself, from equal seeds."""
    return []


def mean_embedding(lab: Lab) -> list[Result]:
    """Fig. 10: the image of the mean of some prompts' embeddings, and the images of these prompts."""
    n_steps = lab.model.sampler(lab.steps).n_steps
    if n_steps < 2:
        raise Skipped("a mean needs a step before the last, which is never shared")
    rows: list[tuple[str, list[str], list[PIL.Image.Image]]] = []
    for prompt_set in lab.first_sets[:4]:
        for members in families(lab, prompt_set)[:1]:
            prompts = [prompt_set.prompts[i] for i in members]
            rows.append((prompt_set.name, [f"mean of {len(prompts)}", *prompts], mean_and_members(lab, prompts)))
    if not rows:
        raise Skipped(_no_family(lab))
    width = max(len(pictures) for *_, pictures in rows)
    figure = plots.figure(1.25 * width, 1.75 * len(rows))
    grid = figure.add_gridspec(len(rows), width)
    for row, (name, labels, pictures) in enumerate(rows):
        for column, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, picture, _SHARED if column == 0 else None)
            axes.set_title(_wrapped(label, 24), fontsize=6, weight="bold" if column == 0 else "normal")
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
    caption = (
        "The image of a cluster's mean embedding (framed) and the standard images of its members, all from the same "
        "noise at every step. Of each set the lowest cluster of at least four prompts. A plan's last step belongs to "
        f"single prompts, so the mean's image has {n_steps - 1} steps on the mean and its last on the member beside it."
    )
    return [Figure("mean-embedding", caption, _png(figure))]


def mean_and_members(lab: Lab, prompts: Sequence[str]) -> list[PIL.Image.Image]:
    """The image of the mean of the prompts' embeddings, then the image of each prompt; all from the same noise.

    All have the same seed. So the noise is equal at every step and not only at the first, also in models where a prior
    draws from the generator before.
    """
    adapter, seeds = lab.model, [lab.seed] * len(prompts)
    members = compile_plan(prompts, 0.0, model=adapter, steps=lab.steps, seeds=seeds)
    # Nearly equal embeddings: their distances are below every threshold except the last. Equal ones would be replicas.
    mean = compile_plan(
        prompts,
        0.5,
        model=adapter,
        embeddings=nearly_equal(np.zeros(len(prompts), dtype=np.int64)),
        schedule=(1.0,) * (members.n_steps - 1) + (0.0,),
        steps=lab.steps,
        seeds=seeds,
        metric="cosine",
        catch_up=0.0,
    )
    remember(mean, *encoded(members))
    first = next(iter(stream(mean.prune([0]), adapter, batch_size=1)))
    others = {image.index: image.pil for image in stream(members, adapter, batch_size=lab.batch_size)}
    return [first.pil, *(others[i] for i in range(len(prompts)))]


def families(lab: Lab, prompt_set: PromptSet) -> list[list[int]]:
    """Disjoint clusters of related prompts, the closest first: the lowest nodes with at least four leaves."""
    return lowest_clusters(lab.plan(prompt_set, Variant(tau=lab.tau)).tree, RELATED)


def _no_family(lab: Lab) -> str:
    return (
        f"no set has {RELATED} different prompts: {', '.join(f'{s.name} ({len(s.prompts)})' for s in lab.first_sets)}"
    )


# -- Fig. 2


def latents_needs(lab: Lab) -> Needed:
    """None: :func:`latents` generates its few images itself, to observe the steps."""
    return []


def latents(lab: Lab) -> list[Result]:
    """Fig. 2: what related prompts look like step by step, and how dissimilar related and unrelated prompts are."""
    related = disjoint_families(lab)
    if not related:
        raise Skipped(_no_family(lab))
    prompts = [prompt for family in related for prompt in family]
    options: dict[str, Any] = {"model": lab.model, "steps": lab.steps, "seeds": lab.seed, "noise": "shared"}
    options |= {"metric": "cosine", "catch_up": 0.0}
    plan = compile_plan(prompts, 0.0, **options)
    standard = watch(plan, lab.model, batch_size=lab.batch_size)
    _, conditioning = encoded(plan)
    few, vectors = prompts[:RELATED], conditioning.vectors[:RELATED]
    # The threshold falls linearly, so with a tau of twice the root's height all share the first half of the steps.
    tau = tau_above_root(build_tree(vectors), 2.0)
    sharing = compile_plan(few, tau, embeddings=vectors, **options)
    shared = watch(sharing, lab.model, batch_size=lab.batch_size)

    steps = sorted({round(float(k)) for k in np.linspace(0, plan.n_steps - 1, COLUMNS)})
    # above[k][i]: the picture of prompt i at the step of column k.
    above, predicted = _pictures(standard, steps)
    below, _ = _pictures(shared, steps)
    shown = "the image that the step predicts" if predicted else "the decoded latent (this scheduler predicts no image)"
    sheet = (
        f"Step by step, {shown}: {len(few)} related prompts, standard above, shared below (tau {tau:g}: all share the "
        f"first half; {sharing.savings:.0%} of the evaluations saved). A frame marks a latent that several prompts "
        "share. All start from the same noise."
    )
    curve, table = _dissimilarity(lab, steps, above, len(related), shown)
    return [Figure("latents", sheet, _png(_sheet(few, steps, above, below, shared))), curve, table]


def disjoint_families(lab: Lab) -> list[list[str]]:
    """At most ``FAMILIES`` disjoint families of ``RELATED`` prompts; the closest family of each set first."""
    out: list[list[str]] = []
    taken: set[str] = set()
    each = [[[s.prompts[i] for i in members] for members in families(lab, s)] for s in lab.first_sets]
    for some in itertools.zip_longest(*each):
        for family in some:
            if family is not None and taken.isdisjoint(family) and len(out) < FAMILIES:
                out.append(family[:RELATED])
                taken.update(out[-1])
    return out


def _pictures(trace: Trace, steps: Sequence[int]) -> tuple[list[list[PIL.Image.Image]], bool]:
    """The picture of each prompt at each of these steps, and whether all of them are predictions."""
    out, flags = [], []
    for k, (found, predicted) in enumerate(trace.predictions()):
        if k in steps:
            out.append([image.convert("RGB") for image in trace.decoded(found)])
            flags.append(predicted)
    return out, all(flags)


def _dissimilarity(
    lab: Lab, steps: Sequence[int], pictures: Sequence[Sequence[PIL.Image.Image]], n: int, shown: str
) -> tuple[Figure, Table]:
    """How dissimilar the pictures of two prompts of one family, and of two families, are at each step."""
    family = np.repeat(np.arange(n), RELATED)
    pairs = list(itertools.combinations(range(len(family)), 2))
    # Pairs of the same families are not independent, so the bootstrap draws them together.
    groups = [tuple(sorted({int(family[i]), int(family[j])})) for i, j in pairs]
    curves: dict[str, list[tuple[float, Estimate]]] = {"related": [], "unrelated": []}
    for k, row in zip(steps, pictures, strict=True):
        distance = differences(row)
        for label, curve in curves.items():
            chosen = [at for at, group in enumerate(groups) if (len(group) == 1) == (label == "related")]
            if not chosen:
                continue
            values = np.array([distance[pairs[at]] for at in chosen])
            interval = cluster_bootstrap(values, [groups[at] for at in chosen], seed=lab.seed)
            curve.append((float(k), Estimate(float(values.mean()), None if interval is None else interval[0])))
    curves = {label: curve for label, curve in curves.items() if curve}
    figure = plots.figure(5.5, 3.4)
    axes = figure.add_subplot()
    for index, (label, curve) in enumerate(curves.items()):
        plots.line(axes, f"{label} prompts", curve, index)
    axes.set_xlabel("step")
    axes.set_ylabel("mean difference of pixels (0 to 1)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    caption = (
        "How dissimilar two prompts are at each step, standard, from the same first noise: mean absolute difference of "
        f"all pixels of {shown}. Related: pairs from one cluster ({n} of {RELATED} prompts each)"
        + ("." if n == 1 else "; unrelated: from two. Intervals: bootstrap over clusters, or pairs of clusters.")
    )
    columns = (Column("step", "count"), *(Column(label) for label in curves))
    cells = zip(steps, *([y for _, y in curve] for curve in curves.values()), strict=True)
    table = Table("latents-alike", "Mean difference between pictures of two prompts, by step", columns, tuple(cells))
    return Figure("latents-alike", caption, plots.png(figure)), table


def differences(pictures: Sequence[PIL.Image.Image]) -> NDArray[np.float64]:
    """(n, n) mean absolute difference of pixels between n pictures of equal size, 0 to 1."""
    pixels = np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])
    return np.stack([np.abs(pixels - one).mean(axis=(1, 2, 3)) for one in pixels]) / 255.0


def _sheet(
    prompts: Sequence[str],
    steps: Sequence[int],
    standard: Sequence[Sequence[PIL.Image.Image]],
    shared: Sequence[Sequence[PIL.Image.Image]],
    trace: Trace,
) -> Any:
    together, n = trace.shared(), len(prompts)
    figure = plots.figure(1.6 + 0.8 * len(steps), 0.4 + 1.7 * n)
    axes = figure.subplots(2 * n, len(steps), squeeze=False)
    for row, column in itertools.product(range(2 * n), range(len(steps))):
        at, i = axes[row, column], row % n
        below = row >= n
        frame = _SHARED if below and together[steps[column], i] else None
        _show(at, (shared if below else standard)[column][i], frame)
        if i == 0:
            heading = "" if column else "shared, " if below else "standard, "
            at.set_title(f"{heading}step {steps[column]}", fontsize=7)
        if column == 0:
            at.set_ylabel(_wrapped(prompts[i], 24), fontsize=6.5, rotation=0, ha="right", va="center")
    return figure


def _show(axes: Any, picture: PIL.Image.Image, frame: str | None = None) -> None:
    """Show a picture without axes, large ones as thumbnails; ``frame`` is the colour of a frame around it."""
    picture = picture.copy()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    axes.imshow(picture, interpolation="nearest", cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)


def _png(figure: Any) -> bytes:
    """The PNG with a palette of 256 colours: a sheet of images is then a quarter as large."""
    out = io.BytesIO()
    with PIL.Image.open(io.BytesIO(plots.png(figure))) as image:
        palette = image.convert("RGB").quantize(256, kmeans=1, dither=PIL.Image.Dither.NONE)
    palette.save(out, "png", optimize=True)
    return out.getvalue()


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(textwrap.shorten(text, 6 * width, placeholder=" ..."), width)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
