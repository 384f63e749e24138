"""Pixels become 8-bit numbers on the device, and are the pipelines' own to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import PixArtImageProcessor, VaeImageProcessor
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

import hsd.models.parts
from families import FAMILIES
from hsd.models.parts import pictures, unit_pictures


def every_value(dtype):
    """(2, 3, H, W): every finite number of a half-precision dtype, from the least to the largest."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return as_image(bits[torch.isfinite(bits)])


def every_boundary():
    """float32 numbers around each value at which the 8-bit number changes, in -1 to 1."""
    middle = torch.tensor([(k + 0.5) / 255 * 2 - 1 for k in range(255)])
    steps = [middle]
    for _ in range(8):
        up, down = torch.nextafter(steps[-1], torch.tensor(2.0)), torch.nextafter(steps[0], torch.tensor(-2.0))
        steps = [down, *steps, up]
    return as_image(torch.cat([*steps, torch.linspace(-1.5, 1.5, 9973)]))


def as_image(values):
    values = values[: len(values) // 24 * 24]
    return values.reshape(2, 3, 4, -1)


IMAGES = {
    "float16": every_value(torch.float16),
    "bfloat16": every_value(torch.bfloat16),
    "float32": every_boundary(),
}


def arrays(images):
    assert all(image.mode == "RGB" for image in images)
    return [np.asarray(image) for image in images]


@pytest.mark.parametrize("keep", [None, [True, True], [True, False], [False, False]])
@pytest.mark.parametrize("kind", [VaeImageProcessor, PixArtImageProcessor, Flux2ImageProcessor])
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_every_number_becomes_the_pixel_of_the_processor(image, kind, keep):
    processor = kind()
    if keep is not None and not all(keep):
        image = image.clamp(-1, 1).abs()  # one that is not denormalized was made black, or is within 0 to 1
    expected = arrays(processor.postprocess(image, output_type="pil", do_denormalize=keep))
    np.testing.assert_array_equal(arrays(pictures(processor, image, keep)), expected)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_every_number_becomes_the_pixel_of_the_pipelines_without_a_processor(image):
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    expected = arrays(DiffusionPipeline.numpy_to_pil(unit.cpu().permute(0, 2, 3, 1).float().numpy()))
    np.testing.assert_array_equal(arrays(unit_pictures(unit)), expected)


def test_these_numbers_tell_other_roundings_apart():
    """The tests above can fail: half up, or a product in half precision, gives other pixels for some of them."""
    unit = (IMAGES["float16"] * 0.5 + 0.5).clamp(0, 1)
    right = (unit.float() * 255).round()
    assert not torch.equal((unit * 255).round().float(), right)
    unit = (IMAGES["float32"] * 0.5 + 0.5).clamp(0, 1)
    assert not torch.equal((unit * 255).trunc(), (unit * 255).round())
    assert not torch.equal((unit.double() * 255).round().float(), (unit * 255).round())


def test_a_processor_that_is_set_not_to_normalize(monkeypatch):
    """Its values are not clamped, so that they become numbers of 8 bits where they always did."""
    monkeypatch.setattr(hsd.models.parts, "unit_pictures", lambda _: pytest.fail("converted on the device"))
    processor, image = VaeImageProcessor(do_normalize=False), torch.rand(2, 3, 4, 5)
    expected = arrays(processor.postprocess(image, output_type="pil"))
    np.testing.assert_array_equal(arrays(pictures(processor, image)), expected)


def test_grey_images_do_not_hold_the_memory_that_they_were_copied_to():
    image = torch.rand(2, 1, 4, 5)
    made = unit_pictures(image)
    expected = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image))
    assert [one.mode for one in made] == ["L", "L"]
    assert [one.tobytes() for one in made] == [one.tobytes() for one in expected]


class Inverting(VaeImageProcessor):
    def postprocess(self, image, output_type="pil", do_denormalize=None):
        return super().postprocess(-image, output_type, do_denormalize)


def brighter(images):
    return VaeImageProcessor.numpy_to_pil(np.sqrt(images))


@pytest.mark.parametrize("change", ["class", "instance"])
def test_a_processor_of_the_user_s_own_is_used(change):
    processor, image = (Inverting() if change == "class" else VaeImageProcessor()), torch.rand(2, 3, 4, 5) * 2 - 1
    if change == "instance":
        processor.numpy_to_pil = brighter
    expected = arrays(processor.postprocess(image, output_type="pil"))
    np.testing.assert_array_equal(arrays(pictures(processor, image)), expected)
    assert (np.array(expected) != arrays(VaeImageProcessor().postprocess(image, output_type="pil"))).any()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_family_copies_floating_pixels_to_the_host(family, monkeypatch):
    """Of each image 8-bit numbers leave the device, and nothing before them does."""
    copied = []

    def to_host(tensor):
        copied.append((tensor.dtype, tensor.shape[0], tensor.shape[-1]))
        return tensor

    monkeypatch.setattr(hsd.models.parts, "to_host", to_host)
    model = hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))
    generators = [model.generator(seed) for seed in (1, 2)]
    latents = torch.cat([model.first_noise(generator).float() for generator in generators])
    images = model.decode(latents, generators)
    mode = "RGBA" if family.name == "qwen-image-2.1" else "RGB"
    assert copied == [(torch.uint8, 2, len(mode))]
    assert [image.mode for image in images] == [mode, mode]
