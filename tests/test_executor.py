"""The loop and its feed: calls cut when memory runs out, padded as for graphs, prepared ahead of the device."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

import hsd
import tiny
from helpers import executor_of, finished_by, latents_of
from hsd.replay.feed import Feeder, Throttle
from hsd.replay.graphs import Compiled, bucket, can_capture
from hsd.work.threads import ahead


@pytest.fixture(scope="module")
def reference(plan, model):
    return latents_of(plan, model, batch_size=4)


def assert_near(latents, reference):
    assert sorted(latents) == sorted(reference)
    for i, latent in latents.items():
        assert (latent - reference[i]).abs().max() < 1e-4 * reference[i].abs().max(), i


# -- out of memory


@pytest.fixture
def small_memory(model, monkeypatch):
    """Let the denoiser run out of memory above a number of lanes; returns the sizes that it was called with."""

    def limit(most):
        seen = []
        whole = type(model).denoise

        def denoise(self, latents, timestep, rows):
            seen.append(len(latents))
            if len(latents) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, latents, timestep, rows)

        monkeypatch.setattr(type(model), "denoise", denoise)
        return seen

    return limit


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_out_of_memory_cuts_calls_and_loses_nothing(plan, model, reference, small_memory, most):
    seen = small_memory(most)
    with pytest.warns(UserWarning, match="out of memory with"):
        latents = finished_by(executor_of(plan, model, batch_size=8))
    assert_near(latents, reference)
    assert sum(size for size in seen if size <= most) == plan.node_steps  # nothing is evaluated twice
    failed = [size for size in seen if size > most]
    assert len(failed) <= 3  # halved, and remembered


def test_not_even_one_latent_fits(plan, model, small_memory):
    small_memory(0)
    with (
        pytest.warns(UserWarning, match="continuing with [12]"),
        pytest.raises(hsd.OutOfMemory, match="a single one of the latents does not fit"),
    ):
        finished_by(executor_of(plan, model, batch_size=4))


# -- padded calls, as graphs and compiled networks take them


@pytest.mark.parametrize("most", [1, 5, 8, 48])
def test_buckets(most):
    sizes = {lanes: bucket(lanes, most) for lanes in range(1, most + 1)}
    assert all(lanes <= size <= most and 5 * (size - lanes) < size for lanes, size in sizes.items())
    assert sizes[most] == most
    assert len(set(sizes.values())) <= 4 * most.bit_length()
    assert most < 8 or len(set(sizes.values())) < most
    assert sorted(sizes.values()) == list(sizes.values())


class Inline:
    """In place of CUDA graphs: every call runs from the buffers, and only from them."""

    def __init__(self):
        self.sizes = []

    def run(self, size, work):
        self.sizes.append(size)
        work(size)

    def clear(self):
        self.sizes.append("cleared")

    def make_room(self):
        return False


@pytest.mark.parametrize("batch_size", [3, 5, 16])
def test_padded_calls_give_the_same(plan, model, reference, batch_size):
    executor = executor_of(plan, model, batch_size=batch_size)
    executor._graphs = inline = Inline()
    assert_near(finished_by(executor), reference)
    assert (sum(inline.sizes) > plan.node_steps) == (batch_size > 5)  # smaller calls have a graph for every size
    assert set(inline.sizes) <= {bucket(lanes, batch_size) for lanes in range(1, batch_size + 1)}
    assert torch.isfinite(executor.state[:-1]).all()


def test_padding_attends_to_something():
    """Rows under a mask: one without any token would give nan, which anomaly checks report."""
    model = hsd.load(tiny.pixart_sigma(), height=32, width=32, use_resolution_binning=False)
    prompts = ["a cat", "a much longer prompt about a dog", "two birds"]
    plan = hsd.compile(prompts, 0.0, model=model, steps=3)
    executor = executor_of(plan, model, batch_size=8)
    executor._graphs = Inline()
    assert_near(finished_by(executor), latents_of(plan, model))
    assert torch.isfinite(executor.state).all()


def test_out_of_memory_forgets_graphs(plan, model, reference, small_memory):
    small_memory(3)
    executor = executor_of(plan, model, batch_size=8)
    executor._graphs = inline = Inline()
    with pytest.warns(UserWarning, match="continuing with 2"):
        assert_near(finished_by(executor), reference)
    assert "cleared" in inline.sizes


def test_only_full_calls_are_compiled(monkeypatch):
    model = hsd.load(tiny.stable_diffusion(), height=32, width=32, guidance_scale=3.0)
    plan = hsd.compile(["a cat", "a cat on a mat", "a dog", "the sea"], 0.9, model=model, steps=6, seeds=100)
    expected = latents_of(plan, model)
    compiled = []

    def backend(graph, inputs):
        compiled.append(inputs)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    executor = executor_of(plan, model, {"compile": True}, batch_size=3)
    assert any((chunk["segment"] < 0).any() for chunk in executor.program.chunks(100))  # some calls are not full
    assert_near(finished_by(executor), expected)
    shapes = {tuple(tensor.shape) for inputs in compiled for tensor in inputs if torch.is_tensor(tensor)}
    rows = {rows for rows, *latent in shapes if tuple(latent) == model.latent_shape()}
    assert rows == {6}  # 3 lanes, guided
    assert "forward" not in vars(model.modules()[0])  # the pipeline is not changed
    times = len(compiled)
    assert_near(latents_of(plan, model, {"compile": True}, batch_size=3), expected)
    assert len(compiled) == times  # compiled functions are used again
    torch._dynamo.reset()


def test_compiling_leaves_what_is_compiled_already():
    module = torch.nn.Linear(2, 2)
    module.compile(backend="eager")
    wrapper = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    with Compiled([module, wrapper], 1).for_lanes(1):
        assert "forward" not in vars(module)
        assert "forward" not in vars(wrapper._orig_mod)


def test_a_forward_that_was_replaced_comes_back(monkeypatch):
    """Hooks of other packages replace it like this."""
    monkeypatch.setattr(torch, "compile", lambda forward, **options: lambda x: 2 * forward(x))
    module = torch.nn.Identity()
    module.forward = own = lambda x: x + 1
    compiled = Compiled([module], 4)
    with compiled.for_lanes(4):
        assert module(1) == 4
    with compiled.for_lanes(3):
        assert module(1) == 2
    assert module.forward is own


def test_what_cannot_be_captured():
    model = hsd.load(tiny.stable_diffusion())
    assert model.capturable
    assert not model.offloads
    assert not can_capture(model)  # there are no graphs on a CPU
    assert not hsd.load(tiny.z_image()).capturable  # it reads lengths back
    pipe = tiny.stable_diffusion()
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert hsd.load(pipe).offloads


# -- prepared ahead


def test_ahead_keeps_to_its_depth():
    """It prepares as many items as allowed without a request, and never more."""
    taken, depth = [], 3
    ahead_by, as_far_as_it_may = [], threading.Event()

    def source():
        for i in range(300):
            ahead_by.append(i + 1 - len(taken))
            if i == depth:
                as_far_as_it_may.set()
            yield i

    with ahead(source(), depth, name="hsd-feed") as items:
        taken.append(next(items))
        as_far_as_it_may.wait()  # one taken, three waiting
        taken.extend(items)
    assert taken == list(range(300))
    assert max(ahead_by) <= depth + 1  # the last one taken may not be recorded yet when the next is prepared


def test_what_is_raised_ahead_is_raised_in_its_place():
    def source():
        yield 1
        raise ValueError("no noise today")

    with ahead(source(), 4, name="hsd-feed") as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="no noise today"):
            next(items)


def test_leaving_early_ends_the_thread():
    with ahead(iter(int, 1), 2, name="hsd-feed") as items:  # without end
        next(items)
        assert any(thread.name.startswith("hsd-feed") for thread in threading.enumerate())
    assert not any(thread.name.startswith("hsd-feed") for thread in threading.enumerate())


def test_fed_from_a_thread(plan, model, reference, monkeypatch):
    """As on a GPU, where the events that the throttle waits for are the device's."""
    events, waited = [], []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            waited.append(self.number)

    throttle = Throttle(2)
    executor = executor_of(plan, model)
    made = []

    def feeds():
        for feed in executor._feeder:
            made.append(feed)
            yield feed

    done = {}
    with torch.no_grad(), ahead(feeds(), 2, name="hsd-feed", before=throttle.wait) as items:
        for feed in items:
            executor._place(feed)
            executor._call(feed)
            done |= {final.index: executor.state[final.slot, :1].clone() for final in feed.finals}
            events.append(Event(len(events)))
            throttle.done(events[-1])
    assert all(torch.equal(done[i], latent) for i, latent in reference.items())
    assert waited == sorted(waited)
    assert len(waited) >= len(events) - 2 - 2 - 2  # all but those in progress when the last was prepared
    assert len(made) == executor.program.n_calls


def test_a_failure_while_feeding_ends_the_run(plan, model, monkeypatch):
    monkeypatch.setattr(Feeder, "_first_latent", lambda self, representative: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finished_by(executor_of(plan, model))


def test_the_dtype_is_looked_up_once_a_run(plan, model, monkeypatch):
    lookups = []
    modules = type(model).modules
    monkeypatch.setattr(type(model), "modules", lambda self: lookups.append(1) or modules(self))
    executor = executor_of(plan, model)
    lookups.clear()
    finished_by(executor)
    assert len(lookups) == 1
    assert model.dtype == torch.float32  # and looked up again outside of it
    assert len(lookups) == 2
