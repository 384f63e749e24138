"""Runs on several workers: what the driver decides, and a Ray of its own on this machine. Faults: tests/faults."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hsd
import hsd.distributed
import tiny
import warm
from distributed_cases import PROMPTS, assert_same_folder
from hsd.distributed.cluster import _Filtered, ray_module
from hsd.distributed.job import Job
from hsd.distributed.messages import Fault, fault_of
from hsd.distributed.queue import TRIES, Queue, Unit
from hsd.distributed.run import _loader
from hsd.generation.options import Options

# ------------------------------------------------------------------------------- units that end badly


@given(
    bad=st.dictionaries(st.integers(0, 39), st.sampled_from(["dies", "raises"]), max_size=4),
    cuts=st.sets(st.integers(1, 39), max_size=6),
    data=st.data(),
)
def test_bad_images_are_found_and_all_others_made(bad, cuts, data):
    """A unit makes its images in some order, until one ends it or its worker."""
    edges = [0, *sorted(cuts), 40]
    queue = Queue([np.arange(a, b) for a, b in itertools.pairwise(edges)], workers=2)
    done: set[int] = set()
    made: list[int] = []
    while (unit := queue.take(done | queue.given_up.keys())) is not None:
        assert not queue.is_hopeless
        for index in data.draw(st.permutations(unit.indices.tolist())):
            if index in bad:
                getattr(queue, {"dies": "died", "raises": "raised"}[bad[index]])(unit, done, bad[index])
                break
            done.add(index)
            made.append(index)
            queue.made()
    assert queue.given_up == bad
    assert sorted(made) == sorted(set(range(40)) - bad.keys())  # each once


def test_a_unit_runs_again_before_it_is_cut():
    queue = Queue([np.arange(4)], workers=1)
    for _ in range(TRIES - 1):
        queue.died(queue.take(()), (), "killed")
        assert len(queue) == 1
    queue.died(queue.take(()), {0}, "killed")
    assert [unit.indices.tolist() for unit in queue._waiting] == [[1], [2, 3]]


def test_without_any_image_it_ends():
    queue = Queue([np.arange(1000)], workers=2)
    while not queue.is_hopeless:
        queue.died(queue.take(()), (), "killed")
    assert len(queue.given_up) == 16
    assert queue.losses < 60
    queue.made()
    assert not queue.is_hopeless


def test_units_that_are_cut_for_ever_end_it_too():
    queue, losses = Queue([np.arange(2**40, 2**40 + 10**6)], workers=1), 0
    while not queue.is_hopeless:
        queue.raised(queue.take(()), (), "an error")
        losses += 1
    assert losses == queue.losses == TRIES + 12


def test_a_unit_without_what_is_done():
    unit = Unit(np.arange(5), deaths=2)
    assert unit.without({1, 3}).indices.tolist() == [0, 2, 4]
    assert unit.without(range(5)).indices.size == 0
    assert [half.indices.tolist() for half in unit.halves()] == [[0, 1], [2, 3, 4]]


# ------------------------------------------------------------------------------- errors as values


class Unreadable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


@pytest.mark.parametrize(
    ("error", "running", "breaks", "ends"),
    [
        (hsd.PlanMismatch("another plan"), True, False, True),
        (hsd.OutputError("disk full"), True, False, True),
        (hsd.UnknownModel("no such model"), False, False, True),
        (ValueError("of one prompt"), True, False, False),
        (hsd.DeviceFailed("CUDA error"), True, True, False),
        (hsd.OutOfMemory("no memory"), False, True, False),
        (RuntimeError("something"), False, False, False),
    ],
)
def test_what_an_error_is_about(error, running, breaks, ends):
    assert fault_of(error, running=running) == Fault(error, breaks, ends)


def test_an_error_that_cannot_be_sent_is_described():
    fault = fault_of(Unreadable("so", "odd"))
    assert str(fault.error) == "Unreadable: so odd"
    assert type(fault.error) is hsd.Error


# ------------------------------------------------------------------------------- arguments


def plan_of_two():
    return hsd.compile(PROMPTS[:2], 0.0, embeddings=np.eye(2), steps=2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers is 0: it has to be at least 1"),
        ({"workers": 1.5}, TypeError, "workers has to be an integer"),
        ({"stall": 0}, ValueError, "stall is 0: it has to be a number of seconds above 0"),
        ({"stall": float("nan")}, ValueError, "stall is nan"),
        ({"image_format": "gif"}, ValueError, "image format"),
        ({"image": "no/such.png"}, ValueError, "image is 'no/such.png': there is no such file"),
        ({"ip_adapter_image": ["no/such.png"]}, ValueError, "ip_adapter_image is 'no/such.png'"),
    ],
)
def test_bad_arguments(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        hsd.distributed.generate(plan_of_two(), "demo", tmp_path / "images", **options)
    assert not (tmp_path / "images").exists()


def test_a_loaded_model_is_not_sent(tmp_path):
    for model in (hsd.load("demo"), hsd.load("demo").pipe, None):
        with pytest.raises(TypeError, match="each worker has to load it for itself: give its name"):
            hsd.distributed.generate(plan_of_two(), model, tmp_path)


def test_a_worker_in_another_folder_has_the_image(tmp_path, monkeypatch):
    tiny.picture((16, 24)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(_loader(tiny.sd_from_image, None, None, {"image": "photo.png"}))
    monkeypatch.chdir("/")
    assert pickle.loads(sent)().image.pil.size == (24, 16)


def test_a_worker_in_another_folder_finds_the_model(tmp_path, monkeypatch):
    tiny.stable_diffusion().save_pretrained(tmp_path / "own" / "model")
    monkeypatch.chdir(tmp_path)
    sent, name = pickle.dumps(_loader("own/model/", None, None, {})), hsd.load("own/model/").name
    monkeypatch.chdir("/")
    assert pickle.loads(sent)().name == name == "own/model"
    assert _loader("demo", None, None, {}).folder is None


def test_prompts_are_no_plan(tmp_path):
    with pytest.raises(TypeError, match="compile it first"):
        hsd.distributed.generate(PROMPTS, "demo", tmp_path)


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(hsd.Error, match=r'pip install "hsd-diffusion\[distributed\]"'):
        ray_module()


def job(workers=None, device=None):
    return Job(plan_of_two(), int, "images", Options(), "png", workers, device, 1800.0)


@pytest.mark.parametrize(
    ("resources", "own", "asked", "expected"),
    [
        ({"CPU": 64.0, "GPU": 8.0}, True, (), (8, {"num_gpus": 1, "num_cpus": 4})),
        ({"CPU": 4.0, "GPU": 2.0}, True, (2, "cuda"), (2, {"num_gpus": 1, "num_cpus": 2})),
        ({"CPU": 64.0, "GPU": 8.0}, True, (4, "cpu"), (4, {"num_cpus": 16})),
        ({"CPU": 2.0}, True, (), (1, {"num_cpus": 2})),
        ({"CPU": 2.0}, False, (8,), (8, {"num_cpus": 1})),
        ({"CPU": 2.0}, False, (8, "cuda"), (8, {"num_gpus": 1, "num_cpus": 1})),  # a machine with GPUs may join
    ],
)
def test_what_a_worker_needs(resources, own, asked, expected):
    assert job(*asked).needs(resources, 1, own=own) == expected


def test_more_workers_than_gpus():
    with pytest.raises(hsd.Error, match="8 workers need as many GPUs, and this machine has 2 GPUs"):
        job(8).needs({"CPU": 8.0, "GPU": 2.0}, 1, own=True)
    with pytest.raises(hsd.Error, match="this machine has no GPU: ask for fewer, or device cpu"):
        job(2, "cuda").needs({"CPU": 8.0}, 1, own=True)


def test_rays_own_lines_are_left_out(capsys):
    stream = _Filtered(sys.stdout)
    print("\x1b[33m(raylet)\x1b[0m A worker died or was killed", file=stream)
    print("a result", file=stream)
    assert capsys.readouterr().out.strip() == "a result"


# ------------------------------------------------------------------------------- a Ray of its own


@pytest.mark.filterwarnings("ignore::FutureWarning:ray.*", "ignore::ResourceWarning")
def test_workers_of_this_machine(tmp_path, capfd, monkeypatch, warm_python):
    """A plan that the first worker compiles; nothing of Ray is left, and nothing is printed."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", warm.for_ray(warm_python))
    before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    plan = hsd.compile(PROMPTS, 0.8, steps=4)
    run = hsd.distributed.generate(plan, "demo", tmp_path / "many", workers=2, batch_size=4, prior_steps=5)
    hsd.generate(plan, "demo", tmp_path / "one", batch_size=4, prior_steps=5)
    assert_same_folder(tmp_path / "many", tmp_path / "one")
    assert not (tmp_path / "many" / "__parts__").exists()  # their lines are in metadata.jsonl
    assert (run.images, run.workers) == (16, 2)
    assert run.plan.request["encoder"] == "demo"
    (record,) = json.loads((tmp_path / "many" / "run.json").read_text())["runs"]
    assert record == run.record
    assert record["workers"] == {"wanted": 2, "started": 2, "lost": 0}
    assert not ray.is_initialized()
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before
    assert capfd.readouterr() == ("", "")
