"""The page about GPUs: what it predicts is computed right, and what it calls measured is in the results."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hsd
from hsd.tuning.batching import choose
from hsd.tuning.curve import Curve

BENCHES = Path(__file__).resolve().parents[1] / "benches"
sys.path[:0] = [str(BENCHES), str(BENCHES / "gpu")]

import counting  # noqa: E402
import fills  # noqa: E402
import measure  # noqa: E402
import paper  # noqa: E402
import plans  # noqa: E402
import released  # noqa: E402
import roofline  # noqa: E402
import shapes  # noqa: E402
from forecast import Forecast, Parts, automatic  # noqa: E402
from results import GRAPH, Results  # noqa: E402
from roofline import Calibration, Device, Work  # noqa: E402
from tables import TABLES, Paper, speed  # noqa: E402

# -- counting


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 1, bias=False)
        self.group, self.rms = nn.GroupNorm(2, 8), nn.RMSNorm(8)
        self.linear = nn.Linear(8, 16)

    def forward(self, x):
        x = self.group(self.plain(self.conv(x)))
        x = self.rms(x.flatten(2).transpose(1, 2))
        x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return nn.functional.silu(self.linear(x))


def test_operations_launches_and_bytes_of_a_tiny_network():
    """Of 2 images of 4 x 4 pixels: every number by hand, in float32."""
    with torch.device("meta"):
        network, x = Tiny(), torch.empty(2, 4, 4, 4)
    found = counting.count(network, lambda: network(x))
    n = 2 * 16  # pixels
    conv, plain, linear, attention = 2 * n * 8 * 4 * 9, 2 * n * 8 * 8, 2 * n * 8 * 16, 2 * 2 * 2 * 16 * 16 * 8
    assert found.flops == conv + plain + linear + attention
    assert found.convolutions == conv + plain
    assert found.launches == 2 + 1 + 3 + 1 + 1 + 1 + 1  # the second convolution has no bias
    products = n * (4 + 8) + n * (8 + 8) + 4 * n * 8 + n * (8 + 16)
    assert found.least == 4 * products
    # the group norm writes mean and deviation of 2 groups, too
    assert found.most == 4 * (products + n * (8 + 8) + 2 * 2 * 2 + n * (8 + 8) + n * (16 + 16))
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.weights == 4 * found.parameters


def test_an_expanded_tensor_is_read_once():
    network = nn.Identity()
    x = torch.empty(1, 8, device="meta")
    found = counting.count(network, lambda: x.expand(5, 8) + 1)
    assert found.most == 4 * (8 + 5 * 8)


def test_counts_agree_with_the_pipeline_of_the_benchmark():
    """Attention is counted by torch's own counter there, by a formula here."""
    model = shapes.build("kandinsky", "meta", small=True)
    _, call = released._called(model)
    for lanes in (1, 3):
        assert counting.count(model.modules()[0], call(lanes)).flops == shapes.flops(model, lanes)


def test_the_counts_of_a_released_network_are_current():
    """One that is quick to count. Launches may differ between versions of torch."""
    known = counting.read()["sd15"]
    network, call = released.MODELS["sd15"].build()
    one = counting.count(network, call(1))
    for name in ("parameters", "weights", "flops", "convolutions"):
        assert getattr(one, name) == getattr(known["one"], name), name
    assert one.launches == pytest.approx(known["one"].launches, rel=0.1)
    assert one.most == pytest.approx(known["one"].most, rel=0.1)


def test_every_family_was_counted():
    counts = counting.read()
    assert list(counts) == list(released.MODELS)
    assert counts["kandinsky"]["one"].flops == pytest.approx(shapes.KANDINSKY_FLOPS, rel=0.01)
    for name in shapes.NAMES:
        assert counts[name]["one"].parameters == pytest.approx(shapes.PARAMETERS[name], rel=0.01)


def test_a_network_of_another_size_is_refused():
    wrong = dataclasses.replace(released.MODELS["sd15"], parameters=0.9e9)
    with pytest.raises(AssertionError, match=r"SD 1.5: 859,520,964, not 900,000,000"):
        wrong.build()


# -- the roofline

DEVICE = Device("one", "one", peak=100.0, bandwidth=10.0, memory=1e9, source="")
WORK = Work(flops=50.0, products=20.0, rest=5.0, weights=30.0, launches=4)
KNOWN = Calibration(host=3.0, node=0.25, share=0.5)


@pytest.mark.parametrize(
    ("lanes", "device", "host"),
    [
        (1, 1 + 5 + 0.5, 12),  # products: 1 s by the peak, (30 + 20) / 10 = 5 s by the bandwidth
        (2, 1 + 7 + 1, 12),
        (4, 1 + 11 + 2, 14),
    ],
)
def test_seconds_of_a_call(lanes, device, host):
    assert roofline.seconds(WORK, DEVICE, KNOWN, lanes) == pytest.approx(device)
    assert roofline.launched(WORK, DEVICE, KNOWN, lanes) == pytest.approx(host)


def test_seconds_of_a_call_that_computes():
    slow = dataclasses.replace(DEVICE, peak=10.0)
    assert roofline.seconds(WORK, slow, KNOWN, 2) == pytest.approx(1 + 2 * 50 / 5 + 1)


@pytest.mark.parametrize("peak", [10.0, 100.0])
def test_at_the_break_even_host_and_device_take_as_long(peak):
    device = dataclasses.replace(DEVICE, peak=peak)
    lanes = roofline.break_even(WORK, device, KNOWN)
    assert roofline.seconds(WORK, device, KNOWN, lanes) == pytest.approx(WORK.launches * KNOWN.host)


def test_no_break_even_where_the_weights_alone_take_longer():
    assert roofline.break_even(dataclasses.replace(WORK, weights=1e6), DEVICE, KNOWN) == 0


def test_the_largest_call_that_is_faster_as_a_graph():
    """The break-even is at 3.2 lanes: 4 launches x (3 - 0.25) = 30 / 10 of the weights + 2.5 of a lane."""
    model = roofline.Model("one", {}, WORK, KNOWN, True, ())
    assert roofline.break_even(WORK, DEVICE, KNOWN) == pytest.approx(3.2)
    assert speed.faster_below(model, DEVICE) == 3
    assert speed.faster_below(dataclasses.replace(model, work=dataclasses.replace(WORK, weights=1e6)), DEVICE) == 0
    # 1 s of launches is at most 5 % of the time from 8 lanes of 2.5 s on
    assert speed.enough(model, DEVICE) == 8


def test_a_model_fits_with_a_tenth_for_all_that_is_no_weight():
    sizes = (WORK.weights, 1.09 * WORK.weights, 1.11 * WORK.weights)
    assert [roofline.fits(WORK, dataclasses.replace(DEVICE, memory=size)) for size in sizes] == [False, False, True]


def test_the_calibration_gives_back_what_it_was_made_from():
    device = dataclasses.replace(DEVICE, peak=10.0)
    few, many = ((n, roofline.seconds(WORK, device, KNOWN, n)) for n in (1, 8))
    assert roofline.solve(WORK, device, few, many) == pytest.approx((KNOWN.node, KNOWN.share))
    assert roofline.share_of(WORK, device, KNOWN.node, *many) == pytest.approx(KNOWN.share)


def test_peaks_are_those_of_the_benchmark():
    for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090"):
        device = roofline.device_of(name)
        assert device is not None
        assert device.peak == pytest.approx(measure.peak_of(name), rel=0.01)
    assert roofline.device_of("Tesla T4") is None


# -- prompt sets

CURVE = Curve((1, 2, 4, 8), (1.0, 1.5, 2.0, 3.0))


def filled(calls: dict[int, int], **changes) -> fills.Fill:
    steps = sum(lanes * n for lanes, n in calls.items())
    plain = fills.Fill("made up", 1.0, 10, steps, 0.5, trunk=2, batch_size=8, order="depth", bound=4, calls=calls)
    return dataclasses.replace(plain, **changes)


def test_efficiency_of_calls_that_are_padded():
    """Two calls of 1 lane, one of 5 padded to 6, two of 8."""
    one = filled({1: 2, 5: 1, 8: 2})
    assert one.n_calls == 5
    assert one.filled == pytest.approx(23 / 40)
    made, exact = Forecast(one, CURVE), Forecast(one, CURVE, padded=False)
    assert made.seconds == pytest.approx(2 * 1 + 2.5 + 2 * 3)
    assert exact.seconds == pytest.approx(2 * 1 + 2.25 + 2 * 3)
    assert made.efficiency == pytest.approx(23 * 3 / 8 / 10.5)
    assert Forecast(one, CURVE, best=0.3).efficiency == pytest.approx(23 * 0.3 / 10.5)
    # two steps in calls of one lane, all else in full calls
    assert made.bound == pytest.approx((23 * 3 / 8) / (2 * 1 + 21 * 3 / 8))
    assert made.bound > exact.efficiency > made.efficiency


def test_end_to_end_from_its_parts():
    parts = Parts(prior=0.01, decode=0.5, eager=0.4, best=0.3)
    made = Forecast(filled({8: 50}), CURVE)
    others = 10 * (25 * 0.01 + 0.5)
    assert parts.diffusers(made.fill) == pytest.approx(10 * 40 * 0.4 + others)
    assert parts.hsd(made) == pytest.approx(150 + others)
    assert parts.ideal(made.fill) == pytest.approx(400 * 0.3 + others)


@pytest.fixture(scope="module")
def plan():
    return plans.made_up(60).plan(1.0, 12)


def test_the_automatic_choice_is_that_of_a_run(plan):
    mine = [fills.fill("x", plan, size, order) for size in CURVE.candidates() for order in ("depth", "breadth")]
    for padded in (False, True):
        chosen, real = automatic(mine, CURVE, padded), choose(plan, CURVE, padded=padded)
        assert (chosen.fill.batch_size, chosen.fill.order) == (real.batch_size, real.order)
        assert chosen.seconds == pytest.approx(real.seconds)
        assert chosen.fill.n_calls == real.n_calls


def test_calls_of_a_plan(plan):
    for order in ("depth", "breadth"):
        one = fills.fill("x", plan, 8, order)
        assert int(one.lanes.sum()) == one.node_steps == plan.node_steps
        assert one.n_calls == len(one.lanes) == plan.program(8, order).n_calls
        assert one.n_calls >= one.bound
    chain = hsd.compile(["a", "b"], 1.0, embeddings=np.array([[1.0, 0], [1, 0.1]]), steps=5)
    assert chain.counts().tolist()[0] == 1
    assert fills.fill("x", chain, 4, "depth").trunk == chain.counts().tolist().count(1)
    assert fills.fill("x", hsd.compile(["a", "b"], 0.0, embeddings=np.eye(2), steps=5), 4, "depth").trunk == 0


def test_two_sets_in_one_plan_share_nothing():
    first, second = plans.made_up(30), plans.made_up(50)
    second = dataclasses.replace(second, prompts=[f"another {prompt}" for prompt in second.prompts])
    both = fills.apart(first, second, 1.0)
    assert both.node_steps == first.plan(1.0, 40).node_steps + second.plan(1.0, 40).node_steps
    labels = both.active(0)
    assert not set(labels[:30]) & set(labels[30:])


@pytest.mark.skipif(not plans.DATA.is_dir(), reason="needs the real prompt sets")
@pytest.mark.parametrize("name", ["styles", "animals"])
def test_the_calls_of_a_real_set_are_current(name):
    plan = fills.read_set(name, plans.DATA).plan(1.0, fills.STEPS)
    known = [one for one in fills.read() if (one.set, one.tau, one.batch_size) == (name, 1.0, 16)]
    assert known
    assert [fills.fill(name, plan, 16, one.order) for one in known] == known, "python benches/gpu/fills.py"


# -- the page


@pytest.fixture(scope="module")
def h200():
    return Results.read(paper.RESULTS)


def test_the_page_is_current(capsys):
    assert paper.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_that_is_not_current_is_found(tmp_path, monkeypatch, capsys):
    text = paper.PAGE.read_text(encoding="utf-8")
    old = tmp_path / "gpu.md"
    old.write_text(text.replace("14.8 / 14.8*", "14.9 / 14.9*"), encoding="utf-8")
    monkeypatch.setattr(paper, "PAGE", old)
    assert paper.main(["--check"]) == 1
    assert "--write docs/gpu.md" in capsys.readouterr().out
    assert paper.main(["--write", str(old), "--results", str(paper.RESULTS)]) == 0
    assert old.read_text(encoding="utf-8") == text
    assert paper.main(["--check"]) == 0


def test_the_page_has_every_table():
    assert set(re.findall(r"<!-- table ([\w-]+) -->", paper.PAGE.read_text(encoding="utf-8"))) == set(TABLES)


def test_nothing_is_measured_without_results(h200, tmp_path):
    """Every measured value is a dash, and a new page gets the prose."""
    new = tmp_path / "new.md"
    assert paper.main(["--write", str(new)]) == 0
    text = new.read_text(encoding="utf-8")
    cells = re.findall(r" / ([^|\n]+) \|", text)
    assert len(cells) > 50
    assert set(cells) == {"—"}
    assert "## TF32" in text
    ways = TABLES["ways"](Paper(h200, Results()))
    assert re.findall(r"\| ([^|]+) \|$", ways, re.MULTILINE)[2:] == ["—"] * 4


def test_what_is_called_measured_is_in_the_results(h200, tmp_path):
    """A results folder of another device with other numbers: they appear, and none of the H200's do."""
    folder = tmp_path / "a100"
    shutil.copytree(paper.RESULTS, folder)
    for file in folder.glob("*.json"):
        text = file.read_text().replace("NVIDIA H200", "NVIDIA A100-SXM4-80GB")
        content = json.loads(text)
        for row in content["sections"].get("denoiser", {}).get("rows", []):
            row["seconds"] = 0.1 * row["lanes"] + (1.0 if row["mode"] == "eager" else 0.0)
        for row in content["sections"].get("efficiency", {}).get("rows", []):
            row["efficiency"], row["alone_seconds_per_lane"] = 0.123, 2.0
        file.write_text(json.dumps(content))
    made = Paper(h200, Results.read(folder))
    ms = TABLES["ms"](made)
    assert ms.startswith("| A100 SXM 80 GB |")
    kandinsky = next(line for line in ms.splitlines() if line.startswith("| Kandinsky"))
    assert re.findall(r"/ ([\d,]+)", kandinsky) == ["100", "200", "400", "800", "1,600", "3,200"]
    assert "*" not in ms  # the predictions were not fitted to this device
    assert re.search(r"\| SDXL .* / 16,000 \|", ms)
    assert re.findall(r"/ ([\d.]+)%", TABLES["efficiency"](made)) == ["12.3"] * 8
    assert re.findall(r"/ ([\d.]+)x", TABLES["graphs"](made)) == ["11.00", "6.00", "3.50", "2.25", "1.62", "1.31"]
    assert "H200, 1" in TABLES["ms-elsewhere"](made).splitlines()[0]


def test_the_answers_call_measured_what_was(h200):
    predicted, measured = (TABLES["answers"](Paper(h200, one)) for one in (Results(), h200))
    assert "measured" not in predicted
    assert "(measured: 3.3)" in measured
    assert re.search(r"measured on the NVIDIA\s+H200: 3.8 times", measured)
    assert "Nothing is measured" in TABLES["measured"](Paper(h200, Results()))
    assert len(measured.splitlines()) < 15


def test_predictions_of_sets_follow_the_device_that_was_measured_whole(h200):
    assert Paper(h200, Results()).sets is h200
    part = Results(tuple(one for one in h200.files if "denoiser" not in one["sections"]))
    assert Paper(h200, part).sets is h200
    eager = json.loads(json.dumps(h200.files))
    for one in eager:
        rows = one["sections"].get("denoiser", {}).get("rows", [])
        rows[:] = [row for row in rows if row["mode"] == "eager"]
    assert Paper(h200, Results(tuple(eager))).sets is h200
    whole = Results(h200.files)
    assert Paper(Results(), whole).sets is whole
    assert Paper(h200, h200).curve().seconds(1) == h200.seconds("kandinsky", GRAPH)[1]


def test_a_folder_without_results(tmp_path, capsys):
    assert paper.main(["--write", str(tmp_path / "page.md"), "--results", str(tmp_path)]) == 2
    assert "no file gpu-*.json" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_files_of_tests_and_of_tiny_shapes_do_not_count(tmp_path, capsys):
    (tmp_path / "gpu-tests.json").write_text('{"finished": true}')
    small = {"arguments": {"model": "kandinsky", "small": True}, "sections": {"denoiser": {"rows": []}}}
    (tmp_path / "gpu-denoiser.json").write_text(json.dumps(small))
    assert Results.read(tmp_path).files == ()
    page = tmp_path / "page.md"
    assert paper.main(["--write", str(page), "--results", str(tmp_path)]) == 2
    assert "holds no measurement of a GPU" in capsys.readouterr().err
    assert not page.exists()


def test_the_tables_are_narrow():
    """A reader sees them without scrolling: 120 characters a row, some more where two values stand in a cell."""
    text = paper.PAGE.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 130
    assert len(text.splitlines()) < 360
