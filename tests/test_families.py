"""Every model family: its stock pipeline's images at tau = 0, a plain Algorithm 1 above, and separate lanes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hsd
import pipeline_table
from families import EVERY, FAMILIES, Family
from families.checks import check_parity
from families.measure import PROMPTS, SEEDS, parity, sharing, with_scheduler
from helpers import encoded, fresh_generators, mean_difference
from hsd.models.registry import BUILT_IN

families = pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
different = pytest.mark.parametrize("family", [f for f in EVERY if not f.twin], ids=lambda family: family.name)


def scheduler_cases():
    return [
        pytest.param(family, name, id=f"{family.name}-{name or 'default'}")
        for family in EVERY
        for name in (None, *family.schedulers)
    ]


@pytest.mark.parametrize(("family", "scheduler"), scheduler_cases())
def test_parity_with_guidance(family: Family, scheduler):
    check_parity(family, with_scheduler(family, scheduler), family.guided, family.size)


@families
def test_parity_without_guidance(family: Family):
    check_parity(family, family.build(), family.unguided, family.size)


@different
def test_parity_with_a_negative_prompt(family: Family):
    if family.negative is None:
        pytest.skip("the pipeline takes no negative prompt")
    settings = {**family.guided, **family.negative}
    check_parity(family, family.build(), settings, family.size)


@different
def test_parity_oblong(family: Family):
    if family.oblong is None:
        pytest.skip("the pipeline has one size")
    check_parity(family, family.build(), family.guided, family.oblong)


@different
def test_parity_of_several_images_a_prompt(family: Family):
    seeds = [11, 5, 42, 17]
    check_parity(family, family.build(), family.guided, family.size, prompts=PROMPTS[:2], seeds=seeds, per_prompt=2)


@families
def test_parity_in_bfloat16(family: Family):
    pipe = family.to(family.build(), torch.bfloat16)
    found = parity(family, pipe, family.guided, family.size)
    assert found.model.dtype == torch.bfloat16
    another = found.ours[[1, 2, 0]]
    assert (another - found.stock).norm() > 3 * family.rounding * found.stock.norm()
    assert found.root_mean_square < family.rounding
    assert len(found.images) == len(PROMPTS)


def sharing_cases():
    """Each family with each tau, and each tau with the families' own schedulers and with others: every pair occurs."""
    for i, family in enumerate(EVERY):
        names = (None, *family.schedulers[:1]) if family.schedulers else (None, None)
        for name, tau in zip(names, (0.4, 1.2) if i % 2 else (1.2, 0.4), strict=True):
            yield pytest.param(family, name, tau, id=f"{family.name}-{name or 'default'}-{tau}")


@pytest.mark.parametrize(("family", "scheduler", "tau"), list(sharing_cases()))
def test_sharing_is_algorithm_1(family: Family, scheduler, tau):
    found = sharing(family, scheduler, tau)
    assert 0.05 < found.plan.savings < 0.8
    assert found.expected_rows == found.rows == found.plan.node_steps
    assert sorted(found.ours) == sorted(found.expected) == list(range(found.plan.n_prompts))
    assert found.error < 10 * family.tolerance


@families
def test_lanes_at_different_steps_are_what_they_are_alone(family: Family):
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    if not model.mixed_timesteps:
        with pytest.raises(ValueError, match="one timestep per call"):
            lanes_at_different_steps(family, model)
        return
    lanes_at_different_steps(family, model)


def lanes_at_different_steps(family: Family, model: hsd.models.Adapter):
    conditioning = encoded(model, PROMPTS, SEEDS)
    rows = [conditioning.mean(np.array([i])) for i in range(3)]
    together = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    timesteps = model.sampler(family.steps).timesteps[: len(PROMPTS)]
    assert len(timesteps.unique()) > 1
    latents = torch.randn((3, *model.latent_shape()), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output, variance = model.denoise(latents, timesteps, together)
        for i in range(3):
            one = {name: row[i : i + 1] for name, row in together.items()}
            alone, own_variance = model.denoise(latents[i : i + 1], timesteps[i : i + 1], one)
            near = {"atol": family.lane_tolerance, "rtol": family.lane_tolerance}
            torch.testing.assert_close(output[i : i + 1], alone, **near)
            if variance is not None:
                torch.testing.assert_close(variance[i : i + 1], own_variance, **near)
        swapped, _ = model.denoise(latents, timesteps.flip(0), together)
    assert (swapped[0] - output[0]).abs().max() > 1e-3  # the check can fail


@different
def test_encoding_does_not_depend_on_the_batch(family: Family):
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    together, alone = encoded(model, PROMPTS, SEEDS), encoded(model, PROMPTS[1:2], SEEDS[1:2])
    torch.testing.assert_close(together.vectors[1], alone.vectors[0], atol=1e-4, rtol=1e-4)
    for name, field in together.fields.items():
        ours, theirs = field.rows[int(field.index[1])], alone.fields[name].rows[int(alone.fields[name].index[0])]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@families
def test_prompts_of_different_settings_are_never_merged(family: Family):
    """One list, every prompt with different settings: the images that each setting gives by itself."""
    pipe = family.build()
    own = [family.guided, family.unguided, {**family.guided, **(family.negative or {})}]
    if family.oblong is not None:
        own = [{**own[0], "height": family.oblong[0], "width": family.oblong[1]}, *own]
    texts = [PROMPTS[0]] * len(own)
    seeds = [3] * len(own)
    model = hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))
    plan = hsd.compile(texts, 100.0, model=model, steps=family.steps, seeds=seeds, settings=own)
    distinct = len({tuple(sorted(s.items())) for s in own})
    assert plan.counts()[0] == len(texts)  # the same prompt again is a replica, other settings are a tree apart
    assert len(plan.settings) == distinct
    images = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=2)}
    for i, settings in enumerate(own):
        size = (settings.get("height", family.size[0]), settings.get("width", family.size[1]))
        called = {k: v for k, v in settings.items() if k not in ("height", "width")}
        expected = family.call(pipe, texts[:1], fresh_generators(seeds[:1]), called, size, family.steps, "pil")[0]
        assert mean_difference(images[i], expected) < 0.5, settings


def test_the_docs_name_every_family_and_scheduler():
    lines = pipeline_table.DOCS.read_text().splitlines()
    for family in FAMILIES:
        for scheduler in (None, *family.schedulers):
            row = pipeline_table.label(family, scheduler)
            assert any(line.startswith(row) for line in lines), f"run python tests/pipeline_table.py: no row {row}"


def test_the_page_of_models_lists_every_family():
    text = pipeline_table.MODELS.read_text()
    assert all(f"| {family.title} |" in text for family in FAMILIES), "run python tests/pipeline_table.py"
    assert pipeline_table.models(text) == text, "run python tests/pipeline_table.py"


def test_every_built_in_adapter_has_a_family():
    settings = [(family.loadable(family.build()), family.settings(family.guided, family.size)) for family in FAMILIES]
    tested = {name for pipe, options in settings for name in type(hsd.load(pipe, **options)).pipelines}
    assert tested == set(BUILT_IN)
