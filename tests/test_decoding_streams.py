"""The decoder's thread and stream on a GPU: what waits for what, what is kept until when, and how memory is made free.

On a fake of what torch has for it: tensors are on the CPU, and each call that orders work is noted.
"""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import PIL.Image
import pytest
import torch

import hsd
import tiny
from hsd.generation import decoding
from hsd.generation.decoding import BATCH, Decoded, Decoder, decoded_at_once
from hsd.replay.executor import Finished


class Cuda:
    """What is asked of torch.cuda, in order, and by which thread."""

    def __init__(self, monkeypatch):
        self.said, self.dead, self._own = [], False, threading.local()
        cuda = self

        class Event:
            def __init__(self, blocking=False):
                self.blocking = blocking

            def record(self, stream):
                self.stream = stream

            def synchronize(self):
                cuda.say(f"waits for {self.stream.name}, blocking={self.blocking}")
                if cuda.dead:
                    raise torch.AcceleratorError("CUDA error: unspecified launch failure")

        class Stream:
            def __init__(self, device, name="the decoder's stream"):
                self.device, self.name = device, name

            def wait_stream(self, other):
                cuda.say(f"{self.name} waits for {other.name}")

            def wait_event(self, event):
                cuda.say(f"{self.name} waits for an event of {event.stream.name}")

            def record_event(self):
                event = Event()
                event.record(self)
                return event

        self.main = Stream(None, "the main stream")
        fakes = {
            "Event": Event,
            "Stream": Stream,
            "stream": self._inside,
            "current_stream": lambda device=None: getattr(self._own, "stream", self.main),
            "set_device": lambda device: self.say(f"sets {device}"),
            "empty_cache": lambda: self.say("empties caches"),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda _, stream: self.say(f"a latent is kept for {stream.name}")
        )

    @contextlib.contextmanager
    def _inside(self, stream):
        self._own.stream = stream
        try:
            yield
        finally:
            self._own.stream = self.main

    def say(self, text):
        where = "" if threading.current_thread() is threading.main_thread() else "in the thread: "
        self.said.append(where + text)


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


class Fake:
    """An adapter on a GPU that draws each latent's number."""

    offloads = False
    device = torch.device("cuda:1")

    def __init__(self, cuda, size=None, work=lambda latents: None):
        self.cuda, self.size, self.work = cuda, size, work

    def decoding_networks(self):
        return ()

    def decoded_size(self):
        return self.size

    @contextlib.contextmanager
    def decoding(self):
        self.cuda.say("networks are prepared")
        yield
        self.cuda.say("networks are left")

    def decode(self, latents, generators):
        self.cuda.say(f"decodes {len(latents)} on {torch.cuda.current_stream().name}")
        self.work(latents)
        return [PIL.Image.new("L", (1, 1), int(latent)) for latent in latents.flatten()]


def finished(*numbers):
    return [Finished(n, torch.full((1, 1), float(n)), torch.Generator().manual_seed(n)) for n in numbers]


def run(adapter):
    with Decoder(adapter) as decoder:
        decoder.put(finished(1))
        decoder.rest()


def test_networks_are_prepared_before_and_left_after_all_work_of_the_decoder(cuda):
    with Decoder(Fake(cuda)) as decoder:
        images = decoder.put(finished(1)) + decoder.rest()
    assert [image.index for image in images] == [1]
    assert cuda.said == [
        "networks are prepared",
        "the decoder's stream waits for the main stream",
        "in the thread: sets cuda:1",
        "in the thread: the decoder's stream waits for an event of the main stream",
        "in the thread: a latent is kept for the decoder's stream",
        "in the thread: decodes 1 on the decoder's stream",
        "waits for the decoder's stream, blocking=True",
        "networks are left",
    ]


@pytest.mark.parametrize("dead", [False, True])
def test_after_an_error_too(cuda, dead):
    """Also where the device cannot even be waited for: then what ended the run is raised, and not that."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(latents):
        cuda.dead = dead
        raise error

    with pytest.raises(RuntimeError) as raised:
        run(Fake(cuda, work=fail))
    assert raised.value is error
    assert cuda.said[-1] == "waits for the decoder's stream, blocking=True"


def test_networks_are_left_after_an_error(cuda):
    """An adapter's own context gets the error."""
    left = []

    class Careful(Fake):
        @contextlib.contextmanager
        def decoding(self):
            try:
                yield
            finally:
                left.append([t.name for t in threading.enumerate() if t.name.startswith("hsd-decoder")])

    def interrupt(latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Careful(cuda, work=interrupt))
    assert left == [[]]


def test_a_device_that_fails_at_the_end_is_not_passed_over(cuda):
    with contextlib.ExitStack() as stack:
        decoder = stack.enter_context(Decoder(Fake(cuda)))
        decoder.put(finished(1))
        decoder.rest()
        cuda.dead = True
        with pytest.raises(torch.AcceleratorError):
            stack.close()


def test_networks_that_cannot_be_prepared_leave_no_thread(cuda):
    class Full(Fake):
        @contextlib.contextmanager
        def decoding(self):
            raise torch.OutOfMemoryError("CUDA out of memory")
            yield

    with pytest.raises(torch.OutOfMemoryError), Decoder(Full(cuda)):
        pytest.fail("entered")
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())


# ------------------------------------------------------------------------------- memory


def test_caches_are_emptied_before_fewer_are_decoded_at_once(cuda):
    left = [1]

    def scarce(latents):
        if left.pop() if left else False:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with Decoder(Fake(cuda, work=scarce), 4) as decoder:
        images = decoder.put(finished(1, 2, 3, 4)) + decoder.rest()
    assert [image.index for image in images] == [1, 2, 3, 4]
    decoded = [text.removeprefix("in the thread: ") for text in cuda.said if "decodes" in text or "empties" in text]
    assert decoded == ["decodes 4 on the decoder's stream", "empties caches", "decodes 4 on the decoder's stream"]


def test_making_room_waits_for_what_is_being_decoded(cuda):
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def slow(latents):
        begun.set()
        assert may_end.wait(20)
        ended.append(len(latents))

    decoder = Decoder(Fake(cuda, work=slow), 1)
    assert not decoder.make_room()  # it has not begun: there is nothing to wait for
    with decoder:
        assert not decoder.make_room()
        decoder.put(finished(1, 2))
        assert begun.wait(20)
        threading.Timer(0.05, may_end.set).start()
        assert decoder.make_room()
        assert ended == [1, 1]
        assert cuda.said[-1] == "waits for the decoder's stream, blocking=True"
        assert decoder.make_room()  # their images were not taken: perhaps the memory ran out while they were decoded
        assert [image.index for image in decoder.rest()] == [1, 2]
        assert not decoder.make_room()


def test_what_the_thread_raised_is_raised_where_images_are_taken(cuda):
    def fail(latents):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with Decoder(Fake(cuda, work=fail)) as decoder:
        decoder.put(finished(1))
        assert decoder.make_room()
        with pytest.raises(RuntimeError, match="illegal memory"):
            decoder.rest()


@pytest.fixture(scope="module")
def sd():
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)


def test_a_denoiser_without_memory_waits_for_the_decoder(sd, monkeypatch, recwarn):
    """While an image is decoded, calls of all lanes do not fit. They stay as large as they are."""
    plan = hsd.compile([f"prompt {i}" for i in range(8)], 0.0, model=sd, steps=2)
    expected = {image.index: image.pil for image in hsd.stream(plan, sd, batch_size=4)}
    decoding_now, refused, sizes = threading.Event(), threading.Event(), []
    decode, denoise = type(sd).decode, type(sd).denoise

    def slow(self, latents, generators):
        decoding_now.set()
        assert refused.wait(20)
        images = decode(self, latents, generators)
        decoding_now.clear()
        return images

    def scarce(self, latents, timestep, rows):
        sizes.append(len(latents))
        if len(sizes) == 3:
            assert decoding_now.wait(20)
        if decoding_now.is_set():
            refused.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(self, latents, timestep, rows)

    monkeypatch.setattr(type(sd), "decode", slow)
    monkeypatch.setattr(type(sd), "denoise", scarce)
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 4, threaded=True))
    images = {image.index: image.pil for image in hsd.stream(plan, sd, batch_size=4)}
    assert not [w for w in recwarn if "out of memory" in str(w.message)]
    assert sizes == [4, 4, 4, 4, 4]
    for i, image in expected.items():
        np.testing.assert_array_equal(np.asarray(images[i]), np.asarray(image))


# ------------------------------------------------------------------------------- how many at once


@pytest.mark.parametrize(
    ("size", "most"),
    [
        ((64, 64), 8),
        ((512, 512), 8),
        ((512, 520), 7),
        ((768, 768), 3),
        ((1024, 1024), 2),
        ((768, 1344), 2),
        ((1024, 1032), 1),
        ((2048, 2048), 1),
        ((4096, 4096), 1),
        (None, 8),
    ],
)
def test_as_many_are_decoded_at_once_as_their_pixels_allow(cuda, size, most):
    adapter = Fake(cuda, size)
    assert decoded_at_once(adapter) == most
    with Decoder(adapter) as decoder:
        decoder.put(finished(*range(20)))
        images = decoder.rest()
    assert all(isinstance(image, Decoded) for image in images)
    batches = [int(text.split()[-5]) for text in cuda.said if "decodes" in text]
    assert max(batches) == most
    assert sum(batches) == 20


def test_models_say_how_large_their_pictures_are():
    large = hsd.load(tiny.sdxl(), height=1024, width=768)
    assert large.decoded_size() == (1024, 768)
    assert decoded_at_once(large) == 2
    assert hsd.load(tiny.karlo()).decoded_size() is None
    assert decoded_at_once(hsd.load(tiny.karlo())) == BATCH == decoding.BATCH


@pytest.mark.parametrize("make", [tiny.pixart_sigma, tiny.sana], ids=lambda make: make.__name__)
def test_images_of_a_bin_are_decoded_in_the_size_of_the_bin(make):
    pipe = make()
    pipe.transformer.register_to_config(sample_size=32)
    model = hsd.load(pipe, height=64, width=64, use_resolution_binning=True)
    height, width = model.decoded_size()
    assert (height, width) != (64, 64)
    assert model.latent_shape()[1:] == (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
