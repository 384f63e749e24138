"""Scorers of evaluation: against transformers' CLIP, and with replacements for packages in another Python."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch

import hsd
import tiny
from evaluate_cases import PROMPTS, lines, write
from hsd.evaluation import ScorerError
from hsd.evaluation.clip import ClipScore, PickScore
from hsd.evaluation.external import ExternalScorer


def test_the_demo_scorer(tmp_path):
    write(tmp_path, ["a red star", "a picture of my cat"])
    found = hsd.evaluate(tmp_path, progress=False)
    assert found.scorer == "demo"
    assert (found.measured.fidelity.images, found.measured.fidelity.unscored) == (1, 1)
    assert 0 <= found.measured.fidelity.mean <= 1
    assert found.measured.diversity.sample.images == 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP with random weights, as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny.parts.clip_tokenizer()
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**common, "vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1},
        vision_config={**common, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures():
    rng = np.random.default_rng(5)
    return [PIL.Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def test_clip_scores_are_those_of_transformers(clip, pictures):
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    prompts = ["a red star", "a blue ring " * 30, "x"]
    model = CLIPModel.from_pretrained(clip)
    tokens = CLIPTokenizer.from_pretrained(clip)(prompts, padding=True, truncation=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(pictures, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    picked = out.logits_per_image.diagonal().numpy()
    cosines = picked / model.logit_scale.exp().item()
    ours, theirs = ClipScore(str(clip)), PickScore(str(clip))
    assert np.allclose(theirs.score(pictures, prompts), picked, atol=1e-5)
    assert np.allclose(ours.score(pictures, prompts), 2.5 * np.maximum(cosines, 0), atol=1e-6)
    assert np.allclose(ours.embed(pictures), out.image_embeds.numpy(), atol=1e-6)
    # A score does not depend on the other images of the batch.
    single = [ours.score([picture], [prompt])[0] for picture, prompt in zip(pictures, prompts, strict=True)]
    assert np.allclose(single, ours.score(pictures, prompts), atol=1e-6)
    assert str(clip) in ours.version
    assert ours.version != theirs.version


def test_clipscore_by_name(clip, tmp_path):
    found = hsd.evaluate(write(tmp_path), scorer="clipscore", model=str(clip), device="cpu", progress=False)
    assert found.scorer == "clipscore"
    assert found.measured.diversity.sample.images == 5
    assert len(lines(tmp_path, "clipscore")) == 5


@pytest.mark.parametrize("name", ["clipscore", "pickscore"])
def test_models_that_cannot_be_loaded(tmp_path, name):
    with pytest.raises(ScorerError, match=f"{name} cannot load .*nothing"):
        hsd.evaluate(write(tmp_path), scorer=name, model=str(tmp_path / "nothing"), device="cpu", progress=False)


STUBS = {
    "t2v_metrics/__init__.py": """
        import torch
        print("noise on standard output")

        class VQAScore:
            def __init__(self, model, device, cache_dir):
                print("loading", model, device)
                self.model = self
                if model == "broken":
                    raise RuntimeError("no weights")

            def forward(self, images, texts):
                if "die" in texts:
                    import os
                    os._exit(3)
                return torch.tensor([len(t) / 100 for t in texts], dtype=torch.bfloat16)
        """,
    "ImageReward/__init__.py": """
        import os
        assert not any(os.path.exists(os.path.join(p, "worker.py")) for p in __import__("sys").path)

        def load(name, device):
            return Model()

        class Model:
            def score(self, prompt, image):
                from PIL import Image
                return float(Image.open(image).size[0]) - len(prompt)
        """,
    "hpsv2/__init__.py": "",
    "hpsv2/utils.py": 'hps_version_map = {"v2.1": "weights.pt"}',
    "hpsv2/img_score.py": """
        import numpy as np, torch
        model_dict, device = {}, None

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.zeros(()))

            def forward(self, pixels, text):
                return {"image_features": pixels.mean((1, 2)) * self.scale, "text_features": text}

        def initialize_model():
            assert device == "cpu"
            model_dict["model"] = Model()
            model_dict["preprocess_val"] = lambda image: torch.tensor(np.asarray(image) / 255.0)

        def get_tokenizer(name):
            return lambda texts: torch.tensor([[1.0 * ("red" in t), 1.0 * ("green" in t), 0.0] for t in texts])
        """,
    "huggingface_hub/__init__.py": """
        import os, torch
        def hf_hub_download(repo, name):
            path = os.path.join(os.path.dirname(__file__), name)
            torch.save({"state_dict": {"scale": torch.tensor(2.0)}}, path)
            return path
        """,
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Packages with the used part of the real ones' interface, written from the source of their releases."""
    for name, source in STUBS.items():
        path = tmp_path / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    return sys.executable


def test_scores_from_another_python(tmp_path, stubs, monkeypatch):
    folder = write(tmp_path / "images")
    prompts = np.array([len(p) for p in PROMPTS])
    found = hsd.evaluate(folder, scorer="vqascore", python=stubs, device="cpu", batch_size=2, progress=False)
    assert found.version == "t2v_metrics of unknown version, clip-flant5-xxl"
    assert found.measured.fidelity.mean == pytest.approx((prompts / 100).mean(), abs=1e-3)
    assert found.measured.diversity is None
    found = hsd.evaluate(folder, scorer="imagereward", python=stubs, device="cpu", progress=False)
    assert found.measured.fidelity.mean == pytest.approx(8 - prompts.mean())
    found = hsd.evaluate(folder, scorer="hpsv2", python=stubs, device="cpu", progress=False)
    red, green = (np.asarray(PIL.Image.open(folder / f"0000{i}.png"))[0, 0, i // 2] / 255 * 2 for i in (0, 2))
    assert found.measured.fidelity.mean == pytest.approx((red + green) / 5)
    monkeypatch.setattr(ExternalScorer, "score", lambda *_: pytest.fail("all images have scores"))
    hsd.evaluate(folder, scorer="hpsv2", python=stubs, device="cpu", progress=False)


@pytest.mark.parametrize("name", ["vqascore", "hpsv2", "imagereward"])
def test_the_error_names_what_to_install(tmp_path, name):
    says = {
        "vqascore": r"needs the package t2v-metrics, .*ENV/bin/pip install t2v-metrics.*--python ENV/bin/python",
        "hpsv2": r'needs the package hpsv2x, .*pip install "hsd-diffusion\[hpsv2\]"',
        "imagereward": r"needs the package image-reward, .*ENV/bin/pip install image-reward.*--python ENV/bin/python",
    }[name]
    with pytest.raises(ScorerError, match=says):
        hsd.evaluate(write(tmp_path), scorer=name)


def test_failures_in_another_python(tmp_path, stubs, capfd):
    broken = ExternalScorer("vqascore", model="broken", device="cpu", python=stubs)
    picture = PIL.Image.new("RGB", (4, 4))
    with pytest.raises(ScorerError, match="vqascore failed in .*RuntimeError: no weights"):
        broken.score([picture], ["a"])
    assert "Traceback" in capfd.readouterr().err
    scorer = ExternalScorer("vqascore", device="cpu", python=stubs)
    assert scorer.score([picture], ["aa"]) == pytest.approx([0.02], abs=1e-3)
    with pytest.raises(ScorerError, match="it ended without an answer"):
        scorer.score([picture], ["die"])
    assert scorer.score([picture], ["a"]) == pytest.approx([0.01], abs=1e-3)  # started again
    process = scorer._process
    scorer.close()
    assert process.poll() == 0
    scorer.close()
    not_python = tmp_path / "python"
    not_python.write_text("#!/bin/sh\necho no >&2\n")
    not_python.chmod(0o755)
    with pytest.raises(ScorerError, match="not a Python that can run vqascore: no"):
        ExternalScorer("vqascore", python=str(not_python))
