"""Python processes that begin with torch, diffusers and HSD imported: forks of one process that has imported them.

Importing takes about ten seconds of processor time, and Ray starts a process for each worker. What it is told to start
instead of Python is a small script, see :func:`executable`: it hands its arguments, environment, folder and standard
streams to a process that has imported everything, which forks. The script passes signals on and ends as the fork does,
and the fork is killed when the script is.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPT = """\
#!{python} -IS
import json, os, signal, socket, sys
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    socket.send_fds(connection, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(asked)
    pid = int.from_bytes(connection.recv(8), "big")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(connection.recv(8) or b"1")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(abs(status))
"""


@contextlib.contextmanager
def executable(folder: str) -> Iterator[str]:
    """What to start instead of ``sys.executable``; its first argument is a file. ``folder`` has a short path."""
    path, script = os.path.join(folder, "warm.socket"), Path(folder, "warm-python")
    script.write_text(SCRIPT.format(python=sys.executable, path=path))
    script.chmod(0o755)
    process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield str(script)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def for_ray(python: str) -> str:
    """The value of ``RAY_JOB_CONFIG_JSON_ENV_VAR`` with which Ray's workers begin warm."""
    return json.dumps({"runtime_env": {"py_executable": python}})


def _main(path: str) -> None:
    import hsd.distributed

    hsd.load("demo")  # which imports torch and diffusers; not Ray, which reads its environment when it is imported
    assert "ray" not in sys.modules
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        print("ready", flush=True)
        scripts: dict[int, socket.socket] = {}
        while True:
            ready, _, _ = select.select([server, *scripts.values()], [], [], 0.02)
            if server in ready:
                connection, _ = server.accept()
                asked, streams = _asked(connection)
                pid = os.fork()
                if not pid:
                    for other in (server, connection, *scripts.values()):
                        other.close()
                    _run(*asked, streams)
                for stream in streams:
                    os.close(stream)
                connection.sendall(pid.to_bytes(8, "big"))
                scripts[pid] = connection
            for pid, connection in list(scripts.items()):
                if connection in ready:  # it sends no more: it was killed
                    os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with contextlib.suppress(OSError):
                        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                    scripts.pop(pid).close()


def _asked(connection: socket.socket) -> tuple[list[Any], list[int]]:
    """Arguments, environment and folder of a script, and its standard streams."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    return json.loads(asked), streams


def _run(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Run the file that is the first argument, as the main program of this process."""
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        others = sys.path[1:]
        added = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in others]
        sys.path[:] = [os.path.dirname(arguments[0]), *added, *others]
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:  # as Python itself ends
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _main(sys.argv[1])
