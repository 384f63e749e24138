"""What a run shows: in a real terminal, in a log, and what it is computed from."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import hsd
from hsd.demo import PROMPTS as DEMO_PROMPTS
from hsd.generation.alive import alive_after
from hsd.generation.events import Event, Sums, Watcher
from hsd.generation.live import RunView
from hsd.generation.rates import Rate, Remaining
from hsd.planning.span import Span
from hsd.work import counting, terminal
from hsd.work import stages as stages_module
from hsd.work.counting import counted
from hsd.work.stages import Stages, clock
from hsd.work.terminal import Pace, Screen, mode_of

if sys.platform != "win32":
    from terminal import in_terminal

GATED = """
import sys, time
from pathlib import Path
from hsd.cli import main
from hsd.generation import live

folder = Path(sys.argv.pop(1))

def until_seen(name):
    while not (folder / name).exists():
        time.sleep(0.01)

class Gated(live.RunView):
    def stage(self, name, fraction=0.0):
        super().stage(name, fraction)
        if name == "encode":
            until_seen("encode")

    def event(self, event):
        super().event(event)
        if event.part == "denoise" and event.fraction > 0.5:
            until_seen("denoise")

    def image(self, image):
        super().image(image)
        if self._images == 2:
            until_seen("image")

live.RunView = Gated
sys.argv[0] = "hsd"
main()
"""
"""The command ``hsd``; each part of its run waits until the test has seen it, which makes a file of that name."""

on_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


# ------------------------------------------------------------------------------- in a terminal


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(DEMO_PROMPTS.read_text().splitlines()[:6]) + "\n")
    return path


def generate(python, prompts, seen, out, *more):
    seen.mkdir()
    script = seen.with_name("gated.py")
    script.write_text(GATED)
    command = [python, str(script), str(seen), "generate", str(prompts), "--out", str(out)]
    return [*command, "--steps", "4", "--batch-size", "2", *more]


BAR = re.compile(r"^denoising [━╸╺]+ +\d+%  \d+:\d\d left\n(?=(.*\n){4}folder )", re.MULTILINE)
PARTS = {"encode": re.compile("encoding prompts"), "denoise": BAR, "image": re.compile("^last ", re.MULTILINE)}
"""What a screen shows in each part of a run."""


@on_a_terminal
def test_a_run_in_a_terminal(prompts, tmp_path, warm_python):
    out, seen, kept = tmp_path / "images", tmp_path / "seen", {}

    def see(screen, process):
        for part, pattern in PARTS.items():
            if pattern.search(screen) and part not in kept:
                kept[part] = screen
                (seen / part).touch()

    ended = in_terminal(generate(warm_python, prompts, seen, out), columns=120, act=see)
    assert ended.code == 0, ended.screen.text
    assert set(kept) == set(PARTS)
    view = kept["denoise"][BAR.search(kept["denoise"]).start() :].splitlines()
    assert re.fullmatch(r"images +\d+ of 6.*", view[1])
    assert re.fullmatch(r"saved +(nothing yet|[\d.]+% so far), [\d.]+% at the end", view[2])
    assert re.fullmatch(r"latents +\d+ alive, \d+ at most, batches of 2", view[3])
    assert re.fullmatch(r"memory +[\d.]+ GB", view[4])
    assert view[5].startswith(f"folder   {out}"[:119])
    prompt = next(line for line in kept["image"].splitlines() if line.startswith("last "))
    assert prompt[9:] in prompts.read_text().splitlines()
    # At the end nothing of that is left, and the cursor is there.
    last = ended.screen.text.splitlines()
    assert ended.screen.cursor
    assert ended.screen.colours
    assert last[0] == "hsd: loading the model"
    assert "denoising ━" not in ended.screen.text
    assert "encoding" not in ended.screen.text
    assert re.search(rf"^6 images in {re.escape(str(out))}, .*s\.$", ended.screen.text, re.MULTILINE)
    assert "hsd report" in last[-1] or "hsd report" in last[-2]
    summary, result = ended.screen.text.index("clusters by step"), ended.screen.text.index("6 images in")
    assert summary < result


@on_a_terminal
def test_an_interrupted_run_in_a_narrow_terminal(prompts, tmp_path, warm_python):
    out, seen, sent = tmp_path / "i", tmp_path / "seen", []

    def see(screen, process):
        for part in ("encode", "denoise"):
            if PARTS[part].search(screen):
                (seen / part).touch()
        # The second image waits for good. It is not on its way to the disk, the first one is.
        if re.search(r"^images +2 of 6", screen, re.MULTILINE) and not sent:
            sent.append(process.send_signal(signal.SIGINT))

    command = generate(warm_python, prompts, seen, out, "--tau", "0")
    ended = in_terminal(command, columns=40, environment={"NO_COLOR": "1"}, act=see)
    assert sent
    assert ended.code == 130
    assert "\x1b[?25l" in ended.output  # it was hidden
    assert ended.screen.cursor
    assert not ended.screen.colours
    text = "".join(ended.screen.text.splitlines())  # lines are broken at 40 columns
    assert "denoising ━" not in text
    assert len(list(out.glob("*.png"))) == 1
    end = f"hsd: stopped: 1 of 6 images are in {out}hsd: interrupted; run the same command again to continue"
    assert text.replace(" ", "").endswith(end.replace(" ", ""))


TWICE = """
import os, signal, time
from hsd.cli.signals import listening
from hsd.work.stages import Stages
with Stages() as stages, listening():
    stages("encode", 0.5)
    try:
        print("begun", flush=True)
        for _ in range(600):  # short: a signal just before one long sleep would not end it
            time.sleep(0.1)
    except KeyboardInterrupt:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(600):
            time.sleep(0.1)
"""


@on_a_terminal
def test_a_second_signal_leaves_the_cursor(tmp_path):
    sent = []

    def interrupt(screen, process):
        if "begun" in screen and not sent:
            sent.append(process.send_signal(signal.SIGINT))

    ended = in_terminal([sys.executable, "-c", TWICE], act=interrupt)
    assert ended.code == 130
    assert "\x1b[?25l" in ended.output
    assert ended.screen.cursor


PLAIN = """
import hsd
from hsd.work.stages import Stages
with Stages() as stages:
    stages("encode", 0.5)
plan = hsd.compile(["a red star", "a blue star"], 1.0, progress=True)
"""


@on_a_terminal
@pytest.mark.parametrize("variable", [{"TERM": "dumb"}, {"HSD_PROGRESS": "none"}, {"HSD_PROGRESS": "plain"}])
def test_a_terminal_that_cannot_or_should_not_draw(variable):
    ended = in_terminal([sys.executable, "-c", PLAIN], environment=variable)
    assert (ended.code, ended.output) == (0, "")


@on_a_terminal
def test_what_others_print_stays_above(tmp_path):
    seen = tmp_path / "seen"
    code = (
        "import sys, time; from pathlib import Path; from hsd.work.stages import Stages\n"
        "with Stages() as stages:\n"
        "    stages('cluster', 0.25); print('out', flush=True); print('err', file=sys.stderr)\n"
        "    while not Path(sys.argv[1]).exists():\n"
        "        time.sleep(0.01)"
    )

    def see(screen, process):
        if screen.startswith("out\nerr\nclustering ━"):
            seen.touch()

    ended = in_terminal([sys.executable, "-c", code, str(seen)], act=see)
    assert seen.exists()
    assert ended.screen.text == "out\nerr"


# ------------------------------------------------------------------------------- where it is shown


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("file", "variables", "expected"),
    [
        (Tty, {}, "live"),
        (Tty, {"TERM": "dumb"}, "plain"),
        (io.StringIO, {}, "plain"),
        (io.StringIO, {"FORCE_COLOR": "1"}, "plain"),
        (io.StringIO, {"HSD_PROGRESS": "live"}, "live"),
        (Tty, {"HSD_PROGRESS": "none"}, "none"),
    ],
)
def test_the_mode(file, variables, expected, monkeypatch):
    for name in ("HSD_PROGRESS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", file())
    assert mode_of() == expected
    assert mode_of("plain") == "plain"


def test_a_mode_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("HSD_PROGRESS", "pretty")
    with pytest.raises(ValueError, match="HSD_PROGRESS is 'pretty': it has to be one of auto, live, plain, none"):
        Stages()


def test_a_terminal_that_is_gone(monkeypatch):
    """SIGHUP: what writes to it fails, and the run ends in order all the same."""

    class Gone(Tty):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with Screen(lambda: "something", "live") as screen:
        screen.start()
        screen.line("a line")
    assert terminal._active is None


# ------------------------------------------------------------------------------- in a log


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    own = Clock()
    for module in (terminal, stages_module, sys.modules["hsd.generation.live"], sys.modules["hsd.generation.rates"]):
        monkeypatch.setattr(module, "time", own)
    return own


def lines_of(time, seconds, events):
    """The fractions at which a line is due in a run of so many seconds, with so many calls."""
    pace, due = Pace(), []
    for i in range(events):
        time.now += seconds / events
        if pace.due((i + 1) / events):
            due.append((i + 1) / events)
    return due


def test_few_lines_however_long_it_takes(time):
    assert lines_of(time, 29, 10_000) == []
    assert len(lines_of(time, 100, 10_000)) == 3  # each half minute
    assert 9 <= len(lines_of(time, 3600, 10_000)) <= 10  # each tenth
    ten_hours = lines_of(time, 36_000, 10_000)
    assert 55 <= len(ten_hours) <= 70  # each ten minutes


@pytest.fixture(scope="module")
def small():
    return hsd.compile(["a red star", "a blue star", "a green ring", "a red ring"], 1.0, steps=10)


def event(plan, fraction, *, evaluations=0, standard=0, denoise=0.0, alive=0):
    sums = Sums(evaluations, standard, 8, {"denoise": denoise, "decode": 0.0})
    return Event("denoise", fraction, plan, sums, node_steps=1, alive=alive, slots=3)


def test_a_run_in_a_log(small, time, capsys):
    view = RunView("plain")
    with view:
        view.began(small, 2, Path("/images"), Span(80.0, 100.0))
        for i in range(100):
            time.now += 1.0
            view.event(event(small, (i + 1) / 100, evaluations=i, standard=20, denoise=time.now - 1000.0))
            if i % 25 == 24:
                view.image(hsd.Image(i // 25, "a \x1b[31mred\nstar", 0, None))
        view.failed(hsd.Failure(3, "a red ring", 0, "write", "OSError: no"))
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    assert first == f"hsd: 4 images to /images (2 exist already), {small.node_steps:,} evaluations, 80.0 to 100.0 s"
    assert len(lines) == 3
    assert lines[1] == (
        "hsd: images 2 of 4, 2.0 a minute, 60% of the evaluations, about 40.0 s left, saved nothing yet, "
        f"{small.savings:.1%} at the end"
    )
    assert "\x1b" not in err
    assert view.counts() == "3 of 4, 2.4 a minute, 1 failed"


def test_nothing_is_shown_by_default(small, time, capsys):
    for view in (RunView("none"), Stages("none"), Stages("plain")):
        with view:
            view("encode", 0.5) if isinstance(view, Stages) else view.began(small, 0, None, None)
    assert capsys.readouterr() == ("", "")


def test_a_long_stage_in_a_log(time, capsys):
    with Stages("plain", total=1000) as stages:
        for i in range(101):
            stages("encode", i / 100)
            time.now += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "hsd: encoding prompts 300 of 1,000, 30%, 1:10 left",
        "hsd: encoding prompts 600 of 1,000, 60%, 0:40 left",
        "hsd: encoding prompts 900 of 1,000, 90%, 0:10 left",
    ]


# ------------------------------------------------------------------------------- what is drawn


def drawn(view, width, **options):
    console = Console(width=width, file=io.StringIO(), force_terminal=False, **options)
    console.print(view.body())
    return console.file.getvalue().splitlines()


def test_workers_in_a_log(small, time, capsys):
    view = RunView("plain")
    with view:
        view.began(small, 0, Path("/images"), None)
        view.workers(0, 2)
        view.workers(2, 2)
        for i in range(4):
            time.now += 30.0
            view.made("a red star")
            view.event(event(small, (i + 1) / 4, denoise=time.now - 1000.0))
        view.workers(1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("hsd: workers 2 of 2, images 1 of 4, ")
    assert lines[-1] == "hsd: workers 1 of 2"  # a loss is said at once, and what starts is not


@pytest.fixture
def view(small, time):
    view = RunView("none")
    view.began(small, 0, Path("/images/[bold]"), None)
    view.event(event(small, 0.5, evaluations=15, standard=20, denoise=60.0, alive=2))
    for i, prompt in enumerate(["a\x1b[2Jb", "[red]not markup[/red]", "星" * 300, "x" * 5000]):
        view.image(hsd.Image(i, prompt, 0, None))
    return view


@pytest.mark.parametrize("width", [12, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(view, width):
    lines = drawn(view, width)
    assert len(lines) == 9  # whatever the width: else what is drawn in place would move
    assert all(len(line) <= width for line in lines)


def test_workers_stand_for_what_one_process_knows_of_itself(view):
    view.workers(7, 8)
    names = [line.split()[0] for line in drawn(view, 80)[1:]]
    assert "workers  7 of 8" in drawn(view, 80)
    assert not {"latents", "memory"} & set(names)


def test_an_image_that_a_worker_cannot_write_is_not_counted(small):
    view = RunView("none")
    view.began(small, 0, None, None)
    view.workers(1, 1)
    view.made("a red star")
    view.failed(hsd.Failure(1, "a blue star", 0, "write", "OSError: no such colour"))
    assert view.counts().startswith("1 of 4,")
    assert view.counts().endswith(", 1 failed")


def test_the_memory_of_a_gpu(view, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 2**29)
    on_gpu = Sums(15, 20, 8, {"denoise": 60.0, "decode": 0.0}, torch.device("cuda", 1))
    view.event(replace(event(view._plan, 0.5), sums=on_gpu))
    view._sample()
    assert re.fullmatch(r"memory   [\d.]+ GB, GPU 0.5 GB, 3.0 GB free", drawn(view, 80)[4])


def test_prompts_and_paths_are_taken_literally(view):
    lines = drawn(view, 200)
    assert "folder   /images/[bold]" in lines
    assert "         [red]not markup[/red]" in lines
    assert "saved    25.0% so far, " in "\n".join(lines)
    assert not any("\x1b" in line for line in lines)
    view.image(hsd.Image(0, "a\x1b[2Jb\nc", 0, None))
    assert "last     a [2Jb c" in drawn(view, 200)


def test_a_bar_and_the_time_left():
    assert [clock(None), clock(12.4), clock(125), clock(11265)] == ["", "0:12", "2:05", "3:07:45"]
    seen = []
    with counted(10, "settings", "compare", lambda *stage: seen.append(stage)) as advance:
        advance(3)
        advance(0, "a note")
    assert seen == [("compare", 0.3), ("compare", 0.3)]


def test_the_time_left_comes_from_the_cost_of_what_is_left(time):
    """Images come late: after half of the work there may be none."""
    remaining = Remaining(100.0)
    assert remaining.seconds(0.0, 40) == 100.0  # of an earlier run
    for i in range(1, 11):
        remaining.measure(i / 20, 10.0 * i, 0, 0.0)
    assert remaining.seconds(0.5, 40) == pytest.approx(100.0)
    remaining.measure(0.6, 120.0, 20, 4.0)  # and decoding takes 0.2 s an image
    assert remaining.seconds(0.6, 20) == pytest.approx(80.0 + 4.0)


def test_slow_first_calls_are_forgotten(time):
    remaining = Remaining(None)
    remaining.measure(0.01, 100.0, 0, 0.0)
    for i in range(1, 200):
        remaining.measure(0.01 + i * 0.002, 100.0 + i * 2.0, 0, 0.0)
    assert remaining.seconds(0.5, 0) == pytest.approx(500.0, rel=0.02)


def test_the_speed_is_that_of_the_last_half_minute(time):
    rate = Rate()
    for _ in range(100):
        time.now += 1.0
        rate.add()
    assert rate.value() == pytest.approx(1.0, rel=0.05)
    for _ in range(40):
        time.now += 10.0
        rate.add()
    assert rate.value() == pytest.approx(0.1, rel=0.05)  # of the last ten, where the half minute has fewer


# ------------------------------------------------------------------------------- what a session reports


def read_later(program):
    """(n_calls,) slots whose content a later call reads, by going through all lanes."""
    calls, out = program.calls, []
    for c in range(len(calls)):
        written, alive = set(), set()
        for later in range(c + 1, len(calls)):
            lanes = calls[later][calls[later]["segment"] >= 0]
            fresh, read = (
                {int(lane["source"]) for lane in lanes if bool(lane["fresh"]) == new} for new in (True, False)
            )
            alive |= read - written
            written |= fresh | set(lanes["target"].tolist())
        out.append(len(alive))
    return out


@pytest.mark.parametrize("order", ["depth", "breadth"])
@pytest.mark.parametrize("keep", [None, [0, 3, 5]])
def test_latents_alive(plan, order, keep):
    part = plan if keep is None else plan.prune(keep)
    program = part.program(3, order)
    alive = list(alive_after(part, program))
    assert alive == read_later(program)
    assert alive[-1] == 0
    assert 1 < max(alive) <= program.n_slots


class Kept(Watcher):
    watches = True

    def __init__(self):
        self.events, self.images, self.plan = [], [], None

    def began(self, plan, existing, out, expected):
        self.plan = plan

    def event(self, event):
        self.events.append(event)

    def image(self, image):
        self.images.append(image.index)


def test_events_of_a_run(plan, model, tmp_path):
    kept = Kept()
    run = hsd.generate(plan, model, tmp_path, batch_size=4, progress=kept)
    calls = [event for event in kept.events if event.node_steps]
    assert sum(event.node_steps for event in calls) == run.node_steps
    assert sum(event.finished for event in calls) == len(plan) == len(kept.images)
    fractions = [event.fraction for event in calls]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert {event.slots for event in calls} == {plan.program(4).n_slots}
    last = kept.events[-1].sums
    assert 1.0 - last.evaluations / last.standard == pytest.approx(run.savings) == pytest.approx(plan.savings)
    view = RunView("none")
    view.began(plan, 0, None, None)
    view.event(kept.events[-1])
    assert view.saved() == f"{plan.savings:.1%} so far, {plan.savings:.1%} at the end"


def test_passes_count_by_what_they_cost(model, tmp_path):
    """An image of four times the pixels costs four times as much a step."""
    plan = hsd.compile(["a cat", "a dog"], 0.0, model=model, steps=4, settings=[{}, {"width": 64, "height": 64}])
    kept = Kept()
    hsd.generate(plan, model, tmp_path, progress=kept)
    fractions = [event.fraction for event in kept.events if event.node_steps]
    assert fractions == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_run_that_encodes_reports_that(model, tmp_path):
    plan = hsd.compile(["a cat", "a dog"], 0.5, steps=3)
    seen = []

    class Own(Kept):
        def stage(self, name, fraction=0.0):
            seen.append((name, fraction))

    hsd.generate(plan, model, tmp_path, progress=Own())
    assert ("encode", 1.0) in seen
    assert ("cluster", 1.0) in seen


def test_a_function_gets_stages(plan, model, tmp_path):
    seen, streamed = [], []
    hsd.generate(plan, model, tmp_path, progress=lambda *stage: seen.append(stage))
    list(hsd.stream(plan, model, progress=lambda *stage: streamed.append(stage)))
    assert seen == [*streamed, ("write", 1.0)]
    assert list(dict.fromkeys(stage for stage, _ in streamed)) == ["denoise", "decode"]
    denoised = [fraction for stage, fraction in streamed if stage == "denoise"]
    assert denoised == sorted(denoised)
    assert (denoised[0], denoised[-1]) == (0.0, 1.0)
    assert len(denoised) == plan.program(16, mixed_steps=model.mixed_timesteps).n_calls + 1


def test_progress_true_in_a_log(plan, model, tmp_path, capsys):
    run = hsd.generate(plan, model, tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first.startswith(f"hsd: {len(plan)} images to {tmp_path}, {plan.node_steps:,} evaluations")
    assert last == "hsd: " + " ".join(str(run).splitlines())
    assert len(list(hsd.stream(plan, model, progress=True))) == len(plan)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"hsd: {len(plan)} images, ")
    assert last == f"hsd: images {len(plan)} of {len(plan)}, {plan.node_steps:,} evaluations"


def test_a_stream_shows_how_it_is_prepared(model, monkeypatch):
    """The view is there before the model is loaded; until the first image is asked for, nothing is drawn."""
    seen = []

    class Recorded(RunView):
        def stage(self, name, fraction=0.0):
            super().stage(name, fraction)
            seen.append((name, terminal._active is self.screen))

    monkeypatch.setattr("hsd.generation.live.RunView", Recorded)
    monkeypatch.setattr(sys, "stderr", Tty())
    images = hsd.stream(hsd.compile(["a cat", "a dog"], 0.5, steps=3), "demo", progress=True)
    assert seen[0] == ("load", False)
    assert {("encode", True), ("cluster", True)} <= set(seen)
    assert terminal._active is None
    next(images)
    assert terminal._active is not None
    images.close()
    assert terminal._active is None


def test_a_failed_write_is_counted_once(view):
    """Of four images all are decoded: nothing is left to decode, also if one cannot be written."""
    view._remaining = Counted()
    view.failed(hsd.Failure(3, "x", 0, "write", "OSError: no"))
    view.left()
    assert view._remaining.images == 0


class Counted:
    def seconds(self, fraction, images):
        self.images = images


def test_compile_shows_its_stages_if_asked(monkeypatch):
    seen = []

    class Recorded(Stages):
        def __call__(self, stage, fraction):
            seen.append((stage, fraction))

    monkeypatch.setattr("hsd.work.stages.Stages", Recorded)
    embeddings = np.random.default_rng(0).normal(size=(4, 8))
    for progress, expected in ((False, False), (None, False), (True, True)):
        hsd.compile(list("abcd"), 0.5, embeddings=embeddings, progress=progress)
        assert (("cluster", 1.0) in seen) == expected


def test_becoming_the_active_screen_is_locked(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Tty())
    with Screen(lambda: "one", "live") as one:
        thread = threading.Thread(target=one.start)
        with terminal._lock:
            thread.start()
            thread.join(0.05)
            assert terminal._active is None
        thread.join()
        assert terminal._active is one


def test_two_runs_at_once_draw_one_view(small, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Tty())
    with Screen(lambda: "one", "live") as one, Screen(lambda: "two", "live") as two:
        one.start()
        thread = threading.Thread(target=two.start)
        thread.start()
        thread.join()
        assert terminal._active is one
    assert terminal._active is None
    assert os.environ.get("HSD_PROGRESS") is None


def test_counted_items_are_shown_in_a_log(monkeypatch, capsys):
    """What hsd evaluate, tune and reproduce count gives some lines where nothing is drawn, as stages do."""
    monkeypatch.setenv("HSD_PROGRESS", "plain")
    monkeypatch.setattr(counting, "Pace", lambda: Pace(seconds=0.0))
    with counting.counted(20, "scoring, images", "score", True) as advance:
        for _ in range(4):
            advance(5)
    lines = [line.split("%")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"hsd: scoring, images {5 * i} of 20, {25 * i}" for i in (1, 2, 3, 4)]
    with counting.counted(20, "scoring, images", "score", False) as advance:
        advance(20)
    assert capsys.readouterr().err == ""
