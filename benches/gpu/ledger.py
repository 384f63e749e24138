"""A pytest plugin: leaves out tests that passed in an earlier call, stops in time, and keeps what happened.

``gpu_tests.py`` loads it by ``-p ledger``, in every process of pytest-xdist too. One process gets all reports: it has
the :class:`Ledger`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

LACKS = "lacks"
"""Outcome of a test that failed because a package is not there: no failure, and not passed either."""

SECTION = "tests"

_LONGEST = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, which pytest-xdist passes on to its processes."""
    parser.addoption("--ledger", type=Path, help="file of results, continued if it is there and of the same code")
    parser.addoption("--ledger-command", default="", help="the command line that the results name")
    parser.addoption("--passed-before", type=Path, help="file that gets the names of the tests that are left out")
    parser.addoption("--again", action="store_true", help="leave out none")
    parser.addoption("--left-out", action="append", default=[], help="NAME: WHY, of what is not even collected")
    parser.addoption("--until", type=float, help="no test starts that may end after this (of time.time())")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the ledger in one process: not in those of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config), "hsd-ledger")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out by whole name: ``--deselect`` goes by how a name begins."""
    before = set(config.getoption("--passed-before").read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Stop after a test if another one like the longest so far would end too late."""
    began = time.time()
    yield
    until, now = item.config.getoption("--until"), time.time()
    longest = item.session.stash[_LONGEST] = max(now - began, item.session.stash.get(_LONGEST, 0.0))
    if until is not None and now + longest > until:
        item.session.shouldstop = "no time is left for another test"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """A test that needs a package that is not there is skipped, with the name of the package."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and call.excinfo is not None and (package := lacking(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"{LACKS} {package}")


def lacking(error: BaseException) -> str | None:
    """The package that an error says is missing, if it is."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None and (found := re.search(r"needs the package (\w+)", str(error))):
        name = found[1]
    name = name.split(".")[0] if name else None
    return name if name and find_spec(name) is None else None


class Ledger:
    """Outcome, seconds and reason of each test, written whenever one has ended."""

    def __init__(self, config: pytest.Config) -> None:
        import torch
        from measure import Report

        import hsd

        file = config.getoption("--ledger")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        code = digest([*config.rootpath.glob("tests/**/*.py"), *Path(hsd.__file__).parent.rglob("*.py")])
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        self.tests = {} if config.getoption("--again") else earlier(file, code, name)
        passed = [name for name, test in self.tests.items() if test["outcome"] == "passed"]
        config.getoption("--passed-before").write_text("\n".join(passed), encoding="utf-8")
        self._report = Report(file, device, config.getoption("--ledger-command"), {})
        self._report.add(SECTION, "code", code)
        self._report.add(SECTION, "tests", self.tests)
        for name, why in (text.split(": ", 1) for text in config.getoption("--left-out")):
            self._report.skip(name, why)
        if passed:
            self._report.say(f"{len(passed)} tests passed in an earlier call and are left out")
        self._open: dict[str, dict[str, Any]] = {}
        self._broken: list[str] = []
        self._left: set[str] | None = None
        """Tests that were collected and have not run; None before."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Each process collects them all."""
        self._left = set(ids) if self._left is None else self._left

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """In this process, unless pytest-xdist collects in its own."""
        if not session.config.getoption("numprocesses", None):
            self._left = {item.nodeid for item in session.items}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember files that cannot be imported."""
        if report.failed and report.nodeid not in self._broken:
            self._broken.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Three reports a test: setup, call and teardown; one if its process died."""
        test = self._open.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.failed:
            test |= {"outcome": "failed", "why": _first_line(report)}
        elif report.skipped and test["outcome"] == "passed":
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            test |= {"outcome": LACKS if why.startswith(f"{LACKS} ") else "skipped", "why": why}
        if report.when not in ("setup", "call"):
            self.tests[report.nodeid] = self._open.pop(report.nodeid)
            if self._left is not None:
                self._left.discard(report.nodeid)
            self._report.add(SECTION, "tests", self.tests)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self) -> None:
        """The last lines, and whether anything is left."""
        say, counts = self._report.say, Counter(test["outcome"] for test in self.tests.values())
        say(f"{len(self.tests)} tests: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
        for name, test in self.tests.items():
            if test["outcome"] in ("failed", LACKS):
                say(f"{test['outcome'].upper()} {name}: {test['why']}")
        for name in self._broken:
            say(f"NOT COLLECTED {name}")
        whole = self._left == set() and not self._broken
        if not whole:
            say("not all tests have run: the same command goes on with them")
        for key, value in {"outcomes": dict(counts), "whole": whole, "not_collected": self._broken}.items():
            self._report.add(SECTION, key, value)
        self._report.finish()


def digest(files: Sequence[Path]) -> str:
    """What tests and hsd are, so that results belong to them; not where they are."""
    whole = hashlib.sha256()
    for part in sorted(hashlib.sha256(path.read_bytes()).digest() for path in files):
        whole.update(part)
    return whole.hexdigest()[:16]


def earlier(file: Path, code: str, device: str) -> dict[str, dict[str, Any]]:
    """The tests in the file of an earlier call; none without one, or if it is of other code or another device."""
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    found = content["sections"].get(SECTION, {})
    if found.get("code") == code and content["machine"]["device"].startswith(device):
        return dict(found["tests"])
    print(f"{file.name} is of other code or another device: all tests run", flush=True)
    return {}


def _first_line(report: pytest.TestReport) -> str:
    """The message of a failure; the whole of it is printed."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = (crash.message if crash else str(report.longrepr)).strip()
    return text.splitlines()[0][:300] if text else ""
