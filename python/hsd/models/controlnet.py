"""ControlNet (Zhang et al., arXiv 2302.05543): an image of edges, depth or a pose that all images of a set follow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ..errors import UnsupportedPipeline
from ..replay.denoiser import N_STEPS, STEP
from ..work.broadcast import per_row
from .guidance import Guidance
from .refusals import Needs
from .shared_image import SharedImage, missing, shared_images, size_of
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL
from .unet import UNetAdapter

Several = float | tuple[float, ...]

OF_EACH = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
"""Settings that may have one value for each ControlNet."""


@dataclass(eq=False)
class ControlNet(UNetAdapter):
    """A UNet whose blocks add what one or several ControlNets make of an image.

    ``image`` is a PIL image or a path, or with several ControlNets a list with one for each. The images that are made
    have its size, unless ``height`` and ``width`` are given: then it is resized to them. The other settings are those
    of diffusers; with several ControlNets they may be lists. A step k of K is controlled if k / K >= start and
    (k + 1) / K <= end.
    """

    image: Any = field(default=None, kw_only=True)
    controlnet_conditioning_scale: Several = field(default=1.0, kw_only=True)
    control_guidance_start: Several = field(default=0.0, kw_only=True)
    control_guidance_end: Several = field(default=1.0, kw_only=True)
    guess_mode: bool = field(default=False, kw_only=True)

    reads_steps: ClassVar[bool] = True
    needed_images: ClassVar[tuple[str, ...]] = ("image",)
    encodes_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        nets = self._nets()
        if self.image is None:
            raise missing("image", type(self.pipe).__name__)
        images = shared_images("image", self.image, len(nets), "ControlNet")
        self.image = images[0] if len(nets) == 1 else images
        sizes = {image.pil.size for image in images}
        if len(sizes) > 1 and None in (self.height, self.width):
            raise ValueError(
                f"image has images of {len(sizes)} sizes ({', '.join(f'{w} x {h}' for w, h in sorted(sizes))}): resize "
                "them, or give height and width"
            )
        self.height, self.width = size_of(self, images[0])
        super().__post_init__()
        for name in OF_EACH:
            self._check_number(name, len(nets))
        for start, end in zip(self._each("control_guidance_start"), self._each("control_guidance_end"), strict=True):
            if not 0.0 <= start < end <= 1.0:
                raise ValueError(
                    f"control_guidance_start is {start:g} and control_guidance_end is {end:g}: the part of the run "
                    "that is controlled has to begin at 0 or later, end at 1 or earlier, and end after it begins"
                )

    def _check_number(self, name: str, n: int) -> None:
        value = getattr(self, name)
        if isinstance(value, (list, tuple)) and len(value) != n:
            raise ValueError(f"{name} has {len(value)} values, and the pipeline has {n} ControlNets: give one for each")
        try:
            setattr(self, name, tuple(map(float, value)) if isinstance(value, (list, tuple)) else float(value))
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} is {value!r}: it has to be a number, or a list with one for each ControlNet"
            ) from None

    def _each(self, name: str) -> tuple[float, ...]:
        """The setting ``name`` of each ControlNet."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self._nets())

    def _nets(self) -> list[Any]:
        """The ControlNets; ``UnsupportedPipeline`` if one of them is of another kind."""
        given = self.pipe.controlnet
        given = getattr(given, "_orig_mod", given)  # torch.compile
        nets = list(given.nets) if hasattr(given, "nets") else [self.pipe.controlnet]
        for net in nets:
            kind = getattr(net, "_orig_mod", net)
            if not isinstance(kind, ControlNetModel):
                raise UnsupportedPipeline(
                    f"{type(self.pipe).__name__} has a {type(kind).__name__}: pass it with one or several of "
                    "ControlNetModel"
                )
        return nets

    def modules(self) -> tuple[nn.Module, ...]:
        """The UNet and the ControlNets."""
        return (*super().modules(), *self._nets())

    def shared(self) -> dict[str, Any]:
        """What the UNet has, each image (1, 3, H, W), and (1, n, 3) scale, start and end of each ControlNet."""
        rows = super().shared()
        images = (self.image,) if isinstance(self.image, SharedImage) else self.image
        for i, (image, net) in enumerate(zip(images, self._nets(), strict=True)):
            pixels = self.pipe.control_image_processor.preprocess(image.pil, height=self.height, width=self.width)
            rows[self._row(i)] = pixels.to(net.dtype)
        # In float64, as the pipeline compares the fractions of the run.
        rows["control"] = torch.tensor([list(zip(*map(self._each, OF_EACH), strict=True))], dtype=torch.float64)
        return rows

    def _row(self, i: int) -> str:
        """Name of the row of an image: with its size, since rows of one name have one shape in a plan."""
        return f"control_image_{i}_{self.height}x{self.width}"

    def residuals(self, latents: Tensor, timestep: Tensor, guidance: Guidance) -> dict[str, Any]:
        """What the ControlNets add to the UNet's blocks, each lane as much as its step has it."""
        rows, nets = guidance.rows, self._nets()
        pooled = getattr(nets[0], "_orig_mod", nets[0]).config.global_pool_conditions
        guess = self.guess_mode or pooled
        read = replace(guidance, on=False) if guess else guidance  # in guess mode, only the conditional half is read
        weights = read.twice(_weights(rows))  # [R, n]
        total: list[Tensor] = []
        for i, net in enumerate(nets):
            down, middle = net(
                read.twice(latents.to(net.dtype)),
                read.twice(timestep),
                encoder_hidden_states=read.both("prompt_embeds").to(net.dtype),
                controlnet_cond=rows[self._row(i)][:1],  # one for all lanes; it is added to their latents
                guess_mode=guess,
                added_cond_kwargs=self.added(read),
                return_dict=False,
            )
            scaled = [(each * per_row(weights[:, i], each)).to(each.dtype) for each in (*down, middle)]
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
        if guess:
            total = [guidance.join(torch.zeros_like(each), each) for each in total]
        return {"down_block_additional_residuals": total[:-1], "mid_block_additional_residual": total[-1]}


def _weights(rows: dict[str, Tensor]) -> Tensor:
    """(B, n) float32, how strongly each ControlNet acts on each lane: its scale, or 0 at steps that it leaves alone."""
    scale, start, end = rows["control"].unbind(2)  # [B, n]
    if STEP not in rows:  # a probe of the network, which is at no step of a run
        return scale.float()
    step, steps = rows[STEP][:, None].double(), rows[N_STEPS][:, None].double()
    left_out = (step / steps < start) | ((step + 1) / steps > end)
    return torch.where(left_out, 0.0, scale).float()


@dataclass(eq=False)
class StableDiffusionControlNet(ControlNet, StableDiffusion):
    """``StableDiffusionControlNetPipeline``. Clusters and conditions as Stable Diffusion does."""

    name: str = "stable-diffusion-controlnet"

    lane_settings: ClassVar[frozenset[str]] = StableDiffusion.lane_settings | set(OF_EACH)
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionControlNetPipeline",)
    needs: ClassVar[Needs] = replace(StableDiffusion.needs, parts=(*StableDiffusion.needs.parts, "controlnet"))


@dataclass(eq=False)
class StableDiffusionXLControlNet(ControlNet, StableDiffusionXL):
    """``StableDiffusionXLControlNetPipeline``. Clusters and conditions as Stable Diffusion XL does."""

    name: str = "stable-diffusion-xl-controlnet"
    guidance_scale: float = 5.0  # of two bases, the first gives a field its default

    lane_settings: ClassVar[frozenset[str]] = StableDiffusionXL.lane_settings | set(OF_EACH)
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLControlNetPipeline",)
    needs: ClassVar[Needs] = replace(StableDiffusionXL.needs, parts=(*StableDiffusionXL.needs.parts, "controlnet"))
