"""NaN and infinity in latents and pixels, a decoder that raises, a safety checker: no image is wrong in silence."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import hsd
import tiny
from families import FAMILIES
from hsd.generation.decoding import Decoded, Decoder, Undecoded
from hsd.generation.pixels import finite_rows, watching
from hsd.models import Pictures
from hsd.models.precision import in_float32
from hsd.replay.executor import Finished

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def sd():
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)


def finished(adapter, n, start=0):
    """``n`` latents of pure noise, as if they were finished."""
    generators = [adapter.generator(seed) for seed in range(start, start + n)]
    return [Finished(i, adapter.first_noise(g).float(), g) for i, g in enumerate(generators)]


def decoded(adapter, batch, size=8):
    with Decoder(adapter, size, threaded=False) as decoder:
        return decoder.put(batch) + decoder.rest()


def pixels(images):
    return {image.index: image.pil.tobytes() for image in images if isinstance(image, Decoded)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_latent_that_is_not_finite_is_no_image_and_harms_no_other(sd, value):
    good, batch = finished(sd, 4), finished(sd, 4)
    batch[1].latent[0, 2, 1, 1] = value
    images = decoded(sd, batch)
    assert images[1] == Undecoded(1, "denoise", "the latent has NaN or infinite values")
    assert pixels(images) == {i: data for i, data in pixels(decoded(sd, good)).items() if i != 1}  # byte for byte


def test_nothing_is_decoded_where_no_latent_is_finite(sd, monkeypatch):
    batch = finished(sd, 2)
    for each in batch:
        each.latent.fill_(float("nan"))
    monkeypatch.setattr(type(sd), "decode", lambda *_: pytest.fail("decoded"))
    assert [image.stage for image in decoded(sd, batch)] == ["denoise", "denoise"]


def overflowing(network, monkeypatch, value, dtype_of=None):
    """The output of a network gets ``value`` in its second row, as long as the weights have ``dtype_of``."""
    name = "decode" if hasattr(network, "decode") else "forward"
    own = getattr(network, name)

    def broken(*args, **kwargs):
        output = own(*args, **kwargs)
        if dtype_of is None or next(network.parameters()).dtype == dtype_of:
            images = output if isinstance(output, torch.Tensor) else output[0]
            if len(images) > 1:
                images[1, ..., 3, 2] = value
        return output

    monkeypatch.setattr(network, name, broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_pixels_of_every_family_are_checked(family, value, monkeypatch):
    """Infinity would be a white pixel, NaN a black one."""
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    networks = model.decoding_networks()
    assert networks
    overflowing(networks[0], monkeypatch, value)
    images = decoded(model, finished(model, 3))
    assert [type(image) for image in images] == [Decoded, Undecoded, Decoded]
    assert images[1].stage == "decode"
    assert images[1].reason == "the decoder gave NaN or infinite values"


def half(adapter, dtype=torch.float16):
    """The adapter with its image decoder in half precision, where this processor can run it."""
    pipe = tiny.stable_diffusion()
    pipe.vae.to(dtype)
    return dataclasses.replace(adapter, pipe=pipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_overflows_in_half_precision_is_decoded_in_float32(sd, monkeypatch, dtype):
    model = half(sd, dtype)
    plain = pixels(decoded(model, finished(model, 4)))
    weights = [p.clone() for p in model.pipe.vae.parameters()]
    overflowing(model.pipe.vae, monkeypatch, float("nan"), dtype)
    images = decoded(model, finished(model, 4))
    assert [image.upcast for image in images] == [False, True, False, False]
    whole = half(sd, dtype)
    with in_float32([whole.pipe.vae]):
        expected = decoded(whole, finished(whole, 4)[1:2])[0].pil.tobytes()
    assert pixels(images) == {**plain, 1: expected}
    after = list(model.pipe.vae.parameters())
    assert all(p.dtype == dtype and torch.equal(p, q) for p, q in zip(after, weights, strict=True))


def test_what_is_not_finite_in_float32_either_fails(sd, monkeypatch):
    model = half(sd)
    own = model.pipe.vae.decode
    monkeypatch.setattr(model.pipe.vae, "decode", lambda *a, **k: (own(*a, **k)[0] * float("nan"),))
    images = decoded(model, finished(model, 2))
    assert {image.reason for image in images} == {"the decoder gave NaN or infinite values, in float32 too"}


def test_an_image_has_its_own_reason_and_not_that_of_another(sd, monkeypatch):
    """One raises, another gives NaN, and neither can be decoded in a better precision."""
    batch = finished(sd, 4)
    own, bad = sd.pipe.vae.decode, batch[0].latent / sd.pipe.vae.config.scaling_factor

    def decode(latents, **kwargs):
        if any(torch.allclose(one, bad[0]) for one in latents):
            raise ValueError("the first")
        output = own(latents, **kwargs)[0]
        if len(output) > 1:
            output[1] = float("nan")
        return (output,)

    monkeypatch.setattr(sd.pipe.vae, "decode", decode)
    reasons = {image.index: image.reason for image in decoded(sd, batch) if isinstance(image, Undecoded)}
    assert reasons == {0: "ValueError: the first", 1: "the decoder gave NaN or infinite values"}


def test_it_is_said_once(sd, monkeypatch):
    model = half(sd)
    overflowing(model.pipe.vae, monkeypatch, float("nan"), torch.float16)
    plan = hsd.compile([f"prompt {i}" for i in range(20)], 0.0, model=model, steps=2)
    with pytest.warns(UserWarning, match="overflows in half precision") as warned:
        images = list(hsd.stream(plan, model, batch_size=8))
    assert len(images) == 20
    assert sum(image.upcast for image in images) >= 2
    assert len(warned) == 1


def test_the_decoder_is_left_as_it_was(sd):
    vae = sd.pipe.vae
    before = dict(vars(vae))
    with watching([vae]), watching([vae]) as seen:
        assert "decode" in vars(vae)
        vae.decode(torch.zeros(2, 4, 4, 4))
        assert len(seen) == 1
    assert vars(vae) == before
    vae.decode = compiled = vae.decode  # as users set a compiled function
    with watching([vae]):
        assert vae.decode is not compiled
    assert vae.decode is compiled
    del vae.decode


def test_an_adapter_that_decodes_one_by_one():
    rows = [torch.tensor([True]), torch.tensor([False]), torch.tensor([True])]
    assert finite_rows(rows, 3) == [True, False, True]
    assert finite_rows([torch.tensor([True, False, True])] * 2, 3) == [True, False, True]
    assert finite_rows([torch.tensor([True, False])] * 2, 3) is None  # tiles
    assert finite_rows([torch.tensor([True, False])] * 2, 1) == [False]
    assert finite_rows([], 2) == [True, True]


def test_tiles_do_not_say_which_image_it_is_so_each_is_decoded_alone(sd, monkeypatch):
    class Tiled(type(sd)):
        pipelines = ()

        def decode(self, latents, generators):
            images = [
                super(Tiled, self).decode(half, generators)[0] for one in latents for half in one[None].chunk(2, 3)
            ]
            return images[::2]

    model = Tiled(sd.pipe, height=32, width=32)
    own = model.pipe.vae.decode
    bad = finished(model, 3)[1].latent.chunk(2, 3)[1]

    def decode(latents, **kwargs):
        output = own(latents, **kwargs)
        wrong = torch.allclose(latents * model.pipe.vae.config.scaling_factor, bad)
        return (output[0] * (float("nan") if wrong else 1.0),)

    monkeypatch.setattr(model.pipe.vae, "decode", decode)
    images = decoded(model, finished(model, 3))
    assert [type(image) for image in images] == [Decoded, Undecoded, Decoded]


# ------------------------------------------------------------------------------- a safety checker


class Checker(torch.nn.Module):
    """Flags about half of the images, by their own pixels, and makes them black, as the checker of diffusers does."""

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, clip_input, images):
        flags = [int(image.sum() * 1000) % 2 == 0 for image in images]
        return torch.stack([image * (not flag) for image, flag in zip(images, flags, strict=True)]), flags


@pytest.fixture(scope="module")
def checked():
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    pipe = tiny.stable_diffusion()
    pipe.safety_checker, pipe.feature_extractor = Checker(), extractor
    return hsd.load(pipe, height=32, width=32, guidance_scale=3.0)


def test_what_a_safety_checker_makes_black_is_said(checked, tmp_path):
    plan = hsd.compile([f"prompt {i}" for i in range(12)], 0.0, model=checked, steps=2)
    run = hsd.generate(plan, checked, tmp_path, progress=False)
    entries = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    for entry in entries:
        black = not np.array(PIL.Image.open(tmp_path / entry["file_name"])).any()
        assert entry["nsfw"] is black
    assert 0 < run.nsfw == sum(entry["nsfw"] for entry in entries) < 12
    assert json.loads((tmp_path / "run.json").read_text())["runs"][0]["nsfw"] == run.nsfw
    assert not run.failed
    assert {image.index: image.nsfw for image in hsd.stream(plan, checked)} == {e["index"]: e["nsfw"] for e in entries}


def test_without_a_checker_nothing_is_claimed(sd):
    images = decoded(sd, finished(sd, 2))
    assert [image.nsfw for image in images] == [None, None]
    assert Pictures([]).nsfw is None
