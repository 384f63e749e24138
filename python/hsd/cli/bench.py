"""``hsd bench``."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from ..names import Quantization
from . import options as opt
from .console import print_result, quiet, say


@opt.takes_prompts(default="demo")
def bench(
    model: opt.Model,
    source: opt.Source,
    tau: opt.Tau = None,
    budget: opt.Budget = None,
    steps: opt.Steps = 40,
    seed: opt.Seed = 0,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = None,
    height: opt.Height = None,
    width: opt.Width = None,
    settings: opt.Settings = None,
    device: opt.Device = None,
    seconds: Annotated[
        float, typer.Option(help="Time to measure, approximately, without loading and compiling the model.")
    ] = 60.0,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Try torch.compile too.", show_default="on CUDA")
    ] = None,
    fuse_qkv: Annotated[
        bool, typer.Option("--fuse-qkv", help="Try attention with query, key and value in one product too.")
    ] = False,
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(get_args(Quantization)),
            help="Try linear layers in 8 bits too, by torchao; may be repeated. int8, float8: stored so; with "
            "-dynamic: multiplied so too. A network is timed only if its output stays within 5 %.",
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Measure a model on this machine: the denoiser by itself, the executor, and images compared with diffusers.

    Prints which batch size and which options of hsd generate are the fastest. --fuse-qkv and --quantize try changes of
    the network for which hsd generate has no option, and print the Python lines for them.
    """
    quiet()
    from ..bench.run import bench as run_bench

    file = opt.read(source)
    common = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "height": height, "width": width}
    adapter = opt.load(model, device, settings, **common)
    if any(file.settings):
        say("settings of single prompts are left out; --set is for all prompts")
    report = run_bench(
        adapter,
        file.prompts,
        tau=tau,
        budget=budget,
        steps=steps,
        seeds=file.seeds_from(seed),
        seconds=seconds,
        compile=compile,
        fuse_qkv=fuse_qkv,
        quantize=quantize or (),
        say=say,
    )
    say("these speeds are kept: hsd plan and hsd generate estimate times by them")
    print_result(str(report), report.numbers())
