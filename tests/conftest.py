"""Fixtures, and an environment in which nothing uses the network or the user's caches."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Ray keeps the token that a process has found first: a test with another HOME would look for one that is not there.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import hypothesis
import pytest
import torch

# No test is timed: a machine may be busy with something else.
hypothesis.settings.register_profile("hsd", deadline=None)
hypothesis.settings.load_profile("hsd")

# Their failed asserts show the compared values, as in test files.
pytest.register_assert_rewrite(
    "algorithm1",
    "browser",
    "core_cases",
    "disk",
    "evaluate_cases",
    "families",
    "helpers",
    "report_cases",
    "sampler_cases",
    "stores",
)

import hsd  # noqa: E402
import tiny  # noqa: E402
import warm  # noqa: E402
from helpers import PROMPTS, make_scheduler  # noqa: E402

WITH_REPEAT = [*PROMPTS, PROMPTS[0]]
"""Nine, the last a repeat of the first."""


@pytest.fixture(autouse=True, scope="session")
def cache_of_fixtures(tmp_path_factory):
    """The same for fixtures of modules, which are made before :func:`own_cache`: hsd bench stores speeds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp("session")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Measured speeds go to a new folder for each test, and so do calibrations: none of the user's is found."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Shells start background jobs with Ctrl-C ignored, and child processes inherit that: tests need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def warm_python():
    """What runs a file of Python in a process that has imported torch, diffusers and HSD, see tests/warm.py."""
    if not hasattr(os, "fork"):
        yield sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="hsd-", dir="/tmp") as folder, warm.executable(folder) as python:
        yield python


@pytest.fixture(autouse=True, scope="session")
def seldom_all_garbage():
    """A look at all objects takes a third of a second here: half a million are imported. What is young is seen to."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def exact_float32(request):
    """On a GPU, products in float32 are not rounded to TF32 (11 bits), as convolutions are by default.

    Tests compare with the CPU, and calls of one size with those of another, to tolerances that TF32 does not meet.
    """
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def captured_at_the_third_use(request, monkeypatch):
    """On a GPU, calls are captured whether or not it pays: tests are short, and share the device with other ones."""
    if request.node.get_closest_marker("gpu") is not None:
        monkeypatch.setattr("hsd.replay.graphs.pays", lambda cost, left: True)


@pytest.fixture(scope="session")
def model():
    """A tiny Stable Diffusion with a stochastic scheduler: every draw of noise matters."""
    pipe = tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))
    return hsd.load(pipe, height=32, width=32, guidance_scale=3.0)


@pytest.fixture(scope="session")
def plan(model):
    """A plan with forks early and late, more than one root and a replica."""
    return hsd.compile(WITH_REPEAT, 0.9, model=model, steps=6, seeds=100)
