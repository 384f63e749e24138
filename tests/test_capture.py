"""What a CUDA graph forbids is found without a GPU: no family does it, faults are found, and nothing stays behind."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import random
import re
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import hsd
import tiny
from families import EVERY
from helpers import encoded
from hsd.models import BrokenAdapter, capture, check
from hsd.models.capture import NotChecked, lint
from hsd.models.restoring import restored
from hsd.models.stable_diffusion import StableDiffusion
from hsd.replay import executor, layout

PROMPTS = ("a cat", "a cat on a mat", "the sea")
HALVES = [torch.bfloat16, torch.float16]
INTERVAL = {"guidance_interval": (0.0, 0.5)}


@functools.cache
def pipeline(family):
    return family.build()


@functools.cache
def model_of(family):
    return hsd.load(family.loadable(pipeline(family)), **family.settings(family.guided, family.size))


@functools.cache
def conditioning_of(family, of_prior):
    model = model_of(family)
    return encoded(model.prior() if of_prior else model, PROMPTS, [0, 1, 2])


def findings(family, *, of_prior=False, settings=None, **options):
    model = hsd.load(model_of(family), **(settings or {}))
    return lint(model, conditioning_of(family, of_prior), PROMPTS, of_prior=of_prior, catch_up=0.5, **options)


def has_interval(family):
    return "guidance_interval" in model_of(family).setting_names()


def networks_of(model):
    parts = [part for pipe in model.pipes() for part in pipe.components.values()]
    return [part for part in parts if isinstance(part, nn.Module)]


def held(model):
    """Every attribute, weight and buffer of every part of a model, by the object's id."""
    found = {}
    for n, network in enumerate(networks_of(model)):
        for path, part in network.named_modules():
            for where in (vars(part), part._parameters, part._buffers):
                found |= {(n, path, name): id(value) for name, value in where.items()}
    for pipe in model.pipes():
        found |= {(type(pipe).__name__, name): id(value) for name, value in vars(pipe).items()}
    return found


def fakes_alive():
    gc.collect()
    return sum(type(item) is FakeTensor for item in gc.get_objects())


# ------------------------------------------------------------------------------- families


def parts_of(family):
    """Whether a part is the prior, of each part that is called."""
    return (False,) if model_of(family).prior() is None else (False, True)


def in_dtypes():
    """Each family in single precision, and in one of the half precisions, by turns."""
    for i, family in enumerate(each for each in EVERY if not each.twin):
        for dtype in (torch.float32, HALVES[i % 2]):
            yield pytest.param(family, dtype, id=f"{family.name}-{str(dtype).removeprefix('torch.')}")


# What torch says of Kandinsky 5's norms, float32 with weights in half precision, in the pipeline as well.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(("family", "dtype"), list(in_dtypes()))
def test_a_call_of_a_family_can_be_captured_if_it_says_so(family, dtype):
    """The whole call: gather with catch-up, the rows of a guidance interval, the denoiser, the sampler, scatter."""
    model = model_of(family)
    for of_prior in parts_of(family):
        conditioning_of(family, of_prior)  # encoding may change what hangs on an encoder
    before = held(model)
    found = [findings(family, dtype=dtype)]
    if has_interval(family):
        found.append(findings(family, dtype=dtype, settings=INTERVAL))
    assert [not each for each in found] == [model.capturable] * len(found), found
    if model.prior() is not None:
        assert model.prior().capturable
        assert findings(family, of_prior=True, dtype=dtype) == []
    assert held(model) == before


def test_the_families_have_what_the_test_is_about():
    assert sum(map(has_interval, EVERY)) >= 5
    assert sum(model_of(family).prior() is not None for family in EVERY) >= 3
    assert {family.name for family in EVERY if not model_of(family).capturable} == {
        "cogview-4",
        "kandinsky-5",
        "one-timestep",
        "qwen-image",
        "qwen-image-2.1",
        "z-image",
    }


SD = next(family for family in EVERY if family.name == "stable-diffusion")


@pytest.mark.parametrize(
    ("place", "name", "settings", "catch_up"),
    [(executor, "per_row", {}, 0.5), (layout.Layout, "of", INTERVAL, 0.0)],
    ids=["catch-up", "guidance interval"],
)
def test_what_surrounds_the_denoiser_is_looked_at_too(monkeypatch, place, name, settings, catch_up):
    own = getattr(place, name)

    def reading(*args):
        next(arg for arg in args if isinstance(arg, torch.Tensor)).max().item()
        return own(*args)

    model = hsd.load(model_of(SD), **settings)
    monkeypatch.setattr(place, name, reading)
    assert lint(model_of(SD), conditioning_of(SD, False), PROMPTS, catch_up=0.0) == []
    (found,) = lint(model, conditioning_of(SD, False), PROMPTS, catch_up=catch_up)
    assert found.what.startswith("reads a value back")
    assert found.where.startswith("test_capture.py:")


@pytest.mark.parametrize("name", ["qwen-image", "kandinsky-2.2", "flux-2"])
def test_images_are_the_same_before_and_after(name):
    family = next(each for each in EVERY if each.name == name)

    def images(model):
        plan = hsd.compile(PROMPTS, 1.0, model=model, steps=3)
        return [image.pil.tobytes() for image in sorted(hsd.stream(plan, model), key=lambda image: image.index)]

    def loaded():
        return hsd.load(family.loadable(family.build()), **family.settings(family.guided, family.size))

    looked_at = loaded()
    state = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    lint(looked_at, conditioning_of(family, False), PROMPTS)  # first: what networks keep is then made by the lint
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    expected = images(loaded())
    assert images(looked_at) == expected
    assert images(looked_at) == expected


# ------------------------------------------------------------------------------- faults of adapters


def item(self, latents, timestep):
    return latents * timestep.max().item()  # here


def to_list(self, latents, timestep):
    return latents * timestep.tolist()[0]  # here


def truth(self, latents, timestep):
    return latents if (timestep > 500).all() else -latents  # here


def boolean_index(self, latents, timestep):
    kept = latents[timestep > 500]  # here
    return latents + kept.sum()


def boolean_assignment(self, latents, timestep):
    changed = latents.clone()
    changed[timestep > 500] = latents[:1]  # here
    return changed


def masked_select(self, latents, timestep):
    return latents + latents.masked_select(latents > 0).sum()  # here


def nonzero(self, latents, timestep):
    return latents + (timestep > 500).nonzero().sum()  # here


def where_of_one(self, latents, timestep):
    (at,) = torch.where(timestep > 500)  # here
    return latents + at.sum()


def unique(self, latents, timestep):
    return latents + timestep.unique().sum()  # here


def equal(self, latents, timestep):
    return latents if torch.equal(timestep, timestep + 1) else -latents  # here


def repeats_by_a_tensor(self, latents, timestep):
    rows = latents.repeat_interleave((timestep > -1).long(), dim=0)  # here
    return latents + rows.sum()


def host_attribute(self, latents, timestep):
    return latents * self.on_host  # here


def host_attribute_copied(self, latents, timestep):
    return latents * self.on_host.to(latents.device)  # here


def host_attribute_as_index(self, latents, timestep):
    return latents + latents[self.indices].sum()  # here


def host_list_as_index(self, latents, timestep):
    return latents + latents[[0, 0]].sum()  # here


def made_in_each_call(self, latents, timestep):
    return latents * torch.tensor([0.5, 0.5, 1.0, 1.0], device=latents.device).view(4, 1, 1)  # here


def made_on_the_host(self, latents, timestep):
    return latents * torch.linspace(0, 1, 4).view(4, 1, 1).to(latents)  # here


def made_by_numpy(self, latents, timestep):
    return latents * torch.from_numpy(np.ones(4, np.float32)).view(4, 1, 1).to(latents.device)  # here


def to_the_host(self, latents, timestep):
    top = timestep.cpu()  # here
    return latents + 0 * top.ndim


def copied_to_the_host(self, latents, timestep):
    self.kept.copy_(timestep)  # here
    return latents


def global_noise(self, latents, timestep):
    return latents + torch.randn_like(latents)  # here


def own_noise(self, latents, timestep):
    return latents + torch.randn(latents.shape, generator=self.generator_).ndim  # here


def dropout(self, latents, timestep):
    return nn.functional.dropout(latents, 0.1)  # here


FAULTS = {
    item: "reads a value back",
    to_list: "reads a value back",
    truth: "reads a value back",
    boolean_index: "indexes with a boolean tensor",
    boolean_assignment: "indexes with a boolean tensor",
    masked_select: "masked_select",
    nonzero: "nonzero",
    where_of_one: "nonzero",
    unique: "depends on the data",
    equal: "torch.equal",
    repeats_by_a_tensor: "repeat_interleave without output_size",
    host_attribute: r"uses a tensor of the host, \(4, 1, 1\) float32",
    host_attribute_copied: r"copies from the host to the device, \(4, 1, 1\) float32",
    host_attribute_as_index: "with a tensor of the host",
    host_list_as_index: "of the host|from the host",
    made_in_each_call: r"from the host to the device, \(4,\) float32|on the host and copies",
    made_on_the_host: "copies from the host to the device",
    made_by_numpy: "copies from the host to the device",
    to_the_host: r"copies from the device to the host, \(3,\) int64",
    copied_to_the_host: "copies from the device to the host",
    global_noise: "draws random numbers from the global generator",
    own_noise: "draws random numbers from a generator of its own",
    dropout: "draws random numbers from the global generator",
}
"""By fault, what is said of it."""


@dataclass(eq=False)
class Broken(StableDiffusion):
    """An adapter of another package, which keeps tensors of its own."""

    def __post_init__(self):
        super().__post_init__()
        self.on_host = torch.linspace(0, 1, 4).view(4, 1, 1)
        self.on_device = torch.linspace(0, 1, 4, device=self.device).view(4, 1, 1)
        self.indices, self.kept = torch.arange(2), torch.zeros(3, dtype=torch.int64)
        self.generator_ = torch.Generator().manual_seed(1)
        self.cache = {}

    fault = None

    def denoise(self, latents, timestep, rows):
        return super().denoise(type(self).fault(self, latents, timestep), timestep, rows)


def broken(fault, monkeypatch, pipe=None):
    monkeypatch.setattr(Broken, "fault", fault)
    return Broken(pipe or pipeline(SD), "broken")


def marked(function):
    """File and line of the comment ``# here``."""
    lines, first = inspect.getsourcelines(function)
    (at,) = [i for i, line in enumerate(lines) if line.rstrip().endswith("# here")]
    return f"test_capture.py:{first + at}"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_at_its_line(fault, monkeypatch):
    model = broken(fault, monkeypatch)
    (found,) = lint(model, conditioning_of(SD, False), PROMPTS)
    assert found.where == marked(fault)
    assert found.times == 1
    assert re.search(FAULTS[fault], found.what), found.what


def draws_by_python(self, latents, timestep):
    return latents * random.random()


def draws_by_numpy(self, latents, timestep):
    return latents * float(np.random.rand())


@pytest.mark.parametrize("fault", [draws_by_python, draws_by_numpy], ids=lambda fault: fault.__name__)
def test_random_numbers_of_the_host_are_found(fault, monkeypatch):
    state = random.getstate()
    (found,) = lint(broken(fault, monkeypatch), conditioning_of(SD, False), PROMPTS)
    assert found.what == "draws random numbers of Python or numpy"
    assert found.where == f"test_capture.py:{inspect.getsourcelines(Broken.denoise)[1]}"
    assert random.getstate() == state


def allowed(self, latents, timestep):
    """Looks like a fault, and is none."""
    changed = latents.clone()
    changed[timestep > 500] = 0.0  # masked_fill, as is what follows
    changed.index_put_((timestep > 500,), torch.tensor(0.0))
    changed = changed.masked_fill(changed > 3, 1.0)
    changed = torch.where(changed > 2, changed, torch.tensor(0.0))
    changed = changed * self.on_device + changed.repeat_interleave(2, 0)[::2]
    repeats, n = torch.full_like(timestep, 2), len(timestep)
    changed = changed + changed.repeat_interleave(repeats, 0, output_size=2 * n)[::2]
    changed = changed * int(self.indices.max()) + float(self.on_host.sum()) * self.on_host.numpy()[0, 0, 0]
    changed = nn.functional.dropout(changed, 0.5, training=False)
    if "table" not in self.cache:  # uploaded in the first call only
        self.cache["table"] = torch.linspace(0, 1, 4).view(4, 1, 1).to(latents.device)
    return changed * self.cache["table"]


def test_what_a_graph_can_hold_is_not_reported(monkeypatch):
    assert lint(broken(allowed, monkeypatch), conditioning_of(SD, False), PROMPTS) == []


def test_values_that_are_read_before_a_run_are_no_fault(monkeypatch):
    """They are not checked further: without values there is nothing to read."""

    @contextlib.contextmanager
    def running(self):
        self.on_device.max().item()
        yield

    monkeypatch.setattr(Broken, "running", running)
    with pytest.raises(NotChecked, match=r"fails at test_capture\.py:\d+: DataDependent"):
        lint(broken(allowed, monkeypatch), conditioning_of(SD, False), PROMPTS)


def test_how_often_is_counted(monkeypatch):
    def often(self, latents, timestep):
        for _ in range(3):
            latents = latents + torch.linspace(0, 1, 4).view(4, 1, 1).to(latents)
        return latents

    (found,) = lint(broken(often, monkeypatch), conditioning_of(SD, False), PROMPTS)
    assert found.times == 3
    assert str(found).endswith("copies from the host to the device, (4, 1, 1) float32, 3 times")


# ------------------------------------------------------------------------------- what stays

seen = {}


@functools.lru_cache
def table_of(length, device):
    return torch.linspace(0, 1, length, device=device)


class Keeping(nn.Module):
    """A network that keeps in every way what it has computed, as RoPE tables are kept."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rope, self.by_length, self.all, self.fails = inner, None, {}, [], False
        self.plain, self.calls = torch.ones(1), 0
        kept = {}
        self.remember = lambda key, value: kept.setdefault(key, value)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, sample, *args, **kwargs):
        table = table_of(4, sample.device)
        self.rope = self.by_length[sample.device] = seen[sample.device] = table + 1
        self.remember(sample.device, self.rope)
        self.all.append(self.rope)
        self.plain += 1
        self.calls += 1
        if self.fails:
            raise ValueError("on purpose")
        return self.inner(sample * table.view(4, 1, 1).clamp(1), *args, **kwargs)


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_network_keeps_is_as_before(fails):
    pipe = tiny.stable_diffusion()
    pipe.unet = Keeping(pipe.unet)
    pipe.unet.fails = fails
    model = hsd.load(pipe)
    before, alive = held(model), fakes_alive()
    seen.clear()
    table_of.cache_clear()
    if fails:
        with pytest.raises(NotChecked, match=r"fails at test_capture\.py:\d+: ValueError: on purpose"):
            lint(model, conditioning_of(SD, False), PROMPTS)
    else:
        assert lint(model, conditioning_of(SD, False), PROMPTS) == []
    assert held(model) == before
    unet = pipe.unet
    assert (unet.rope, unet.by_length, unet.all, unet.calls, seen) == (None, {}, [], 0, {})
    assert unet.remember("cpu", 5) == 5
    assert float(unet.plain) == 1.0
    assert table_of.cache_info().currsize == 0
    assert fakes_alive() == alive


class Lazy(OrderedDict):
    """As transformers has them: items that are made when they are asked for, and are not in the dictionary."""

    def items(self):
        raise AssertionError("asked for")

    keys = values = items


def test_dictionaries_are_put_back_by_their_own_methods():
    plain, ordered, lazy = {"a": 1, "b": 2}, OrderedDict(a=1, b=2), Lazy(a=1)
    with restored([plain, ordered, lazy], []):
        for one in (plain, ordered, lazy):
            one["c"] = 3
            del one["a"]
    assert list(plain.items()) == list(ordered.items()) == [("a", 1), ("b", 2)]
    assert list(OrderedDict.items(lazy)) == [("a", 1)]
    with restored([ordered], []):
        ordered.move_to_end("a")
    assert list(ordered) == ["a", "b"]
    ordered["c"] = 3
    assert list(reversed(ordered)) == ["c", "b", "a"]


def test_weights_that_are_shared_stay_shared(monkeypatch):
    model = broken(lambda self, latents, timestep: latents, monkeypatch, tiny.stable_diffusion())
    unet = model.pipe.unet
    one, other = unet.down_blocks[1].attentions[0].proj_in, unet.down_blocks[1].attentions[0].proj_out
    other.weight = one.weight
    looked = []
    one.register_forward_hook(lambda *_: looked.append((one.weight is other.weight, type(one.weight.data).__name__)))
    lint(model, conditioning_of(SD, False), PROMPTS)
    assert looked == []  # restored as well
    shared = []
    monkeypatch.setattr(Broken, "fault", lambda *args: shared.append(one.weight is other.weight) or args[1])
    lint(model, conditioning_of(SD, False), PROMPTS)
    assert shared == [True, True]
    assert one.weight is other.weight
    assert type(one.weight) is nn.Parameter


# ------------------------------------------------------------------------------- what is not checked


class Quantised(torch.Tensor):
    """Stands for a weight that holds codes and scales."""


def test_weights_that_are_no_plain_tensors_are_left_alone():
    pipe = tiny.stable_diffusion()
    layer = pipe.unet.conv_in
    own = layer.weight.data.as_subclass(Quantised)
    layer._parameters["weight"] = own
    with pytest.raises(NotChecked, match="weights of UNet2DConditionModel are of the type Quantised"):
        lint(hsd.load(pipe), conditioning_of(SD, False), PROMPTS)
    assert layer._parameters["weight"] is own


def test_offloaded_models_are_left_alone():
    pipe = tiny.stable_diffusion()
    add_hook_to_module(pipe.unet, ModelHook())
    model = hsd.load(pipe)
    with pytest.raises(NotChecked, match="hooks move"):
        lint(model, conditioning_of(SD, False), PROMPTS)
    verdict = check(model)
    assert str(verdict) == "cannot capture, because hooks move or convert the model's weights for each call"


def test_a_compiled_network_is_run_as_it_is_written():
    pipe = tiny.stable_diffusion()
    pipe.unet.compile(backend=lambda *_: pytest.fail("compiled"))
    assert lint(hsd.load(pipe), conditioning_of(SD, False), PROMPTS) == []


def test_a_torch_without_imitations_says_so(monkeypatch):
    class Without(capture.FakeTensorMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError("Torch not compiled with CUDA enabled\nmore")

    monkeypatch.setattr(capture, "FakeTensorMode", Without)
    verdict = check(tiny.stable_diffusion())
    assert verdict.captures is None
    assert str(verdict).startswith(f"not checked, because this torch ({torch.__version__}) cannot imitate a GPU: Ass")


# ------------------------------------------------------------------------------- hsd check


def test_the_check_refuses_a_fault(monkeypatch):
    model = broken(host_attribute, monkeypatch)
    with pytest.raises(BrokenAdapter) as caught:
        check(model)
    assert str(caught.value) == (
        f"denoise does what a CUDA graph forbids: {marked(host_attribute)} uses a tensor of the host, (4, 1, 1) "
        "float32, together with tensors of the device (mul). Set capturable = False on the adapter, or keep these "
        "tensors on the device"
    )


def test_the_check_accepts_a_fault_that_is_declared(monkeypatch):
    model = broken(host_attribute, monkeypatch)
    monkeypatch.setattr(Broken, "capturable", False)
    verdict = check(model)
    assert verdict.captures is False
    assert str(verdict).startswith(
        "cannot capture, because capturable is False, and denoise does what a graph forbids: "
    )
    assert marked(host_attribute) in str(verdict)


def test_the_check_says_what_could_be_captured(monkeypatch):
    model = broken(allowed, monkeypatch)
    monkeypatch.setattr(Broken, "capturable", False)
    monkeypatch.setattr(Broken, "mixed_timesteps", False)
    with pytest.warns(hsd.Notice, match="broken: capturable is False, but nothing was found .* could be True"):
        verdict = check(model)
    assert verdict.captures is False


def test_a_fault_in_half_precision_is_found_on_a_cpu(monkeypatch):
    def only_in_half(self, latents, timestep):
        return latents if self.dtype == torch.float32 else item(self, latents, timestep)

    with pytest.raises(BrokenAdapter, match="reads a value back"):
        check(broken(only_in_half, monkeypatch))
