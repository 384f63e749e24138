"""``hsd check``."""

from __future__ import annotations

from . import options as opt
from .console import print_result, quiet


def check(
    model: opt.Model, settings: opt.Settings = None, device: opt.Device = None, as_json: opt.Json = False
) -> None:
    """Check on a few prompts that a model can share steps: the images of one call do not influence each other.

    Also says whether its calls can be captured as CUDA graphs, which needs no GPU.
    """
    quiet()
    from ..models import check as check_model

    adapter = opt.load(model, device, settings)
    graphs = check_model(adapter)
    correct = f"{adapter.name}: encoding, lanes at different steps, and decoding are correct."
    print_result(f"{correct}\nCUDA graphs: {graphs}", {"model": adapter.name, "cuda_graphs": str(graphs)})
