"""The command line: ``hsd generate``, ``plan``, ``bench``, ``check``, ``evaluate`` and ``reproduce``."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from tqdm.auto import tqdm

from .. import __version__
from ..errors import Error
from ..evaluation.scorers import ScorerName
from ..generation.folder import PLAN
from ..names import BatchSize, ExperimentName, ImageFormat, Linkage, Noise, Order, ScheduleName
from ..planning.compile import compile as compile_plan
from ..planning.plan import Plan
from ..planning.prompts import PromptFile, make_seeds, read_prompts
from ..planning.settings import check_settings
from ..planning.summary import duration, plan_summary
from ..work.files import make_folder, write_atomically

app = typer.Typer(
    name="hsd",
    help="Generate large sets of images from text prompts; pay once for the steps that similar prompts share.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Prompts = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        help="A UTF-8 file, one prompt a line, or .jsonl with an object a line (prompt, seed, settings of its own); "
        "'-' for standard input; 'demo' for the built-in set.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Argument(help="demo, a short name, a hub id (org/name) or a folder.", show_default=False)]
ModelOption = Annotated[str, typer.Option("--model", help="demo, a short name, a hub id (org/name) or a folder.")]
Tau = Annotated[
    float | None,
    typer.Option(
        help="How unlike prompts that share a step may be: 0 shares nothing.", show_default="1.0; 0.3 for demo"
    ),
]
Budget = Annotated[
    float | None, typer.Option(help="Instead of --tau: the share of evaluations to save, inside (0, 1).")
]
Steps = Annotated[int, typer.Option(help="Inference steps of the scheduler.")]
Seed = Annotated[int, typer.Option(help="Prompt i gets the seed SEED + i.")]
Images = Annotated[int, typer.Option("--images-per-prompt", help="Different images of each prompt.")]
Lanes = Annotated[int, typer.Option("--batch-size", help="Latents a call of the denoiser.")]
LanesOrAuto = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="INTEGER|auto",
        help="Latents a call of the denoiser; auto measures the model for some seconds and takes the fastest.",
    ),
]
OrderOption = Annotated[Order, typer.Option(help="depth: images early, few latents alive; breadth: fewest calls.")]
MaxSlots = Annotated[int | None, typer.Option(help="At most so many latents alive at once.", show_default="as needed")]
LinkageOption = Annotated[Linkage, typer.Option(help="How clusters are compared.")]
ScheduleOption = Annotated[ScheduleName, typer.Option(help="How the threshold falls to 0 over the steps.")]
NoiseOption = Annotated[Noise, typer.Option(help="A first latent for each root cluster, or one for all.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")]
Negative = Annotated[str | None, typer.Option(help="What the images should not show.", show_default=False)]
Height = Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")]
Width = Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of the model, as often as needed: prior_steps=10, share_prior=true...",
        show_default=False,
    ),
]
ScorerModel = Annotated[
    str | None, typer.Option(help="Another model of the scorer's kind.", show_default="the scorer's")
]
ScorerPython = Annotated[
    str | None,
    typer.Option(help="Interpreter of an environment that has the scorer's package.", show_default="this one"),
]
Device = Annotated[
    str | None, typer.Option(help="Where to run: cuda, cuda:1, cpu...", show_default="cuda if there is one")
]


@app.command()
def generate(
    prompts: Prompts,
    out: Annotated[Path, typer.Option(help="Folder for the images; an interrupted run continues here.")],
    model: ModelOption = "demo",
    tau: Tau = None,
    budget: Budget = None,
    steps: Steps = 40,
    batch_size: LanesOrAuto = "16",
    seed: Seed = 0,
    images_per_prompt: Images = 1,
    linkage: LinkageOption = "ward",
    schedule: ScheduleOption = "linear",
    noise: NoiseOption = "independent",
    order: OrderOption = "depth",
    max_slots: MaxSlots = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    settings: Set = None,
    device: Device = None,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Image files.")] = "png",
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the denoiser through torch.compile: minutes at the start.")
    ] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay the denoiser's weights out channels-last.")
    ] = False,
    cuda_graphs: Annotated[
        bool, typer.Option(help="Replay calls as CUDA graphs, on a GPU where they can be captured.")
    ] = True,
) -> None:
    """Generate an image for every prompt into a folder.

    The folder opens with datasets.load_dataset("imagefolder", data_dir=...). Run the same command again after an
    interruption: only what is missing is made.
    """
    _hush()
    from ..generation.session import generate as run_plan

    lanes = _lanes(batch_size)
    given = _read(prompts)
    seeds = _seeds(given, seed, images_per_prompt)
    make_folder(out)  # before a model is loaded and a prior has run for nothing
    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    adapter = _load(model, device, settings, **common)
    request: dict[str, Any] = {
        "tau": tau,
        "budget": budget,
        "steps": steps,
        "linkage": linkage,
        "schedule": schedule,
        "seeds": seeds,
        "settings": given.settings if any(given.settings) else None,
        "images_per_prompt": images_per_prompt,
        "noise": noise,
    }
    if tau is None and budget is None:
        request["tau"] = adapter.default_tau
    plan = _continued(out, given.prompts, adapter.name, request)
    if plan is None:
        with _Stages() as stages:
            plan = compile_plan(given.prompts, model=adapter, progress=stages, **request)
        typer.echo(plan_summary(plan, None if lanes == "auto" else lanes, _speed(adapter)), err=True)
    with _resumable():
        run = run_plan(
            plan,
            adapter,
            out,
            batch_size=lanes,
            order=order,
            max_slots=max_slots,
            compile=compile,
            cuda_graphs=cuda_graphs,
            channels_last=channels_last,
            image_format=image_format,
        )
    if lanes == "auto" and run.images:
        typer.echo(f"batch size {run.batch_size}, measured in {duration(run.seconds['measure'])}", err=True)
    there = f" ({run.existing:,} were there already)" if run.existing else ""
    typer.echo(f"{run.images:,} images in {run.out}{there}, {duration(run.seconds['total'])}.")
    if run.images:
        typer.echo(
            f"{run.node_steps:,} evaluations of the denoiser instead of {run.standard_node_steps:,}: "
            f"{run.savings:.1%} saved."
        )


@app.command()
def plan(
    prompts: Prompts,
    model: Annotated[
        str | None,
        typer.Option(
            help="Cluster by this model's own embeddings, and estimate its time once a run has measured its speed.",
            show_default="a small offline text encoder",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="A .npy file (N, D) to cluster by instead.", show_default=False)
    ] = None,
    tau: Tau = None,
    budget: Budget = None,
    steps: Steps = 40,
    batch_size: Lanes = 16,
    seed: Seed = 0,
    images_per_prompt: Images = 1,
    linkage: LinkageOption = "ward",
    schedule: ScheduleOption = "linear",
    noise: NoiseOption = "independent",
    device: Device = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan to this file (safetensors).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers for programs.")] = False,
) -> None:
    """Say what a set of prompts would cost, before anything runs."""
    given = _read(prompts)
    adapter = _load(model, device) if model is not None else None
    vectors = None
    if embeddings is not None:
        try:
            vectors = np.load(embeddings, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise Error(f"cannot read {embeddings} as a .npy array: {error}") from None
    with _Stages() as stages:
        result = compile_plan(
            given.prompts,
            tau,
            budget=budget,
            model=adapter,
            embeddings=vectors,
            steps=steps,
            linkage=linkage,
            schedule=schedule,
            seeds=_seeds(given, seed, images_per_prompt),
            settings=given.settings if any(given.settings) else None,
            images_per_prompt=images_per_prompt,
            noise=noise,
            progress=stages,
        )
    if save is not None:
        result.save(save)
    speed = _speed(adapter)
    if as_json:
        typer.echo(json.dumps(_numbers(result, batch_size, speed)))
    else:
        typer.echo(plan_summary(result, batch_size, speed))


@app.command()
def bench(
    model: Model,
    prompts: Prompts = "demo",
    tau: Tau = None,
    budget: Budget = None,
    steps: Steps = 40,
    seed: Seed = 0,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    settings: Set = None,
    device: Device = None,
    seconds: Annotated[float, typer.Option(help="Time to take, about; loading and compiling come on top.")] = 60.0,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Try torch.compile too.", show_default="on CUDA")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to this file too.")
    ] = None,
) -> None:
    """Measure a model on this machine: the denoiser alone, the executor, and images beside diffusers' own pipeline.

    Says which batch size and which switches of hsd generate are the fastest.
    """
    _hush()
    from ..bench.run import bench as run_bench

    given = _read(prompts)
    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    adapter = _load(model, device, settings, **common)
    if any(given.settings):
        typer.echo("hsd: settings of single prompts are left out; --set is for all", err=True)
    report = run_bench(
        adapter,
        given.prompts,
        tau=tau,
        budget=budget,
        steps=steps,
        seeds=_seeds(given, seed, 1),
        seconds=seconds,
        compile=compile,
        say=lambda stage: typer.echo(f"hsd: {stage}", err=True),
    )
    _write_numbers(json_file, report.numbers())
    typer.echo(str(report))


@app.command()
def check(
    model: Model,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Find out on a few prompts whether a model does what sharing relies on: rows and lanes that do not mix."""
    _hush()
    from ..models import check as check_model

    adapter = _load(model, device, settings)
    check_model(adapter)
    typer.echo(f"{adapter.name}: encoding, lanes at different steps, and decoding are as they should be.")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images with a metadata.jsonl.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(help="Another folder with images for the same prompts, to compare with.", show_default=False),
    ] = None,
    scorer: Annotated[ScorerName, typer.Option(help="What scores the images.")] = "demo",
    model: ScorerModel = None,
    device: Device = None,
    python: ScorerPython = None,
    batch_size: Annotated[int, typer.Option(help="Images scored at once.")] = 16,
    samples: Annotated[int, typer.Option(help="Images, drawn at random, whose diversity is measured.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the samples and of the intervals.")] = 0,
    tolerance: Annotated[float, typer.Option(help="Scores that differ by no more are a tie.")] = 1e-6,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the files of scores.", show_default="the folder of images")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to this file too.")
    ] = None,
) -> None:
    """Measure images: how well they show their prompts, how diverse they are, how often they beat those of another run.

    Scores are kept: run the same command again after an interruption, and only what is missing is scored.
    """
    from ..evaluation import evaluate as measure

    if scorer in ("clipscore", "pickscore"):
        _hush()
    with _resumable():
        result = measure(
            folder,
            against=against,
            scorer=scorer,
            model=model,
            device=device,
            python=python,
            batch_size=batch_size,
            samples=samples,
            seed=seed,
            tolerance=tolerance,
            cache=cache,
        )
    _write_numbers(json_file, result.numbers())
    typer.echo(str(result))


@app.command()
def reproduce(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for images and results; an interrupted study continues here.")
    ],
    model: ModelOption = "demo",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Each .txt or .jsonl file in it is a set of prompts.",
            show_default="the demo's four sets",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Run this experiment alone; as often as needed: {', '.join(get_args(ExperimentName))}.",
            show_default="all",
        ),
    ] = None,
    scorer: Annotated[
        ScorerName | None, typer.Option(help="What scores the images.", show_default="demo for demo, else clipscore")
    ] = None,
    scorer_model: ScorerModel = None,
    python: ScorerPython = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many prompts of each set.", show_default="all")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Of Table 1, diversity and families.", show_default="1.0; 0.3 for demo")
    ] = None,
    steps: Steps = 40,
    seed: Seed = 0,
    batch_size: Lanes = 16,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    height: Height = None,
    width: Width = None,
    settings: Set = None,
    device: Device = None,
) -> None:
    """Run the paper's experiments, and those it leaves open, on a model and sets of prompts: tables and figures.

    Says first how many images that takes. Images and scores are kept: run the same command again after an
    interruption, or with other experiments, and only what is missing is made.
    """
    from ..reproduction import reproduce as run_study

    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    make_folder(out)
    with _resumable():
        study = run_study(
            _load(model, device, settings, **common),
            prompts,
            out,
            only=only or None,
            scorer=scorer,
            scorer_model=scorer_model,
            python=python,
            limit=limit,
            tau=tau,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            say=lambda text: typer.echo(f"hsd: {text}", err=True),
        )
    for name, reason in study.skipped.items():
        typer.echo(f"{name} was skipped: {reason}")
    typer.echo(f"{study.report}: {len(study.results)} experiments in {duration(study.seconds)}.")


class _Stages:
    """A bar for each stage of planning, on a terminal; gone when the stage is done."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            form = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
            self._bar = tqdm(total=1.0, desc=stage, bar_format=form, disable=None, leave=False)
        self._bar.update(fraction - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numbers(plan: Plan, batch_size: int, speed: float | None) -> dict[str, Any]:
    program = plan.program(batch_size)
    return {
        "prompts": plan.n_prompts,
        "steps": plan.n_steps,
        "tau": plan.tau,
        "node_steps": plan.node_steps,
        "standard_node_steps": plan.standard_node_steps,
        "savings": plan.savings,
        "active": plan.counts().tolist(),
        "batch_size": batch_size,
        "calls": program.n_calls,
        "calls_lower_bound": program.lower_bound,
        "occupancy": program.occupancy,
        "slots": program.n_slots,
        "seconds": None if speed is None else speed * plan.node_steps,
    }


def _read(source: str) -> PromptFile:
    if source == "demo" and not Path(source).exists():
        from ..demo import PROMPTS

        return read_prompts(PROMPTS)
    return read_prompts(source)


def _seeds(given: PromptFile, seed: int, images_per_prompt: int) -> int | list[int]:
    """The file's seeds where it has any, else ``seed + i``."""
    if all(own is None for own in given.seeds):
        return seed
    if images_per_prompt > 1:
        raise ValueError(f"--images-per-prompt {images_per_prompt} with seeds in the file: repeat lines instead")
    return [seed + i if own is None else own for i, own in enumerate(given.seeds)]


def _lanes(batch_size: str) -> BatchSize:
    """``--batch-size`` of generate."""
    if batch_size == "auto":
        return "auto"
    try:
        return int(batch_size)
    except ValueError:
        raise ValueError(f"--batch-size is {batch_size!r}: an integer, or auto") from None


def _parse(settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE as names and values: JSON where it is JSON, else text."""
    out: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {item}: write NAME=VALUE")
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def _load(model: str, device: str | None, settings: list[str] | None = None, **common: Any) -> Any:
    """A model with what ``--set`` says, and the options of their own that were given."""
    _hush()
    from ..models import load

    own = {**common, **_parse(settings or [])}
    return load(model, device=device, **{name: value for name, value in own.items() if value is not None})


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """What is done is kept when Ctrl-C ends it, and the exit code is the shell's for that."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("hsd: interrupted; run the same command again to continue", err=True)
        raise typer.Exit(130) from None


def _write_numbers(path: Path | None, numbers: dict[str, Any]) -> None:
    """To the file of ``--json``, if there is one."""
    if path is not None:
        write_atomically(path, (json.dumps(numbers, indent=1) + "\n").encode())


def _hush() -> None:
    """Keep the libraries' notices and loading bars out of the output; downloads still show theirs."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about what its users import
    import diffusers
    import transformers

    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _speed(adapter: Any) -> float | None:
    if adapter is None:
        return None
    from ..tuning.speeds import recall

    return recall(adapter)


def _continued(out: Path, texts: list[str], encoder: str, request: dict[str, Any]) -> Plan | None:
    """The plan of an earlier run into ``out``, if the same was asked for: it need not be made again."""
    if not (out / PLAN).is_file():
        return None
    plan = Plan.load(out / PLAN)
    asked = dict(request)
    repeats = asked["images_per_prompt"]
    prompts = [text for text in texts for _ in range(repeats)]
    seeds = make_seeds(asked.pop("seeds"), len(prompts))
    values, which = check_settings(asked.pop("settings"), len(texts))
    if asked["budget"] is not None:
        asked.pop("tau")  # found from the budget
    same = all(plan.request.get(name) == value for name, value in asked.items())
    same = same and plan.request.get("encoder") == encoder
    same = same and plan.prompts == prompts and np.array_equal(plan.seeds, seeds)
    same = same and plan.settings == values and np.array_equal(plan.setting, np.repeat(which, repeats))
    return plan if same else None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hsd {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: HSD's errors and bad arguments become one line on standard error, and exit code 1."""
    try:
        app()
    except (Error, ValueError, TypeError) as error:
        typer.echo(f"hsd: {error}", err=True)
        sys.exit(1)
