"""Object stores in tests: one in this process, folders of this machine, and S3 as moto imitates it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from disk import MADE_BY, picture
from hsd.generation.store import StoreFolder
from hsd.work.objects import Objects

TESTS = Path(__file__).parent

WRITER = """
import os, sys
from disk import MADE_BY, make_plan, picture
from hsd.generation import store_lines
from hsd.generation.store import StoreFolder

store_lines._SHORTEST = 600.0  # lines are written when that is asked for
url, shard, killed = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "killed"
plan = make_plan().shard(2)[shard]
folder = StoreFolder(url, plan, MADE_BY)
print("open", flush=True)
sys.stdin.readline()
first, *rest = plan.kept.tolist()
folder.add(first, picture(plan, first), {})
folder.flush()
if killed:
    folder.add(rest[0], picture(plan, rest[0]), {})
    os.kill(os.getpid(), 9)
for index in rest:
    folder.add(index, picture(plan, index), {})
folder.record_run({"images": len(plan)})
folder.close()
"""
"""Opens a URL for a half of the plan, says so, waits for a line, and fills it; or is killed after two images."""


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


def begin(url, shard, how="to the end"):
    """A process with the program ``WRITER``."""
    arguments = [sys.executable, "-c", WRITER, url, str(shard), how]
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS, env=environment
    )


def let_run(*processes):
    """When all have opened the folder, let them fill it; returns their exit codes."""
    for process in processes:
        assert process.stdout.readline() == "open\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.wait(60) for process in processes]
