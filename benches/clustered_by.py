"""What prompts are clustered by: which vector of theirs says best how differently the denoiser answers to them.

    python benches/clustered_by.py [--models demo] [--families flux ...] [--prompts 120] [--steps 40] [--json FILE]

At some steps of a run each prompt is evaluated on the same latent, guided as by default: the latent that a run reaches
which is conditioned on the mean of all prompts, as a shared step is. The distances of the outputs, for all pairs of
prompts, are compared with the dissimilarities of the prompts' vectors by Spearman's rank correlation, since a tree
depends on their order: 1 where the vectors order all pairs as the outputs do, 0 where they say nothing about them. The
first evaluation counts most: whatever shares any step shares it. Later, only similar prompts still share a latent, and
that of all prompts together is one that no run comes by.

The vectors are what the family is clustered by, and everything that a text encoder gives: pooled vectors, the mean of
all tokens, that of the prompt's own tokens (without padding), the last of them, and each encoder alone. Baselines: the
encoder that HSD clusters by without a model, and random vectors. Of trained models, the bench also fits a map to each
vector, as `hsd calibrate` does to the first one, and prints its correlation with the first predictions of prompts that
it was not fitted to.

Models (`--models`: names or folders, as for `hsd.load`) are trained, and their numbers mean something. The families are
those of tests/families, with random weights and fewer prompts and steps: they show that all of this can be measured,
and nothing about the released models.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hsd
from hsd.calibration.fit import distances, fit, pearson
from hsd.conditioning.rows import Conditioning
from hsd.demo import PROMPTS
from hsd.models import Adapter, Batch
from hsd.models.base import batches
from hsd.models.encode import encode
from hsd.planning.encoders import default_encoder
from hsd.probing.direct import direct_vectors
from hsd.prompts.files import read_prompts
from hsd.replay.denoiser import step_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from families import FAMILIES

FRACTIONS = (0.0, 0.125, 0.25, 0.5, 0.75)
"""Where in a run the prompts are evaluated."""

METRICS = ("cosine", "centred", "euclidean")
NOW = "clustered by"

BATCH, SMALL_PROMPTS, SMALL_STEPS = 16, 24, 8

Vectors = NDArray[np.float64]


# ------------------------------------------------------------------------------------------- what the denoiser answers


def outputs(model: Adapter, conditioning: Conditioning, steps: int) -> dict[int, Vectors]:
    """By evaluation, (N, M): what the denoiser gives for each prompt on one and the same latent.

    Networks that read padding get one prompt a call, so that each has its own length, as in a run.
    """
    everyone = np.arange(conditioning.n_prompts)
    table = model.sampler(steps).to("cpu", torch.float32)
    common, own = replace(conditioning, padded=not model.one_length).split(everyone)
    wanted = {min(int(fraction * table.n_steps), table.n_steps - 1) for fraction in FRACTIONS}
    size = 1 if model.one_length else BATCH
    found: dict[int, Vectors] = {}

    def evaluate(lanes: list[NDArray[np.int64]], k: int, given: Tensor) -> tuple[Tensor, Tensor | None]:
        """The denoiser's answer to each of some clusters of prompts."""
        n, step = len(lanes), torch.full((len(lanes),), k)
        means = [own.mean(members) for members in lanes]
        rows = {name: row.expand(n, *row.shape[1:]) for name, row in common.items()}
        rows |= {name: torch.stack([mean[name] for mean in means]) for name in means[0]}
        if model.reads_steps:
            rows |= step_rows(table.timesteps, step)
        return model.denoise(given.expand(n, *given.shape[1:]), table.timesteps[step], rows)

    with model.running():
        latent = model.first_noise(model.generator(0)).float() * table.init_noise_sigma
        state = torch.zeros(1, table.n_state, *latent.shape[1:])
        state[:, 0] = latent
        for k in range(max(wanted) + 1):
            step = torch.tensor([k])
            given = table.model_input(state, step) if model.scales_input else state[:, 0]
            if k in wanted:
                lanes = [everyone[i : i + 1] for i in everyone]
                answers = [evaluate(lanes[part], k, given)[0] for part in batches(len(lanes), size)]
                found[k] = torch.cat(answers).flatten(1).double().numpy()
            output, variance = evaluate([everyone], k, given)
            noise = torch.zeros(1, table.n_noise, *latent.shape[1:])
            state = table.update(state, output, noise, step, variance)
    return found


# ------------------------------------------------------------------------------------------- the vectors


def candidates(model: Adapter, conditioning: Conditioning, prompts: list[str], seeds: Any) -> dict[str, Vectors]:
    """By name, (N, D): what N prompts could be clustered by."""
    found = {NOW: conditioning.vectors.astype(np.float64)}
    fields = {name: [field.rows[int(i)] for i in field.index] for name, field in conditioning.fields.items()}
    prior = model.prior()
    if prior is not None:
        encoded = prior.encode(Batch(prompts, seeds))
        fields |= {f"the prior's {name}": list(rows) for name, rows in encoded.rows.items()}
        found["the prior's text"] = encoded.vectors.double().numpy()
    for name, rows in fields.items():
        if all(torch.equal(row, rows[0]) for row in rows[1:]):
            continue  # the same for all prompts
        if rows[0].ndim == 1:
            found[name] = stacked(rows)
        elif rows[0].ndim > 1:
            found |= {f"{name}, {which}": vectors for which, vectors in of_tokens(model, name, rows, prompts)}
    different: dict[str, Vectors] = {}
    for name, vectors in found.items():
        if not any(same(vectors, other) for other in different.values()):
            different[name] = vectors
    return different


def of_tokens(model: Adapter, name: str, rows: list[Tensor], prompts: list[str]) -> Iterator[tuple[str, Vectors]]:
    """Vectors (N, D) of tokens (L, ...) each, or (L_i, ...) without padding; two states of a token are side by side."""
    rows = [row.flatten(1) for row in rows]
    if len({len(row) for row in rows}) > 1 or name.startswith("the prior's"):
        yield "mean of all tokens", stacked([row.float().mean(0) for row in rows])
        yield "last token", stacked([row[-1] for row in rows])
        return
    for label, tokens, channels, tokenizer in encoders(model, rows[0].shape[1]):
        part = [row[tokens, channels] for row in rows]
        yield f"{label}mean of all tokens", stacked([row.float().mean(0) for row in part])
        if tokenizer is None:
            continue
        # CLIP and T5 put padding behind the text, and their tokenizers count the token that ends it.
        lengths = [min(len(ids), len(row)) for ids, row in zip(tokenizer(prompts).input_ids, part, strict=True)]
        own = [row[:length] for row, length in zip(part, lengths, strict=True)]
        yield f"{label}mean of own tokens", stacked([row.float().mean(0) for row in own])
        yield f"{label}last own token", stacked([row[-1] for row in own])


def encoders(model: Adapter, width: int) -> list[tuple[str, slice, slice, Any]]:
    """Which tokens and channels of a fixed number of tokens are which encoder's, and its tokenizer.

    The whole comes first, without a tokenizer where there are several encoders. A tokenizer whose encoder is neither
    CLIP nor T5 is left out: their texts stand inside of instructions, which the family's adapter has to know.
    """
    pipe, every = model.pipes()[-1], slice(None)
    if model.name == "flux":
        return [("", every, every, pipe.tokenizer_2)]
    if model.name in ("sdxl", "stable-diffusion-xl", "sd-3", "stable-diffusion-3"):
        first = pipe.text_encoder.config.hidden_size
        both = first + pipe.text_encoder_2.config.hidden_size
        clip = slice(77) if "3" in model.name else every
        parts = [
            ("", every, every, None),
            ("first CLIP, ", clip, slice(first), pipe.tokenizer),
            ("second CLIP, ", clip, slice(first, both), pipe.tokenizer_2),
        ]
        return parts + ([("T5, ", slice(77, None), every, pipe.tokenizer_3)] if "3" in model.name else [])
    encoder = getattr(pipe, "text_encoder", None)
    plain = type(encoder).__name__.startswith(("CLIP", "T5"))
    return [("", every, every, pipe.tokenizer if plain else None)]


def stacked(rows: list[Tensor]) -> Vectors:
    return torch.stack([row.flatten() for row in rows]).double().numpy()


def same(a: Vectors, b: Vectors) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


# ------------------------------------------------------------------------------------------- how well they agree


def dissimilarities(vectors: Vectors) -> dict[str, Vectors]:
    """By metric, (N (N - 1) / 2,): cosine distances, those after the mean was taken off, and Euclidean distances."""
    centred = vectors - vectors.mean(0)
    # The Euclidean distance of directions orders pairs as their cosine does.
    return {
        "cosine": distances(directions(vectors)),
        "centred": distances(directions(centred)),
        "euclidean": distances(centred),
    }


def directions(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def spearman(a: Vectors, b: Vectors) -> float:
    """Spearman's rank correlation; ties have their mean rank."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Vectors) -> Vectors:
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2.0


# ------------------------------------------------------------------------------------------- one model


@torch.no_grad()
def measured(model: Adapter, prompts: list[str], steps: int, *, trained: bool) -> dict[str, Any]:
    """The table of one model: by vector and metric, the correlation at each step."""
    seeds = np.arange(len(prompts))
    conditioning = encode([model], np.zeros(len(prompts), np.int64), prompts, seeds)
    answers = {k: distances(values - values.mean(0)) for k, values in outputs(model, conditioning, steps).items()}
    # Outputs that differ by less than a float32 can tell order nothing.
    answers = {k: values for k, values in answers.items() if values.max() > 0.0}
    vectors = candidates(model, conditioning, prompts, seeds)
    vectors["built-in encoder"] = np.asarray(default_encoder()(prompts), dtype=np.float64)
    vectors["random"] = np.random.default_rng(0).normal(size=(len(prompts), 64))
    table = {name: dissimilarities(values) for name, values in vectors.items()}
    fitted: dict[str, float] = {}
    if trained:
        probed = direct_vectors([model], np.zeros(len(prompts), np.int64), conditioning).astype(np.float64)
        table["direct (each prompt probed)"] = {"euclidean": distances(probed - probed.mean(0))}
        fitted = {name: round(fit(values, probed).correlation, 4) for name, values in vectors.items()}
    if model.calibration is not None:
        mapped = model.calibration.transform(conditioning.vectors).astype(np.float64)
        table["calibrated"] = {"euclidean": distances(mapped - mapped.mean(0))}
    return {
        "model": model.name,
        "trained": trained,
        "prompts": len(prompts),
        "evaluations": sorted(answers),
        "of": model.sampler(steps).n_steps,
        "fitted": fitted,
        "correlations": {
            name: {
                metric: [round(spearman(given, answers[k]), 4) for k in sorted(answers)] for metric, given in by.items()
            }
            for name, by in table.items()
        },
    }


def printed(result: dict[str, Any]) -> str:
    """A model's table: each metric at the first evaluation, and the metric that is best there at all of them."""
    weights = "trained" if result["trained"] else "random weights: they say nothing about the released model"
    at = "".join(f"{k:>7}" for k in result["evaluations"])
    head = f"\n{result['model']} ({weights}), {result['prompts']} prompts, evaluations of {result['of']}"
    lines = [head, f"{'':52}" + "".join(f"{metric:>10}" for metric in METRICS) + f"   best at{at}"]

    def best(by: dict[str, list[float]]) -> list[float]:
        return max(by.values(), key=lambda values: values[0])

    for name, by in sorted(result["correlations"].items(), key=lambda item: -best(item[1])[0]):
        first = "".join(f"{by[metric][0]:>10.2f}" if metric in by else f"{'':10}" for metric in METRICS)
        lines.append(f"{name:52}{first}{'':10}" + "".join(f"{value:>7.2f}" for value in best(by)))
    if result["fitted"]:
        lines.append("a map fitted to it, and the predictions of prompts that were left out:")
        lines += [f"{name:52}{value:>10.2f}" for name, value in sorted(result["fitted"].items(), key=lambda x: -x[1])]
    return "\n".join(lines)


def models(args: argparse.Namespace) -> Iterator[tuple[Adapter, int, int, bool]]:
    """Each model, its numbers of prompts and steps, and whether it is trained."""
    for name in args.models:
        yield hsd.load(name), args.prompts, args.steps, True
    for family in FAMILIES:
        if family.name in args.families:
            model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
            yield model, min(args.prompts, SMALL_PROMPTS), min(args.steps, SMALL_STEPS), False


def main(words: list[str] | None = None) -> None:
    names = [family.name for family in FAMILIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["demo"])
    parser.add_argument("--families", nargs="*", choices=names, default=names, metavar="FAMILY")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    prompts = read_prompts(PROMPTS).prompts
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {platform.machine()}")
    results, start = [], time.perf_counter()
    for model, count, steps, trained in models(args):
        results.append(measured(model, prompts[:count], steps, trained=trained))
        print(printed(results[-1]), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        document = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "results": results,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
