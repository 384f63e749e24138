"""The sampler table against diffusers' schedulers themselves: nothing here was computed by the code under test."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from hsd.sampler import SamplerTable, compile_sampler
from hsd.sampler.table import dynamic_threshold
from sampler_cases import CASES, Case, N, Witness, describe, draw, measure, model_outputs, relative_error

DOCS = Path(__file__).parents[1] / "docs" / "samplers.md"
# DEIS and KDPM2 pass 0-dim tensors to numpy, and NumPy 2 warns thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
CASE_BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# ------------------------------------------------------------------------------- the table is the scheduler
@every_case
@pytest.mark.parametrize("amplitude", [1.0, 100.0])
def test_table_equals_scheduler_in_float64(case: Case, amplitude: float) -> None:
    assert measure(case, torch.float64, amplitude) < case.tolerance64


@every_case
@pytest.mark.parametrize("amplitude", [1.0, 100.0])
def test_table_equals_scheduler_in_float32(case: Case, amplitude: float) -> None:
    assert measure(case, torch.float32, amplitude) < case.tolerance32


def test_the_comparison_sees_a_clip_that_is_missing() -> None:
    """At amplitude 1 a prior's clip at 10 does nothing, so only the larger amplitude can tell."""

    class Unclipped(diffusers.UnCLIPScheduler):
        def __init__(self, **config: Any) -> None:
            super().__init__(**config | {"clip_sample": False})

    clipped = CASE_BY_NAME["UnCLIP, Kandinsky 2.2 prior"]
    config = dict(clipped.make().config)

    class Mixed(Case):
        def table(self, dtype: torch.dtype) -> SamplerTable:
            return Case("", Unclipped, config).table(dtype)

    mixed = Mixed("", clipped.scheduler)
    assert measure(mixed, torch.float64, 1.0) < 1e-12
    assert measure(mixed, torch.float64, 100.0) > 0.1


def random_lanes(table: SamplerTable, lanes: int, *latent: int) -> dict[str, Tensor]:
    """Return arguments of update() for lanes at random steps, with all lanes different."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(lanes, *shape, *latent, generator=generator)

    return {
        "state": random(table.n_state),
        "model_output": random(),
        "noise": random(table.n_noise),
        "step": torch.randint(table.n_steps, (lanes,), generator=generator),
        "variance": random().tanh(),
    }


@every_case
@pytest.mark.parametrize("latent", [(4, 8, 8), (3, 5, 7), (17,)], ids=str)
def test_a_lane_does_not_depend_on_the_others(case: Case, latent: tuple[int, ...]) -> None:
    """Lanes at different steps in one call give, to the last bit, the result of each lane by itself."""
    table = case.table(torch.float32)
    lanes = random_lanes(table, 9, *latent)
    together = table.update(**lanes)
    inputs = table.model_input(lanes["state"], lanes["step"])
    for i in range(9):
        alone = {name: value[i : i + 1] for name, value in lanes.items()}
        assert torch.equal(table.update(**alone)[0], together[i])
        assert torch.equal(table.model_input(alone["state"], alone["step"])[0], inputs[i])


@every_case
def test_lanes_started_late_follow_their_own_scheduler(case: Case) -> None:
    """Two lanes, the second two steps behind, in one call per step; each compared with a separate scheduler."""
    table = case.table(torch.float64)
    behind = min(2, table.n_steps - 1)
    witnesses = [Witness(case, [seed]) for seed in (3, 7)]
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 7)]
    streams = [model_outputs(case, torch.float64, 1.0, rows=1, seed=seed) for seed in (0, 1)]
    samples = [next(stream) * table.init_noise_sigma for stream in streams]
    state = torch.zeros(2, table.n_state, *samples[0].shape[1:], dtype=torch.float64)
    state[:, 0] = torch.cat(samples)
    for tick in range(table.n_steps + behind):
        active = [i for i in range(2) if 0 <= tick - i * behind < table.n_steps]
        steps = [tick - i * behind for i in active]
        given = torch.cat([next(streams[i]) for i in active])
        output, variance = given.chunk(2, 1)
        noise = torch.cat(
            [draw(case, table, k, [generators[i]], output[:1]) for i, k in zip(active, steps, strict=True)]
        )
        state[active] = table.update(state[active], output, noise, torch.tensor(steps), variance)
        for row, (i, k) in enumerate(zip(active, steps, strict=True)):
            theirs = given[row : row + 1] if case.learned else output[row : row + 1]
            samples[i] = witnesses[i].step(k, theirs, scaled_first(witnesses[i], k, samples[i]))
            assert relative_error(state[i : i + 1, 0], samples[i]) < case.tolerance64


def scaled_first(witness: Witness, k: int, sample: Tensor) -> Tensor:
    """Call scale_model_input as pipelines do before every step, and return the sample itself."""
    witness.model_input(k, sample)
    return sample


@every_case
def test_a_fork_is_a_copy_of_the_state(case: Case) -> None:
    """Copy a lane's tensors to another lane mid-run: both continue like the scheduler and its deep copy."""
    table = case.table(torch.float64)
    fork_at = table.n_steps // 2
    outputs = model_outputs(case, torch.float64, 1.0)  # rows: the lane that continues, and the lane forked from it
    witnesses, generators = [Witness(case, [3])], [torch.Generator().manual_seed(3)]
    sample = next(outputs)[:1] * table.init_noise_sigma
    samples = [sample]
    state = torch.zeros(1, table.n_state, *sample.shape[1:], dtype=torch.float64)
    state[:, 0] = sample
    for k in range(table.n_steps):
        if k == fork_at:
            state = torch.cat([state, state])
            samples.append(samples[0].clone())
            child = Witness(case, [7])
            child.scheduler = copy.deepcopy(witnesses[0].scheduler)
            witnesses.append(child)
            generators.append(torch.Generator().manual_seed(7))
        lanes = len(witnesses)
        given = next(outputs)[:lanes]
        output, variance = given.chunk(2, 1)
        noise = draw(case, table, k, generators, output)
        state = table.update(state, output, noise, torch.full((lanes,), k), variance)
        for i, witness in enumerate(witnesses):
            theirs = given[i : i + 1] if case.learned else output[i : i + 1]
            samples[i] = witness.step(k, theirs, scaled_first(witness, k, samples[i]))
            assert relative_error(state[i : i + 1, 0], samples[i]) < case.tolerance64
    if table.n_steps > 2:
        assert relative_error(state[:1, 0], state[1:, 0]) > 1e-3, "the two lanes should have parted"


# ------------------------------------------------------------------------------------------- its properties
@pytest.mark.parametrize(
    ("name", "evaluations", "tensors"),
    [
        ("DDIM", N, 1),
        ("DPM-Solver++ 2M", N, 2),  # the scheduler holds two model outputs and reads one
        ("UniPC bh2", N, 4),
        ("PNDM, Stable Diffusion 1.5 (PLMS)", N + 1, 4),
        ("Heun", 2 * N - 1, 3),
        ("IPNDM", N, 4),  # the scheduler holds every model output
        ("SA-Solver", N, 4),
    ],
)
def test_sizes(name: str, evaluations: int, tensors: int) -> None:
    table = CASE_BY_NAME[name].table(torch.float32)
    assert (table.n_steps, table.n_state, len(table.timesteps)) == (evaluations, tensors, evaluations)


@every_case
def test_timesteps_are_the_schedulers_own(case: Case) -> None:
    scheduler = case.make()
    table = compile_sampler(scheduler, step_kwargs=case.step_kwargs)
    assert table.timesteps.dtype == scheduler.timesteps.dtype
    assert torch.equal(table.timesteps, scheduler.timesteps[: table.n_steps])
    assert table.init_noise_sigma == pytest.approx(float(getattr(scheduler, "init_noise_sigma", 1.0)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("DDPM", None),
        ("Euler ancestral", None),
        ("SA-Solver", None),
        ("DPM-Solver++ 2M SDE", torch.float32),
        ("DPM-Solver++ 2S SDE", None),
        ("Flow matching LCM", torch.float32),
        ("SCM (Sana Sprint)", torch.float32),
    ],
)
def test_half_precision_noise_is_drawn_in_the_schedulers_dtype(name: str, dtype: torch.dtype | None) -> None:
    """In bfloat16 the generator's numbers depend on the dtype: ours must leave it in the same state as theirs."""
    case = CASE_BY_NAME[name]
    table = case.table(torch.float32)
    assert {d for step in table.noise_dtypes for d in step} == {dtype}
    assert tuple(len(step) for step in table.noise_dtypes) == table.noise_draws
    witness = Witness(case, [5])
    generator = torch.Generator().manual_seed(5)
    sample = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    for k in range(table.n_steps):
        sample = witness.step(k, torch.zeros_like(sample), scaled_first(witness, k, sample)).bfloat16()
        for fixed in table.noise_dtypes[k]:
            torch.randn(sample.shape, generator=generator, dtype=fixed or torch.bfloat16)
        assert torch.equal(generator.get_state(), witness.generators[0].get_state())


@every_case
def test_update_reads_no_value(case: Case) -> None:
    """Tensors on the meta device have no values: reading one, which would wait for a GPU, raises."""
    table = case.table(torch.float32).to("meta")
    lanes = {name: value.to("meta") for name, value in random_lanes(table, 3, 4, 8, 8).items()}
    assert table.update(**lanes).shape == lanes["state"].shape
    assert table.model_input(lanes["state"], lanes["step"]).shape == lanes["model_output"].shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_case
def test_update_in_a_cuda_graph(case: Case) -> None:
    """Captured once, replayed with other steps and values, it gives what the CPU gives."""
    table = case.table(torch.float32)
    moved = table.to("cuda")
    lanes = {name: value.cuda() for name, value in random_lanes(table, 6, 4, 8, 8).items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        moved.update(**lanes)  # warm up, as capture requires
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        new = moved.update(**lanes)
        scaled = moved.model_input(lanes["state"], lanes["step"])
    for value in lanes.values():
        value.copy_(value.flip(0))
    graph.replay()
    host = {name: value.cpu() for name, value in lanes.items()}
    torch.testing.assert_close(new.cpu(), table.update(**host), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled.cpu(), table.model_input(host["state"], host["step"]))


def test_to_sets_the_dtype_of_state_and_result() -> None:
    table = compile_sampler(CASE_BY_NAME["UniPC bh2"].make())
    assert table.dtype == torch.float64
    for dtype in (torch.float32, torch.float64):
        moved = table.to("cpu", dtype)
        lanes = random_lanes(moved, 2, 4, 8, 8)
        lanes["state"] = lanes["state"].to(dtype)
        assert moved.update(**lanes).dtype == moved.dtype == dtype
        assert moved.timesteps.dtype == table.timesteps.dtype
    with pytest.raises(ValueError, match="bfloat16"):
        table.to("cpu", torch.bfloat16)


@pytest.mark.parametrize("wrong", ["state", "model_output", "noise", "step", "variance", "dtype"])
def test_wrong_shapes_are_named(wrong: str) -> None:
    table = CASE_BY_NAME["DDPM, Kandinsky 2.2 (learned range, thresholding)"].table(torch.float32)
    lanes: dict[str, Any] = random_lanes(table, 2, 4, 8, 8)
    if wrong == "dtype":
        lanes["state"] = lanes["state"].double()
    elif wrong in ("noise", "variance"):
        lanes[wrong] = None
    else:
        lanes[wrong] = lanes[wrong][:, :, :3] if wrong == "state" else lanes[wrong][:1]
        wrong = "model_output" if wrong == "state" else wrong
    with pytest.raises(ValueError, match="state" if wrong == "dtype" else wrong):
        table.update(**lanes)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (3, 3, 7, 5), (2, 16, 64)], ids=str)
@pytest.mark.parametrize("maximum", [1.0, 2.0])
def test_dynamic_threshold_is_diffusers_own(shape: tuple[int, ...], maximum: float) -> None:
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=maximum)
    for gain in (0.1, 1.0, 50.0):
        sample = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * gain
        assert torch.equal(dynamic_threshold(sample, 0.9, maximum), scheduler._threshold_sample(sample))


def test_compiling_touches_nothing() -> None:
    """Neither the scheduler, nor torch's global generator, nor diffusers' modules."""
    for case in CASES:
        scheduler, rng = case.make(), torch.get_rng_state()
        before = copy.deepcopy(vars(scheduler))
        compile_sampler(scheduler, step_kwargs=case.step_kwargs)
        assert same(before, vars(scheduler)), case.name
        assert torch.equal(rng, torch.get_rng_state()), case.name
    for module in (diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_euler_discrete):
        assert module.randn_tensor is diffusers.utils.torch_utils.randn_tensor


def same(a: Any, b: Any) -> bool:
    """Compare nested containers of tensors and arrays by value."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)  # KDPM2 holds nan
    return bool((a == b).all()) if hasattr(a, "all") else a == b


def test_a_scheduler_in_the_middle_of_a_run_is_compiled_from_its_start() -> None:
    case = CASE_BY_NAME["DDIM"]
    witness = Witness(case, [0])
    sample = torch.randn(1, 4, 8, 8)
    for k in range(3):
        sample = witness.step(k, sample, sample)
    assert torch.equal(compile_sampler(witness.scheduler).out, compile_sampler(case.make()).out)


def test_the_documentation_lists_what_is_tested() -> None:
    lines = DOCS.read_text().splitlines()
    for case in CASES:
        row = "| " + " | ".join(describe(case)) + " |"
        assert any(line.startswith(row) for line in lines), f"run python tests/sampler_cases.py: no row {row}"
