"""The benchmarks for a GPU, small and on a CPU: they run, what they compare is equal, and they count correctly."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hsd

BENCHES = Path(__file__).resolve().parents[1] / "benches"
sys.path[:0] = [str(BENCHES), str(BENCHES / "gpu")]

import executor as command  # noqa: E402
import kinds  # noqa: E402
import measure  # noqa: E402
import plans  # noqa: E402
import published  # noqa: E402
import shapes  # noqa: E402
from bench import Bench, take  # noqa: E402
from sections import capture, trace, transfer  # noqa: E402


@pytest.fixture(scope="module")
def kandinsky():
    return shapes.build("kandinsky", "cpu", small=True, prior_steps=3)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_networks_have_the_released_sizes(name):
    """Built without storage: `build` itself compares the number of parameters with the released one."""
    model = shapes.build(name, "meta")
    if name == "kandinsky":
        assert shapes.flops(model) == pytest.approx(shapes.KANDINSKY_FLOPS, rel=0.01)
        movq = sum(parameter.numel() for parameter in model.decoder.movq.parameters())
        assert movq == pytest.approx(67.8e6, rel=0.01)
    assert model.dtype in (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_rows_are_what_the_model_encodes(name):
    model = shapes.build(name, "cpu", small=True)
    encoded = shapes.conditioning(model, ["a cat", "a dog on a mat"], [0, 1]).shapes()
    drawn = shapes.rows(model, 3)
    assert {name: (tuple(row.shape[1:]), row.dtype) for name, row in drawn.items()} == encoded
    assert all(len(row) == 3 for row in drawn.values())


def test_operations_grow_with_the_lanes(kandinsky):
    """The adapter gets its own network back."""
    unet = kandinsky.decoder.unet
    assert shapes.flops(kandinsky, 3) == 3 * shapes.flops(kandinsky)
    assert kandinsky.decoder.unet is unet
    assert next(unet.parameters()).device.type == "cpu"


def test_image_embeddings_without_a_prior(kandinsky):
    model = shapes.without_prior(kandinsky)
    few, many = (shapes.conditioning(model, ["a"] * n, range(n)).vectors for n in (2, 5))
    assert (few == many[:2]).all()
    assert len(np.unique(many[:, 0])) == 5


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_published_method_gives_what_hsd_gives(kandinsky, batch_size):
    """From the same first latents, by a scheduler that draws nothing. `generate` itself asserts equal node-steps."""
    scheduler = kandinsky.decoder.scheduler
    model = published.deterministic(kandinsky)
    try:
        points = np.random.default_rng(1).standard_normal((7, 3)) + 1.0
        plan = hsd.compile([f"prompt {i}" for i in range(7)], 0.9, embeddings=points, steps=6, seeds=11)
        assert 0.2 < plan.savings < 0.8
        apart = published.compare(model, plan, batch_size)
    finally:
        kandinsky.pipe.scheduler = kandinsky.decoder.scheduler = scheduler
    assert apart["latents"] < 1e-5
    assert apart["images"] <= 1


def test_published_method_with_noise(kandinsky, tmp_path):
    """With the stock scheduler; all first clusters start from one latent."""
    plan = hsd.compile([f"prompt {i}" for i in range(4)], 0.5, embeddings=np.eye(4) + 0.3, steps=4)
    made = published.generate(kandinsky, plan, batch_size=3)
    assert made.images.shape == (4, 3, 64, 64)
    assert made.images.dtype == torch.float32
    assert made.latents.isfinite().all()
    assert set(made.seconds) == {"prior", "denoise", "decode"}
    published.save(made, tmp_path / "images")
    assert len(list((tmp_path / "images").glob("*.png"))) == 4


def test_every_section(tmp_path, capsys):
    """All of the command in one run, on the bundled prompts where the real ones are missing."""
    file = tmp_path / "results.json"
    data = plans.DATA if plans.DATA.is_dir() else tmp_path
    words = ["--small", "--sets", "styles", "--alone", "0.001", "--seconds", "0.2", "--trace-calls", "4"]
    status = command.main([*words, "--prompts", "10", "--data", str(data), "--json", str(file)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    content = json.loads(file.read_text())
    assert content["finished"]
    assert set(content["sections"]) == set(command.SECTIONS)
    assert len(content["checks"]) > 20
    assert str(tmp_path) not in file.read_text()
    sections = content["sections"]
    assert {row["mode"] for row in sections["efficiency"]["rows"]} == {"eager", "graphs"}
    assert {name.split(",")[0] for name in sections["end_to_end"]["rows"]} == {"diffusers", "hsd", "published method"}
    assert sections["memory"]["rows"][1]["prompts"] > sections["memory"]["rows"][0]["prompts"]
    for section in command.SECTIONS:
        assert f"== {section}" in printed
    absents = ("as a CUDA graph", "device events", "the peak", "compile+graphs", "captures", "pinned", "copies to and")
    for absent in absents:
        assert any(absent in skipped["what"] for skipped in content["skipped"]), absent


@pytest.mark.parametrize("model", ["sdxl", "flux"])
def test_other_models(model, capsys):
    words = ["denoiser", "--small", "--model", model, "--lanes", "1,2", "--alone", "0.001", "--no-compile"]
    assert command.main(words) == 0, capsys.readouterr().out


def test_what_only_a_gpu_runs(capsys, monkeypatch, tmp_path):
    """On a simulated device: a graph is its own function, a compiled one is only traced, memory is artificial."""
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr("bench.captured", lambda work, **how: (work, work()))
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **how: compile_(work, backend="eager", **how))
    made_up = {"memory_allocated": 1, "max_memory_allocated": 5 << 20, "reset_peak_memory_stats": None}
    for name, value in {**made_up, "get_device_name": "NVIDIA H200"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    file = tmp_path / "results.json"
    words = ["efficiency", "denoiser", "memory", "--small", "--sets", "styles", "--modes", "graphs,compile"]
    words += ["--lanes", "2", "--alone", "0.001", "--prompts", "30", "--data", str(plans.DATA)]
    assert command.main([*words, "--json", str(file)]) == 0, capsys.readouterr().out
    sections = json.loads(file.read_text())["sections"]
    assert [row["mode"] for row in sections["denoiser"]["rows"]] == [
        *("eager", "eager, graph", "eager, channels-last", "eager, channels-last, graph"),
        *("compiled", "compiled, graph"),
    ]
    assert all(row["share_of_peak"] > 0 for row in sections["denoiser"]["rows"])
    assert [row["mode"] for row in sections["efficiency"]["rows"]] == ["graphs", "compile"]
    assert all(row["peak"] == (5 << 20) - 1 for row in sections["memory"]["rows"])


def test_costs_on_a_simulated_device(capsys, monkeypatch, tmp_path):
    """What a capture, a decoded image and a copy cost: every number that only a GPU gives is in the results."""
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr("bench.captured", lambda work, **how: (work, work()))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    made_up = {"graph_pool_handle": None, "memory_reserved": 7, "memory_allocated": 1, "max_memory_allocated": 5 << 20}
    for name, value in {**made_up, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(Bench, "empty", lambda self: None)  # it takes half a second
    file = tmp_path / "results.json"
    words = ["capture", "decode", "transfer", "--small", "--sets", "styles", "--lanes", "1,2,8", "--alone", "0.001"]
    assert command.main([*words, "--prompts", "6", "--data", str(plans.DATA), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    sections = content["sections"]
    assert [row["lanes"] for row in sections["capture"]["rows"]] == [1, 2]  # no more than a call has
    for row in sections["capture"]["rows"]:
        assert row["pool_bytes"] == 0
        paid = row["pays_after_calls"]
        gain = row["eager_seconds"] - row["replay_seconds"]
        assert paid is None if gain <= 0 else paid * gain == pytest.approx(row["capture_seconds"])
    assert [row["run"] for row in sections["capture"]["twice"]] == ["eager", "graphs, first run", "graphs, second run"]
    assert [(row["pixels"], row["batch"]) for row in sections["decode"]["rows"]] == [(32, 1), (32, 2), (64, 1), (64, 2)]
    ways = {"network", "float32", "pageable", "pinned"}
    assert [set(row["seconds_an_image"]) for row in sections["decode"]["rows"]] == [ways] * 2 + [{*ways, "all"}] * 2
    assert all(row["peak_bytes"] == (5 << 20) - 1 for row in sections["decode"]["rows"])
    assert len({row["copy"] for row in sections["transfer"]["rows"]}) == 7
    assert "NOT MEASURED" not in capsys.readouterr().out.replace("NOT MEASURED: prompt set", "")


def test_when_a_capture_pays():
    assert capture.pays_after(eager=0.010, replay=0.008, capture=1.0) == pytest.approx(500)
    assert capture.pays_after(eager=0.010, replay=0.010, capture=1.0) is None


def test_captures_are_counted(monkeypatch):
    """Whoever makes them; and a failed one is none."""

    class Graph:
        def capture_begin(self, pool=None, capture_error_mode="global"):
            self.mode = capture_error_mode

        def capture_end(self):
            if self.mode == "bad":
                raise RuntimeError("operation not permitted")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    with capture.counted() as found:
        for mode in ("thread_local", "bad", "thread_local"):
            graph = Graph()
            graph.capture_begin(capture_error_mode=mode)
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
    Graph().capture_begin()
    assert found.made == 2
    assert 0 < found.seconds < 1
    assert Graph.capture_begin.__qualname__.endswith("Graph.capture_begin")  # as before


def test_every_copy_copies(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    assert list(transfer.copies(1000, None)) == [transfer.ON_HOST]
    works = transfer.copies(1000, torch.device("cpu"))
    assert len(works) == 7
    for kind, work in works.items():
        target = work()
        assert target.sum() == 1000, kind
        target.zero_()  # the next one cannot find it full


def test_a_section_that_raises_and_a_check_that_fails(tmp_path, capsys, monkeypatch):
    """Both give exit status 1, and the results are in the file."""
    file = tmp_path / "results.json"

    def run(bench):
        bench.report.add("memory", "rows", [1])
        bench.report.check("two is at most one", 2, 1)
        bench.report.check("nothing is infinite", float("inf"), 1)

    monkeypatch.setattr(command.SECTIONS["trace"], "run", lambda bench: 1 / 0)
    monkeypatch.setattr(command.SECTIONS["memory"], "run", run)
    assert command.main(["trace", "memory", "--small", "--json", str(file)]) == 1
    content = json.loads(file.read_text())
    assert content["sections"] == {"memory": {"rows": [1]}}
    assert [check["ok"] for check in content["checks"]] == [False, False]
    assert "ZeroDivisionError" in content["skipped"][0]["why"]
    assert "FAILED: trace" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nothing"], ["--small", "--sets", "none"], ["--model", "sd3"]])
def test_bad_arguments(words):
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 NVL", None),
        ("Tesla T4", None),
    ],
)
def test_peak_by_name(name, peak):
    assert measure.peak_of(name) == peak


def test_the_command_line_names_no_folder():
    words = ["denoiser", "--json", "/somewhere/else/file.json", "--data", "../shared/data"]
    assert measure.command("benches/x.py", words) == "benches/x.py denoiser --json file.json --data data"


def test_taking_some_leaves_the_rest():
    numbers = iter(range(5))
    assert list(take(numbers, 2)) == [0, 1]
    assert list(take(numbers, 9)) == [2, 3, 4]


def event(name, cat, ts, dur, tid=1, correlation=None):
    args = {} if correlation is None else {"correlation": correlation}
    return {"name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid, "args": args}


def test_counting_a_trace():
    """Times in microseconds. Thread 1 runs the loop, thread 2 prepares calls; both calls are within 100 to 300."""
    events = [
        event(trace.WINDOW, "user_annotation", 100, 200),
        event(trace.WINDOW, "gpu_user_annotation", 110, 300, tid=7),
        event("cudaStreamSynchronize", "cuda_runtime", 50, 5),  # before the window
        event("cudaDeviceSynchronize", "cuda_runtime", 310, 5),  # after it
        event("cudaLaunchKernel", "cuda_runtime", 110, 2, correlation=1),
        event("cuLaunchKernelEx", "cuda_driver", 120, 2, correlation=2),
        event("cudaGraphLaunch", "cuda_runtime", 130, 2, correlation=3),
        event("cudaMemcpyAsync", "cuda_runtime", 140, 2, correlation=4),
        event("cudaMemcpyAsync", "cuda_runtime", 145, 2, correlation=5),
        event("cudaStreamSynchronize", "cuda_runtime", 150, 5),
        event("cudaEventSynchronize", "cuda_runtime", 160, 50, tid=2),
        event("cudaMemcpyAsync", "cuda_runtime", 165, 2, tid=2, correlation=6),
        event("a", "kernel", 120, 40, tid=7, correlation=1),
        event("b", "kernel", 140, 40, tid=7, correlation=2),  # at the same time as the first for 20
        event("c", "kernel", 200, 10, tid=7, correlation=3),
        event("d", "kernel", 210, 10, tid=7, correlation=3),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 230, 10, tid=7, correlation=4),
        event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 240, 10, tid=7, correlation=5),
        event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 310, 10, tid=7, correlation=6),
        event("not asked for within", "kernel", 500, 10, tid=7, correlation=99),
    ]
    found = trace.count(events, calls=2)
    assert found["waits"] == {"cudaStreamSynchronize": 1}
    assert found["waits_of_other_threads"] == {"cudaEventSynchronize": 1}
    assert found["blocking_copies"] == {"Memcpy HtoD (Pageable -> Device)": 1}
    assert (found["launches_a_call"], found["graphs_a_call"]) == (1.0, 0.5)
    assert (found["kernels_a_call"], found["copies_a_call"]) == (2.0, 1.5)
    assert found["host_ms_a_call"] == pytest.approx(0.1)
    assert found["device_ms_a_call"] == pytest.approx(0.1)  # 120 to 320
    assert found["busy"] == pytest.approx((60 + 20 + 20 + 10) / 200)


def test_a_clock_counts_a_call(monkeypatch):
    now = 0.0

    def work():
        nonlocal now
        now += 0.01

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    assert measure.alone(work, torch.device("cpu"), 0.05) == pytest.approx(0.01)


def test_calls_of_one_kind_are_counted(tmp_path, monkeypatch):
    _, plan, lengths = kinds.artificial_plan(1.0, 12, 60)
    of_segment, active = kinds.kinds_of(plan, lengths), plan.active(11)
    assert of_segment[active].tolist() == lengths.tolist()  # the last step's clusters are single prompts
    row = kinds.count(plan, of_segment, 4, "depth", True)
    free, program = plan.program(4), plan.program(4, kinds=of_segment)
    calls = [set(of_segment[call[call >= 0]].tolist()) for call in free.calls["segment"]]
    assert row["any"] <= row["bound"] <= row["by kind"] <= row["cut"] == sum(map(len, calls))
    assert row["latents"] == [free.n_slots, program.n_slots]
    file = tmp_path / "kinds.json"
    monkeypatch.setattr(sys, "argv", ["kinds.py", "--quick", "--steps", "12", "--json", str(file)])
    kinds.main()
    written = json.loads(file.read_text())
    assert written["batch_size"] == 16
    assert written["results"]["artificial"]["rows"]["breadth"]["by kind"] > 0
    monkeypatch.setattr(sys, "argv", ["kinds.py"])
    with pytest.raises(SystemExit):
        kinds.main()
