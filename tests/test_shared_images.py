"""One image for a whole set: its size and its bits, what reads it, and how often it is stored."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

import hsd
import tiny
from helpers import encoded
from hsd.models.encode import encode
from hsd.models.identity import image_identity
from hsd.models.loading import variants_of
from hsd.probing.predict import predictions
from image_cases import STEPS

PROMPTS, SEEDS = ["a cat", "a dog on a mat", "a boat"], [1, 2, 3]
SQUARE, TALL = tiny.picture((32, 32)), tiny.picture((32, 64), 1)


@pytest.mark.parametrize("build", [tiny.sd_control, tiny.sd_from_image])
def test_another_image_has_its_own_size(build):
    model = hsd.load(build(), image=SQUARE)
    assert (model.height, model.width) == (32, 32)
    changed = hsd.load(model, image=TALL)
    assert (changed.height, changed.width) == (TALL.height, TALL.width) != (32, 32)
    given = hsd.load(build(), image=SQUARE, height=64, width=64)
    kept = hsd.load(given, image=TALL)
    assert (kept.height, kept.width) == (64, 64)


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    """Pillow would clip a depth map of 16 bits to white."""
    path = tmp_path / "depth.png"
    PIL.Image.fromarray(np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits.*scale its values"):
        hsd.load(tiny.sd_control(), image=path)


def test_images_of_several_sizes_need_a_size():
    with pytest.raises(ValueError, match="2 sizes.*resize them, or give height and width"):
        hsd.load(tiny.sd_control(n=2), image=[SQUARE, TALL])
    hsd.load(tiny.sd_control(n=2), image=[SQUARE, TALL], height=32, width=32)


def test_what_reads_an_image_belongs_to_the_model():
    """Another way from pixels to a network's input is another model, and what was encoded before does not serve it."""
    for pipe, settings, change in [
        (tiny.sd_control(), {"image": SQUARE}, lambda pipe: pipe.control_image_processor.register_to_config(a=1)),
        (
            tiny.sd_control(n=2),
            {"image": [SQUARE, SQUARE]},
            lambda pipe: pipe.controlnet.nets[1].register_to_config(global_pool_conditions=True),
        ),
        (
            tiny.with_ip_adapter(tiny.stable_diffusion()),
            {"ip_adapter_image": SQUARE},
            lambda pipe: setattr(pipe.feature_extractor, "image_mean", [0.1, 0.2, 0.3]),
        ),
    ]:
        model = hsd.load(pipe, **settings)
        before = image_identity(model), model.encoding_key()
        change(pipe)
        assert image_identity(model) != before[0]
        assert model.encoding_key() != before[1]


def test_settings_of_single_prompts_share_one_stored_image():
    model = hsd.load(tiny.sd_control(), image=SQUARE)
    settings = [{"controlnet_conditioning_scale": scale} for scale in (0.5, 1.0, 1.5)]
    conditioning = encode(variants_of(model, settings), np.arange(3), PROMPTS, np.array(SEEDS))
    [name] = [name for name in conditioning.fields if name.startswith("control_image")]
    assert len(conditioning.fields[name].rows) == 1
    assert len(conditioning.fields["control"].rows) == 3
    common, own = conditioning.split(np.arange(3))
    assert name in common
    assert "control" in own.fields


def test_a_controlnet_is_probed_at_its_own_size():
    """Its conditioning has the image in the size of the model, which a smaller copy could not read."""
    model = hsd.load(tiny.sd_control(), image=SQUARE, height=32, width=576)
    found = predictions(model, encoded(model, PROMPTS, SEEDS))
    assert found.shape[0] == len(PROMPTS)
    assert model.sampler(STEPS).n_steps == STEPS
