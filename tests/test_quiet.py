"""The library prints nothing unless asked, and leaves the settings of other libraries as it found them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import diffusers
import huggingface_hub.utils
import pytest
import transformers

import hsd
from hsd.generation.folder import ImageFolder
from hsd.generation.forks import ForkFolder
from hsd.work.quiet import quiet

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import hsd
demo = hsd.load("demo")
prompts = ["a red star", "a blue star", "a green ring"]
plan = hsd.compile(prompts, 1.0, model=demo, steps=3)
run = hsd.generate(plan, demo, out={out!r})
assert run.images == 3
list(hsd.stream(plan, "demo"))
hsd.generate(hsd.compile(prompts, 0.5, steps=3), demo, out={out!r} + "-again")
import tiny
pipe = tiny.stable_diffusion()
plan = hsd.compile(prompts, 1.0, model=pipe, steps=3)
assert hsd.generate(plan, hsd.load(pipe), out={out!r} + "-own").images == 3
"""


def test_nothing_is_printed(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / "out"))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def state():
    return (
        [logging.getLogger(name).level for name in ("diffusers", "transformers", "accelerate", "torch")],
        transformers.utils.logging.is_progress_bar_enabled(),
        diffusers.utils.logging.is_progress_bar_enabled(),
        huggingface_hub.utils.are_progress_bars_disabled(),
        list(warnings.filters),
    )


@pytest.fixture(autouse=True)
def as_installed(monkeypatch):
    """The settings of the libraries as they are at first, whatever other tests have done; back afterwards."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in ("diffusers", "transformers")]
    for logger, _ in before:
        logger.setLevel(logging.WARNING)
    transformers.utils.logging.enable_progress_bar()
    diffusers.utils.logging.enable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    yield
    for logger, level in before:
        logger.setLevel(level)


def muted():
    return (
        logging.getLogger("diffusers").level == logging.getLogger("transformers").level == logging.ERROR,
        not transformers.utils.logging.is_progress_bar_enabled(),
        not diffusers.utils.logging.is_progress_bar_enabled(),
        huggingface_hub.utils.are_progress_bars_disabled(),
    )


def test_everything_comes_back():
    before = state()
    with quiet():
        assert muted() == (True, True, True, True)
        with quiet(downloads=True):
            pass
        assert muted() == (True, True, True, True)  # until the last one leaves
    assert state() == before
    with quiet(downloads=True):
        assert muted() == (True, True, True, False)
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert state() == before


def test_loading_and_running_leave_no_trace(plan, model):
    before = state()
    hsd.load("demo")
    inside = []
    images = hsd.stream(plan, model, progress=lambda *_: inside.append(muted()))
    for _ in images:
        assert state() == before  # the body of the user's loop
        if len(inside) > 3:
            break
    assert set(inside) == {(True, True, True, True)}
    images.close()  # a loop that is left early
    assert state() == before


def test_a_stream_that_ends_among_other_filters(plan, model):
    before = state()
    images = hsd.stream(plan, model)
    next(images)
    with warnings.catch_warnings():
        assert len(list(images)) == len(plan) - 1
    assert state() == before


def test_a_library_that_is_broken(monkeypatch):
    before = state()

    def broken():
        raise AttributeError("transformers is broken")

    monkeypatch.setattr(transformers.utils.logging, "disable_progress_bar", broken)
    with pytest.raises(AttributeError, match="is broken"), quiet():
        pass
    monkeypatch.undo()
    assert state() == before
    enable = transformers.utils.logging.enable_progress_bar
    monkeypatch.setattr(transformers.utils.logging, "enable_progress_bar", broken)
    with pytest.raises(AttributeError, match="is broken"), quiet():
        assert muted() == (True, True, True, True)
    enable()
    assert state() == before  # all the rest came back


def test_what_a_user_asked_for_stays():
    diffusers.utils.logging.set_verbosity_info()
    transformers.utils.logging.disable_progress_bar()
    with quiet():
        assert logging.getLogger("diffusers").level == logging.INFO
        logging.getLogger("transformers").setLevel(logging.DEBUG)  # meanwhile
        warnings.filterwarnings("ignore", message="one of the user's")
    assert logging.getLogger("diffusers").level == logging.INFO
    assert logging.getLogger("transformers").level == logging.DEBUG
    assert not transformers.utils.logging.is_progress_bar_enabled()
    assert any(one[1] is not None and "one of the user" in one[1].pattern for one in warnings.filters)


def test_threads_leave_in_any_order():
    before, entered, leave = state(), threading.Event(), threading.Event()

    def other():
        with quiet():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with quiet():
        pass
    assert muted()[0]
    leave.set()
    thread.join()
    assert state() == before


@pytest.mark.parametrize(
    ("module", "category", "shown"),
    [
        ("diffusers.models.vae", FutureWarning, False),
        ("transformers", UserWarning, False),
        ("torch.functional", UserWarning, False),
        ("torch.utils._contextlib", hsd.Notice, True),  # what HSD warns of below a function that torch wraps
        ("torchvision.io", UserWarning, True),
        ("my.program", FutureWarning, True),
    ],
)
def test_warnings_by_their_module(module, category, shown):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("text", category, "file.py", 1, module=module)
    assert bool(seen) == shown


def test_what_hsd_says_goes_to_its_logger(plan, model, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG, "hsd")
    hsd.generate(plan, model, tmp_path, batch_size=4)
    next(tmp_path.glob("*1.png")).write_bytes(b"damaged")
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    caplog.clear()
    hsd.generate(plan, model, tmp_path)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "was changed or damaged since the last run" in warning.getMessage()
    assert warning.name == "hsd.generation.run"
    caplog.clear()
    estimate = hsd.compile(["a cat", "a dog"], 0.5, steps=3)
    hsd.generate(estimate, model, tmp_path / "other")
    assert any("clustered by the embeddings of" in record.getMessage() for record in caplog.records)
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("hsd").handlers)


def test_a_notice_raised_at_the_end_is_raised_once(plan, model, tmp_path, monkeypatch):
    """The run is complete and recorded as such; the same call again has nothing to say."""
    monkeypatch.setattr(ForkFolder, "keep", lambda self, plan, segment, picture: self.leave_out("no reason"))
    recorded = []
    record_run = ImageFolder.record_run
    monkeypatch.setattr(
        ImageFolder, "record_run", lambda *args: recorded.append(args[1]["outcome"]) or record_run(*args)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", hsd.Notice)
        with pytest.raises(hsd.Notice, match="pictures of forks are left out: no reason"):
            hsd.generate(plan, model, tmp_path, keep_forks=True)
        assert recorded == ["finished"]
        assert hsd.generate(plan, model, tmp_path, keep_forks=True).existing == len(plan)
