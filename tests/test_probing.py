"""Probing: what a model's output means at each noise level, predictions without guidance, and the weights of steps."""

from __future__ import annotations

import dataclasses
import re

import diffusers
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from typer.testing import CliRunner

import hsd
import tiny
from families import EVERY, Family
from helpers import PROMPTS, make_scheduler
from hsd import cli
from hsd.calibration import Identity, store
from hsd.models.encode import encode
from hsd.models.identity import identity_of
from hsd.probing.direct import MOST, direct_vectors
from hsd.probing.levels import noise_levels
from hsd.probing.measure import small_clusters
from hsd.probing.predict import balance, predictions, sketch, smaller, unguided
from hsd.probing.weights import smooth, step_weights
from hsd.replay.denoiser import step_rows
from hsd.replay.lengths import of_one_length
from test_calibration import make

SEEDS = np.arange(len(PROMPTS)) + 3
TEXTS = [f"a {a} {b} {c}" for a in ("red", "blue") for b in ("cat", "dog", "boat") for c in ("at sea", "by day", "now")]


def conditioned(model, prompts=PROMPTS, seeds=SEEDS):
    return encode([model], np.zeros(len(prompts), np.int64), prompts, seeds)


class OfScheduler:
    """What noise_levels needs of a denoiser."""

    def __init__(self, scheduler) -> None:
        self.own = scheduler

    def scheduler(self):
        return self.own

    def set_timesteps(self, scheduler, steps) -> None:
        scheduler.set_timesteps(steps)


# -- the meaning of an output

CONVERTING = [
    (cls, kind, options)
    for cls, options in (
        (diffusers.DDPMScheduler, {"clip_sample": False}),
        (diffusers.DDIMScheduler, {"clip_sample": False}),
        (diffusers.LCMScheduler, {"clip_sample": False}),
        (diffusers.EulerDiscreteScheduler, {}),
        (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (diffusers.EulerAncestralDiscreteScheduler, {}),
    )
    for kind in ("epsilon", "v_prediction", "sample")
    if not (kind == "sample" and cls is diffusers.EulerAncestralDiscreteScheduler)
]


@pytest.mark.parametrize(("cls", "kind", "options"), CONVERTING)
def test_x0_is_the_schedulers_own(cls, kind, options):
    """Schedulers return the x0 that they work with: an outside witness."""
    scheduler = cls(prediction_type=kind, **options)
    sample, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for level, index in zip(noise_levels(OfScheduler(scheduler)), (0, 3, 6), strict=True):
        scheduler.set_timesteps(14)
        assert float(level.timestep) == float(scheduler.timesteps[index])
        t = scheduler.timesteps[index]
        given = scheduler.scale_model_input(sample, t)
        if cls is diffusers.LCMScheduler:  # its denoised sample is a mix of x0 and the sample
            expected = scheduler.step(output, t, sample, generator=torch.Generator(), return_dict=False)[1]
            c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
            expected = (expected - c_skip * sample) / c_out
        else:
            expected = scheduler.step(output, t, sample).pred_original_sample
        assert level.predict(given, output) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert level.signal**2 + level.noise**2 == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("cls", [diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler])
def test_x0_is_what_solvers_convert_to(cls, kind):
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0} if kind == "flow_prediction" else {}
    scheduler = cls(prediction_type=kind, **flow)
    sample, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for level, index in zip(noise_levels(OfScheduler(scheduler)), (0, 3, 6), strict=True):
        scheduler.set_timesteps(14)
        scheduler._step_index = index
        expected = scheduler.convert_model_output(output, sample=sample)
        assert level.predict(sample, output) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_x0_of_flow_matching_is_where_a_step_to_zero_leads():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    sample, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for level in noise_levels(OfScheduler(scheduler)):
        assert level.signal + level.noise == pytest.approx(1.0)
        scheduler.set_timesteps(sigmas=[level.noise / (3.0 - 2.0 * level.noise)])  # which the shift undoes
        expected = scheduler.step(output, scheduler.timesteps[0], sample).prev_sample
        assert level.predict(sample, output) == pytest.approx(expected, abs=1e-5)


def test_x0_of_edm():
    scheduler = diffusers.EDMEulerScheduler()
    sample, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for level, index in zip(noise_levels(OfScheduler(scheduler)), (0, 3, 6), strict=True):
        scheduler.set_timesteps(14)
        t = scheduler.timesteps[index]
        given = scheduler.scale_model_input(sample, t)
        expected = scheduler.step(output, t, sample).pred_original_sample
        assert level.predict(given, output) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.IPNDMScheduler(), "neither alphas_cumprod nor"),
        (
            diffusers.DDIMScheduler(prediction_type="epsilon", trained_betas=[0.999999] * 1000),
            "nothing about the image",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused(scheduler, reason):
    with pytest.raises(hsd.UnsupportedScheduler, match=rf"cannot be probed: .*{reason}.*metric='cosine'"):
        noise_levels(OfScheduler(scheduler))


def test_without_signal_a_later_step_is_taken():
    zero = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    first, second, _ = noise_levels(OfScheduler(zero))
    assert 0.005 < first.signal < second.signal
    assert float(first.timestep) < 999
    velocity = diffusers.DDIMScheduler.from_config(zero.config, prediction_type="v_prediction")
    assert noise_levels(OfScheduler(velocity))[0].signal == pytest.approx(0.0, abs=1e-3)


# -- predictions


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_predictions_of_every_family(family: Family):
    """Without guidance, whatever the settings say: as the model with guidance off, each prompt by itself."""
    pipe = family.build()
    guided = hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size))
    plain = hsd.load(family.loadable(pipe), **family.settings(family.unguided, family.size))
    assert not unguided(guided).guided
    prompts, seeds = PROMPTS[:3], SEEDS[:3]
    conditioning = conditioned(guided, prompts, seeds)
    rows = []
    module = family.denoiser(pipe)
    hook = module.register_forward_pre_hook(lambda *_: rows.append(1))
    level = noise_levels(guided)[0]
    found = predictions(guided, conditioning, levels=[level])
    hook.remove()
    lengths = of_one_length(guided, conditioning, np.arange(3))
    assert len(rows) == 1 + len(lengths)  # for the mean, and for all prompts: those of each length, where they matter
    conditioning = dataclasses.replace(conditioning, padded=not guided.one_length)
    assert guided.guided == hsd.load(family.loadable(pipe), **family.settings(family.guided, family.size)).guided
    noise = guided.first_noise(torch.Generator().manual_seed(7)).float()
    noise *= (level.signal**2 + level.noise**2) ** 0.5
    for i in range(3):
        own = {name: row[None] for name, row in conditioning.mean(np.array([i])).items()}
        if plain.reads_steps:
            own |= step_rows(level.timesteps, torch.tensor([level.step]))
        with torch.no_grad():
            output, _ = plain.denoise(noise, level.timestep.expand(1), own)
        expected = level.predict(noise, output).flatten().numpy()
        assert np.abs(found[i] - expected).max() < 1e-3 * np.abs(expected).max()
    assert pdist(found).min() > 0.0


def test_later_levels_begin_from_the_mean_prompts_image(model):
    conditioning = conditioned(model)
    levels = noise_levels(model)
    found = predictions(model, conditioning, levels=levels)
    twin = unguided(model)
    generator = torch.Generator().manual_seed(7)
    first, second = model.first_noise(generator), model.first_noise(generator)
    mean = {name: row[None] for name, row in conditioning.mean(np.arange(len(PROMPTS))).items()}
    own = {name: row[None] for name, row in conditioning.mean(np.array([5])).items()}
    with torch.no_grad():
        image = levels[0].predict(first, twin.denoise(first, levels[0].timestep[None], mean)[0])
        noisy = levels[2].signal * image + levels[2].noise * second
        expected = levels[2].predict(noisy, twin.denoise(noisy, levels[2].timestep[None], own)[0]).flatten().numpy()
    part = np.split(found, 3, axis=1)[2][5]
    scale = float(part @ expected / (expected @ expected))  # levels may be scaled
    assert part == pytest.approx(scale * expected, abs=1e-3 * float(np.abs(part).max()))
    assert 0.0 < scale <= 1.0 + 1e-4


def test_probing_is_at_512_pixels_at_most():
    flux = hsd.load(tiny.flux())
    assert (flux.height, flux.width) == (1024, 1024)
    assert (smaller(flux).height, smaller(flux).width) == (512, 512)
    wide = dataclasses.replace(flux, height=512, width=1536)
    assert (smaller(wide).height, smaller(wide).width) == (192, 512)
    small = dataclasses.replace(flux, height=64, width=64)
    assert smaller(small) is small


def test_a_sketch_keeps_distances():
    values = torch.randn(12, 40_000, generator=torch.Generator().manual_seed(0))
    assert pdist(sketch(values).numpy()) == pytest.approx(pdist(values.numpy()), rel=0.05)
    assert sketch(values[:, :100]).shape == (12, 100)


def test_levels_are_balanced():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(50, 9)) * s + 4.0 for s in (30.0, 1.5, 1.0)], 1).astype(np.float32)
    before = values.copy()
    balance(values, 3)
    assert values[:, 9:] == pytest.approx(before[:, 9:])
    spread = [np.sqrt(part.var(0).sum()) for part in np.split(values, 3, axis=1)]
    assert spread[0] == pytest.approx(2.0 * spread[2], rel=1e-4)


# -- the weights of steps


@pytest.mark.parametrize("of", ["stable-diffusion", "kandinsky-5, which reads padding"])
def test_step_weights_are_differences_of_whole_runs(model, of):
    """Each run again, by itself, with the cluster's mean at its first steps."""
    if of != "stable-diffusion":
        [family] = [family for family in EVERY if family.name == "kandinsky-5"]
        model = hsd.load(family.build(), **family.settings(family.guided, family.size))
    conditioning = dataclasses.replace(conditioned(model), padded=not model.one_length)
    vectors = np.random.default_rng(0).normal(size=(len(PROMPTS), 3)).astype(np.float32)
    clusters, steps = [np.array([0, 1]), np.array([2, 3, 5])], 3
    found = step_weights(model, conditioning, clusters, vectors, SEEDS, steps=steps)
    sampler = model.sampler(steps).to("cpu", torch.float32)

    def run(prompt: int, cluster: np.ndarray, shared: int) -> torch.Tensor:
        generator = model.generator(int(SEEDS[prompt]))
        state = torch.zeros(1, sampler.n_state, *model.latent_shape())
        state[:, 0] = model.first_noise(generator) * sampler.init_noise_sigma
        for k in range(steps):
            who = cluster if k < shared else np.array([prompt])
            rows = {name: row[None] for name, row in conditioning.mean(who).items()}
            at = torch.tensor([k])
            with torch.no_grad():
                scaled = sampler.model_input(state, at) if model.scales_input else state[:, 0]
                output, variance = model.denoise(scaled, sampler.timesteps[at], rows)
            noise = torch.stack([torch.randn(1, *model.latent_shape(), generator=generator) for _ in range(1)], 1)
            state = sampler.update(state, output, noise, at, variance)
        return state[0, 0]

    moved, error = np.zeros(steps + 1), 0.0
    for cluster in clusters:
        for prompt in cluster:
            error += ((vectors[prompt] - vectors[cluster].mean(0)) ** 2).sum()
            base = run(prompt, cluster, 0)
            moved += [float(((run(prompt, cluster, k) - base) ** 2).sum()) for k in range(steps + 1)]
    assert found == pytest.approx(np.diff(moved) / error, rel=1e-3)
    assert found[0] > 0


def test_smoothed_weights():
    smoothed = smooth(np.array([0.0, 1.0, 4.0, 1.0]))
    assert (smoothed > 0).all()
    assert smoothed.mean() == pytest.approx(1.0)
    assert smooth(np.full(5, 3.0)) == pytest.approx(1.0)
    assert (smooth(np.zeros(3)) > 0).all()


def test_small_clusters():
    values = np.repeat(np.arange(10.0), 2)[:, None] * 10 + np.tile([0.0, 0.1], 10)[:, None]
    tree = hsd.build_tree(values, metric="euclidean")
    found = small_clusters(tree, 1.0)
    assert len(found) == 8
    assert all(pair[1] == pair[0] + 1 and pair[0] % 2 == 0 for pair in found)
    assert [len(c) for c in small_clusters(tree, 0.0)] == [2]  # nothing is shared: any two


# -- identity


def test_identity_tells_networks_apart():
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    own = identity_of(model)
    assert own.matches(identity_of(hsd.load(tiny.stable_diffusion())))
    assert own.matches(identity_of(dataclasses.replace(model, guidance_scale=1.0)))
    assert identity_of(hsd.load(tiny.stable_diffusion().to(torch.bfloat16))).matches(own)
    assert not own.matches(identity_of(hsd.load(tiny.flux())))
    for part in ("unet", "text_encoder"):
        other = tiny.stable_diffusion()
        with torch.no_grad():
            for weight in getattr(other, part).parameters():
                weight *= 1.1
        assert not own.matches(identity_of(hsd.load(other))), part
    vae = tiny.stable_diffusion()
    with torch.no_grad():
        next(vae.vae.parameters()).mul_(2.0)
    assert own.matches(identity_of(hsd.load(vae)))


def test_a_lora_is_another_network():
    from peft import LoraConfig

    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    before = identity_of(model)
    model.pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert not identity_of(model).matches(before)


# -- compiling


def calibrated(model, **changes):
    """The model with a calibration of random values that fits it."""
    width = conditioned(model, PROMPTS[:1], SEEDS[:1]).vectors.shape[1]
    matrix = np.random.default_rng(0).normal(size=(width, 3))
    values = {"matrix": matrix, "mean": np.zeros(width), "identity": identity_of(model), **changes}
    return model.with_calibration(make(**values))


def test_auto_is_calibrated_where_it_can_be(model):
    ready = calibrated(model)
    plan = hsd.compile(PROMPTS, model=ready, steps=4)
    assert plan.metric == "calibrated"
    assert plan.tau == ready.calibration.tau
    assert plan.metric_correlation == 0.9
    mapped = ready.calibration.transform(conditioned(model).vectors)
    expected = hsd.build_tree(mapped, metric="euclidean")
    assert plan.tree.heights == pytest.approx(expected.heights, rel=1e-5)
    assert hsd.compile(PROMPTS, model=model, steps=4).metric == "cosine"
    assert hsd.compile(PROMPTS, 1.0, model=ready, steps=4, linkage="centroid").metric == "cosine"
    assert hsd.compile(PROMPTS, model=ready, steps=4, metric="cosine").tau == model.default_tau
    vectors = np.random.default_rng(0).normal(size=(len(PROMPTS), 4))
    assert hsd.compile(PROMPTS, model=ready, steps=4, embeddings=vectors).metric == "cosine"


def test_settings_keep_the_calibration(model):
    ready = calibrated(model)
    assert hsd.load(ready, guidance_scale=1.0).calibration is ready.calibration
    assert "calibration" not in ready.setting_names()
    assert ready.with_calibration(None).calibration is None


def test_the_measured_schedule_is_that_of_the_weights(model):
    ready = calibrated(model, weights=np.array([1.0, 4.0, 16.0, 64.0]))
    plan = hsd.compile(PROMPTS, model=ready, steps=4, schedule="measured")
    steps = len(plan.phi)
    expected = 1.0 / np.sqrt(ready.calibration.weights_at(steps))
    assert plan.phi[:-1] / plan.phi[0] == pytest.approx((expected / expected[0])[:-1])
    assert plan.phi[-1] == 0.0
    assert plan.request["calibration"] == ready.calibration.digest
    cosine = hsd.compile(PROMPTS, model=ready, steps=4, schedule="measured", metric="cosine")
    assert cosine.request["calibration"] == ready.calibration.digest


def test_the_summary_judges_the_metric(model):
    ready = calibrated(model)
    good, bad = (hsd.compile(PROMPTS, 1.0, model=ready, steps=4, metric=m) for m in ("calibrated", "cosine"))
    assert "calibrated: correlation 0.90 with how differently the model begins to draw" in str(good)
    assert "WARNING" not in str(good)
    assert "WARNING: cosine: correlation" in str(bad)
    assert "correlation 0.20, below 0.5" in str(bad)
    assert good.cost().numbers()["metric_correlation"] == 0.9
    assert "begins to draw" not in str(hsd.compile(PROMPTS, 1.0, model=model, steps=4))


def test_a_plan_is_reused_with_the_same_calibration_only(model, tmp_path):
    ready = calibrated(model)
    hsd.compile(PROMPTS, model=ready, steps=4).save(tmp_path / "plan")
    seen: list[str] = []
    again = {"model": ready, "steps": 4, "reuse": tmp_path / "plan", "progress": lambda stage, _: seen.append(stage)}
    hsd.compile(PROMPTS, **again)
    assert not seen
    again["model"] = calibrated(model, weights=np.array([1.0, 3.0]))
    hsd.compile(PROMPTS, **again)
    assert seen


def test_of_another_model_it_is_ignored_with_a_warning(model):
    other = Identity("StableDiffusion", "0" * 64, ())
    with pytest.warns(UserWarning, match=r"(?s)calibration of some is that of other networks.*ignored"):
        plan = hsd.compile(PROMPTS, model=calibrated(model, identity=other), steps=4)
    assert (plan.metric, plan.tau, plan.metric_correlation) == ("cosine", model.default_tau, None)
    assert "calibration" not in plan.request
    with pytest.warns(UserWarning, match="distances are ignored"):
        plan = hsd.compile(PROMPTS, model=calibrated(model, identity=other), steps=4, schedule="measured")
    assert plan.request["calibration"] == calibrated(model, identity=other).calibration.digest  # of its weights
    with pytest.warns(UserWarning, match="used all the same"):
        plan = hsd.compile(PROMPTS, model=calibrated(model, identity=other), steps=4, metric="calibrated")
    assert plan.metric == "calibrated"


def test_of_another_width_it_is_ignored_or_refused(model):
    wrong = model.with_calibration(make())
    with pytest.warns(UserWarning, match=r"takes vectors of width 6, and those of this model have \d+: its distances"):
        assert hsd.compile(PROMPTS, model=wrong, steps=4).metric == "cosine"
    with pytest.raises(ValueError, match="takes vectors of width 6"):
        hsd.compile(PROMPTS, model=wrong, steps=4, metric="calibrated")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"metric": "calibrated"}, "asks the model"),
        ({"metric": "direct"}, "asks the model"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'"),
        ({"schedule": "measured"}, "needs model= with a calibration"),
    ],
)
def test_metrics_of_a_model_need_one(request_, message):
    with pytest.raises(ValueError, match=message):
        hsd.compile(PROMPTS, 1.0, **request_)


def test_a_model_without_calibration_cannot_be_calibrated(model):
    with pytest.raises(ValueError, match="has no calibration: run `hsd calibrate"):
        hsd.compile(PROMPTS, model=model, metric="calibrated")
    with pytest.raises(ValueError, match="has no form for metric 'calibrated'"):
        hsd.compile(PROMPTS, model=calibrated(model), metric="calibrated", linkage="centroid")


def test_direct_is_the_distance_of_predictions(model):
    stages: list[tuple[str, float]] = []
    plan = hsd.compile(PROMPTS, model=model, steps=4, metric="direct", progress=lambda *stage: stages.append(stage))
    probed = pdist(predictions(model, conditioned(model)).astype(np.float64))
    expected = hsd.build_tree(predictions(model, conditioned(model)) / np.sqrt((probed**2).mean()), metric="euclidean")
    assert plan.tree.heights == pytest.approx(expected.heights, rel=1e-3)
    assert (plan.metric, plan.tau) == ("direct", 1.0)
    encoding = [done for stage, done in stages if stage == "encode"]
    assert encoding == sorted(encoding)
    assert encoding[-1] == 1.0
    assert any(0.31 < done < 1.0 for done in encoding) or len(PROMPTS) <= 32


def test_direct_with_settings_and_repeats(model):
    prompts = ["a cat", "a cat", "a dog", "a bird"]
    settings = [{}, {}, {"guidance_scale": 1.0}, {}]
    plan = hsd.compile(prompts, 5.0, model=model, steps=4, metric="direct", settings=settings)
    first = plan.active(0)
    assert len({first[0], first[1], first[2]}) == 3  # repeats, and other settings
    one = hsd.compile(["a cat"], model=model, steps=4, metric="direct")
    assert one.node_steps == 4


def test_direct_takes_the_scale_of_the_calibration(model):
    ready = calibrated(model, scale=2.0)
    conditioning, variant = conditioned(model), np.zeros(len(PROMPTS), np.int64)
    scaled = pdist(direct_vectors([ready], variant, conditioning).astype(np.float64))
    assert scaled == pytest.approx(pdist(predictions(model, conditioning).astype(np.float64)) / 2.0, rel=1e-3, abs=1e-5)


def test_direct_is_for_small_sets(model):
    with pytest.raises(ValueError, match=rf"{MOST + 1:,} are more than {MOST:,}: run `hsd calibrate"):
        hsd.compile(["a cat"] * (MOST + 1), model=model, metric="direct")


# -- hsd.calibrate


def test_calibrate_a_tiny_model():
    model = hsd.load(tiny.stable_diffusion(make_scheduler("ddim", tiny.sd_ddim().config)), height=16, width=16)
    stages: list[tuple[str, float]] = []
    found = hsd.calibrate(model, TEXTS, progress=lambda *stage: stages.append(stage))
    assert isinstance(found, hsd.Calibration)
    assert {stage for stage, _ in stages} == {"calibrate"}
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert (found.prompts, found.model) == (len(set(TEXTS)), model.name)
    assert found.identity.matches(identity_of(model))
    mapped = pdist(found.transform(conditioned(model, TEXTS, np.arange(len(TEXTS))).vectors).astype(np.float64))
    assert np.sqrt((mapped**2).mean()) == pytest.approx(1.0, rel=1e-3)
    plan = hsd.compile(TEXTS, model=model.with_calibration(found), steps=40)
    assert plan.metric == "calibrated"
    assert 0.3 < plan.savings < 0.5
    assert len(found.weights) == 10


def test_calibrating_needs_prompts(model):
    with pytest.raises(hsd.PromptError, match="no prompts of its own to calibrate with: .*--prompts FILE"):
        hsd.calibrate(model)
    with pytest.raises(hsd.PromptError, match="1 different prompts are too few"):
        hsd.calibrate(model, ["a cat"] * 100)


def test_the_bundled_model_is_calibrated():
    demo = hsd.load("demo", device="cpu")
    found = demo.calibration
    assert found is not None
    assert found.identity.matches(identity_of(demo))
    assert found.correlation > 0.8 > 0.5 > found.cosine_correlation
    assert hsd.demo.CALIBRATION.stat().st_size < 300_000
    assert hsd.demo.CALIBRATION_PROMPTS.stat().st_size < 40_000


# -- found again


def test_load_finds_it_by_the_weights():
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    assert model.calibration is None
    found = calibrated(model).calibration
    store.keep(found)
    again = hsd.load(tiny.stable_diffusion(), guidance_scale=2.0)
    assert again.calibration is not None
    assert again.calibration.digest == found.digest
    finetuned = tiny.stable_diffusion()
    with torch.no_grad():
        for weight in finetuned.unet.parameters():
            weight *= 1.1
    assert hsd.load(finetuned).calibration is None


def test_calibrate_on_the_command_line(monkeypatch, tmp_path):
    """Kept for the next load of the same model, or written to a file."""
    monkeypatch.setattr("hsd.probing.measure._CLUSTERS", 1)  # the slowest part
    lines = hsd.demo.CALIBRATION_PROMPTS.read_text().splitlines()[:24]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    command = ["calibrate", "demo", "--prompts", str(tmp_path / "prompts.txt"), "--set", "prior_steps=2"]
    run = CliRunner().invoke(cli.app, [*command, "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert re.search(r"with a correlation of -?\d\.\d\d; cosine distances do with -?\d\.\d\d\.", run.stdout)
    (kept,) = store.folder().iterdir()
    assert str(kept) in run.stdout.replace("\n", "")
    mine = hsd.load("demo", device="cpu").calibration
    assert mine is not None
    assert mine.prompts == 24  # before the one that is bundled
    run = CliRunner().invoke(cli.app, ["plan", str(tmp_path / "prompts.txt"), "--model", "demo", "--steps", "4"])
    assert "calibrated metric" in run.stdout
    run = CliRunner().invoke(cli.app, ["calibrate", "demo", "--prompts", str(tmp_path / "nowhere")])
    assert isinstance(run.exception, hsd.PromptError)


def test_a_variant_of_which_nothing_was_encoded_loses_nothing(monkeypatch):
    """The other prompts are compared all the same."""
    [family] = [family for family in EVERY if family.name == "kandinsky-5"]
    model = hsd.load(family.build(), **family.settings(family.guided, family.size))
    whole = type(model).encode

    def encode_but_one(self, batch):
        if "broken" in batch.prompts:
            raise ValueError("cannot be read")
        return whole(self, batch)

    monkeypatch.setattr(type(model), "encode", encode_but_one)
    settings = [{}, {}, {"guidance_scale": 2.0}]
    with pytest.warns(hsd.Notice, match="1 of 3 prompts cannot be encoded.*broken"):
        plan = hsd.compile(["a cat", "a dog", "broken"], 0.5, model=model, steps=2, settings=settings, metric="direct")
    assert len(plan) == 3
    seen = []
    with pytest.raises(hsd.FailedImages, match="broken"):
        seen.extend(image.index for image in hsd.stream(plan, model))
    assert sorted(seen) == [0, 1]
