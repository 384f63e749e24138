"""Prompts to plan: encode, cluster, cut the tree at each step. Nothing here runs a denoiser."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..names import Linkage, Metric, Noise, TreeMetric, check_count, check_name, steps_of
from ..prompts.files import PromptFile
from ..prompts.pipeline_arguments import not_of_compile
from ..work.arguments import explains
from ..work.progress import Progress, ProgressOption, StageReport, shows_stages
from ..work.text import shortened
from .catch_up import catch_up_weights, check_catch_up
from .clustering import Limits, replica_tree, single_prompts
from .columns import repeated
from .encoders import Encoder, StaticEncoder, default_encoder, name_of
from .extend import Additions
from .goal import check_goal, most_shared, tau_for_budget
from .grow import Found, List, can_grow, matched, merged_columns, seeds_of
from .metric import (
    check_linkage,
    check_threshold_given,
    checked_metric,
    correlation_of,
    default_threshold,
    resolve_metric,
)
from .plan import Plan
from .prompts import check_alone, check_prompts, make_seeds, warn_of_failed
from .reuse import earlier_plan, plan_in, with_columns
from .schedule import Schedule, check_tau, schedule_shape
from .settings import check_settings
from .twins import replicas, same_texts, same_vectors
from .vectors import Vectors, as_vectors

if TYPE_CHECKING:
    from ..models.base import Adapter

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
"""What may return a model. A pipeline can be called too, so that it is not enough that something can be."""


@explains("hsd.compile", not_of_compile, by_name="the model as model=")
@shows_stages
def compile(
    prompts: Iterable[str] | PromptFile,
    tau: float | None = None,
    *,
    model: Adapter | object | str | None = None,
    embeddings: Any = None,
    encoder: Encoder | None = None,
    budget: float | None = None,
    images_per_hour: float | None = None,
    gpu_hours: float | None = None,
    steps: int | None = None,
    num_inference_steps: int | None = None,
    linkage: Linkage = "ward",
    metric: Metric = "auto",
    schedule: Schedule = "linear",
    seeds: int | Sequence[int] | NDArray[np.integer] = 0,
    images_per_prompt: int = 1,
    noise: Noise = "independent",
    catch_up: float | None = None,
    settings: Sequence[Mapping[str, Any]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    exact: bool | None = None,
    threads: int | None = None,
    memory: int | None = None,
    conditioning_memory: int | None = None,
    reuse: str | os.PathLike[str] | Plan | None = None,
    extend: str | os.PathLike[str] | Plan | None = None,
    progress: ProgressOption = False,
) -> Plan:
    """Compile prompts to a :class:`Plan`: which prompts share which denoising steps.

    Parameters
    ----------
    prompts
        N non-empty strings. One that occurs r times gives r different images. So do r different ones that have equal
        embeddings, and so share nothing with each other: they differ only in what the model does not read. Or what
        :func:`read_prompts` or :func:`expand_template` returned, with its seeds, settings and columns.
    tau
        The largest dissimilarity of the prompts of one cluster at the first step; 0 shares nothing. Default: the
        default of the model, or of its calibration, where its embeddings are used, else 1.0; with
        ``metric="euclidean"`` there is none.
    budget
        Instead of ``tau``: the share of denoiser evaluations to save, inside (0, 1). The smallest tau that
        saves at least this share is used. Where no two images may share a step, as with a single prompt, it has no
        effect, which is warned about.
    images_per_hour, gpu_hours
        Instead of ``tau``, with ``model``: how fast the images are to be made on this machine, or the time that they
        may take on one device of its kind. The smallest tau that reaches it is used; 0, with a notice, if no sharing is
        needed. The speed is the slowest that was measured of it, or is measured now, for some seconds: the denoiser,
        and for each image encoding, decoding and writing; not loading the model. So it is an estimate.
    model
        A loaded model, a diffusers pipeline or a name for :func:`hsd.load`: prompts are clustered by its own
        embeddings, and ``steps`` are counted by its scheduler. A function that returns one of these is called when the
        arguments have been checked.
    embeddings
        (N, D) floats to cluster by instead, one row per given prompt: NumPy (memory-mapped too), or a torch tensor
        on any device. Compared by ``metric``. Read in place, not copied.
    encoder
        A callable from a list of prompts to (N, D) floats. Default: a small static encoder that needs no network. It
        only stands in for a model: :func:`generate` and :func:`stream` cluster a plan that was compiled by it again, by
        their model's own embeddings.
    steps, num_inference_steps
        Two names of one argument: the inference steps of the scheduler, 40 by default; not used by a model with
        ``timesteps`` or ``sigmas``. Without a model, evaluations of the denoiser.
    linkage
        ``ward`` (default: the authors' code), ``centroid`` (the paper's Eqs. 3-5), ``average`` or ``complete``.
    metric
        ``cosine`` (the paper) or ``euclidean`` distances of the embeddings; ``calibrated``: distances of the model's
        own embeddings by which it tells prompts apart, see :func:`hsd.calibrate`; ``direct``: distances of the model's
        own first predictions for each prompt, which costs three evaluations without guidance a prompt. ``auto`` is
        ``calibrated`` where the model's own embeddings are used and it is calibrated, and the linkage is not
        ``centroid``; else ``cosine``. ``centroid`` takes ``cosine`` only.
    schedule
        How the threshold falls from tau to 0: ``linear``, ``paper-eq7``, ``cosine``, ``log``, ``quadratic``,
        ``measured`` (as the model's calibration says), a callable of k/(K-1), or K fractions of tau.
    seeds
        One integer (prompt i gets ``seeds + i``, unless a file of prompts gives its seed) or one seed per image.
    images_per_prompt
        r images of each prompt, each in a separate tree. Images of one prompt are neighbours in the list.
    noise
        ``independent``: each root cluster draws its own first latent; ``shared``: all start from one.
    catch_up
        gamma >= 0 of catch-up conditioning: a cluster that begins after the first step is conditioned on
        m + gamma (m - h), its mean m and the mean h of what its path was given before; 0 is the paper. Default: that of
        the model which runs the plan, 1 for families with an adapter in HSD, else 0. Images that share nothing do not
        change.
    settings
        One mapping per given prompt, with the settings of the model for its images only: ``negative_prompt``,
        ``guidance_scale``, ``height``, ``width``... Prompts whose settings differ never share a step. A setting that is
        None is not given.
    columns
        Anything else that is known about the prompts, by name, with one value per given prompt: an id, a category...
        It changes nothing, and stands in ``metadata.jsonl`` beside each image.
    exact, threads, memory
        How the tree may be built, see :func:`build_tree`. Default: exactly, if N and the memory allow it.
    conditioning_memory
        With a model: bytes of encoded prompts that are kept in host memory, see :func:`stream`.
    reuse
        A plan, a plan file, or the folder of an earlier run. If its plan was compiled from the same prompts and
        arguments, that plan is returned, with the ``columns`` given now, and nothing is encoded or clustered.
        Otherwise, or if there is no such file, the prompts are compiled. A plan does not record the values of
        ``embeddings=``, of ``encoder=`` or of a custom schedule, so with one of these no plan is reused. Of a model it
        records the name, not the settings.
    extend
        A plan, a plan file, or the folder of an earlier run, that is to be continued with this list of prompts. If its
        plan was compiled with the same arguments, and has any of these prompts, what is returned is that plan: new
        prompts are added to it (:meth:`Plan.extend`), numbered after its own, and those that are not in the list are
        left out. A prompt is the same if its text, its settings and its seed are; without given seeds, the first seed.
        Otherwise the prompts are compiled.
    progress
        See :data:`hsd.ProgressOption`. Stages: ``encode``, then ``cluster``; none for a plan that is reused.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, naming the index and the value, before any expensive work.
    Error
        If ``reuse`` is a file that cannot be read, or is not a valid plan. In the folder of a run, such a file is
        passed over.
    """
    stages = progress if callable(progress) else None
    file = prompts if isinstance(prompts, PromptFile) else None
    if file is not None:
        check_alone(settings=settings, columns=columns)
        prompts, settings, columns = file.prompts, file.settings, file.columns
        seeds = file.seeds_from(seeds, images_per_prompt) if isinstance(seeds, int) else seeds
    given = check_prompts(prompts)
    given_goals = {"budget": budget, "images_per_hour": images_per_hour, "gpu_hours": gpu_hours}
    goal = check_goal(tau, given_goals, model)
    threshold = 1.0 if tau is None else check_tau(tau)
    steps = steps_of(steps, num_inference_steps)
    repeats = check_count("images_per_prompt", images_per_prompt)
    check_name("linkage", linkage, Linkage)
    check_name("noise", noise, Noise)
    check_name("metric", metric, Metric)
    check_linkage(metric, linkage)
    check_threshold_given(metric, tau, goal)
    gamma = None if catch_up is None else check_catch_up(catch_up)
    if embeddings is not None and encoder is not None:
        raise ValueError("give embeddings= or encoder=, not both")
    # Before a model is loaded, which may take minutes.
    vectors = None if embeddings is None else as_vectors(embeddings, len(given), "embeddings")
    limits = Limits(exact, threads, memory)
    limits.arguments()  # bad limits are reported before anything is encoded
    rows = np.repeat(np.arange(len(given), dtype=np.int64), repeats)
    texts = [prompt for prompt in given for _ in range(repeats)]
    seed_array = make_seeds(seeds, len(texts))
    chosen = _chosen_seeds(file, seeds, len(texts))

    values, variant = check_settings(settings, len(given))
    beside = repeated(columns, len(given), repeats)
    adapter = conditioning = None
    if model is not None:
        from ..models import (
            load,
            number_of_steps,
            variants_of,
        )  # here, so that planning without a model does not import torch

        adapter = load(model() if isinstance(model, _FUNCTIONS) else model)
        if file is not None:  # a model from outside of this package has settings of its own
            file = file.with_settings(adapter.setting_names())
            values, variant = check_settings(file.settings, len(given))
            beside = repeated(file.columns, len(given), repeats)
    own = adapter if embeddings is None and encoder is None else None
    resolved = resolve_metric(metric, linkage, own)
    if tau is None and own is not None:
        threshold = default_threshold(resolved, own)  # it belongs to the scale of the model's own embeddings
    request: dict[str, Any] = {
        "tau": threshold,
        "budget": None,
        "steps": steps,
        "linkage": linkage,
        "metric": resolved,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "images_per_prompt": repeats,
        "noise": noise,
        "catch_up": gamma,
        "encoder": _source(embeddings, encoder, adapter),
        "hsd_version": _core.__version__,
    }
    if goal is not None:
        request[goal.name] = goal.value
    if adapter is None and embeddings is None and encoder is None:
        # What a model's own defaults may replace, where the plan is clustered again by its embeddings.
        request |= {"asked_tau": None if tau is None else threshold, "asked_metric": metric}
    _record_calibration(request, own)
    if len(values) > 1 or values[0]:
        request["settings"] = {"values": values, "index": np.repeat(variant, repeats).tolist()}
    if beside:
        request["columns"] = beside
    n_steps = steps
    if adapter is not None:
        _, first = np.unique(variant, return_index=True)
        places = [f"prompt {i}" if file is None else file.places[i] for i in first]
        variants = variants_of(adapter, values, places)
        n_steps, request["steps"] = number_of_steps(variants, steps)
    variant = np.repeat(variant, repeats)
    weights = _step_weights(adapter, n_steps) if isinstance(schedule, str) and schedule == "measured" else None
    shape = schedule_shape(schedule, n_steps, weights=weights)
    if gamma is not None:
        catch_up_weights(n_steps, gamma)  # one that is too large is an error here, before anything is encoded

    if reuse is not None and embeddings is None and encoder is None and isinstance(schedule, str):
        earlier = earlier_plan(reuse, request, n_steps, texts, seed_array, exact)
        if earlier is not None:
            return earlier
    base = None if extend is None else plan_in(extend)
    same = base is not None and can_grow(base, request, n_steps)
    if same and request["schedule"] == "custom":  # of which a plan records the thresholds only
        same = base is not None and np.allclose(base.phi, base.tau * shape, rtol=1e-9)
    if base is not None and same:
        wanted = List(texts, seed_array, [values[i] for i in variant], beside, chosen)
        larger = _grown(base, wanted, adapter, embeddings, encoder, repeats, threads, conditioning_memory, stages)
        if larger is not None:
            return larger

    rounding: float | None = None
    if encoder is not None:
        vectors = as_vectors(encoder(given), len(given), "what the encoder returned")
    elif vectors is None and adapter is not None:
        # An image's seed may be part of its conditioning, so each image has its own row.
        from ..conditioning.twins import rounding_of, same_prompts
        from ..models.encode import encode, remember

        if resolved == "direct":
            from ..probing.direct import check_number, direct_vectors

            check_number(len(texts))
        encoding = Progress(None if stages is None else partial(stages, "encode"))
        share = 0.3 if resolved == "direct" else 1.0
        report = None if stages is None else encoding.part(0.0, share)
        conditioning = encode(
            variants, variant, texts, seed_array, memory=conditioning_memory, progress=report, skip_failing=True
        )
        vectors = as_vectors(conditioning.vectors, len(texts), "the model's embeddings")
        checked = checked_metric(resolved, metric, adapter, vectors.array.shape[1])
        if checked != resolved:
            resolved = request["metric"] = checked
            request["tau"] = default_threshold(resolved, adapter) if tau is None else threshold
            if request["schedule"] != "measured":  # its weights are used all the same
                request.pop("calibration", None)
            request.pop("metric_correlation", None)
        if resolved == "calibrated":
            assert adapter.calibration is not None
            vectors = as_vectors(adapter.calibration.transform(vectors.array), len(texts), "the calibrated embeddings")
        elif resolved == "direct":
            probed = direct_vectors(variants, variant, conditioning, progress=encoding.part(share, 1.0))
            vectors = as_vectors(probed, len(texts), "the model's predictions")
        rows = np.arange(len(texts), dtype=np.int64)
    elif vectors is None and (request["tau"] > 0 or goal is not None):
        static = default_encoder()
        done = None if stages is None else lambda count: stages("encode", count / len(given))
        vectors = as_vectors(static(given, done), len(given), "the embeddings")

    clustering = None if stages is None else partial(stages, "cluster")
    kind: TreeMetric = "cosine" if resolved == "cosine" else "euclidean"
    shares = request["tau"] > 0 or goal is not None
    if vectors is not None:  # before any work; NaN are a mistake also where nothing is clustered
        _core.check_embeddings(
            vectors.array,
            metric=kind if shares else "euclidean",
            bfloat16=vectors.bfloat16,
            threads=limits.arguments()["threads"],
        )
    if not shares:
        tree = single_prompts(len(texts))
        if clustering is not None:
            clustering(1.0)
    else:
        assert vectors is not None
        labels = [same_texts(texts)]
        if conditioning is not None:
            labels.append(same_prompts(conditioning))
            rounding = rounding_of(conditioning) if resolved in ("cosine", "euclidean") else None
        labels.append(same_vectors(vectors, cosine=kind == "cosine", rounding=rounding)[rows])
        # Images of one prompt, of prompts that cannot be told apart, and of prompts that differ in their settings are
        # in separate trees.
        failed = {} if conditioning is None else conditioning.failed
        if failed:
            warn_of_failed(failed, texts, stacklevel=5)
        replica = replicas(labels, variant, alone=sorted(failed))
        tree = replica_tree(vectors, rows, replica, linkage, limits, clustering, kind)

    def plan_at(tau: float) -> Plan:
        return Plan(_core.Plan.compile(tree, tau * shape), texts, seed_array, {**request, "tau": tau})

    if goal is not None and goal.is_time:
        from ..tuning.time_goal import tau_for_time  # here, because it imports torch

        assert adapter is not None
        request["tau"] = tau_for_time(goal, adapter, plan_at, most_shared(tree, shape), conditioning)
    elif goal is not None:
        request["tau"] = tau_for_budget(tree, shape, goal.value)
    plan = plan_at(request["tau"])
    if vectors is not None and shares:
        plan.with_vectors(vectors, None if len(rows) == len(vectors.array) else rows)
    if adapter is not None and conditioning is not None:
        remember(plan, adapter.encoding_key(), conditioning)
    return plan


def _chosen_seeds(file: PromptFile | None, seeds: Any, n: int) -> NDArray[np.bool_]:
    """(n,) the images whose seeds were given for them: the others have the first seed plus their index."""
    if isinstance(seeds, (int, np.integer)):
        return np.zeros(n, dtype=bool)
    own = [] if file is None else [one is not None for one in file.seeds]
    return np.array(own) if any(own) else np.ones(n, dtype=bool)


def _grown(
    base: Plan,
    wanted: List,
    adapter: Adapter | None,
    embeddings: Any,
    encoder: Encoder | None,
    repeats: int,
    threads: int | None,
    memory: int | None,
    stages: StageReport | None,
) -> Plan | None:
    """The plan ``base`` with what is new in a list, and without what is not in it; None if they have nothing in common.

    Embeddings have a row per given prompt of the list.
    """
    whole = base.whole()
    found = matched(whole, wanted)
    if not found.old:
        return None
    plan = _with_new(whole, wanted, found, adapter, embeddings, encoder, repeats, threads, memory, stages)
    keep = sorted([*found.old.values(), *range(whole.n_prompts, plan.n_prompts)])
    return plan if len(keep) == plan.n_prompts else plan.prune(keep)


def add_missing(
    plan: Plan, file: PromptFile, adapter: Adapter, images_per_prompt: int = 1, progress: StageReport | None = None
) -> Plan:
    """The whole plan, with those prompts of a file that it does not have yet: the same file adds nothing again.

    Seeds that the file does not give go on from the first one of the plan.
    """
    whole, repeats = plan.whole(), images_per_prompt
    seeds = file.seeds_from(int(whole.seeds[0]), repeats)
    n = len(file.prompts) * repeats
    values, variant = check_settings(file.settings, len(file.prompts))
    wanted = List(
        [prompt for prompt in file.prompts for _ in range(repeats)],
        make_seeds(seeds, n),
        [values[i] for i in np.repeat(variant, repeats)],
        repeated(file.columns, len(file.prompts), repeats),
        _chosen_seeds(file, seeds, n),
    )
    found = matched(whole, wanted)
    return _with_new(whole, wanted, found, adapter, None, None, repeats, None, None, progress)


def _with_new(
    whole: Plan,
    wanted: List,
    found: Found,
    adapter: Adapter | None,
    embeddings: Any,
    encoder: Encoder | None,
    repeats: int,
    threads: int | None,
    memory: int | None,
    stages: StageReport | None,
) -> Plan:
    columns = merged_columns(whole, wanted, found)
    if not found.new:
        return with_columns(whole, {"columns": columns})
    new = Additions(
        [wanted.prompts[i] for i in found.new],
        seeds_of(wanted, found.new, whole.n_prompts),
        [wanted.settings[i] for i in found.new],
        {name: [values[i] for i in found.new] for name, values in wanted.columns.items()},
    )
    rows = None
    if embeddings is not None:
        rows = _rows_of(embeddings, whole, found, repeats)
    return whole.extended(
        replace(whole.as_base(), columns=columns),
        new,
        model=adapter,
        embeddings=rows,
        encoder=encoder,
        threads=threads,
        conditioning_memory=memory,
        stages=stages,
    )


def _rows_of(embeddings: Any, whole: Plan, found: Found, repeats: int) -> Vectors:
    """The vectors of what is new in a list; of all prompts of the plan too, where these are not known any more."""
    given = as_vectors(embeddings, (len(found.old) + len(found.new)) // repeats, "embeddings")
    places = [i // repeats for i in found.new]
    if whole.vectors is None:
        of_plan = {j: i // repeats for i, j in found.old.items()}
        missing = [j for j in range(whole.n_prompts) if j not in of_plan]
        if missing:
            raise ValueError(
                f"the vectors of the plan are not known any more, and those of its prompt {missing[0]} "
                f"({shortened(whole.prompts[missing[0]])!r}) are not among the embeddings, because the list "
                "lacks it: give the whole list once"
            )
        places = [*(of_plan[j] for j in range(whole.n_prompts)), *places]
    return given._replace(array=given.array[places])


def _record_calibration(request: dict[str, Any], own: Adapter | None) -> None:
    """Add what the plan takes from the model's calibration, and what that says about its metric."""
    if own is None or own.calibration is None:
        return
    if request["metric"] in ("calibrated", "direct") or request["schedule"] == "measured":
        request["calibration"] = own.calibration.digest
    correlation = correlation_of(request["metric"], own)
    if correlation is not None:
        request["metric_correlation"] = correlation


def _step_weights(adapter: Adapter | None, n_steps: int) -> NDArray[np.float64]:
    """(K,) the weights of the steps, for the schedule ``measured``."""
    if adapter is None or adapter.calibration is None:
        raise ValueError(
            "schedule 'measured' needs model= with a calibration: run `hsd calibrate MODEL` once, or use 'linear'"
        )
    return adapter.calibration.weights_at(n_steps)


def _source(embeddings: Any, encoder: Encoder | None, adapter: Adapter | None) -> str:
    """The name of what the prompts are clustered by."""
    if embeddings is not None:
        return "embeddings"
    if encoder is not None:
        return name_of(encoder)
    return StaticEncoder.name if adapter is None else adapter.name
