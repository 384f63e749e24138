"""The executor on one device, section by section, each with its baseline in the same run.

    python benches/gpu/executor.py [SECTION ...] [--model kandinsky] [--small] [--json FILE]

Models have the shapes of released ones and random weights (`shapes.py`): nothing is downloaded. Sections:

``denoiser``
    Seconds per call of the denoiser by itself, by lanes: eager, channels-last, compiled, each also as a CUDA graph;
    and the share of the device's dense half-precision peak that it reaches.
``efficiency``
    Node-steps x the denoiser's best seconds per lane / wall time of the executor, eager and replayed, on plans of real
    prompt sets.
``end_to_end``
    From prompts to PNG files: diffusers' pipeline, HSD in several ways, and the published method
    (`benches/published.py`): wall time, speed-up, its ratio to 1/(1 - savings), and how much of the time prior,
    denoiser and decoder alone account for. Kandinsky only.
``first_image``
    Seconds to the first image of a set, depth first, compared with a single image.
``memory``
    Peak device memory of the first calls for 500 prompts and for 10,000.
``trace``
    Waits, blocking copies, launches and graphs per call, and the share of the time that the GPU is busy.
``capture``
    What the capture of a CUDA graph costs by lanes, in time and memory, and the calls after which it has paid; and
    whether a second run on the same model captures again.
``decode``
    Milliseconds an image by batch and pixels: the decoder network, also in float32, the way to the host through
    pageable and pinned memory, and HSD's decoder.
``transfer``
    Copies between host and device, pinned and pageable, beside those that stay on either side.

Every number is measured in the run that prints it, and every result is checked; if a check fails or a section
raises, the rest still runs, and the exit status is 1. ``--small`` runs all sections on a CPU with tiny shapes, to test
the code; it reports what cannot be measured there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

STARTED = time.perf_counter()  # the imports below count for --limit

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import plans  # noqa: E402
import shapes  # noqa: E402
import torch  # noqa: E402
from bench import Bench  # noqa: E402
from measure import Report, command  # noqa: E402
from sections import capture, decode, denoiser, efficiency, end_to_end, first_image, memory, trace, transfer  # noqa: E402

SECTIONS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (efficiency, end_to_end, trace, denoiser, first_image, memory, capture, decode, transfer)
}
"""Sections in the order in which they run."""

BATCH = {"kandinsky": 16, "sdxl": 8, "flux": 2}
SETS = {"kandinsky": list(plans.FILES), "sdxl": ["animals"], "flux": ["animals"]}
LANES = {"kandinsky": [1, 2, 4, 8, 16, 32], "sdxl": [1, 2, 4, 8], "flux": [1, 2, 4]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen sections. 0 if all of them ran and all checks held."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = _arguments(words)
    device = torch.device(args.device)
    settings = {key: _plain(value) for key, value in vars(args).items() if key != "json"}
    report = Report(args.json, device, command("benches/gpu/executor.py", words), settings)
    bench = Bench(args, device, report, STARTED)
    failed = []
    for name in args.sections:
        try:
            SECTIONS[name].run(bench)
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            report.skip(name, f"{type(error).__name__}: {error}")
        bench.empty()
    report.finish()
    if failed:
        report.say(f"FAILED: {', '.join(failed)}")
    return int(bool(failed) or not report.ok)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"stopped by signal {number}")


def _plain(value: object) -> object:
    return value.name if isinstance(value, Path) else value


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--model", choices=shapes.NAMES, default="kandinsky")
    parser.add_argument(
        "--small", action="store_true", help="tiny shapes, few prompts, on a CPU unless --device is given"
    )
    parser.add_argument("--device", help="default: cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results here, after every row")
    parser.add_argument("--data", type=Path, default=plans.DATA, help="folder of prompts/ and embeddings/")
    parser.add_argument("--sets", type=_list, help=f"prompt sets, of {','.join(plans.FILES)}")
    parser.add_argument("--prompts", type=int, help="only this number of each set")
    parser.add_argument("--batch-size", type=int, help=f"lanes per call; default: {BATCH}")
    parser.add_argument("--steps", type=int, default=None, help="default: 40")
    parser.add_argument("--tau", type=float, default=None, help="default: 1.0")
    parser.add_argument("--lanes", type=_numbers, help=f"denoiser; default: {LANES}")
    parser.add_argument("--modes", type=_list, default=["eager", "graphs"], help="efficiency: eager,graphs,compile")
    parser.add_argument(
        "--variants",
        type=_list,
        default=end_to_end.VARIANTS,
        help=f"end_to_end: what hsd.generate turns on, or published; default: {','.join(end_to_end.VARIANTS)}",
    )
    parser.add_argument(
        "--seconds", type=float, default=None, help="efficiency: largest number of seconds per row; default 8"
    )
    parser.add_argument(
        "--alone", type=float, default=None, help="seconds per measurement of the denoiser; default 0.6"
    )
    parser.add_argument("--trace-calls", type=int, default=20)
    parser.add_argument(
        "--compile-seconds", type=float, default=60, help="compile only if this much of --limit is left"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--limit", type=float, help="seconds; work that may take longer is left out")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, dense in half precision; default: a table")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its kernels, for all sides")
    args = parser.parse_args(words)

    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"no section {name}: there are {', '.join(SECTIONS)}")
    args.sections = [name for name in SECTIONS if name in args.sections or not args.sections]
    small = args.small
    args.device = args.device or ("cpu" if small else "cuda")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --small runs on a CPU")
    defaults = {
        "sets": ["styles", "animals"] if small else SETS[args.model],
        "prompts": 12 if small else None,
        "batch_size": 4 if small else BATCH[args.model],
        "steps": 8 if small else 40,
        "tau": 0.6 if small else 1.0,
        "lanes": [1, 2, 4] if small else LANES[args.model],
        "seconds": 1.0 if small else 8.0,
        "alone": 0.02 if small else 0.6,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in args.sets:
        if name not in plans.FILES:
            parser.error(f"no prompt set {name}: there are {', '.join(plans.FILES)}")
    torch.backends.cudnn.benchmark = args.cudnn_benchmark
    return args


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in _list(text)]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that open contexts are cleaned up
    sys.exit(main())
