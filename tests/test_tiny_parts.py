"""The parts of the tiny pipelines: tokenizers, image decoders, and that they are saved and loaded as others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import tiny

BUILDERS = [tiny.stable_diffusion, tiny.sdxl, tiny.sd3, tiny.flux, tiny.pixart_sigma, tiny.flux2, tiny.z_image]
SCALED = [build for build in BUILDERS if build is not tiny.flux2]  # which has statistics instead: test_flux2.py
TEXT = "Zwölf 猫, two  spaces"


def call(pipeline: Any, height: int = 64, width: int = 64, **arguments: Any) -> Any:
    if "PixArt" in type(pipeline).__name__:
        arguments["use_resolution_binning"] = False
    generator = torch.Generator().manual_seed(0)
    size = {"height": height, "width": width, "num_inference_steps": 4}
    return pipeline(prompt="a cat", generator=generator, **size, **arguments).images


def test_t5_reads_one_token_a_byte() -> None:
    tokenizer = tiny.t5_tokenizer()
    ids = tokenizer(TEXT).input_ids
    assert len(ids) == len(TEXT.encode()) + 1
    assert ids[-1] == tokenizer.eos_token_id
    assert max(ids) < tiny.sd3().text_encoder_3.config.vocab_size


def test_qwen_reads_one_token_a_byte_between_its_chat_tokens() -> None:
    tokenizer = tiny.qwen_tokenizer()
    assert len(tokenizer(TEXT).input_ids) == len(TEXT.encode())
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], tokenize=False, add_generation_prompt=True
    )
    assert chat == f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    frame = len("user\n") + len("\n") + len("assistant\n") + 3
    ids = tokenizer(chat).input_ids
    assert len(ids) == len(TEXT.encode()) + frame
    assert max(ids) < tiny.z_image().text_encoder.config.vocab_size


def test_mistral_reads_one_token_a_byte_between_its_control_tokens() -> None:
    tokenizer = tiny.mistral_tokenizer()
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("system", "be"), ("user", TEXT))
    ]
    inputs = tokenizer.apply_chat_template(
        [chat], tokenize=True, return_dict=True, return_tensors="pt", padding="max_length", max_length=100
    )
    assert tokenizer.decode(inputs["input_ids"][0]).endswith(
        f"<pad><s>[SYSTEM_PROMPT]be[/SYSTEM_PROMPT][INST]{TEXT}[/INST]"
    )
    assert inputs["attention_mask"].sum() == len(TEXT.encode()) + len("be") + 5
    assert len(tokenizer) == tiny.flux2().text_encoder.config.text_config.vocab_size


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 48)])
def test_images_have_the_size_that_was_asked_for(build: Any, height: int, width: int) -> None:
    images = call(build(), height, width, output_type="np")
    assert images.shape == (1, height, width, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.05


@pytest.mark.parametrize("build", SCALED)
def test_a_missing_scale_or_shift_shows_in_the_image(build: Any) -> None:
    pipeline = build()
    image = call(pipeline, output_type="np")
    vae = pipeline.vae
    for name, neutral in (("scaling_factor", 1.0), ("shift_factor", 0.0)):
        if getattr(vae.config, name) is None:
            continue
        stored = getattr(vae.config, name)
        vae.register_to_config(**{name: neutral})
        assert np.abs(image - call(pipeline, output_type="np")).mean() > 0.02, name
        vae.register_to_config(**{name: stored})


@pytest.mark.parametrize("build", BUILDERS)
def test_saved_pipelines_load_to_the_same(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing is to be asked of the network"))
    pipeline = build()
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipeline)
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            assert getattr(loaded, name)(TEXT).input_ids == tokenizer(TEXT).input_ids
    before, after = (call(each, output_type="latent") for each in (pipeline, loaded))
    # Not to the bit: loaded weights lie elsewhere in memory, and matrix products may round by their alignment.
    assert (before - after).norm() < 1e-4 * before.norm()
