"""The parts of ``run.sh``: what each measures, the time it needs, its command, and the calls they fit into.

Nothing is imported here but the standard library, so that parts can be listed and planned on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CALL = 575
"""Seconds of one call where a command may run for ten minutes: some are left for the start and the files."""

SMALL = 300
"""Seconds that a part may take with ``--small``, which measures nothing."""


@dataclass(frozen=True)
class Part:
    """One process of ``run.sh``."""

    name: str
    about: str
    seconds: int
    """Set aside for it, its start included. It may take more where no other part waits."""
    words: tuple[str, ...] = ()
    """Arguments of ``executor.py``; none for the tests."""

    @property
    def file(self) -> str:
        """Its results."""
        return f"gpu-{self.name}.json"

    def command(self, python: str, out: Path, limit: int, *, small: bool, data: Path | None) -> list[str]:
        """The process that measures it within ``limit`` seconds."""
        script = "executor.py" if self.words else "gpu_tests.py"
        line = [python, f"benches/gpu/{script}", *(["--small"] if small else []), "--limit", str(limit - 5)]
        if self.words and data is not None:
            line += ["--data", str(data)]
        return [*line, "--json", str(out / self.file), *self.words]


def _other(model: str) -> tuple[str, ...]:
    shorter = ("--no-compile", "--seconds", "4", "--alone", "0.3", "--trace-calls", "8")
    return ("efficiency", "trace", "denoiser", "--model", model, *shorter)


PARTS = [
    Part("tests", "the tests that need a GPU, by name; a later call runs those that have not passed", 240),
    Part(
        "costs",
        "what a capture costs and when it pays, decoding by batch and pixels, copies between host and device",
        150,
        ("capture", "decode", "transfer"),
    ),
    Part(
        "loop",
        "waits, launches, how busy the GPU is; the first image; memory by prompts",
        90,
        ("trace", "first_image", "memory"),
    ),
    Part("efficiency", "executor against denoiser, on four prompt sets", 130, ("efficiency",)),
    Part(
        "end_to_end",
        "100 prompts to PNG files: diffusers, HSD, the published method",
        230,
        ("end_to_end", "--no-compile"),
    ),
    Part("denoiser", "the denoiser alone, by lanes and ways of running it", 90, ("denoiser", "--no-compile")),
    Part("sdxl", "efficiency, trace and denoiser with the shapes of SDXL", 120, _other("sdxl")),
    Part(
        "compile",
        "what torch.compile takes a minute or two for, which the others leave out",
        230,
        (
            *("efficiency", "denoiser", "end_to_end", "--sets", "styles"),
            *("--modes", "compile", "--lanes", "16", "--variants", "compile+graphs"),
        ),
    ),
    Part("flux", "efficiency, trace and denoiser with the shapes of FLUX", 130, _other("flux")),
]
"""In the order in which they run and matter."""

NAMES = [part.name for part in PARTS]


def calls(parts: Sequence[Part], most: int = CALL) -> list[list[Part]]:
    """The parts in as few calls of ``most`` seconds as their order allows: each goes to the first that has room."""
    made: list[list[Part]] = []
    for part in parts:
        for call in made:
            if seconds(call) + part.seconds <= most:
                call.append(part)
                break
        else:
            made.append([part])
    return made


def seconds(parts: Iterable[Part]) -> int:
    """What is set aside for them."""
    return sum(part.seconds for part in parts)


def allowed(part: Part, behind: Sequence[Part], left: float | None) -> int | None:
    """Seconds that ``part`` may take when ``left`` are left (None: as many as one call has); None if too few are.

    It gets all that the parts behind it do not need.
    """
    if left is None:
        return CALL
    if left < part.seconds:
        return None
    room = int(left) - part.seconds
    for later in behind:
        room -= later.seconds if later.seconds <= room else 0
    return part.seconds + room


def listed(results: Path) -> str:
    """The table of ``--list``: seconds set aside, those measured in the files of a folder, and the calls."""
    width = max(map(len, NAMES))
    lines = [f"{'part':{width}}  set aside  measured  what"]
    for part in PARTS:
        lines.append(f"{part.name:{width}}{part.seconds:9} s  {_measured(results / part.file):>8}  {part.about}")
    lines += [
        "",
        "set aside: with less, a part does not start; it may take more where no other part waits",
        f"measured: in benches/results/{results.name}, without the start (20 s); cut: stopped at its limit; -: not yet",
        f"calls of at most {CALL} s:",
    ]
    for call in calls(PARTS):
        names = ",".join(part.name for part in call)
        lines.append(f"  benches/gpu/run.sh --seconds {CALL} --parts {names} OUT")
    return "\n".join(lines)


def _measured(file: Path) -> str:
    if not file.is_file():
        return "-"
    content = json.loads(file.read_text(encoding="utf-8"))
    return f"{content['seconds']:.0f} s" if content.get("finished") else "cut"
