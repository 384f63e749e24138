"""What Stable Diffusion and Stable Diffusion XL have in common: a UNet with guidance, and images that it may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from .base import LATER
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .ip_adapter import check_ip_adapter, ip_adapter_embeds, ip_adapter_rows
from .lora_scale import denoiser_scale
from .parts import eta_for, unet_latent


@dataclass(eq=False)
class UNetAdapter(GuidedAdapter):
    """A pipeline with a ``UNet2DConditionModel``.

    ``ip_adapter_image`` is for pipelines with an IP-Adapter (``pipe.load_ip_adapter``): an image, or a list with one
    for each IP-Adapter. Its embedding conditions all prompts.
    """

    height: int | None = None
    width: int | None = None
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    guidance_rescale: float = 0.0
    eta: float = 0.0
    clip_skip: int | None = field(default=None, metadata=LATER)
    timesteps: tuple[int | float, ...] | None = field(default=None, metadata=LATER)
    sigmas: tuple[float, ...] | None = field(default=None, metadata=LATER)
    cross_attention_kwargs: dict[str, float] | None = field(default=None, metadata=LATER)
    ip_adapter_image: Any = field(default=None, kw_only=True, metadata=LATER)

    default_catch_up: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ip_adapter(self)

    @property
    def guided(self) -> bool:
        """Distilled models (LCM) take the scale as an input and have no unconditional half."""
        return self.guidance_scale > 1.0 and self.pipe.unet.config.time_cond_proj_dim is None

    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def step_kwargs(self, scheduler: Any) -> dict[str, Any]:
        """``eta`` for the schedulers that take it, as the pipeline decides it."""
        return eta_for(scheduler, self.eta)

    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return unet_latent(self.pipe, self.height, self.width)

    def shared(self) -> dict[str, Any]:
        """The scale, its embedding where the model is distilled, and the embeddings of the IP-Adapter's image."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale), **ip_adapter_rows(self)}
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is not None:  # a tensor on the host, as diffusers' function takes it
            rows["timestep_cond"] = self.pipe.get_guidance_scale_embedding(rows["guidance_scale"] - 1.0, width)
        return rows

    def added(self, guidance: Guidance) -> dict[str, Tensor]:
        """What the UNet is conditioned on beside tokens, by the names of its ``added_cond_kwargs``."""
        return {}

    def residuals(self, latents: Tensor, timestep: Tensor, guidance: Guidance) -> dict[str, Any]:
        """Arguments of the UNet with what other networks add inside of it, for the inputs of :meth:`denoise`."""
        return {}

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The UNet on [unconditional; conditional] rows."""
        unet, guidance = self.pipe.unet, Guidance(rows, self.guided)
        condition = rows.get("timestep_cond")
        output = unet(
            guidance.twice(latents.to(unet.dtype)),
            guidance.twice(timestep),
            encoder_hidden_states=guidance.both("prompt_embeds").to(unet.dtype),
            timestep_cond=None if condition is None else condition.to(unet.dtype),
            added_cond_kwargs={**self.added(guidance), **ip_adapter_embeds(guidance)},
            return_dict=False,
            **self.residuals(latents, timestep, guidance),
            **denoiser_scale(self.cross_attention_kwargs, "cross_attention_kwargs"),
        )[0].float()  # [B or 2B, C, h, w]
        guided = guidance.apply(output)
        if self.guided and self.guidance_rescale > 0.0:
            conditional = guidance.conditional(output)
            rescaled = rescale_noise_cfg(guided, conditional, guidance_rescale=self.guidance_rescale)
            guided = guidance.where_guided(rescaled, guided)
        return guided, None
