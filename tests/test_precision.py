"""Decoders in half precision run in float32: converted once a run, before the thread; afterwards as they were."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import hsd
import tiny
from helpers import fresh_generators
from hsd.generation.decoding import Decoder
from hsd.models.identity import image_identity
from hsd.models.precision import in_float32, in_half_precision

PROMPTS = [f"prompt {i}" for i in range(10)]


class Mixed(nn.Module):
    """Weights in three dtypes, one of them shared, and buffers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float32))
        self.a.bias = self.a_again = nn.Parameter(torch.tensor([0.1, 1e-7, 6e4], dtype=torch.float16))
        self.register_buffer("scale", torch.ones(2, dtype=torch.float16))
        self.register_buffer("count", torch.ones(2, dtype=torch.int64))


def state(network):
    """Where each tensor is, its dtype and its values."""
    return {name: (t.data_ptr(), t.dtype, t.clone()) for name, t in network.state_dict().items()}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, (place, dtype, values) in before.items():
        assert after[name][:2] == (place, dtype), name
        assert torch.equal(after[name][2], values), name


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_same_memory_holds_the_weights_afterwards(error):
    """A block that was given back could be read by a stream that is behind."""
    network = Mixed()
    before = state(network)
    assert in_half_precision([network])
    try:
        with in_float32([network, network.a]):
            inside = state(network)
            assert not in_half_precision([network])
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert_same(before, state(network))
    changed = {name for name in before if inside[name][0] != before[name][0]}
    assert changed == {"a.weight", "a.bias", "a_again", "b.weight", "b.bias", "scale"}
    assert {inside[name][1] for name in changed} == {torch.float32}
    assert torch.equal(inside["a.bias"][2], before["a.bias"][2].float())


def test_the_last_one_to_leave_puts_the_weights_back():
    network = Mixed()
    before, first, second = state(network), in_float32([network]), in_float32([network])
    first.__enter__()
    inside = state(network)
    second.__enter__()
    first.__exit__(None, None, None)
    assert_same(inside, state(network))
    second.__exit__(None, None, None)
    assert_same(before, state(network))


def test_memory_that_runs_out_on_the_way_leaves_all_as_it_was(monkeypatch):
    network = Mixed()
    before, own, calls = state(network), torch.Tensor.float, []

    def scarce(tensor):
        calls.append(tensor)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(tensor)

    monkeypatch.setattr(torch.Tensor, "float", scarce)
    with pytest.raises(torch.OutOfMemoryError), in_float32([network]):
        pytest.fail("entered")
    assert_same(before, state(network))


def test_weights_that_hooks_put_in_place_for_each_call():
    """Sequential offload: the weights are on the meta device, and hooks make new parameters of that dtype."""
    torch.manual_seed(0)
    network, whole = nn.Sequential(nn.Linear(3, 3, dtype=torch.float16)), nn.Sequential(nn.Linear(3, 3))
    whole.load_state_dict({name: tensor.float() for name, tensor in network.state_dict().items()})
    cpu_offload(network, torch.device("cpu"))
    x = torch.rand(2, 3)
    with torch.no_grad():
        for _ in range(2):
            with in_float32([network]):
                assert torch.equal(network(x), whole(x))
            assert {p.dtype for p in network.parameters()} == {torch.float16}
            assert network(x.half()).dtype == torch.float16


# ------------------------------------------------------------------------------- Stable Diffusion XL


@pytest.fixture
def sdxl():
    pipe = tiny.sdxl()
    pipe.vae.to(torch.float16)
    return hsd.load(pipe)


@pytest.fixture
def plan(sdxl):
    return hsd.compile(PROMPTS, 0.0, model=sdxl, steps=2)


@pytest.fixture
def in_thread(monkeypatch):
    """Runs decode in a thread, as on a GPU, two latents at a time."""
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 2, threaded=True))


def watched(vae, monkeypatch):
    """For each call of a decoder: the thread, and where its weights are."""
    calls, own = [], vae.decoder.forward

    def forward(*args, **kwargs):
        calls.append((threading.current_thread().name, [(p.data_ptr(), p.dtype) for p in vae.decoder.parameters()]))
        return own(*args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", forward)
    return calls


def test_a_run_converts_the_decoder_once_and_not_in_the_thread(sdxl, plan, in_thread, monkeypatch):
    converted, own = [], torch.Tensor.float

    def noted(tensor):
        if tensor.dtype == torch.float16:
            converted.append(threading.current_thread().name)
        return own(tensor)

    vae = sdxl.pipe.vae
    before, calls = state(vae), watched(vae, monkeypatch)
    monkeypatch.setattr(torch.Tensor, "float", noted)
    images = list(hsd.stream(plan, sdxl, batch_size=3))
    assert sorted(image.index for image in images) == list(range(10))
    assert len(calls) > 3
    assert {thread for thread, _ in calls} == {"hsd-decoder_0"}
    assert all(places == calls[0][1] for _, places in calls)  # the same weights for all batches
    assert {dtype for _, dtype in calls[0][1]} == {torch.float32}
    assert set(converted) == {"MainThread"}
    assert len(converted) == len(before)
    assert_same(before, state(vae))


@pytest.mark.parametrize("how", ["error", "left early"])
def test_a_run_that_ends_early_leaves_the_decoder_as_it_was(sdxl, plan, in_thread, monkeypatch, how):
    before = state(sdxl.pipe.vae)
    calls = watched(sdxl.pipe.vae, monkeypatch)
    images = hsd.stream(plan, sdxl, batch_size=3)
    next(images)
    assert sdxl.pipe.vae.dtype == torch.float32
    if how == "error":
        monkeypatch.setattr(type(sdxl), "decode", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error: gone")))
        with pytest.raises(hsd.DeviceFailed) as held:
            list(images)
        assert "_running_dtype" not in vars(sdxl), held  # the denoiser's run has ended, though the error is kept
    else:
        images.close()
    assert calls
    assert_same(before, state(sdxl.pipe.vae))
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())


def test_images_are_those_that_decode_gives_by_itself(sdxl, plan, in_thread, monkeypatch):
    """To the bit: in the context of a run the weights have the same values as converted for one call."""
    inside = {image.index: image.pil for image in hsd.stream(plan, sdxl, batch_size=3)}
    monkeypatch.undo()
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 2, threaded=False))
    monkeypatch.setattr(type(sdxl), "decoding", hsd.models.Adapter.decoding)
    alone = {image.index: image.pil for image in hsd.stream(plan, sdxl, batch_size=3)}
    assert {i: image.tobytes() for i, image in inside.items()} == {i: image.tobytes() for i, image in alone.items()}


def test_the_folder_of_a_run_can_be_continued(sdxl, plan, in_thread, tmp_path):
    """The identity of the model is taken outside of the context, and its weights are the same each time."""
    before = image_identity(sdxl)
    first = hsd.generate(plan, sdxl, tmp_path, batch_size=3, progress=False)
    assert image_identity(sdxl) == before
    assert before["networks"]["vae"]["dtype"] == "float16"
    again = hsd.generate(plan, sdxl, tmp_path, batch_size=3, progress=False)
    assert (first.images, again.images, again.existing) == (10, 0, 10)


@pytest.mark.parametrize("in_threads", [False, True])
def test_two_runs_of_one_model_at_once(sdxl, plan, in_threads, monkeypatch):
    """The decoder is the first one's; after its end the second still decodes with the same weights in float32."""
    expected = {image.index: np.asarray(image.pil) for image in hsd.stream(plan, sdxl, batch_size=3)}
    before, calls = state(sdxl.pipe.vae), watched(sdxl.pipe.vae, monkeypatch)
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 2, threaded=in_threads))
    first, second = (hsd.stream(plan, sdxl, batch_size=3) for _ in range(2))
    found = {image.index: image for image in (next(first), next(second))}
    first.close()
    n = len(calls)
    found |= {image.index: image for image in second}
    assert len(calls) > n
    assert all(places == calls[0][1] for _, places in calls)
    assert {dtype for _, dtype in calls[0][1]} == {torch.float32}
    assert_same(before, state(sdxl.pipe.vae))
    for i, image in found.items():
        np.testing.assert_array_equal(np.asarray(image.pil), expected[i])


def test_another_run_may_begin_meanwhile(sdxl, plan, tmp_path):
    """Of what the images depend on, its folder has the weights that the model has outside of runs."""
    before, images = image_identity(sdxl), hsd.stream(plan, sdxl, batch_size=3)
    next(images)
    assert sdxl.pipe.vae.dtype == torch.float32
    assert image_identity(sdxl) == before
    images.close()
    assert image_identity(sdxl) == before


def test_an_offloaded_decoder_is_converted_for_each_call(sdxl):
    """Sequential offload, where hooks make its parameters: it decodes as it does without, and stays in float16."""
    latents = torch.randn((2, *sdxl.latent_shape()), generator=torch.Generator().manual_seed(0))
    expected = [image.tobytes() for image in sdxl.decode(latents, fresh_generators([1, 2]))]
    cpu_offload(sdxl.pipe.vae, torch.device("cpu"))
    with sdxl.decoding():
        assert sdxl.pipe.vae.dtype == torch.float16
        for _ in range(2):
            assert [image.tobytes() for image in sdxl.decode(latents, fresh_generators([1, 2]))] == expected
    assert sdxl.pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("change", ["dtype", "force_upcast"])
def test_a_decoder_that_needs_no_more_is_not_converted(sdxl, change):
    if change == "dtype":
        sdxl.pipe.vae.to(torch.bfloat16)
    else:
        sdxl.pipe.vae.register_to_config(force_upcast=False)
    before = state(sdxl.pipe.vae)
    with sdxl.decoding():
        assert_same(before, state(sdxl.pipe.vae))
