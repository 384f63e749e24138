"""The blocks of a modular pipeline that make an image from a text, in the order in which they run.

A modular pipeline is a tree of blocks. Which of them run depends on the inputs; for a text alone they are a list:
blocks that encode the text, blocks that prepare the denoising loop, the loop itself, and blocks that decode. HSD runs
each part by itself, on a state of its own, and the loop for one step at a time, without its last block, which would
step the scheduler.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import logging
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusers.modular_pipelines import modular_pipeline
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, PipelineState
from torch import Tensor

from ...errors import UnsupportedPipeline

_GIVEN = ("prompt", "height", "width", "generator", "num_inference_steps", "output_type")
"""Inputs that HSD gives every pipeline."""


@dataclass(frozen=True)
class Blocks:
    """What runs for a text alone."""

    inputs: tuple[Any, ...]
    """The pipeline's inputs: objects with ``name``, ``default`` and ``kwargs_type``."""
    text: tuple[Any, ...]
    """From the first block to the last that encodes the text."""
    before: tuple[Any, ...]
    """From there to the loop: batch size, first latents, timesteps, positions."""
    loop: Any
    after: tuple[Any, ...]
    """Behind the loop: unpacking and decoding."""

    def state(self, values: dict[str, Any]) -> PipelineState:
        """A new state with ``values`` by name, and the defaults of the other inputs."""
        state = PipelineState()
        for name, value in {**self._defaults, **values}.items():
            state.set(name, value, self._tags.get(name))
        return state

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        return {each.name: each.default for each in self.inputs if each.name is not None}

    @cached_property
    def _tags(self) -> dict[str, str | None]:
        """Of inputs and of what the text blocks give: the group in which blocks ask for it, if they do."""
        given = (each for block in self.text for each in block.intermediate_outputs)
        return {each.name: each.kwargs_type for each in (*self.inputs, *given) if each.name is not None}

    def default(self, name: str) -> Any:
        """The default of an input; of the first block that has one, as the pipeline may leave it to its blocks."""
        inputs = (each for block in (*self.text, *self.before, *self.after) for each in block.inputs)
        return next((each.default for each in inputs if each.name == name and each.default is not None), None)

    def takes(self, name: str) -> bool:
        """Whether some block that runs has this input."""
        parts = (*self.text, *self.before, self.loop, *self.after)
        return any(each.name == name for block in parts for each in block.inputs)

    @cached_property
    def stepping(self) -> frozenset[str]:
        """Inputs that only the loop's last block has, which steps the scheduler: HSD steps without it."""
        *others, last = self.loop.sub_blocks.values()
        read = {each.name for block in (*self.text, *self.before, *others, *self.after) for each in block.inputs}
        return frozenset(each.name for each in last.inputs if each.name not in read)

    @cached_property
    def scales_guidance(self) -> bool:
        """Whether the scale of guidance is an input of the pipeline, as of models that were distilled with it."""
        return any(each.name == "guidance_scale" for each in self.inputs)

    @cached_property
    def reads_step(self) -> bool:
        """Whether a block inside the loop depends on which step it is, so that lanes of a call have to be at one."""
        return any(map(_reads_step, list(self.loop.sub_blocks.values())[:-1]))


def blocks_of(pipe: Any) -> Blocks:
    """The blocks of a pipeline for a text alone.

    Raises
    ------
    UnsupportedPipeline
        If they are not of the known structure, or need what HSD does not give.
    """
    kind = type(pipe).__name__
    root = pipe.blocks
    try:
        named = list(root.get_execution_blocks(prompt="a").sub_blocks.items())
    except (NotImplementedError, AttributeError):
        raise UnsupportedPipeline(
            f"{kind} has blocks that are not a sequence: HSD cannot tell what each does"
        ) from None
    loops = [i for i, (_, block) in enumerate(named) if isinstance(block, LoopSequentialPipelineBlocks)]
    texts = [i for i, (name, _) in enumerate(named) if name.split(".")[0] == "text_encoder"]
    if len(loops) != 1 or not texts or texts[-1] > loops[0]:
        raise UnsupportedPipeline(
            f"{kind} has {len(loops)} loops and {len(texts)} text_encoder blocks among {[name for name, _ in named]}: "
            "HSD drives pipelines with text_encoder blocks, then one denoising loop, then blocks that decode"
        )
    parts = [block for _, block in named]
    text, loop = texts[-1] + 1, loops[0]
    found = Blocks(
        tuple(root.inputs), tuple(parts[:text]), tuple(parts[text:loop]), parts[loop], tuple(parts[loop + 1 :])
    )
    for name, block in named:
        _check_block(pipe, name, block)
    _check_inputs(kind, named)
    if not any(each.name == "images" for block in found.after for each in block.intermediate_outputs):
        raise UnsupportedPipeline(f"{kind} has no block that gives images: HSD makes images only")
    _check_loop(kind, loop=found.loop)
    return found


def _check_block(pipe: Any, name: str, block: Any) -> None:
    rewrites = any(each.name == "prompt" for each in block.intermediate_outputs)
    if rewrites:
        if not any(each.type_hint is bool and each.default is False for each in block.inputs):
            top = name.split(".")[0]
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has the block {name!r}, which rewrites prompts: rewrite them yourself, and "
                f"leave the block out: blocks.sub_blocks.pop({top!r}) before blocks.init_pipeline()"
            )
        return  # it is off unless it is asked for, and then its parts are not needed
    for spec in block.expected_components:
        if getattr(pipe, spec.name, None) is None and spec.name != "guider":
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} has no {spec.name}, which its block {name!r} needs: call pipe.load_components()"
            )


def _check_inputs(kind: str, named: list[tuple[str, Any]]) -> None:
    """Refuse blocks that need an input which neither HSD nor an earlier block gives."""
    made = set(_GIVEN)
    for name, block in named:
        for each in block.inputs:
            if each.required and each.name is not None and each.default is None and each.name not in made:
                raise UnsupportedPipeline(
                    f"{kind}: its block {name!r} needs {each.name}, and HSD makes images from text alone"
                )
        made |= {each.name for each in block.intermediate_outputs}


def _check_loop(kind: str, loop: Any) -> None:
    *_, last = loop.sub_blocks.values()
    source = _source(last)
    if source is None or "noise_pred" not in source or ".step(" not in source:
        raise UnsupportedPipeline(
            f"{kind}: the last block of its loop, {type(last).__name__}, does not step a scheduler with noise_pred, so "
            "HSD cannot tell what the denoiser's output is"
        )


def evaluate(loop: Any, pipe: Any, state: PipelineState, timesteps: Tensor, step: int) -> Tensor:
    """What the denoiser of a loop predicts at one step, guidance included; the scheduler is not stepped.

    Parameters
    ----------
    loop
        The block; it is not changed.
    pipe
        The components.
    state
        As the blocks before the loop leave it, with ``latents`` of B lanes. It is used up.
    timesteps
        (K,), or (K, B) where lanes are at different steps: those of the steps, as the blocks see them.
    step
        Which of them is evaluated.

    Returns
    -------
    Tensor
        (B, *latent) in the denoiser's dtype.
    """
    state.set("timesteps", _Steps(timesteps, step))
    loop = copy.copy(loop)
    *names, last = loop.sub_blocks
    taken = _Taken(loop.sub_blocks[last])
    loop.sub_blocks = {**{name: _AtStep(loop.sub_blocks[name], step) for name in names}, last: taken}
    loop.set_progress_bar_config(disable=True)
    with _silent():
        loop(pipe, state)
    assert taken.output is not None
    return taken.output


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what diffusers logs of an exception inside a loop, which it then raises."""
    log, keep_none = logging.getLogger(modular_pipeline.__name__), _Nothing()
    log.addFilter(keep_none)
    try:
        yield
    finally:
        log.removeFilter(keep_none)


class _Nothing(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


class _Steps:
    """A schedule of which a loop runs one step only, while its blocks may look at the others."""

    def __init__(self, timesteps: Tensor, step: int) -> None:
        self._timesteps, self._step = timesteps, step

    def __iter__(self) -> Iterator[Tensor]:
        yield self._timesteps[self._step]

    def __len__(self) -> int:
        return len(self._timesteps)

    def __getitem__(self, i: int) -> Tensor:
        return self._timesteps[i]


class _Inside:
    """A block inside a loop, which says of itself what another says."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class _AtStep(_Inside):
    """A block that is told another step than the loop counts."""

    def __init__(self, block: Any, step: int) -> None:
        super().__init__(block)
        self._step = step

    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> Any:
        return self._block(components, block_state, i=self._step, t=t)


class _Taken(_Inside):
    """In the place of the last block: takes the denoiser's output, and changes nothing."""

    output: Tensor | None = None

    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> Any:
        self.output = block_state.noise_pred
        return components, block_state


def _source(block: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(type(block).__call__))
    except (OSError, TypeError):
        return None


def _reads_step(block: Any) -> bool:
    """Whether a block inside the loop uses its argument ``i`` for more than the guider, a log or the next timestep.

    Also whether it scales its input by the scheduler, which looks one timestep up. A block whose source is not known
    counts as one that does.
    """
    source = _source(block)
    if source is None or "scale_model_input" in source:
        return True
    tree = ast.parse(source)
    harmless = {id(name) for node in ast.walk(tree) for name in _harmless(node)}
    return any(isinstance(node, ast.Name) and node.id == "i" and id(node) not in harmless for node in ast.walk(tree))


def _harmless(node: ast.AST) -> Iterator[ast.AST]:
    """The uses of ``i`` in a node that are the same at all steps, if ``timesteps`` begins with the lanes' own."""
    if isinstance(node, ast.keyword) and node.arg == "step":  # of guider.set_state
        yield node.value
    elif isinstance(node, ast.Subscript) and ast.unparse(node) == "timesteps[i + 1]":
        yield from ast.walk(node.slice)
    elif isinstance(node, ast.Compare) and ast.unparse(node) == "i + 1 < len(timesteps)":
        yield from ast.walk(node.left)
    elif isinstance(node, ast.If) and all(ast.unparse(each).startswith("logger.") for each in node.body):
        yield from ast.walk(node.test)
