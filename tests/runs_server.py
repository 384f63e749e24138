"""Runs in processes of their own, without the seconds that each would take to import torch: they are forked.

Started by the tests as ``python runs_server.py FOLDER``, which keeps one process with all modules and a tiny model; it
reads jobs from standard input, one JSON object a line, and answers each with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

PROMPTS = [f"a {size} {thing}" for thing in ("cat", "dog", "house", "tree") for size in ("small", "big", "red", "old")]


class Server:
    """The side of the tests: starts runs, waits for them."""

    def __init__(self, folder: Path):
        self.plan = folder / "plan.safetensors"
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, "the server of runs has ended"
        return json.loads(line)

    def _ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(self, out, *, shard=None, slow=0.0, held=False, batch_size=4, host=None, locks=True):
        """Begin a run; its number. ``host``: it is on another host, which no lock reaches. ``held``: it makes its first
        images and stays there, until it is killed."""
        ways = {"shard": shard, "slow": slow, "held": held, "batch_size": batch_size, "host": host, "locks": locks}
        return self._ask(do="run", out=str(out), **ways)

    def wait(self, pid):
        """How a run ended: its exit status (negative: the signal), and the message of its error."""
        return tuple(self._ask(do="wait", pid=pid))

    def run(self, out, **options):
        return self.wait(self.start(out, **options))

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def _pause(seconds, held, node_steps, images):
    time.sleep(seconds)
    while held and images:
        time.sleep(1.0)


def _main(plan_file: str) -> None:
    import torch

    import hosts
    import hsd
    import tiny
    from helpers import Calls, make_scheduler

    torch.set_num_threads(1)
    pipe = tiny.stable_diffusion(make_scheduler("euler-ancestral", tiny.sd_ddim().config))
    model = hsd.load(pipe, height=32, width=32, guidance_scale=3.0)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=3, seeds=100)
    plan.save(plan_file)
    errors: dict[int, Path] = {}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "wait":
            _, status = os.waitpid(job["pid"], 0)
            error = errors[job["pid"]]
            answer = [os.waitstatus_to_exitcode(status), error.read_text() if error.exists() else ""]
            print(json.dumps(answer), flush=True)
            continue
        error = Path(plan_file).with_name(f"error-{len(errors)}")
        pid = os.fork()
        if not pid:
            code = 1
            try:
                if job["host"] is not None or not job["locks"]:
                    hosts.move_to(job["host"] or "here", with_locks=job["locks"])
                part = plan if job["shard"] is None else plan.shard(job["shard"][1])[job["shard"][0]]
                pause = partial(_pause, job["slow"], job["held"])
                hsd.generate(part, model, job["out"], batch_size=job["batch_size"], progress=Calls(pause))
                code = 0
            except BaseException as problem:
                error.write_text(f"{type(problem).__name__}: {problem}")
            finally:
                os._exit(code)
        errors[pid] = error
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
