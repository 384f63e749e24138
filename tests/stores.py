"""Object stores in tests: one in this process, folders of this machine, and S3 as moto imitates it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from disk import MADE_BY, picture
from hsd.generation.store import StoreFolder
from hsd.work.objects import Objects

TESTS = Path(__file__).parent

FORKS = """
import json, os, sys, time
from disk import MADE_BY, make_plan, picture
from hsd.generation import store_lines
from hsd.generation.store import StoreFolder
from hsd.work.objects import Objects

def fill(url, shard, killed, together):
    store_lines._SHORTEST = 600.0  # lines are written when that is asked for
    plan = make_plan().shard(2)[shard]
    folder = StoreFolder(url, plan, MADE_BY)
    first, *rest = plan.kept.tolist()
    folder.add(first, picture(plan, first), {})
    folder.flush()
    while len(Objects(url).sizes_below("__parts__")) < together:
        time.sleep(0.01)
    if killed:
        folder.add(rest[0], picture(plan, rest[0]), {})
        os.kill(os.getpid(), 9)
    for index in rest:
        folder.add(index, picture(plan, index), {})
    folder.record_run({"images": len(plan)})
    folder.close()

def begin(*arguments):
    child = os.fork()
    if not child:
        fill(*arguments)
        os._exit(0)
    return child

for line in sys.stdin:
    runs = json.loads(line)
    children = [begin(*run, len(runs)) for run in runs]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
"""Runs processes, those of a line at once. Each opens a URL for a half of the plan, and fills it or is killed after two
images."""


def start_s3(monkeypatch):
    """A server of S3 with a bucket ``bucket``, which environment variables name."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    return server


def fill(url, plan, indices=None):
    """A run without a model, as :func:`disk.fill`."""
    with StoreFolder(url, plan, MADE_BY) as folder:
        missing = sorted(set(plan.kept.tolist() if indices is None else indices) - folder.done())
        add(folder, *missing)
        folder.record_run({"images": len(missing)})
        return missing, folder.repaired


def add(folder, *indices):
    for index in indices:
        folder.add(index, picture(folder.plan, index), {})


def download(url, path):
    """All files of a folder in a store, as a folder on the disk."""
    objects = Objects(url)
    names = [*objects.sizes(), *objects.sizes_below("__parts__"), *objects.sizes_below("__claims__")]
    for name, data in objects.get_all(names).items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


@contextlib.contextmanager
def forks():
    """A function that runs processes at once, each given by a URL, a half, and whether it is killed: ``FORKS``.

    It returns their exit codes.
    """
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=TESTS, env=environment, **pipes) as process:

        def run(*runs):
            process.stdin.write(json.dumps(runs) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()
