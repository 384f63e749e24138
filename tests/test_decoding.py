"""Decoding in batches, in the loop and in a thread: every latent once, in order, within bounds, nothing lost."""

from __future__ import annotations

import contextlib
import threading

import PIL.Image
import pytest
import torch

import hsd
from hsd.generation.decoding import PATIENCE, Decoded, Decoder, Undecoded
from hsd.replay.executor import Finished


class Fake:
    """An adapter that draws each latent's number, and records the batches."""

    offloads = False
    device = torch.device("cpu")

    def __init__(self, most=100, fails_at=None, gate=None):
        self.most, self.fails_at, self.gate, self.batches, self.threads = most, fails_at, gate, [], set()
        self.entered, self.left = [], []  # the context in which a run decodes: by which thread, and what ran at its end

    def decoding_networks(self):
        return ()

    def decoded_size(self):
        return None

    @contextlib.contextmanager
    def decoding(self):
        self.entered.append(threading.current_thread().name)
        yield
        self.left.append([thread.name for thread in threading.enumerate() if thread.name.startswith("hsd-decoder")])

    def decode(self, latents, generators):
        if self.gate is not None:
            self.gate.wait()
        self.threads.add(threading.current_thread().name)
        draws = [int(torch.randint(1 << 30, (), generator=generator)) for generator in generators]
        if len(latents) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        numbers = [int(latent) for latent in latents.flatten()]
        if self.fails_at in numbers:
            raise ValueError(f"cannot draw {self.fails_at}")
        self.batches.append(numbers)
        assert draws == [draw_of(n) for n in numbers]  # each from its own generator, in its state
        return [PIL.Image.new("L", (1, 1), number) for number in numbers]


def finished(*numbers):
    return [Finished(n, torch.full((1, 1), float(n)), torch.Generator().manual_seed(n)) for n in numbers]


def draw_of(number):
    return int(torch.randint(1 << 30, (), generator=torch.Generator().manual_seed(number)))


def numbers_of(decoded):
    decoded = list(decoded)
    assert all(image.pil.getpixel((0, 0)) == image.index for image in decoded)
    return [image.index for image in decoded]


CALLS = [[0], [], [1, 2, 3, 4, 5], [], [], [6], *[[]] * 6, [7], [8, 9, 10, 11, 12, 13, 14]]


@pytest.mark.parametrize("threaded", [False, True])
def test_every_latent_once_and_in_order(threaded):
    fake, images = Fake(), []
    with Decoder(fake, 4, threaded=threaded) as decoder:
        for call in CALLS:
            images += decoder.put(finished(*call))
        images += decoder.rest()
    assert numbers_of(images) == list(range(15))
    assert all(len(batch) <= 4 for batch in fake.batches)
    assert fake.threads == ({"hsd-decoder_0"} if threaded else {"MainThread"})
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())


def test_batches_do_not_depend_on_time():
    """In a thread or not, fast or slow, the same latents are decoded together."""
    kinds = []
    for threaded in (False, True):
        fake = Fake()
        with Decoder(fake, 4, threaded=threaded) as decoder:
            for call in CALLS:
                decoder.put(finished(*call))
            decoder.rest()
        kinds.append(fake.batches)
    assert kinds[0] == kinds[1]


def test_a_latent_does_not_wait_for_others_for_long():
    fake = Fake()
    with Decoder(fake, 8, threaded=False) as decoder:
        assert numbers_of(decoder.put(finished(1, 2))) == [1, 2]  # the first are there at once
        images = [decoder.put(finished(3)), *(decoder.put([]) for _ in range(PATIENCE))]
        assert [len(each) for each in images] == [0] * PATIENCE + [1]
        assert decoder.put([]) == []


def test_a_slow_decoder_slows_the_run_down():
    put, images, undecoded = [], [], []

    class Slow(Fake):
        def decode(self, latents, generators):
            decoded = super().decode(latents, generators)
            undecoded.append(len(put) + 1 - len(self.batches))
            return decoded

    gate = threading.Event()
    with Decoder(Slow(gate=gate), 1, threaded=True) as decoder:
        for n in range(200):
            images.extend(decoder.put(finished(n)))
            put.append(n)
            if n == 2:
                gate.set()  # one is being decoded and two wait
        images += decoder.rest()
    assert numbers_of(images) == list(range(200))
    assert max(undecoded) == 3  # the fourth waits to be queued


@pytest.mark.parametrize("threaded", [False, True])
def test_what_fails_is_found_and_the_others_are_decoded(threaded):
    images, fake = [], Fake(fails_at=5)
    with Decoder(fake, 4, threaded=threaded) as decoder:
        for n in range(0, 30, 3):
            images.extend(decoder.put(finished(n, n + 1, n + 2)))
        images += decoder.rest()
    assert [image.index for image in images] == list(range(30))
    (failed,) = (image for image in images if isinstance(image, Undecoded))
    assert failed == Undecoded(5, "decode", "ValueError: cannot draw 5")
    numbers_of(image for image in images if isinstance(image, Decoded))
    assert [3, 4, 3, 6] in fake.batches  # the batch has its size again, with another latent in the place of the bad one


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), hsd.OutputError(28, "full")])
def test_what_concerns_everything_is_raised_in_the_run(threaded, error):
    class Broken(Fake):
        def decode(self, latents, generators):
            if 5.0 in latents:
                raise error
            return super().decode(latents, generators)

    images = []

    def run():
        with Decoder(Broken(), 2, threaded=threaded) as decoder:
            for n in range(50):
                images.extend(decoder.put(finished(n)))
            decoder.rest()

    with pytest.raises(type(error)) as raised:
        run()
    assert raised.value is error
    assert numbers_of(images) == list(range(len(images)))
    assert len(images) <= 5  # 0, then 1 and 2, 3 and 4
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_images_than_latents_is_an_error(count):
    fake = Fake()
    fake.decode = lambda latents, generators: [PIL.Image.new("L", (1, 1))] * count
    with (
        Decoder(fake, 3, threaded=False) as decoder,
        pytest.raises(hsd.Error, match=f"decode gave {count} images for 3 latents"),
    ):
        decoder.put(finished(1, 2, 3))


def test_a_run_that_is_left_does_not_wait_for_what_it_queued():
    def run():
        with Decoder(Fake(), 1, threaded=True) as decoder:
            for n in range(5):
                decoder.put(finished(n))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_out_of_memory_halves_the_batch(most):
    fake = Fake(most)
    with (
        pytest.warns(UserWarning, match="out of memory with .* to decode"),
        Decoder(fake, 8, threaded=False) as decoder,
    ):
        images = decoder.put(finished(*range(20))) + decoder.rest()
    assert numbers_of(images) == list(range(20))
    assert max(map(len, fake.batches)) <= most


def test_not_even_one_image_fits():
    with (
        pytest.warns(UserWarning, match="continuing with 1"),
        pytest.raises(hsd.OutOfMemory, match="one of the images to decode"),
    ):
        Decoder(Fake(0), 2, threaded=False).put(finished(1, 2))


def test_images_are_the_same_beside_the_denoiser(model, plan, monkeypatch):
    inline = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=4)}
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, threaded=True))
    in_thread = {image.index: image.pil for image in hsd.stream(plan, model, batch_size=4)}
    assert sorted(in_thread) == sorted(inline) == list(range(plan.n_prompts))
    assert all(inline[i].tobytes() == in_thread[i].tobytes() for i in inline)


def test_leaving_a_stream_early_ends_the_decoder(model, plan, monkeypatch):
    monkeypatch.setattr("hsd.generation.session.Decoder", lambda adapter: Decoder(adapter, 1, threaded=True))
    images = hsd.stream(plan, model, batch_size=4)
    next(images)
    images.close()
    assert not any(thread.name.startswith("hsd-decoder") for thread in threading.enumerate())
