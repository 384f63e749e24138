"""Bad input gets an error that names the index, the value and what to do, before any expensive work."""

from __future__ import annotations

import inspect
import io
import typing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

import hsd
import tiny
from helpers import name_of
from hsd import demo
from hsd.prompts.files import read_prompts
from hsd.prompts.pipeline_arguments import OF_A_RUN

GOOD = ["a cat", "a dog", "the sea"]
E = np.eye(3, 8)


def bad(row, column, value, dtype=np.float64):
    e = np.arange(1.0, 25.0).reshape(3, 8).astype(dtype)
    e[row, column] = value
    return e


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        ([], ValueError, "empty"),
        ("a cat", TypeError, "list of strings"),
        (["a", ""], ValueError, "prompt 1 is blank"),
        (["a", " \t"], ValueError, "prompt 1 is blank"),
        (["a", "b", 3], TypeError, r"prompt 2 is 3 \(int\)"),
        (["a", None], TypeError, "prompt 1 is None"),
        (["a", "b\ud800"], ValueError, "prompt 1 has a lone surrogate at character 1"),
    ],
)
def test_prompts(prompts, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(prompts, 1.0)


class Table:
    """What DataFrames of several libraries have in common: iterating gives the names of the columns."""

    columns = ("prompt", "seed")

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        (
            Table(),
            TypeError,
            r'prompts is a Table, a table: pass one column as a list, such as list\(table\["prompt"\]\)',
        ),
        ({"prompt": ["a", "b"]}, TypeError, "prompts is a dict, which gives its keys"),
        ({"a cat", "a dog"}, TypeError, r"prompts is a set, which has no order.*sorted\(\.\.\.\)"),
        (frozenset(["a"]), TypeError, "prompts is a frozenset, which has no order"),
        (np.array([["a", "b"]]), TypeError, r"an array of shape \(1, 2\): pass one dimension"),
        (np.array("a cat"), TypeError, r"an array of shape \(\)"),
        (np.array([b"a"]), TypeError, r"prompt 0 is .*\(bytes_?\), not a string: decode it"),
        (Path("prompts.txt"), TypeError, r"not PosixPath; prompts in a file are hsd.read_prompts\(path\).prompts"),
        ("prompts.txt", TypeError, "not one str: wrap it in .*hsd.read_prompts"),
        (io.StringIO("a cat\n"), TypeError, "not StringIO; prompts in a file are"),
        (None, TypeError, r"not None \(NoneType\)"),
        (3, TypeError, r"not 3 \(int\)"),
        ([["a", "b"]], TypeError, r"prompt 0 is \['a', 'b'\] \(list\), not a string"),
        ([{"prompt": "a"}], TypeError, r"prompt 0 is .*\(dict\), not a string: pass the texts alone"),
        (["a", float("nan")], TypeError, r"prompt 1 is nan \(float\), not a string: it is a missing cell"),
        ([Path("a.txt")], TypeError, "prompt 0 is PosixPath.*hsd.read_prompts"),
        (["a", "\u200b\u2060"], ValueError, "prompt 1 is blank"),
        (["a", "b\0"], ValueError, "prompt 1 has a NUL at character 1"),
        (["a", "\x1b[1mb"], ValueError, r"prompt 1 has the control character U\+001B at character 0"),
    ],
)
def test_what_is_no_list_of_prompts(prompts, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(prompts, 1.0)


def test_a_prompt_file_by_itself(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    with pytest.raises(TypeError, match="prompts is a PromptFile, which hsd.compile takes; elsewhere pass"):
        hsd.calibrate("demo", hsd.read_prompts(path))
    for more in ({"settings": [{}]}, {"columns": {"id": [1]}}):
        with pytest.raises(TypeError, match=f"{next(iter(more))}= is given, but the file of prompts has"):
            hsd.compile(hsd.read_prompts(path), 1.0, **more)


def test_lists_of_prompts():
    class Word(str):
        pass

    given = {"a cat": 1, "a dog": 2, "the sea": 3}
    for prompts in (
        GOOD,
        tuple(GOOD),
        iter(GOOD),
        np.array(GOOD),
        np.array(GOOD, object),
        given.keys(),
        map(Word, GOOD),
    ):
        out = hsd.compile(prompts, embeddings=E, steps=2).prompts
        assert out == GOOD
        assert {type(prompt) for prompt in out} == {str}
    assert (
        hsd.compile(["a cat\nin a hat\t", " \u200da"], embeddings=np.eye(2), steps=2).prompts[0] == "a cat\nin a hat\t"
    )


def test_prompts_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"prompt": GOOD, "seed": [3.0, 4.0, 5.0], "width": [64.0, float("nan"), 64.0]})
    with pytest.raises(TypeError, match="prompts is a DataFrame, a table"):
        hsd.compile(table, embeddings=E)
    plan = hsd.compile(table["prompt"], embeddings=E, seeds=table["seed"], columns={"row": table.index})
    assert plan.prompts == GOOD
    assert plan.seeds.tolist() == [3, 4, 5]
    assert plan.columns == {"row": [0, 1, 2]}
    own = table[["width"]].astype(object).where(table[["width"]].notna(), None).to_dict("records")
    assert hsd.compile(table["prompt"], embeddings=E, settings=own).settings == [{"width": 64}, {}]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("row", "value", "says"),
    [
        (1, np.nan, "embedding 1.*NaN.*column 3"),
        (2, np.inf, "embedding 2.*inf.*column 3"),
        (0, -np.inf, "embedding 0.*-inf.*column 3"),
    ],
)
def test_embeddings_that_are_not_finite(dtype, row, value, says):
    with pytest.raises(ValueError, match=f"(?i){says}"):
        hsd.compile(GOOD, 1.0, embeddings=bad(row, 3, value, dtype))


def test_embeddings_of_zeros():
    with pytest.raises(ValueError, match="embedding 2 is all zeros"):
        hsd.compile(GOOD, 1.0, embeddings=np.diag([1.0, 2.0, 0.0]))


@pytest.mark.parametrize(
    ("embeddings", "error", "says"),
    [
        (np.eye(4, 8), ValueError, "4 rows for 3 prompts"),
        (np.ones(3), ValueError, r"shape \(3,\)"),
        (np.ones((3, 0)), ValueError, "rows are empty"),
        (np.array([["a", "b"]] * 3), TypeError, "numbers"),
        (np.eye(3).astype(complex), TypeError, "complex128"),
    ],
)
def test_embeddings_of_another_shape(embeddings, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(GOOD, 1.0, embeddings=embeddings, model=partial(pytest.fail, "the model was loaded first"))


def test_tree_of_nothing():
    with pytest.raises(ValueError, match=r"shape \(0, 4\); at least one row"):
        hsd.build_tree(np.ones((0, 4)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tau": -0.1}, "tau is -0.1"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"tau": float("inf")}, "tau is inf"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": 1.0}, "budget is 1.0"),
        ({"budget": -2}, "budget is -2"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": 0.99}, "cannot be met.*0.65"),
        ({"tau": 1.0, "budget": 0.5}, "not both"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"images_per_prompt": 0}, "images_per_prompt is 0"),
        ({"linkage": "no-such"}, "unknown linkage 'no-such'.*ward"),
        ({"schedule": "cubic"}, "unknown schedule 'cubic'.*linear"),
        ({"schedule": lambda x: x}, "rises"),
        ({"schedule": lambda x: 1.0}, "last step 39 is 1;"),
        ({"schedule": [1.0, 0.0]}, r"shape \(2,\)"),
        ({"schedule": np.linspace(2, 0, 40)}, "2.0 at step 0"),
        ({"noise": "pink"}, "unknown noise 'pink'"),
        ({"seeds": [1, 2]}, "2 seeds for 3 images"),
        ({"seeds": [1, 2, -3]}, "seed 2 is -3"),
        ({"seeds": 2**63 - 2}, "seed 2 is"),
    ],
    ids=name_of,
)
def test_values(options, says):
    with pytest.raises(ValueError, match=says):
        hsd.compile(GOOD, embeddings=E, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 4.5}, "steps has to be an integer"),
        ({"steps": True}, "steps has to be an integer"),
        ({"seeds": 1.5}, "seeds has to be an integer"),
        ({"seeds": [1, 2, 3.5]}, "seed 2 is 3.5"),
        ({"typo": 1}, "typo"),
    ],
    ids=name_of,
)
def test_types(options, says):
    with pytest.raises(TypeError, match=says):
        hsd.compile(GOOD, embeddings=E, **options)


def test_checks_come_before_the_encoder_runs():
    def encoder(_):
        pytest.fail("encoded before the arguments were checked")

    for options in ({"tau": -1}, {"steps": 0}, {"seeds": [1]}, {"schedule": "no"}, {"linkage": "no"}):
        with pytest.raises(ValueError, match=r"."):
            hsd.compile(GOOD, encoder=encoder, **options)


def test_prune_and_shard():
    plan = hsd.compile(GOOD, 1.0, embeddings=E)
    for keep, says in (([], "(?i)empty|no prompt"), ([3], "3"), ([-1], "-1"), ([1, 1], "1")):
        with pytest.raises(ValueError, match=says):
            plan.prune(keep)
    with pytest.raises(ValueError, match="2"):
        plan.prune([0, 1]).prune([2])
    with pytest.raises(TypeError, match="float64"):
        plan.prune([0.5])
    with pytest.raises(ValueError, match="0"):
        plan.shard(0)
    with pytest.raises(IndexError, match="40"):
        plan.active(40)


@pytest.mark.parametrize(
    ("lowering", "says"),
    [
        ({"batch_size": 0}, "batch.size.*0"),
        ({"order": "sideways"}, "sideways"),
        ({"max_slots": 1}, "(?s)max_slots.*1.*2"),
    ],
)
def test_lowering(lowering, says, model):
    plan = hsd.compile(GOOD, 3.0, model=model, steps=4)
    with pytest.raises(ValueError, match=says):
        plan.program(**lowering)
    with pytest.raises(ValueError, match=says):
        hsd.stream(plan, model, **lowering)  # at the call, not at the first image


@pytest.mark.parametrize(
    ("device", "found", "says"),
    [
        ("cuda", 0, r"device is cuda, and torch finds no CUDA device.* leave device= \(--device\) out.* CUDA build"),
        (torch.device("cuda:1"), 0, "device is cuda:1, and torch finds no CUDA device"),
        ("cuda:7", 2, "device is cuda:7, and torch finds 2 CUDA devices, counted from 0: the last is cuda:1"),
        ("gpu", 2, "device is gpu, which torch does not know: write cpu, cuda"),
    ],
)
def test_a_device_that_there_is_not(device, found, says, monkeypatch):
    """Before a model is looked for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: found > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    with pytest.raises(ValueError, match=says):
        hsd.load("nobody/nothing", device=device)


def test_unknown_models(tmp_path):
    with pytest.raises(hsd.UnknownModel, match="unknown model 'dmeo': did you mean 'demo'"):
        hsd.load("dmeo")
    with pytest.raises(hsd.UnknownModel, match="model_index.json"):
        hsd.load(tmp_path)
    with pytest.raises(hsd.UnknownModel, match=r"the folder .* has no model_index.json.* save_pretrained"):
        hsd.load(f"{tmp_path}/")
    with pytest.raises(hsd.UnknownModel, match="unknown model '~/nothing'"):
        hsd.load("~/nothing")
    for name in ("nobody/nothing.safetensors", str(tmp_path / "model.CKPT")):
        with pytest.raises(hsd.UnknownModel, match=f"{name} is one file of weights.* from_single_file"):
            hsd.load(name)
    with pytest.raises(hsd.UnknownModel, match="cannot load nobody/nothing"):
        hsd.load("nobody/nothing")


def test_models_in_the_home_folder(monkeypatch):
    """A shell leaves "~" alone inside quotes; a folder has one name, however it is written."""
    monkeypatch.setenv("HOME", str(demo.FOLDER.parent))
    folder = demo.FOLDER.name
    names = {hsd.load(each).name for each in (f"~/{folder}", f"~/{folder}/", Path("~", folder), f"{demo.FOLDER}/")}
    assert names == {str(demo.FOLDER)}


def test_unsupported_pipelines():
    prior, decoder = tiny.k22_prior(), tiny.k22_decoder()
    with pytest.raises(hsd.UnsupportedPipeline, match=r"half of Kandinsky 2.2: pass the pair"):
        hsd.load(decoder)
    with pytest.raises(hsd.UnsupportedPipeline, match="in this order"):
        hsd.load((decoder, prior))

    class StableDiffusionPlusPipeline:
        pass

    with pytest.raises(hsd.UnsupportedPipeline, match="nearest that has is StableDiffusionPipeline.*five"):
        hsd.load(StableDiffusionPlusPipeline())


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        (
            {"guidance_scale": "7.5"},
            TypeError,
            r"guidance_scale is '7.5' \(str\): it has to be a number; write 7.5 without",
        ),
        (
            {"guidance_scale": "7,5"},
            TypeError,
            "guidance_scale is '7,5' .*: it has to be a number; write 7.5 with a point",
        ),
        ({"guidance_scale": None}, TypeError, "guidance_scale is None: it has to be a number"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale is nan: it has to be a finite number"),
        ({"guidance_scale": np.float32("inf")}, ValueError, "guidance_scale is inf.*finite"),
        ({"guidance_scale": 10**400}, ValueError, "guidance_scale is .*: it is too large"),
        ({"guidance_scale": True}, TypeError, "guidance_scale is True: it has to be a number"),
        ({"guidance_scale": [5.0]}, TypeError, r"guidance_scale is \[5.0\] \(list\): it has to be a number"),
        ({"width": 0}, ValueError, "width is 0: it has to be at least 1"),
        ({"height": -8}, ValueError, "height is -8: it has to be a positive multiple of 8"),
        ({"width": 2**40}, ValueError, "width is 1099511627776: it has to be at most 65,535"),
        ({"width": 32.5}, TypeError, "width is 32.5: it has to be a whole number or None"),
        ({"width": "32"}, TypeError, r"width is '32' \(str\): .*; write 32 without quotes"),
        ({"width": float("nan")}, ValueError, "width is nan: it has to be a finite number"),
        ({"negative_prompt": ["dull"]}, TypeError, r"negative_prompt is \['dull'\] \(list\): it has to be text"),
        ({"negative_prompt": 3}, TypeError, r"negative_prompt is 3 \(int\): it has to be text"),
        ({"negative_prompt": "a\ud800"}, ValueError, "negative_prompt is .*: it has a lone surrogate"),
        ({"eta": object()}, TypeError, "eta is .*: it has to be a number"),
    ],
    ids=name_of,
)
def test_settings_have_types(model, settings, error, says):
    with pytest.raises(error, match=says):
        hsd.load(model, **settings)
    with pytest.raises(error, match=says):
        hsd.load(model.pipe, **settings)
    (name,) = settings
    if settings[name] is not None:  # which is not given, in the settings of a prompt
        with pytest.raises((TypeError, ValueError), match=f"prompt 1.*{name}"):
            hsd.compile(["a", "b"], model=model, settings=[{}, settings])


def test_settings_are_converted(model):
    loaded = hsd.load(model, width=64.0, height=np.int64(32), guidance_scale=5, eta=np.float32(0.5))
    assert (loaded.width, loaded.height, loaded.guidance_scale, loaded.eta) == (64, 32, 5.0, 0.5)
    assert [type(value) for value in (loaded.width, loaded.height, loaded.guidance_scale, loaded.eta)] == [
        int,
        int,
        float,
        float,
    ]
    assert loaded.call_key() == hsd.load(model, width=64, height=32, guidance_scale=5.0, eta=0.5).call_key()


def test_unknown_settings(model):
    with pytest.raises(TypeError, match="guidence_scale.*did you mean 'guidance_scale'"):
        hsd.load(model.pipe, guidence_scale=3.0)
    with pytest.raises(ValueError, match="height is 33"):
        hsd.load(model.pipe, height=33)
    with pytest.raises(TypeError, match="device="):
        hsd.load(model.pipe, device="cpu")


def test_a_plan_that_does_not_fit_the_model():
    from diffusers import PNDMScheduler

    pipe = tiny.stable_diffusion()
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    model = hsd.load(pipe, height=32, width=32)
    blind = hsd.compile(GOOD, 1.0, steps=5, embeddings=np.eye(len(GOOD)))
    with pytest.raises(hsd.PlanMismatch, match=r"5 steps.*PNDMScheduler makes 6.*compile the plan with model="):
        hsd.stream(blind, model)
    assert hsd.compile(GOOD, 1.0, model=model, steps=5).n_steps == 6


def test_a_scheduler_that_cannot_be_expressed():
    pipe = tiny.stable_diffusion()

    class Odd(type(pipe.scheduler)):
        def step(self, model_output, timestep, sample, **kwargs):
            return super().step(torch.tanh(model_output), timestep, sample, **kwargs)

    pipe.scheduler = Odd.from_config(pipe.scheduler.config)
    with pytest.raises(hsd.UnsupportedScheduler, match="Odd"):
        hsd.compile(GOOD, 1.0, model=hsd.load(pipe, height=32, width=32), steps=4)


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\r\n  a dog \nthé sea".encode())
    assert read_prompts(path).prompts == ["a cat", "a dog", "thé sea"]
    path.write_bytes("a cat\na dög\n".encode() + b"a d\xf6g\n")
    with pytest.raises(hsd.PromptError, match="line 3: byte 4 .0xf6. is not UTF-8"):
        read_prompts(path)
    path.write_bytes(b"\n \n")
    with pytest.raises(hsd.PromptError, match="no prompts"):
        read_prompts(path)
    with pytest.raises(hsd.PromptError, match="missing.txt: No such file"):
        read_prompts(tmp_path / "missing.txt")
    with pytest.raises(hsd.PromptError, match="train has no column 'prompt'"):  # a folder is a data set
        read_prompts(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "short", "text", "flip", "metadata"])
def test_plan_files(tmp_path, damage):
    plan = hsd.compile(GOOD, 1.0, embeddings=E)
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data = bytearray()
    elif damage == "short":
        data = data[:-9]
    elif damage == "text":
        data = bytearray(b"a cat\n" * 9)
    elif damage == "flip":
        data[-3] ^= 0x40
    else:
        data = data.replace(b"independent", b"indapendent")
    path.write_bytes(data)
    with pytest.raises(hsd.Error, match=r"is not a plan that can be used: .*Compile it again"):
        hsd.Plan.load(path)
    with pytest.raises(OSError, match="missing"):
        hsd.Plan.load(tmp_path / "missing.safetensors")


def test_prompt_files_with_settings(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat", "seed": 7}\n\n{"prompt": "a dog", "width": 64}\n')
    given = read_prompts(path)
    assert given.prompts == ["a cat", "a dog"]
    assert given.seeds == [7, None]
    assert given.settings == [{}, {"width": 64}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a cat", r"line 2 is not JSON .*write one object per line"),
        ('{"text": "a cat"}', "line 2 has no prompt: rename 'text' to 'prompt', or write an object such as"),
        ('["a cat"]', "line 2 has no prompt"),
        ('{"prompt": " "}', "line 2 has no prompt"),
        ('{"prompt": "a cat", "seed": -1}', "line 2: the seed is -1"),
        ('{"prompt": "a cat", "seed": 1.5}', "line 2: the seed is 1.5"),
    ],
)
def test_bad_lines_of_prompt_files_with_settings(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(hsd.PromptError, match=says):
        read_prompts(path)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ([{}], ValueError, "1 settings for 2 prompts"),
        ({"width": 64}, ValueError, r"one mapping for 2 prompts: .*hsd\.generate"),
        ([{}, 3], TypeError, "settings of prompt 1 are 3"),
        ([{}, {4: 2}], TypeError, "settings of prompt 1 are"),
        ([{}, {"width": object()}], TypeError, "settings of prompt 1 .*cannot be saved as JSON"),
        ([{}, {"guidance_scale": float("nan")}], TypeError, "settings of prompt 1 .*cannot be saved as JSON"),
    ],
)
def test_bad_settings_of_single_prompts(settings, error, says):
    with pytest.raises(error, match=says):
        hsd.compile(["a", "b"], embeddings=np.eye(2), settings=settings)


@pytest.mark.parametrize(
    ("own", "error", "says"),
    [
        ({"widht": 32}, TypeError, r"settings \{'widht': 32\} of (a prompt|prompt 1): .* did you mean 'width'"),
        ({"width": 33}, ValueError, "settings .* of (a prompt|prompt 1): width is 33"),
    ],
)
def test_settings_that_the_model_does_not_take_are_said_before_encoding(model, monkeypatch, own, error, says):
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded before the settings were checked"))
    with pytest.raises(error, match=says):
        hsd.compile(["a", "b"], model=model, settings=[{}, own])
    plan = hsd.compile(["a", "b"], embeddings=np.eye(2), settings=[{}, own], steps=4)
    with pytest.raises(error, match=says):
        hsd.stream(plan, model)


def test_settings_survive_a_file_and_hostile_ones_do_not(tmp_path):
    own = [{}, {"width": 64}, {"width": 64}]
    plan = hsd.compile(["a", "b", "c"], 9.0, embeddings=np.eye(3) + 1, settings=own)
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    again = hsd.Plan.load(path)
    assert again.settings == [{}, {"width": 64}]
    assert again.setting.tolist() == [0, 1, 1]
    assert again.fingerprint == plan.fingerprint
    assert plan.fingerprint != hsd.compile(["a", "b", "c"], 9.0, embeddings=np.eye(3) + 1).fingerprint
    for index, says in (([0, 1], "which settings each of its 3"), ([0, 1, 2], "prompt 2 has settings 2 of 2")):
        plan.request["settings"]["index"] = index
        plan.save(path)
        with pytest.raises(hsd.Error, match=says):
            hsd.Plan.load(path)
    plan.request["settings"]["index"] = [0, 0, 1]  # the tree has merged the last two
    plan.save(path)
    with pytest.raises(hsd.Error, match="segment .* holds prompts of different settings"):
        hsd.Plan.load(path)


class Loader:
    def load(self):
        raise ValueError("it was called")


@pytest.mark.parametrize("function", [Loader().load, partial(Loader.load, None), lambda: Loader().load()])
def test_a_function_that_returns_a_model_is_called(function):
    with pytest.raises(ValueError, match="it was called"):
        hsd.compile(GOOD, 1.0, model=function)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("num_images_per_prompt", "here it is images_per_prompt="),
        ("generator", "here it is seeds="),
        ("output_type", "PIL images by hsd.stream"),
        ("guidance_scale", "a setting of the model. For all prompts give it to hsd.load"),
        ("negative_prompt", "settings=.*'negative_prompt'"),
        ("guidance_scal", "did you mean the setting 'guidance_scale'"),
        ("seed", "seeds= takes one number"),
        ("sedes", "did you mean seeds="),
        ("latents", "seeds="),
        ("prompt_embeds", "embeddings= of hsd.compile"),
        ("batch_size", "it is an argument of hsd.generate and hsd.stream"),
        ("image_format", "it is an argument of hsd.generate"),
        ("callback_on_step_end", "progress= of hsd.generate"),
        ("dtype", "give it to hsd.load"),
        ("lora_scale", "cross_attention_kwargs"),
        ("xyz", "it has prompts, tau, model"),
    ],
)
def test_compile_says_where_an_unknown_argument_belongs(name, says):
    with pytest.raises(TypeError, match=f"hsd.compile has no argument '{name}': .*{says}"):
        hsd.compile(GOOD, **{name: 1})


def test_the_model_is_given_by_name():
    for arguments, more in (((object(),), {"tau": 0}), ((0.5, object()), {})):
        with pytest.raises(TypeError, match="takes prompts and tau in this order, .* the model as model="):
            hsd.compile(GOOD, *arguments, **more)
    with pytest.raises(TypeError, match="tau is a object: it has to be a number.*model="):
        hsd.compile(GOOD, object())


def test_the_signature_of_compile_is_its_own():
    parameters = inspect.signature(hsd.compile).parameters
    assert list(parameters)[:3] == ["prompts", "tau", "model"]
    assert parameters["seeds"].default == 0
    assert typing.get_type_hints(hsd.compile, None, {"Adapter": object})["return"] is hsd.Plan


def test_arguments_of_a_run_are_known_where_there_are_none():
    """Other calls say that an argument belongs to a run; the table of them is that of the calls themselves."""
    streamed, generated = (set(inspect.signature(one).parameters) for one in (hsd.stream, hsd.generate))
    compiled = set(inspect.signature(hsd.compile).parameters)
    more = (generated | streamed) - compiled - {"plan", "settings"}
    assert set(OF_A_RUN) == more
    assert {name for name, function in OF_A_RUN.items() if not function} == more & streamed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("format", "image_format="),
        ("output_dir", "out="),
        ("batchsize", "did you mean 'batch_size'"),
        ("tau", "compile"),
    ],
)
def test_a_setting_that_is_meant_as_an_argument_of_a_run(name, says):
    with pytest.raises(TypeError, match=f"has no setting '{name}': .*{says}"):
        hsd.load(tiny.stable_diffusion(), **{name: 1})


def test_arguments_of_other_functions():
    with pytest.raises(TypeError, match="hsd.write_shards has no argument 'maxcount': here it is per_shard="):
        hsd.write_shards("a", "b", maxcount=1)
    with pytest.raises(TypeError, match=r"hsd.evaluate has no argument 'agains': did you mean against=\?"):
        hsd.evaluate("a", agains="b")


def test_an_unknown_setting_is_found_before_the_weights_are_read(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(TypeError, match="has no setting 'seed': seeds="):
        hsd.load(tmp_path, seed=1)


class Bar:
    """Like the class of tqdm: it takes anything, and shows what it iterates over."""

    def __init__(self, *_, **__):
        pass


def four(a, b, c, d):
    pass


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"failed": 5}, "failed is 5: it has to be None, or a function that is called with each hsd.Failure"),
        ({"failed": True}, "failed is True"),
        ({"failed": lambda: None}, "failed= is called with each hsd.Failure .*too many positional"),
        ({"progress": 1}, r"progress is 1: it has to be True, False, or a function .*\(stage, fraction\)"),
        ({"progress": "bar"}, "progress is 'bar'"),
        ({"progress": Bar}, r"progress is <class .*Bar'> \(a class\)"),
        ({"progress": four}, r"progress= is called with \(stage, fraction\), see hsd.ProgressOption.*four.*'c'"),
        ({"compile": "max-autotune"}, "compile is 'max-autotune': it has to be True or False"),
        ({"cuda_graphs": None}, "cuda_graphs is None: it has to be True or False"),
        ({"batch_size": 8.0}, "batch_size is 8.0: it has to be an integer or 'auto'"),
        ({"batch_size": "large"}, "batch_size is 'large': it has to be an integer or 'auto'"),
        ({"max_slots": 2.5}, "max_slots is 2.5: it has to be an integer or None"),
        ({"budget": "30%"}, "budget is '30%': it has to be a number, the share .*, such as 0.3"),
        ({"gpu_hours": [2]}, "gpu_hours is a list: it has to be a number, such as 2.5"),
        ({"tau": "much"}, "tau is 'much': it has to be a number"),
    ],
)
def test_types_are_checked_at_the_call(given, says, tmp_path):
    """Before a model is loaded: there is none of this name."""
    with pytest.raises(TypeError, match=says):
        hsd.stream(GOOD, "dmeo", **given)
    with pytest.raises(TypeError, match=says):
        hsd.generate(GOOD, "dmeo", tmp_path / "images", **given)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("progress", [1, "bar", Bar, four])
def test_progress_is_checked_by_every_call(progress, tmp_path):
    for call in (
        partial(hsd.compile, GOOD),
        partial(hsd.load, "dmeo"),
        partial(hsd.build_tree, E),
        partial(hsd.report, tmp_path),
    ):
        with pytest.raises(TypeError, match=r"^progress.*\(stage, fraction\)"):
            call(progress=progress)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "^None is no model: give a name, a folder or a pipeline object"),
        ({"a": 1}, "is no model"),
        (
            StableDiffusionPipeline,
            r"is a class: give a pipeline object, such as StableDiffusionPipeline.from_pretrained",
        ),
    ],
)
def test_what_is_no_model(given, says):
    with pytest.raises(hsd.UnsupportedPipeline, match=says):
        hsd.load(given)


def test_a_folder_that_was_saved_with_a_lora(tmp_path):
    """The layers around which PEFT has put a LoRA are saved under other names."""
    pipe = tiny.stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(hsd.UnknownModel, match=r"weights are missing from .*fuse_lora\(\) and unload_lora_weights"):
        hsd.load(tmp_path)
