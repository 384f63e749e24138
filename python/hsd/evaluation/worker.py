"""Scorers whose packages may not be installable together with HSD; run by an interpreter that has them.

That interpreter runs this file as a script, so it imports nothing of HSD, and imports other packages only in the
functions that use them. It reads one JSON object per line, {"images": [path], "prompts": [text]}, and answers with one,
{"scores": [number]}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

Score = Callable[[Sequence[str], Sequence[str]], Any]

# By scorer: its module, the names of its package in a package index, and its default model.
SCORERS = {
    "vqascore": ("t2v_metrics", ("t2v-metrics",), "clip-flant5-xxl"),
    "hpsv2": ("hpsv2", ("hpsv2x", "hpsv2"), "v2.1"),
    "imagereward": ("ImageReward", ("image-reward",), "ImageReward-v1.0"),
}


def vqascore(model: str, device: str) -> Score:
    """P("Yes" | image, 'Does this figure show "{text}"? Please answer yes or no.'): Lin et al., ECCV 2024."""
    t2v_metrics = import_module("t2v_metrics")

    # The package's default is a folder in the working directory.
    cache = os.environ.get("HF_HUB_CACHE") or os.path.expanduser("~/.cache/huggingface/hub")
    metric = t2v_metrics.VQAScore(model=model, device=device, cache_dir=cache)
    # Calling the metric scores every image with every text; the metric's model scores pairs.
    return lambda images, prompts: metric.model.forward(list(images), list(prompts))


def hpsv2(model: str, device: str) -> Score:
    """Cosine of a CLIP that was trained on human preferences: Wu et al., Human Preference Score v2, 2023."""
    import huggingface_hub
    import PIL.Image
    import torch

    img_score: Any = import_module("hpsv2.img_score")
    hps_version_map = import_module("hpsv2.utils").hps_version_map
    if model not in hps_version_map:
        raise ValueError(f"no HPS {model}: one of {', '.join(hps_version_map)}")
    # hpsv2.score is not used: it reads the checkpoint again at every call, and every call is for one prompt.
    img_score.device = device
    img_score.initialize_model()
    network, preprocess = img_score.model_dict["model"], img_score.model_dict["preprocess_val"]
    path = huggingface_hub.hf_hub_download("xswu/HPSv2", hps_version_map[model])
    checkpoint = torch.load(path, map_location=device, weights_only=True)  # else a file may run code
    network.load_state_dict(checkpoint["state_dict"])
    network.to(device).eval()
    tokenizer = img_score.get_tokenizer("ViT-H-14")

    def score(images: Sequence[str], prompts: Sequence[str]) -> Any:
        pixels = torch.stack([preprocess(PIL.Image.open(path)) for path in images]).to(device)
        with torch.autocast("cuda", enabled=device.startswith("cuda")):  # half precision, as in the package
            out = network(pixels, tokenizer(list(prompts)).to(device))
        return (out["image_features"].float() * out["text_features"].float()).sum(dim=-1)

    return score


def imagereward(model: str, device: str) -> Score:
    """A reward model of human preferences, standardised: Xu et al., ImageReward, NeurIPS 2023."""
    network = import_module("ImageReward").load(model, device=device)
    # The package scores one prompt at a time.
    return lambda images, prompts: [network.score(text, path) for path, text in zip(images, prompts)]  # noqa: B905


LOAD = {"vqascore": vqascore, "hpsv2": hpsv2, "imagereward": imagereward}


def probe(name: str) -> dict[str, Any]:
    """The version of the package, without importing it; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    module, packages, _ = SCORERS[name]
    if importlib.util.find_spec(module) is None:
        return {"version": None}
    for package in packages:
        try:
            return {"version": f"{package} {version(package)}"}
        except PackageNotFoundError:
            pass
    return {"version": f"{module} of unknown version"}


def serve(name: str, model: str, device: str, answer: Callable[[dict[str, Any]], None]) -> None:
    """Load the scorer and answer requests until standard input ends."""
    import torch

    score = LOAD[name](model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        with torch.no_grad():
            scores = score(request["images"], request["prompts"])
        answer({"scores": torch.as_tensor(scores, dtype=torch.float64).flatten().tolist()})


def main() -> None:
    """``worker.py probe NAME`` or ``worker.py serve NAME MODEL DEVICE``; an empty device means CUDA if available."""
    # Answers go to the original standard output. What the packages print goes to standard error instead.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    if sys.argv[1] == "probe":
        answer(probe(sys.argv[2]))
        return
    try:
        name, model, device = sys.argv[2:]
        serve(name, model, device, answer)
    except Exception as error:  # every error is reported to the other process
        answer({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    # Python puts the folder of a script first on the path. Here it would hide packages: clip is also OpenAI's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    main()
