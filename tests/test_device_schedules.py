"""Every family runs on the emulated device, over seeded schedules, and gives bit for bit what the CPU gives.

A schedule decides how late the device does what was enqueued, and in which order its streams go on. Two of them run
here; ``HSD_SCHEDULES=20 pytest tests/test_device_schedules.py`` runs twenty, and any other number.
"""

from __future__ import annotations

import os

import pytest

from device import emulated
from device.runs import case, near, on_the_device, run_of, same, same_images
from families import FAMILIES, Family

SCHEDULES = int(os.environ.get("HSD_SCHEDULES", "2"))

EAGERNESS = [0.3, 0.0, 1.0]
"""By turns: now and then, as late as possible, at once."""


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.twin], ids=lambda family: family.name)
def test_every_schedule_gives_the_same(family: Family):
    expected = case(family)
    for seed in range(SCHEDULES):
        graphs = seed % 2 == 0
        with emulated(seed, EAGERNESS[seed % len(EAGERNESS)]) as device, on_the_device():
            device.adopt(family.loadable(expected.pipe))
            model = expected.load()
            assert model.device.type == "cuda"
            latents, images = run_of(expected.plan, model, graphs)
            if graphs and model.capturable:
                assert device.counts["replays"] > 0
        # A prior's last call, of one lane, is rounded by where its input lies if it is not padded.
        equal = same if graphs or model.prior() is None else near
        assert equal(latents, expected.latents[graphs]), f"the latents of schedule {seed}"
        assert same_images(images, expected.images[graphs]), f"the images of schedule {seed}"
