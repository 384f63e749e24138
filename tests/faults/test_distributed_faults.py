"""Workers that are killed, fail, hang or come late, machines that go: each really done, on a small cluster of Ray."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import hsd
import hsd.distributed
import warm
from distributed_cases import (
    BAD,
    PROMPTS,
    assert_same_folder,
    dies,
    fails,
    fails_on,
    fails_once,
    hangs,
    lines_of,
    model_of,
    raises,
)

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

TESTS = Path(__file__).resolve().parents[1]
BAD_INDEX = PROMPTS.index(BAD)
SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster(warm_python):
    """A head without cores, and two machines with one each."""
    from ray.cluster_utils import Cluster

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hsd-", dir="/tmp"))
        patch.setenv("RAY_TMPDIR", folder)  # else other programs of this machine would join it
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
        patch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", warm.for_ray(warm_python))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
        made.python = warm_python
        try:
            made.nodes_of_two = [made.add_node(num_cpus=1, **SMALL) for _ in range(2)]
            ray.init(made.address, log_to_driver=False, logging_level="ERROR")
            made.wait_for_nodes()
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def plan():
    return hsd.compile(PROMPTS, 1.0, model=hsd.load("demo"), steps=4)


@pytest.fixture(scope="module")
def reference(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "images"
    hsd.generate(plan, "demo", out, batch_size=4)
    return out


def generate(plan, model, out, **options):
    return hsd.distributed.generate(plan, model, out, **{"address": "auto", "workers": 2, "batch_size": 4, **options})


def test_nothing_happens(cluster, plan, reference, tmp_path, capfd):
    run = generate(plan, "demo", tmp_path / "images")
    assert_same_folder(tmp_path / "images", reference)
    assert (run.images, run.workers, run.failed) == (16, 2, ())
    again = generate(plan, "demo", tmp_path / "images", workers=1)
    assert (again.images, again.existing, again.node_steps) == (0, 16, 0)
    assert_same_folder(tmp_path / "images", reference)
    assert capfd.readouterr().out == ""


KILLS_AFTER = (0, 0, 1, 1, 2, 3, 4, 5)
"""Calls of the denoiser that a worker has made when it is killed: before the first, within the first image and between
images. Each kill costs the start of a worker."""


def test_a_worker_is_killed_again_and_again(cluster, plan, reference, tmp_path, monkeypatch):
    for module in ("queue", "startup", "crew"):  # or a unit or machine that is killed by chance would be given up
        monkeypatch.setattr(f"hsd.distributed.{module}.TRIES", 99)
    notes, killed, ended = tmp_path / "notes", [], threading.Event()
    model = model_of(notes, pace=0.05)

    def kill():
        for calls in random.sample(KILLS_AFTER, len(KILLS_AFTER)):
            while not (found := [pid for pid in alive(notes, killed) if calls_of(notes, pid) >= calls]):
                if ended.wait(0.01):
                    return
            time.sleep(random.uniform(0.0, 0.05))  # anywhere in the call
            pid = random.choice(found)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with in_thread(kill, ended):
        run = generate(plan, model, tmp_path / "images", batch_size=1)
    assert_same_folder(tmp_path / "images", reference)
    assert (run.failed, len(run.record["versions"]) > 0) == ((), True)
    assert len(killed) >= len(KILLS_AFTER) / 2, "the run was over before"  # workers that are not killed finish images
    assert run.record["workers"]["lost"] > 0


def alive(notes, killed):
    pids = [int(path.name.removeprefix("pid-")) for path in notes.glob("pid-*")]
    return [pid for pid in pids if pid not in killed and os.path.exists(f"/proc/{pid}")]


def calls_of(notes, pid):
    return (notes / f"pid-{pid}").stat().st_size


@contextmanager
def in_thread(task, ended):
    """Run ``task`` beside the block, and tell it when the block has ended."""
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


def test_loading_fails_once(cluster, plan, reference, tmp_path):
    run = generate(plan, model_of(tmp_path / "notes", load=fails_once), tmp_path / "images", workers=1)
    assert_same_folder(tmp_path / "images", reference)
    assert run.record["workers"]["lost"] == 1


@pytest.mark.parametrize("load", [fails, dies])
def test_loading_always_fails(cluster, plan, tmp_path, load, monkeypatch):
    for module in ("startup", "crew"):
        monkeypatch.setattr(f"hsd.distributed.{module}.TRIES", 2)
    with pytest.raises(hsd.errors.WorkersFailed, match="no worker can load the model.*the same call makes") as caught:
        generate(plan, model_of(tmp_path / "notes", load=load), tmp_path / "images", workers=1)
    assert caught.value.__cause__ is not None
    if load is fails:
        assert "no such weights" in str(caught.value)


def test_one_machine_cannot_load_the_model(cluster, plan, reference, tmp_path):
    node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    run = generate(plan, model_of(tmp_path / "notes", load=partial(fails_on, node), gate=1), tmp_path / "images")
    assert_same_folder(tmp_path / "images", reference)
    assert 1 <= run.record["workers"]["lost"] <= 3


@pytest.mark.parametrize(
    ("image", "reason", "options"),
    [
        (raises, "this image breaks its unit", {}),
        (dies, "its worker ended 2 times", {}),
        (hangs, "no sign of life for 2 seconds", {"stall": 2.0}),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_one_image_is_bad(cluster, plan, reference, tmp_path, image, reason, options, monkeypatch):
    for module in ("queue", "driver"):
        monkeypatch.setattr(f"hsd.distributed.{module}.TRIES", 2)
    failed, model = [], model_of(tmp_path / "notes", image=image)
    plan = plan.prune([BAD_INDEX - 1, BAD_INDEX, BAD_INDEX + 1])
    run = generate(plan, model, tmp_path / "images", workers=1, failed=failed.append, **options)
    assert [failure.index for failure in failed] == [failure.index for failure in run.failed] == [BAD_INDEX]
    assert reason in run.failed[0].reason
    others = set(range(len(PROMPTS))) - set(plan.kept.tolist())
    assert_same_folder(tmp_path / "images", reference, without={BAD_INDEX, *others})
    assert (tmp_path / "images" / "failed.jsonl").read_text().count("\n") == 1
    hsd.generate(plan, "demo", tmp_path / "images")  # it is tried again
    assert_same_folder(tmp_path / "images", reference, without=others)
    assert not (tmp_path / "images" / "failed.jsonl").exists()


def test_a_slow_worker(cluster, plan, reference, tmp_path):
    run = generate(plan, model_of(tmp_path / "notes", pace="slow"), tmp_path / "images", batch_size=2)
    assert_same_folder(tmp_path / "images", reference)
    assert run.record["workers"]["lost"] == 0


def test_machines_come_and_go(cluster, plan, reference, tmp_path):
    """Three workers are wanted where two find a place; a machine joins, and another is lost."""
    out, notes = tmp_path / "images", tmp_path / "notes"
    model = model_of(notes, gate=10)
    with ThreadPoolExecutor(1) as pool:  # nodes are started in the main thread only
        run = pool.submit(generate, plan, model, out, batch_size=1, workers=3)
        until(lambda: list(out.glob("*.png")))
        assert len(list(notes.glob("pid-*"))) == 2
        cluster.nodes_of_two.append(cluster.add_node(num_cpus=1, **SMALL))
        pids = until(lambda: found if len(found := [path.name[4:] for path in notes.glob("pid-*")]) == 3 else None)
        cluster.remove_node(cluster.nodes_of_two.pop(0), allow_graceful=False)
        until(lambda: not all(os.path.exists(f"/proc/{pid}") for pid in pids))  # its worker goes some time later
        (notes / "go").touch()
        record = run.result(120).record["workers"]
    assert_same_folder(out, reference)
    assert record["lost"] >= 1
    assert record["wanted"] == 3
    assert record["started"] >= 3


DRIVER = """
import sys
import hsd, hsd.distributed, ray
from distributed_cases import model_of
from hsd.generation.events import Watcher
class Count(Watcher):
    images = 0
    def made(self, prompt):
        self.images += 1
if __name__ == "__main__":
    address, plan, out, notes, pace = sys.argv[1:]
    model = model_of(notes, pace=float(pace))
    try:
        plan, count = hsd.Plan.load(plan), Count()
        run = hsd.distributed.generate(plan, model, out, address=address, workers=1, batch_size=1, progress=count)
        print(run.images, run.existing, count.images)
    except hsd.OutputError as error:
        sys.exit(str(error))
"""


@contextmanager
def driver(python, address, plan, tmp_path, pace=0.0):
    plan.save(tmp_path / "plan.safetensors")
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [python, tmp_path / "driver.py", address, tmp_path / "plan.safetensors", tmp_path / "images"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    process = subprocess.Popen(
        [*map(str, command), str(tmp_path / "notes"), str(pace)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def client_server(cluster):
    """What answers at ray://; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "ray.util.client.server", "--mode", "legacy", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *command, "--address", cluster.address], **quiet)
    try:
        yield f"ray://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_from_a_machine_that_is_not_in_the_cluster(cluster, plan, reference, tmp_path):
    """Interrupted once: its workers end, and the run is recorded there. A run that continues tells what it made."""
    with client_server(cluster) as address:
        with driver(cluster.python, address, plan, tmp_path, pace=0.3) as process:
            until(lambda: list((tmp_path / "images").glob("*.png")))
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode != 0
        assert '"outcome": "interrupted"' in (tmp_path / "images" / "run.json").read_text()
        made = len(lines_of(tmp_path / "images"))
        assert 0 < made < 16
        with driver(cluster.python, address, plan, tmp_path) as process:
            out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert list(map(int, out.split())) == [16 - made, made, 16 - made], "images, existing, told"
    assert_same_folder(tmp_path / "images", reference)


def until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_the_driver_is_killed_and_started_again(cluster, plan, reference, tmp_path):
    with driver(cluster.python, cluster.address, plan, tmp_path, pace=0.4) as first:
        until(lambda: list((tmp_path / "images").glob("*.png")))
        with driver(cluster.python, cluster.address, plan, tmp_path) as second:  # refused as long as the first lives
            _, err = second.communicate(timeout=90)
            assert second.returncode == 1
            assert "is in use by" in err
        until(lambda: len(list((tmp_path / "images").glob("*.png"))) > 2)
        assert first.poll() is None, "it has to be longer at work than the second one needs to be refused"
        first.kill()
        first.communicate()
    made = len(list((tmp_path / "images").glob("*.png")))
    with driver(cluster.python, cluster.address, plan, tmp_path) as third:
        out, err = third.communicate(timeout=90)
    assert third.returncode == 0, err
    images, existing, _ = map(int, out.split())
    assert images + existing == 16
    assert existing >= made - 1 > 0  # the line of the last one may be missing
    assert_same_folder(tmp_path / "images", reference)


def test_interrupted(cluster, plan, reference, tmp_path):
    with driver(cluster.python, cluster.address, plan, tmp_path, pace=0.3) as process:
        until(lambda: list((tmp_path / "images").glob("*.png")))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert 0 < len(lines_of(tmp_path / "images")) < 16
    assert '"outcome": "interrupted"' in (tmp_path / "images" / "run.json").read_text()
    hsd.generate(plan, "demo", tmp_path / "images")
    assert_same_folder(tmp_path / "images", reference)
