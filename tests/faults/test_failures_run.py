"""A run in which some images fail: they are named and recorded, the others are those of a run without the failure."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import hsd
import tiny
from helpers import Calls
from hsd import cli
from hsd.choice.grid import Setting
from hsd.choice.trials import Trials
from hsd.generation.folder import ImageFolder
from hsd.generation.live import RunView
from hsd.models.encode import encode, encoded
from hsd.work import files
from hsd.work.faults import HOPELESS, described, ends_run

pytestmark = pytest.mark.faults

NAN = float("nan")
PROMPTS = ["a cat", "a cat on a mat", "a dog", "a small dog", "the sea at night", "the sea by day", "a red bicycle"]


@pytest.fixture(scope="module")
def sd():
    return hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)


@pytest.fixture(scope="module")
def shared(sd):
    """A plan with sharing, and what a run without a failure makes of it."""
    plan = hsd.compile(PROMPTS, 0.9, model=sd, steps=4, seeds=100)
    return plan, images_of(plan, sd)


@pytest.fixture(scope="module")
def single(sd):
    """The same without sharing."""
    plan = hsd.compile(PROMPTS, 0.0, model=sd, steps=2, seeds=100)
    return plan, images_of(plan, sd)


def images_of(plan, model, **options):
    return {image.index: image.pil.tobytes() for image in hsd.stream(plan, model, batch_size=4, **options)}


@contextlib.contextmanager
def changed(model, name, change):
    """A method of a model's class replaced by ``change(own, self, ...)``."""
    own = getattr(type(model), name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), name, lambda self, *args: change(partial(own, self), *args))
        yield


def nan_at(tokens, own, latents, timestep, rows):
    """``denoise`` whose output is NaN in the lanes that are conditioned on ``tokens``."""
    output, variance = own(latents, timestep, rows)
    for lane, row in enumerate(rows["prompt_embeds"]):
        if any(torch.equal(row, one) for one in tokens):
            output[lane] = NAN
    return output, variance


def raising_for(text, error, own, batch):
    if text in batch.prompts:
        raise error
    return own(batch)


def entries_of(folder, name="metadata.jsonl"):
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record_of(folder):
    return json.loads((folder / "run.json").read_text())["runs"][-1]


def pixels_of(folder):
    return {e["index"]: PIL.Image.open(folder / e["file_name"]).tobytes() for e in entries_of(folder)}


# ------------------------------------------------------------------------------- denoising


def mean_of(model, plan, prompts):
    conditioning = encode([model], np.zeros(len(plan.prompts), np.int64), plan.prompts, plan.seeds)
    return conditioning.mean(np.array(prompts))["prompt_embeds"]


def test_nan_in_one_lane_fails_one_image(sd, single, tmp_path):
    plan, good = single
    with (
        changed(sd, "denoise", partial(nan_at, [mean_of(sd, plan, [2])])),
        pytest.warns(UserWarning, match=r"1 of 7 images failed.*\n.*prompt 2 \('a dog'\), denoise: the latent has NaN"),
    ):
        run = hsd.generate(plan, sd, tmp_path, batch_size=4, progress=False)
    failure = hsd.Failure(2, "a dog", 102, "denoise", "the latent has NaN or infinite values")
    assert run.failed == (failure,)
    assert (run.images, run.existing) == (6, 0)
    assert pixels_of(tmp_path) == {i: data for i, data in good.items() if i != 2}  # byte for byte
    (entry,) = entries_of(tmp_path, "failed.jsonl")
    assert entry == {"index": 2, "text": "a dog", "seed": 102, "stage": "denoise", "reason": failure.reason}
    record = record_of(tmp_path)
    assert (record["outcome"], record["failed"], record["images"]) == ("finished", 1, 6)
    assert record["reasons"] == {f"denoise: {failure.reason}": 1}

    run = hsd.generate(plan, sd, tmp_path, batch_size=4, progress=False)
    assert (run.images, run.existing, run.failed) == (1, 6, ())
    assert pixels_of(tmp_path).keys() == good.keys()
    assert not (tmp_path / "failed.jsonl").exists()
    assert record_of(tmp_path)["failed"] == 0


def test_nan_in_a_trunk_fails_all_that_come_from_it(sd, shared):
    plan, good = shared
    trunk = max((s for s in plan.segments if s["parent"] < 0), key=lambda s: s["leaf_end"] - s["leaf_begin"])
    members = sorted(plan.tree.leaf_order[trunk["leaf_begin"] : trunk["leaf_end"]].tolist())
    assert 2 <= len(members) < len(plan)
    failed = []
    with changed(sd, "denoise", partial(nan_at, [mean_of(sd, plan, members)])):
        images = images_of(plan, sd, failed=failed.append)
    assert sorted(f.index for f in failed) == members
    assert {f.stage for f in failed} == {"denoise"}
    assert images == {i: data for i, data in good.items() if i not in members}


def raising_at(tokens, error, own, latents, timestep, rows):
    """``denoise`` that raises for a call with a lane that is conditioned on ``tokens``."""
    if any(torch.equal(row, tokens) for row in rows["prompt_embeds"]):
        raise error
    return own(latents, timestep, rows)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("interval", [None, (0.0, 0.5)])
def test_a_denoiser_that_raises_for_one_lane(sd, shared, batch_size, interval):
    """Also in a trunk: all that come from it fail, with what it raised."""
    plan, model = shared[0], hsd.load(sd, guidance_interval=interval)
    good = {image.index: np.asarray(image.pil) for image in hsd.stream(plan, model, batch_size=1)}
    trunk = max((s for s in plan.segments if s["parent"] < 0), key=lambda s: s["leaf_end"] - s["leaf_begin"])
    members = sorted(plan.tree.leaf_order[trunk["leaf_begin"] : trunk["leaf_end"]].tolist())
    failed = []
    with changed(sd, "denoise", partial(raising_at, mean_of(sd, plan, members), ValueError("odd"))):
        images = list(hsd.stream(plan, model, batch_size=batch_size, order="breadth", failed=failed.append))
    assert {f.index: (f.stage, f.reason) for f in failed} == dict.fromkeys(members, ("denoise", "ValueError: odd"))
    assert sorted(image.index for image in images) == sorted(good.keys() - set(members))
    for image in images:  # lanes are evaluated by themselves, which may round differently
        assert np.abs(np.asarray(image.pil).astype(int) - good[image.index]).max() <= 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_denoiser_that_always_raises_ends_the_run(sd, shared, batch_size):
    def broken(own, *_):
        raise TypeError("no such argument")

    with changed(sd, "denoise", broken), pytest.raises(TypeError, match="no such argument"):
        list(hsd.stream(shared[0], sd, batch_size=batch_size))


def test_stream_says_at_its_end_what_failed(sd, single):
    plan, good = single
    made = []
    with changed(sd, "denoise", partial(nan_at, [mean_of(sd, plan, [2])])):
        images = hsd.stream(plan, sd, batch_size=4)
        with pytest.raises(
            hsd.FailedImages, match=r"1 of 7 images failed.*\n.*prompt 2 \('a dog'\), denoise"
        ) as raised:
            made.extend(images)
    assert sorted(image.index for image in made) == [i for i in good if i != 2]
    assert [failure.index for failure in raised.value.failures] == [2]
    assert pickle.loads(pickle.dumps(raised.value)).failures == raised.value.failures


# ------------------------------------------------------------------------------- decoding


def test_a_decoder_that_raises_for_one_prompt(sd, single, tmp_path):
    plan, good = single
    latents = {}
    with changed(sd, "decode", lambda own, x, g: latents.setdefault("all", []).append(x) or own(x, g)):
        images_of(plan, sd)
    bad = torch.cat(latents["all"])[3]

    def decode(own, x, generators):
        if any(torch.equal(one, bad) for one in x):
            raise ZeroDivisionError("no such\n colour")
        return own(x, generators)

    with changed(sd, "decode", decode):
        run = hsd.generate(plan, sd, tmp_path, batch_size=4, progress=False, failed=lambda _: None)
    (failure,) = run.failed
    assert (failure.stage, failure.reason) == ("decode", "ZeroDivisionError: no such colour")
    assert pixels_of(tmp_path) == {i: data for i, data in good.items() if i != failure.index}


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), MemoryError(), OSError(28, "No space left")]
)
def test_what_concerns_everything_ends_the_run_and_blames_no_prompt(sd, single, tmp_path, error):
    plan, _ = single

    def decode(own, x, generators, calls=[]):  # noqa: B006
        calls.append(x)
        if len(calls) > 1:
            raise error
        return own(x, generators)

    with changed(sd, "decode", decode), pytest.raises(type(error)):
        hsd.generate(plan, sd, tmp_path, batch_size=2, progress=False)
    record = record_of(tmp_path)
    assert (record["outcome"], record["failed"]) == ("failed", 0)
    name = "DeviceFailed: the device failed while decoding" if "CUDA" in str(error) else type(error).__name__
    assert record["error"].startswith(name)
    assert record["images"] == len(entries_of(tmp_path)) > 0
    assert not (tmp_path / "failed.jsonl").exists()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ValueError("out of range"), False),
        (RuntimeError("shapes do not match"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA driver error: unknown error"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (OSError(28, "No space left on device"), True),
        (FileNotFoundError(2, "no such file"), False),
        (OSError("cannot write mode F as PNG"), False),
        (hsd.PromptError("prompt 3 is empty"), False),
        (hsd.Error("encoded prompts need 9 GiB more"), True),
    ],
    ids=str,
)
def test_what_is_about_one_image_and_what_about_all(error, ends):
    assert ends_run(error) is ends


# ------------------------------------------------------------------------------- encoding


def test_what_all_prompts_share_has_to_be_finite(sd):
    def shared(own):
        return {**own(), "negative_prompt_embeds": torch.full((1, 77, 32), NAN)}

    with (
        changed(sd, "shared", shared),
        pytest.raises(hsd.Error, match="negative_prompt_embeds, which all"),
    ):
        hsd.compile(PROMPTS, 0.9, model=sd, steps=4)


def test_an_encoder_that_raises_for_one_prompt(sd, single, tmp_path):
    plan, good = single
    loaded = partial(hsd.Plan.load, tmp_path / "p.safetensors")  # without the encodings that compile has made
    plan.save(tmp_path / "p.safetensors")
    error = ValueError("not in the vocabulary")
    with changed(sd, "encode", partial(raising_for, "a small dog", error)):
        run = hsd.generate(loaded(), sd, tmp_path / "i", batch_size=4, progress=False, failed=lambda _: None)
    (failure,) = run.failed
    assert (failure.index, failure.stage, failure.reason) == (3, "encode", "ValueError: not in the vocabulary")
    assert run.standard_node_steps == 6 * 2 == run.node_steps
    assert pixels_of(tmp_path / "i").keys() == good.keys() - {3}
    again = hsd.generate(loaded(), sd, tmp_path / "i", batch_size=4, progress=False)
    assert (again.images, again.failed) == (1, ())


def test_conditioning_of_the_others_is_the_same_to_the_bit(sd):
    seeds, variant = np.arange(len(PROMPTS)), np.zeros(len(PROMPTS), np.int64)
    good = encode([sd], variant, PROMPTS, seeds)
    with changed(sd, "encode", partial(raising_for, "a dog", ValueError("no"))):
        found = encode([sd], variant, PROMPTS, seeds, skip_failing=True)
    assert found.failed == {2: "ValueError: no"}
    for i in (0, 1, 3, 4, 5, 6):
        assert torch.equal(found.mean(np.array([i]))["prompt_embeds"], good.mean(np.array([i]))["prompt_embeds"])
    # A mean does not count the prompt that failed.
    assert torch.equal(found.mean(np.array([1, 2, 3]))["prompt_embeds"], good.mean(np.array([1, 3]))["prompt_embeds"])
    assert np.isfinite(found.vectors).all()


def nan_for(text, own, batch):
    encoded = own(batch)
    for i, prompt in enumerate(batch.prompts):
        if prompt == text:
            encoded.rows["prompt_embeds"][i, 3] = NAN
            encoded.vectors[i] = NAN
    return encoded


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (partial(raising_for, "a dog", IndexError("token 9 of 8")), "IndexError: token 9 of 8"),
        (partial(nan_for, "a dog"), "the encoder gave NaN or infinite values"),
    ],
    ids=["raises", "nan"],
)
def test_compile_gives_such_a_prompt_a_tree_of_its_own(sd, shared, change, reason):
    prompts = [*PROMPTS, "a dog"]  # a repeat fails with it
    with changed(sd, "encode", change):
        with pytest.warns(UserWarning, match=rf"2 of 8 prompts cannot be encoded.*prompt 2 \('a dog'\): {reason}"):
            plan = hsd.compile(prompts, 0.9, model=sd, steps=4, seeds=100)
        failed = []
        images = images_of(plan, sd, failed=failed.append)
    labels = plan.active(0)
    assert (labels == labels[2]).sum() == (labels == labels[7]).sum() == 1
    assert [(f.index, f.stage, f.reason) for f in failed] == [(2, "encode", reason), (7, "encode", reason)]
    others = [i for i in range(7) if i != 2]
    assert sorted(images) == others
    # The plan of the others is theirs alone; so are the images.
    alone = hsd.compile([PROMPTS[i] for i in others], 0.9, model=sd, steps=4, seeds=[100 + i for i in others])
    assert alone.node_steps == plan.prune(others).node_steps
    assert len(images_of(plan, sd)) == 8  # and a run later has all


def test_an_encoder_that_fails_for_all_is_an_error_that_names_a_prompt(sd):
    def encode_nothing(own, batch):
        raise KeyError("layer 7")

    with changed(sd, "encode", encode_nothing):
        with pytest.raises(hsd.PromptError, match=r"none of the 7 prompts can be encoded; prompt 0 .*KeyError") as e:
            hsd.compile(PROMPTS, 0.9, model=sd, steps=4)
        assert isinstance(e.value.__cause__, KeyError)
        with pytest.raises(hsd.PromptError, match="none of the first 16 prompts"):
            hsd.compile([f"prompt {i}" for i in range(1000)], 0.9, model=sd, steps=4)


def test_the_text_of_a_prior_fails_too(tmp_path):
    model = hsd.load(tiny.k22_combined(), height=64, width=64, prior_steps=2)
    plan = hsd.compile(PROMPTS[:4], 9.0, model=model, steps=2)
    plan.save(tmp_path / "p.safetensors")
    prior = model.prior_pipe
    own = prior._encode_prompt

    def encode_prompt(prompts, *rest):
        if "a dog" in prompts:
            raise ValueError("a dog")
        return own(prompts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "_encode_prompt", encode_prompt)
        failed = []
        images = images_of(hsd.Plan.load(tmp_path / "p.safetensors"), model, failed=failed.append)
    assert sorted(images) == [0, 1, 3]
    assert [(f.index, f.stage) for f in failed] == [(2, "encode")]


# ------------------------------------------------------------------------------- writing


def test_an_image_that_pillow_cannot_write(sd, single, tmp_path, monkeypatch):
    plan, good = single
    save = PIL.Image.Image.save

    def failing(self, *args, **options):
        if self.tobytes() == good[4]:
            raise OSError("encoder error -2 when writing image file")  # Pillow's own have no number
        return save(self, *args, **options)

    monkeypatch.setattr(PIL.Image.Image, "save", failing)
    run = hsd.generate(plan, sd, tmp_path, batch_size=4, progress=False, failed=lambda _: None)
    assert [(f.index, f.stage) for f in run.failed] == [(4, "write")]
    assert pixels_of(tmp_path) == {i: data for i, data in good.items() if i != 4}


def test_a_full_disk_is_recorded_as_what_it_is(sd, single, tmp_path, monkeypatch):
    plan, _ = single
    add = ImageFolder.add

    def full(self, index, *rest):
        if len(self.done()) >= 2:
            raise OSError(28, "No space left on device")
        return add(self, index, *rest)

    monkeypatch.setattr(ImageFolder, "add", full)
    with pytest.raises(hsd.OutputError, match="No space left on device"):
        hsd.generate(plan, sd, tmp_path, batch_size=2, progress=False)
    record = record_of(tmp_path)
    assert (record["outcome"], record["images"], record["failed"]) == ("failed", 2, 0)
    assert "No space left" in record["error"]


# ------------------------------------------------------------------------------- many, and several runs


@pytest.mark.parametrize("stage", ["denoise", "decode", "write"])
def test_a_run_in_which_everything_fails_ends_early(sd, stage, tmp_path, monkeypatch):
    plan = hsd.compile([f"prompt {i}" for i in range(60)], 0.0, model=sd, steps=2)
    calls = []

    def broken(own, *args):
        calls.append(args)
        if stage == "denoise":
            return own(*args)[0] * NAN, None
        raise ValueError(f"broken for the {len(calls)}th time")

    if stage == "write":
        monkeypatch.setattr(PIL.Image.Image, "save", lambda *_, **__: broken(None))
    with (
        changed(sd, stage, broken) if stage != "write" else contextlib.nullcontext(),
        pytest.raises(
            hsd.FailedImages, match="the run ends: the first [0-9]+ images all failed in the same way"
        ) as raised,
    ):
        hsd.generate(plan, sd, tmp_path, batch_size=4, progress=False)
    assert HOPELESS <= len(raised.value.failures) < 60
    record, entries = record_of(tmp_path), entries_of(tmp_path, "failed.jsonl")
    assert (record["outcome"], record["images"], record["failed"]) == ("failed", 0, len(entries))
    # Other writers may have failed since.
    assert {f.index for f in raised.value.failures} <= {e["index"] for e in entries}


def test_one_cluster_says_nothing_of_the_others(sd):
    """All images of the first trunk fail, and they are many: the run goes on."""
    prompts = [f"a cat number {i}" for i in range(HOPELESS + 4)] + [
        "a red bicycle in the rain",
        "the sea",
        "x",
        "Y" * 30,
    ]
    embeddings = np.zeros((len(prompts), 5), dtype=np.float32)
    embeddings[: HOPELESS + 4, 0] = 1.0
    embeddings[HOPELESS + 4 :, 1:] = np.eye(4)
    embeddings[: HOPELESS + 4, 1] = np.linspace(0, 1e-2, HOPELESS + 4)
    plan = hsd.compile(prompts, 0.5, embeddings=embeddings, steps=2)
    cluster = list(range(HOPELESS + 4))
    assert len(np.unique(plan.active(0))) == 5
    failed = []
    with changed(sd, "denoise", partial(nan_at, [mean_of(sd, plan, cluster)])):
        images = images_of(plan, sd, failed=failed.append)
    assert sorted(f.index for f in failed) == cluster
    assert len(images) == 4


def test_shards_keep_each_others_entries(sd, single, tmp_path):
    plan, _ = single
    rows = [mean_of(sd, plan, [i]) for i in (1, 2, 5)]
    shards = plan.shard(2)
    quiet = {"batch_size": 4, "progress": False, "failed": lambda _: None}
    with changed(sd, "denoise", partial(nan_at, rows)):
        for shard in shards:
            hsd.generate(shard, sd, tmp_path, **quiet)
    assert [e["index"] for e in entries_of(tmp_path, "failed.jsonl")] == [1, 2, 5]
    first = set(shards[0].kept.tolist())
    hsd.generate(shards[0], sd, tmp_path, **quiet)
    assert [e["index"] for e in entries_of(tmp_path, "failed.jsonl")] == [i for i in (1, 2, 5) if i not in first]
    existing = {"index": min(first), "text": "of a run that was killed"}
    with open(tmp_path / "failed.jsonl", "a") as file:
        file.write(json.dumps(existing) + "\n")
        file.write('nonsense\n{"index": null}\n[1]\n')  # a damaged file does not matter
    hsd.generate(shards[1], sd, tmp_path, **quiet)
    assert not (tmp_path / "failed.jsonl").exists()


def test_an_interrupted_run_is_recorded(sd, single, tmp_path):
    plan, _ = single
    made = []

    def stop(_, images):
        made.append(images)
        if sum(made) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hsd.generate(plan, sd, tmp_path, batch_size=2, progress=Calls(stop))
    record = record_of(tmp_path)
    assert (record["outcome"], record["error"]) == ("interrupted", "KeyboardInterrupt")
    assert record["images"] == len(entries_of(tmp_path)) > 0
    assert 0 < record["node_steps"] < plan.node_steps


def test_the_view_counts_failures(sd, single, tmp_path, capfd):
    plan, _ = single
    view = RunView("plain")
    with changed(sd, "denoise", partial(nan_at, [mean_of(sd, plan, [0])])):
        hsd.generate(plan, sd, tmp_path, batch_size=1, failed=lambda _: None, progress=view)
    assert re.fullmatch(r"6 of 7, .*, 1 failed", view.counts())
    hsd.generate(plan, sd, tmp_path, batch_size=1, progress=True)
    assert "hsd: 1 images in" in capfd.readouterr().err


def test_the_command_says_what_failed_and_exits_with_3(tmp_path, monkeypatch):
    prompts, out = tmp_path / "p.txt", tmp_path / "i"
    prompts.write_text("a red star\na blue star\na green ring\n")
    command = ["generate", str(prompts), "--out", str(out), "--steps", "2", "--tau", "0", "--set", "prior_steps=2"]
    from hsd.models.kandinsky22 import Kandinsky22

    def decode(own, x, generators, seen=[]):  # noqa: B006
        if generators[0].initial_seed() == 1:
            raise ValueError("this one")
        if len(x) > 1 and any(g.initial_seed() == 1 for g in generators):
            raise ValueError("one of these")
        return own(x, generators)

    own = Kandinsky22.decode
    with monkeypatch.context() as patch:
        patch.setattr(Kandinsky22, "decode", lambda self, *args: decode(partial(own, self), *args))
        run = CliRunner().invoke(cli.app, command)
    assert run.exit_code == 3, run.output
    assert "2 images in" in run.output
    assert "hsd: 1 of 3 images failed; run the same command again to try them again:" in run.output
    assert "  prompt 1 ('a blue star'), decode: ValueError: this one" in run.output
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 0, again.output
    assert "1 images in" in again.output


# ------------------------------------------------------------------------------- many that fail, and others that do not


def raising_for_bad(own, batch):
    """``encode`` that raises where a text begins with "bad"."""
    if any(prompt.startswith("bad") for prompt in batch.prompts):
        raise ValueError("bad")
    return own(batch)


MANY = [*(f"bad {i}" for i in range(HOPELESS + 1)), *PROMPTS]


def test_many_prompts_that_cannot_be_encoded_do_not_end_a_run_that_has_others(sd):
    """Also in one batch with the others, before them."""
    failed = []
    with changed(sd, "encode", raising_for_bad):
        with pytest.warns(UserWarning, match=f"{HOPELESS + 1} of {len(MANY)} prompts cannot be encoded"):
            plan = hsd.compile(MANY, 0.5, model=sd, steps=1)
        images = images_of(plan, sd, failed=failed.append)
    assert len(images) == len(PROMPTS)
    assert [(f.index, f.stage) for f in failed] == [(i, "encode") for i in range(HOPELESS + 1)]


def test_many_texts_that_a_prior_cannot_read_do_not_either(tmp_path, monkeypatch):
    model = hsd.load(tiny.k22_combined(), height=64, width=64, prior_steps=2)
    own = model.prior_pipe._encode_prompt

    def encode_prompt(prompts, *rest):
        return raising_for_bad(lambda batch: own(batch.prompts, *rest), SimpleNamespace(prompts=prompts))

    monkeypatch.setattr(model.prior_pipe, "_encode_prompt", encode_prompt)
    prompts = [*MANY[: HOPELESS + 1], "a cat"]
    found = encode([model], np.zeros(len(prompts), np.int64), prompts, np.arange(len(prompts)), skip_failing=True)
    assert sorted(found.failed) == list(range(HOPELESS + 1))


def test_a_run_that_has_only_failing_images_left_says_so_and_ends_in_order(sd, tmp_path):
    plan = hsd.compile(MANY, 0.0, embeddings=np.eye(len(MANY)), steps=1)
    quiet = {"batch_size": 4, "progress": False, "failed": lambda _: None}
    with changed(sd, "encode", raising_for_bad):
        first = hsd.generate(plan, sd, tmp_path, **quiet)
        again = hsd.generate(plan, sd, tmp_path, **quiet)
    assert (first.images, again.images) == (len(PROMPTS), 0)
    assert len(first.failed) == len(again.failed) == HOPELESS + 1
    assert (record_of(tmp_path)["outcome"], record_of(tmp_path)["savings"]) == ("finished", 0.0)


def test_the_only_prompt_of_the_first_setting_fails(sd):
    settings = [{"guidance_scale": 2.0}, {}, {}]
    with changed(sd, "encode", raising_for_bad), pytest.warns(UserWarning, match="1 of 3 prompts cannot be encoded"):
        plan = hsd.compile(["bad", "a cat", "a dog"], 0.9, model=sd, steps=1, settings=settings)
    assert len(plan) == 3


def test_a_plan_remembers_what_was_encoded_where_some_failed(sd, monkeypatch):
    calls = []

    def counted(own, batch):
        calls.extend(batch.prompts)
        return raising_for_bad(own, batch)

    with changed(sd, "encode", counted):
        with pytest.warns(UserWarning, match="1 of 8 prompts"):
            plan = hsd.compile([*PROMPTS, "bad"], 0.5, model=sd, steps=1)
        calls.clear()
        failed = []
        assert len(images_of(plan, sd, failed=failed.append)) == 7
    assert set(calls) == {"bad"}
    assert [f.index for f in failed] == [7]
    with pytest.raises(hsd.PromptError, match=r"prompt 7 \('bad'\) cannot be encoded: ValueError: bad"):
        encoded(plan)


def test_trials_need_every_prompt_and_name_one_that_fails(sd, tmp_path):
    trials = Trials(sd, [*PROMPTS, "bad"], 0, None, tmp_path, None, 4)
    with changed(sd, "encode", raising_for_bad), pytest.raises(hsd.PromptError, match=r"prompt 7 \('bad'\) cannot be"):
        trials.plan(Setting(2))
    assert trials.plan(Setting(2)).n_prompts == 8


def test_a_twin_that_fails_in_one_run_is_another_picture_in_the_next(sd, tmp_path):
    """It shares no step with a prompt whose image is made without it."""
    plan = hsd.compile(["a cat", "a  cat", "the sea"], 0.5, embeddings=np.eye(3) * 1e-2 + 1.0, steps=2, seeds=7)
    assert plan.counts()[0] == 1
    plan.save(tmp_path / "p.safetensors")
    quiet = {"batch_size": 1, "progress": False, "failed": lambda _: None}
    with changed(sd, "encode", partial(raising_for, "a cat", ValueError("no"))):
        assert hsd.generate(hsd.Plan.load(tmp_path / "p.safetensors"), sd, tmp_path / "i", **quiet).images == 2
    assert hsd.generate(hsd.Plan.load(tmp_path / "p.safetensors"), sd, tmp_path / "i", **quiet).images == 1
    images = {i: np.frombuffer(data, np.uint8).astype(int) for i, data in pixels_of(tmp_path / "i").items()}
    assert np.abs(images[0] - images[1]).max() > 1


def test_savings_are_those_of_images_that_were_finished(sd, single, tmp_path):
    plan, _ = single

    def stop(_, images):
        if images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hsd.generate(plan, sd, tmp_path, batch_size=2, progress=Calls(stop))
    record = record_of(tmp_path)
    assert record["standard_node_steps"] <= record["node_steps"] < plan.node_steps
    assert record["savings"] <= 0.0


@pytest.mark.parametrize("found", ['{"index": Infinity}\n', '{"index": true, "text": "x"}\n', None], ids=str)
def test_what_stands_in_the_place_of_the_record_of_failures(sd, single, tmp_path, found):
    """Nonsense, or a folder: the run is recorded all the same."""
    plan, _ = single
    if found is None:
        (tmp_path / "failed.jsonl").mkdir()
        (tmp_path / "failed.jsonl" / "kept").touch()
    else:
        (tmp_path / "failed.jsonl").write_text(found)
    error = ValueError("half a character: \ud800")
    with changed(sd, "decode", partial(raising_for_seed, 102, error)):
        run = hsd.generate(plan, sd, tmp_path, batch_size=1, progress=False, failed=lambda _: None)
    assert len(run.failed) == 1
    assert [entry["index"] for entry in entries_of(tmp_path, "failed.jsonl")] == [2]
    assert record_of(tmp_path)["failed"] == 1


def raising_for_seed(seed, error, own, latents, generators):
    if any(generator.initial_seed() == seed for generator in generators):
        raise error
    return own(latents, generators)


def test_a_full_disk_while_failures_are_recorded(sd, single, tmp_path, monkeypatch):
    plan, _ = single
    write = files.write_atomically

    def full(path, data):
        if path.name == "failed.jsonl":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", full)
    with (
        changed(sd, "decode", partial(raising_for_seed, 102, ValueError("no"))),
        pytest.raises(hsd.OutputError, match=r"cannot write .*failed\.jsonl: No space left on device"),
    ):
        hsd.generate(plan, sd, tmp_path, batch_size=1, progress=False, failed=lambda _: None)
    assert record_of(tmp_path)["failed"] == 1


def test_reasons_are_one_line_of_plain_characters():
    assert described(ValueError("a\n\x1b[31m\ud800 b")) == "ValueError: a ?[31m? b"


def test_a_tokenizer_that_raises_for_one_prompt_does_not_end_the_run(tmp_path):
    class Odd(type(tiny.stable_diffusion().tokenizer)):
        def __call__(self, text, *args, **kwargs):
            if "dog" in str(text):
                raise ValueError("no dogs")
            return super().__call__(text, *args, **kwargs)

    pipe = tiny.stable_diffusion()
    pipe.tokenizer.__class__ = Odd
    model = hsd.load(pipe, height=32, width=32)
    with pytest.warns(UserWarning, match="prompt 1 .*no dogs"):
        plan = hsd.compile(["a cat", "a dog", "the sea"], 0.5, model=model, steps=2)
    failed = []
    run = hsd.generate(plan, model, tmp_path, progress=False, failed=failed.append)
    assert (run.images, [f.index for f in failed], failed[0].stage) == (2, [1], "encode")
