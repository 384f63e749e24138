"""What diffusers' own tests expect of its schedulers and pipelines, asked of HSD's sampler tables and adapters.

The numbers of the schedulers are in ``diffusers_numbers.py``. Those of the pipelines are the ``expected_slice`` of its
fast tests (``tests/pipelines`` at the same commit), which build the networks from a seed. Only tests without a
tokenizer can be built offline: Kandinsky 2.2's decoder, which HSD drives, and the pipelines without text (DDIM, DDPM,
PNDM, DiT), which a few lines of adapter drive. The tests of the other families load a tokenizer, and some a text
encoder, from the hub, and their slices are of one prompt through that tokenizer:

* ``hf-internal-testing/tiny-random-clip``: Stable Diffusion, SDXL, Stable unCLIP, Kandinsky 2.2's prior and combined
  pipeline; with ``tiny-random-t5`` also FLUX, Stable Diffusion 3, HiDream;
* ``hf-internal-testing/tiny-random-t5``: PixArt-Sigma, Chroma, AuraFlow;
* ``hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration``: Qwen-Image, Z-Image, FLUX.2 Klein, Krea 2,
  Kandinsky 5;
* others of their own: Sana and Lumina 2 (``dummy-gemma``), FLUX.2 (a Mistral 3 processor), CogView 4 (GLM 4).

These families are compared with their pipelines' own calls on random weights instead (``test_families.py``).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, TypeVar

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    KandinskyV22Pipeline,
    PNDMPipeline,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

import hsd
import tiny
from diffusers_numbers import BATCH_STEPS, KEPT, LINEAR, LOOPS, NOTHING, TIMESTEPS, Loop
from helpers import latents_of
from hsd.models import Adapter, Batch, Encoded
from hsd.models.kandinsky22 import Kandinsky22
from hsd.models.refusals import Needs
from hsd.sampler import SamplerTable, compile_sampler

T = TypeVar("T")

# KDPM2 and DEIS pass 0-dim tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
every_loop = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)

BATCH = 4


# ------------------------------------------------------------------------------------------- full loops


def ramp(latent: tuple[int, ...], *, falling: bool = False) -> Tensor:
    """(BATCH, *latent): n values from 0 to 1 - 1/n, those of one place in all lanes side by side; or downwards."""
    n = BATCH * math.prod(latent)
    values = torch.arange(n) / n
    return (values.flip(0) if falling else values).reshape(*latent, BATCH).movedim(-1, 0)


def model(sample: Tensor, timesteps: Tensor) -> Tensor:
    """The model of all these tests; (B,) timesteps, or one for all."""
    t = timesteps.to(sample.dtype).reshape(-1, *(1,) * (sample.ndim - 1))
    return sample * t / (t + 1)


def scheduler_of(loop: Loop) -> Any:
    scheduler = getattr(diffusers, loop.scheduler)(**loop.config)
    scheduler.set_timesteps(**loop.timesteps)
    return scheduler


_PER_STEP = ("timesteps", "sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "order_list")


def begun_at(scheduler: Any, step: int) -> Any:
    """A scheduler that begins at a step of this one: what it holds for each step, from there on."""
    cut = copy.deepcopy(scheduler)
    for name in _PER_STEP:
        if getattr(cut, name, None) is not None:
            setattr(cut, name, getattr(cut, name)[step:])
    return cut


def table_of(loop: Loop, scheduler: Any) -> tuple[SamplerTable, int]:
    """The loop's scheduler as a table, and the step of the table that the loop begins with.

    LMS takes the order of a step from its number, also where there are no earlier outputs: it is the whole table's
    step, with an empty memory. The others begin with their first order.
    """
    begin = loop.begin
    if begin and loop.scheduler != "LMSDiscreteScheduler":
        scheduler, begin = begun_at(scheduler, begin), 0
    return compile_sampler(scheduler, step_kwargs=loop.step_kwargs).to("cpu", torch.float32), begin


def first_latent(loop: Loop, scheduler: Any) -> Tensor:
    """(BATCH, *latent), noise added by the scheduler where the loop begins later."""
    sample = ramp(loop.latent)
    if loop.scales != NOTHING:
        sample = sample * float(scheduler.init_noise_sigma)
    if loop.begin and loop.noised:
        noise = ramp(loop.latent, falling=True)
        sample = scheduler.add_noise(sample, noise, scheduler.timesteps[loop.begin : loop.begin + 1])
    return sample


def full_loop(loop: Loop, table: SamplerTable, begin: int, latent: Tensor) -> tuple[float, float]:
    """Sum and mean of the absolute values of what the loop comes to."""
    generator = torch.Generator().manual_seed(0)
    state = torch.zeros(BATCH, table.n_state, *loop.latent)
    state[:, 0] = latent
    for k in range(begin, table.n_steps):
        step = torch.full((BATCH,), k)
        given = state[:, 0] if loop.scales == NOTHING else table.model_input(state, step)
        if loop.scales == KEPT:
            state[:, 0] = given
        noise = torch.zeros(BATCH, table.n_noise, *loop.latent)
        for j in range(table.noise_draws[k]):  # for all lanes at once, from one generator
            noise[:, j] = torch.randn(BATCH, *loop.latent, generator=generator)
        state = table.update(state, model(given, table.timesteps[k]), noise, step)
    return float(state[:, 0].abs().sum()), float(state[:, 0].abs().mean())


def misses(loop: Loop, found: tuple[float, float]) -> list[str]:
    """What is further from the expected numbers than diffusers' own test allows."""
    expected = {"sum": (found[0], loop.sum, loop.sum_tolerance), "mean": (found[1], loop.mean, loop.mean_tolerance)}
    return [
        f"the {name} is {ours:.6g}, and diffusers expects {theirs:.6g} to {tolerance:g}"
        for name, (ours, theirs, tolerance) in expected.items()
        if theirs is not None and not abs(ours - theirs) < tolerance
    ]


def spoiled(loop: Loop, table: SamplerTable) -> SamplerTable:
    """The table with a last step that makes the latent a fifth larger.

    A few loops come to 0 to within the tolerance, where that could not be seen: theirs makes the latent half as large
    again at every step, and scales nothing that the model is given.
    """
    out, scale, nearly_zero = table.out.clone(), table.scale, not misses(loop, (0.0, 0.0))
    if nearly_zero:
        out[:, 0] *= 1.5
        scale = torch.zeros_like(scale)
        scale[:, 0] = 1.0
    else:
        out[-1, 0] *= 1.2
    return replace(table, out=out, scale=scale)


@every_loop
def test_full_loop(loop: Loop) -> None:
    scheduler = scheduler_of(loop)
    table, begin = table_of(loop, scheduler)
    latent = first_latent(loop, scheduler)
    assert not misses(loop, full_loop(loop, table, begin, latent))
    assert misses(loop, full_loop(loop, spoiled(loop, table), begin, latent)), "this loop cannot show a wrong table"


@pytest.mark.parametrize("case", TIMESTEPS, ids=lambda case: case[0])
def test_timesteps(case: tuple[str, str, dict[str, Any], int, list[int]]) -> None:
    _, name, config, steps, expected = case
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    assert compile_sampler(scheduler).timesteps.tolist() == expected


@pytest.mark.parametrize("case", BATCH_STEPS, ids=lambda case: case[0])
def test_lanes_at_three_timesteps_in_one_call(case: tuple[str, str, int, float, float]) -> None:
    """diffusers' ``batch_step_no_noise`` from the timesteps 0, 1 and 2 at once, whatever those of the schedule are."""
    _, name, steps, total, mean = case
    scheduler = getattr(diffusers, name)(**LINEAR)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor([2, 1, 0])
    table = compile_sampler(scheduler).to("cpu", torch.float32)
    sample = torch.cat([ramp((3, 8, 8)) + shift for shift in (0.0, 0.1, -0.1)])  # [3 BATCH, 3, 8, 8]
    step = torch.tensor([2, 1, 0]).repeat_interleave(BATCH)
    noise = torch.zeros(3 * BATCH, table.n_noise, 3, 8, 8)
    state = table.update(sample[:, None], model(sample, table.timesteps[step]), noise, step)
    assert abs(float(state[:, 0].abs().sum()) - total) < 1e-2
    assert abs(float(state[:, 0].abs().mean()) - mean) < 1e-3


# ------------------------------------------------------------------------------------------- pipelines


def made(model: Adapter, steps: int) -> PIL.Image.Image:
    """The image of one prompt with the seed 0."""
    plan = hsd.compile(["x"], 0.0, model=model, steps=steps, seeds=[0])
    (image,) = hsd.stream(plan, model)
    return image.pil


def corner(image: Any) -> list[float]:
    """The last 3 x 3 values of the last channel of an image (H, W, C), row by row."""
    return np.asarray(image)[-3:, -3:, -1].flatten().tolist()


def seeded(make: type[T], **config: Any) -> T:
    torch.manual_seed(0)
    return make(**config).eval()


class GivenEmbeddings(Kandinsky22):
    """Kandinsky 2.2's decoder by itself: two image embeddings are given, where a prior would sample them of a text."""

    needs: ClassVar[Needs] = Needs(parts=("unet", "movq", "scheduler"))

    def prior(self) -> None:
        return None

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def encode(self, batch: Batch) -> Encoded:
        given, negative = (torch.tensor([[random.random() for _ in range(32)]]) for random in (Random(0), Random(1)))
        return Encoded({"image_embeds": given, "negative_image_embeds": negative}, vectors=given)


def test_the_decoder_of_kandinsky_22() -> None:
    """``kandinsky2_2/test_kandinsky.py: test_kandinsky``."""
    unet = seeded(
        UNet2DConditionModel,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = seeded(
        VQModel,
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    decoder = KandinskyV22Pipeline(unet, tiny.k22_ddim(), movq)
    model = GivenEmbeddings((decoder, decoder), height=64, width=64, guidance_scale=4.0, negative_prompt="given")
    image = made(model, 2)
    assert image.size == (64, 64)
    expected = [0.3420, 0.9505, 0.3919, 1.0000, 0.5188, 0.3109, 0.6139, 0.5624, 0.6811]
    assert corner(np.asarray(image) / 255) == pytest.approx(expected, abs=1e-2)


@dataclass(eq=False)
class Plain(Adapter):
    """A pipeline without text: a UNet whose latent is the image."""

    name: str = "plain"

    pipelines: ClassVar[tuple[str, ...]] = ("DDIMPipeline", "DDPMPipeline", "PNDMPipeline")

    @property
    def network(self) -> Any:
        return self.modules()[0]

    def encode(self, batch: Batch) -> Encoded:
        return Encoded({"nothing": torch.zeros(len(batch), 1)}, vectors=torch.ones(len(batch), 1))

    def scheduler(self) -> Any:
        return self.pipe.scheduler

    def latent_shape(self) -> tuple[int, ...]:
        config = self.network.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, None]:
        return self.network(latents, timestep).sample, None

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, H, W, C) between 0 and 1."""
        return (latents / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        return list(self.pipe.numpy_to_pil(self.pixels(latents).numpy()))


@dataclass(eq=False)
class DiT(Plain):
    """Class 1 of ImageNet, guided away from no class, which is class 1000."""

    name: str = "dit"

    pipelines: ClassVar[tuple[str, ...]] = ("DiTPipeline",)

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, None]:
        labels = torch.tensor([1, 1000]).repeat_interleave(len(latents))
        output = self.network(latents.repeat(2, 1, 1, 1), timestep.repeat(2), class_labels=labels).sample
        given, none = output[:, : latents.shape[1]].chunk(2)
        return none + 4.0 * (given - none), None

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        return super().pixels(vae.decode(latents / vae.config.scaling_factor).sample)


def small_unet() -> UNet2DModel:
    return seeded(
        UNet2DModel,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def larger_unet() -> UNet2DModel:
    return seeded(
        UNet2DModel,
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def small_dit() -> DiTPipeline:
    torch.manual_seed(0)  # once, for both networks
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return DiTPipeline(transformer.eval(), AutoencoderKL().eval(), DDIMScheduler())


PLAIN = {
    "ddim/test_ddim.py: test_inference": (
        lambda: Plain(DDIMPipeline(small_unet(), DDIMScheduler())),
        2,
        [0.0, 9.979e-01, 0.0, 9.999e-01, 9.986e-01, 9.991e-01, 7.106e-04, 0.0, 0.0],
        1e-3,
    ),
    "ddpm/test_ddpm.py: test_fast_inference": (
        lambda: Plain(DDPMPipeline(small_unet(), DDPMScheduler())),
        2,
        [0.0, 0.9996672, 0.00329116, 1.0, 0.9995991, 1.0, 0.0060907, 0.00115037, 0.0],
        1e-2,
    ),
    "pndm/test_pndm.py: test_inference": (
        lambda: Plain(PNDMPipeline(larger_unet(), PNDMScheduler())),
        20,
        [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        1e-2,
    ),
    "dit/test_dit.py: test_inference": (
        lambda: DiT(small_dit()),
        2,
        [0.2946, 0.6601, 0.4329, 0.3296, 0.4144, 0.5319, 0.7273, 0.5013, 0.4457],
        1e-3,
    ),
}
"""What makes the model, the number of steps, the slice, and the tolerance."""


@pytest.mark.parametrize("name", PLAIN)
def test_pipelines_without_text(name: str) -> None:
    build, steps, expected, tolerance = PLAIN[name]
    model = build()
    plan = hsd.compile(["x"], 0.0, model=model, steps=steps, seeds=[0])
    with torch.no_grad():
        (latent,) = latents_of(plan, model).values()
    pixels = model.pixels(latent)[0]  # the tolerances are finer than 8 bits
    assert corner(pixels) == pytest.approx(expected, abs=tolerance)
    assert np.array_equal(np.asarray(made(model, steps)), (pixels * 255).round().byte().numpy())
