"""``benches/clustered_by.py``: it counts correctly, and finds the vectors that say most."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import hsd
import tiny
from helpers import encoded, rows_of

BENCHES = Path(__file__).resolve().parents[1] / "benches"
sys.path.insert(0, str(BENCHES))

import clustered_by  # noqa: E402

PROMPTS = ["a cat", "a cat on a mat", "two birds", "the sea at night, in oil", "a much longer prompt about a dog"]


def test_rank_correlation_is_scipys():
    random = np.random.default_rng(0)
    a = random.integers(0, 6, 40).astype(float)  # ties
    b = a + random.normal(size=40).round()
    assert clustered_by.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_dissimilarities_order_pairs_as_scipys_do():
    vectors = np.random.default_rng(0).normal(size=(9, 4)) + 2.0
    ours = clustered_by.dissimilarities(vectors)
    pairs = scipy.spatial.distance.pdist
    expected = {
        "cosine": pairs(vectors, "cosine"),
        "centred": pairs(vectors - vectors.mean(0), "cosine"),
        "euclidean": pairs(vectors),
    }
    for metric, theirs in expected.items():
        assert clustered_by.spearman(ours[metric], theirs) == pytest.approx(1.0, abs=1e-12)


def test_tokens_of_each_encoder():
    """Of SDXL: the own tokens are those before the padding, and the channels those of the encoder."""
    model = hsd.load(tiny.sdxl(), height=64, width=64)
    conditioning = encoded(model, PROMPTS, range(5))
    found = clustered_by.candidates(model, conditioning, PROMPTS, np.arange(5))
    tokens = rows_of(conditioning, "prompt_embeds")  # [77, D] each
    width = model.pipe.text_encoder.config.hidden_size
    length = len(model.pipe.tokenizer(PROMPTS[1]).input_ids)
    own = tokens[1][:length, width:].double().numpy()
    name = "prompt_embeds, second CLIP, "
    np.testing.assert_allclose(found[f"{name}mean of own tokens"][1], own.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[f"{name}last own token"][1], own[-1])
    np.testing.assert_allclose(
        found["prompt_embeds, mean of all tokens"][1], tokens[1].double().numpy().mean(0), rtol=1e-5, atol=1e-6
    )
    assert found[clustered_by.NOW].shape[0] == 5
    assert "text_embeds" not in found, "it is what the family is clustered by"


def test_outputs_are_of_one_latent():
    """The network gets the same latent for each prompt, and the prompt's own conditioning."""
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32)
    conditioning = encoded(model, PROMPTS, range(5))
    seen = []
    denoise = model.denoise
    model.__dict__["denoise"] = lambda *given: seen.append(given) or denoise(*given)
    found = clustered_by.outputs(model, conditioning, 4)
    assert list(found) == [0, 1, 2, 3]
    for latents, timestep, rows in seen[::2]:  # each is followed by that of the mean
        assert len(latents) == 5
        assert torch.equal(latents, latents[:1].expand_as(latents))
        assert len(set(timestep.tolist())) == 1
        assert torch.equal(rows["prompt_embeds"], torch.stack(rows_of(conditioning, "prompt_embeds")))


def test_the_command(tmp_path, capsys):
    words = [
        "--models",
        "--families",
        "qwen-image",
        "--prompts",
        "6",
        "--steps",
        "3",
        "--json",
        str(tmp_path / "a.json"),
    ]
    clustered_by.main(words)
    (result,) = json.loads((tmp_path / "a.json").read_text())["results"]
    assert (result["model"], result["trained"], result["evaluations"]) == ("qwen-image", False, [0, 1, 2])
    by = result["correlations"]
    assert {clustered_by.NOW, "prompt_embeds, last token", "built-in encoder", "random"} <= set(by)
    assert all(-1.0 <= value <= 1.0 for metrics in by.values() for values in metrics.values() for value in values)
    printed = capsys.readouterr().out
    assert "random weights" in printed
    assert len(printed.splitlines()) >= len(by) + 3
