"""Karlo, called unCLIP in diffusers: a prior, a decoder that makes small images, and super-resolution."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import PIL.Image
import torch
import transformers
from diffusers import UnCLIPPipeline
from diffusers.pipelines.deprecated import unclip
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..replay.denoiser import Batch, Encoded
from .guidance import Guidance, scale_row
from .guided import GuidedAdapter
from .parts import unit_pictures
from .prior import TextPrior, padded_text, skip, text_rows
from .refusals import Needs


@dataclass(eq=False)
class Karlo(GuidedAdapter):
    """``UnCLIPPipeline``. Clusters by the prior's image embedding; conditions on it and on the text.

    The inputs of the pipeline's ``text_proj`` are averaged over a cluster (image embedding, pooled text, tokens), not
    its outputs, so that the decoder's input is an output of ``text_proj`` for a cluster too. The steps of the decoder
    are shared; super-resolution runs for every image, in ``decode``. All images have the size of the networks.
    ``guidance_scale`` is the pipeline's ``decoder_guidance_scale``. With ``share_prior`` prompts of similar text share
    the prior's early steps too, up to ``prior_tau``.

    The first steps of decoder and super-resolution divide by 5e-5 before they clip. A prompt by itself has the
    pipeline's image bit by bit; in a call with others the last bits differ, and single pixels by up to 0.005 of the
    range, as between the pipeline's own calls with several prompts and with one.
    """

    name: str = "karlo"
    guidance_scale: float = 8.0
    prior_steps: int = 25
    prior_guidance_scale: float = 4.0
    super_res_steps: int = 7
    share_prior: bool = False
    prior_tau: float = 1.0

    default_catch_up: ClassVar[float] = 1.0
    encodes_seeds: ClassVar[bool] = True
    lane_settings: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "prior_guidance_scale", "share_prior", "prior_tau"}
    )
    pipelines: ClassVar[tuple[str, ...]] = ("UnCLIPPipeline",)
    needs: ClassVar[Needs] = Needs(
        parts=(
            "prior",
            "decoder",
            "text_encoder",
            "tokenizer",
            "text_proj",
            "super_res_first",
            "super_res_last",
            "prior_scheduler",
            "decoder_scheduler",
            "super_res_scheduler",
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prior_steps", "super_res_steps"):
            _check_steps(name, getattr(self, name))

    @classmethod
    def load_pipeline(cls, source: str, dtype: torch.dtype) -> Any:
        """Loaded part by part: diffusers moved the pipeline, and no longer finds the class of ``text_proj``."""
        parts: dict[str, Any] = {}
        for name, value in UnCLIPPipeline.load_config(source).items():
            if name.startswith("_"):
                continue
            homes: tuple[Any, ...] = (unclip, diffusers, transformers)
            kind = next(getattr(home, value[1]) for home in homes if hasattr(home, value[1]))
            options = {"dtype": dtype} if issubclass(kind, nn.Module) else {}
            parts[name] = kind.from_pretrained(source, subfolder=name, **options)
        return UnCLIPPipeline(**parts)

    def modules(self) -> tuple[nn.Module, ...]:
        """The decoder."""
        return (self.pipe.decoder,)

    @property
    def noise_dtype(self) -> torch.dtype:
        """The dtype of the output of ``text_proj``: the pipeline draws its latents in it."""
        return self.pipe.text_proj.dtype

    @property
    def scales_input(self) -> bool:
        """False: the pipeline does not call ``scale_model_input``."""
        return False

    @property
    def guided(self) -> bool:
        """If either scale is above 1, the pipeline guides both the prior and the decoder, each with its own scale."""
        return self.prior_guidance_scale > 1.0 or self.guidance_scale > 1.0

    @property
    def _prior(self) -> TextPrior:
        return self.prior()

    def prior(self) -> TextPrior:
        """Texts to image embeddings."""
        return TextPrior(
            self.pipe.prior,
            self.pipe.prior_scheduler,
            self._encode_text,
            self.device,
            steps=self.prior_steps,
            guidance_scale=self.prior_guidance_scale,
            tau=self.prior_tau if self.share_prior else 0.0,
            guided=self.guided,
        )

    def _encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self.pipe._encode_prompt(prompts, self.device, 1, False)

    def encode(self, batch: Batch) -> Encoded:
        """Image embedding (B, D), pooled text (B, D) and its tokens, as ``text_proj`` takes them."""
        assert batch.prior is not None
        prior = self.pipe.prior
        embeds = prior.post_process_latents(batch.prior[:, 0].to(prior.device, prior.dtype))  # [B, D]
        return Encoded({"image_embeds": embeds, **text_rows("", *self._encode_text(batch.prompts))}, vectors=embeds)

    def shared(self) -> dict[str, Any]:
        """The scale, and the empty text. The unconditional half's image embedding is a weight of ``text_proj``."""
        rows: dict[str, Any] = {"guidance_scale": scale_row(self.guidance_scale)}
        if self.guided:
            rows |= text_rows("negative_", *self._encode_text([""]))
        return rows

    def scheduler(self) -> Any:
        """The decoder's scheduler."""
        return self.pipe.decoder_scheduler

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """The scheduler needs a first and a last step."""
        _check_steps("steps", steps)
        super().set_timesteps(scheduler, steps)

    def latent_shape(self) -> tuple[int, ...]:
        """(3, h, w): pixels."""
        config = self.pipe.decoder.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def generator(self, seed: int) -> torch.Generator:
        """A generator from which the prior has drawn: the pipeline uses one generator for all its parts."""
        generator = super().generator(seed)
        skip(self._prior, generator)
        return generator

    def denoise(self, latents: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The decoder on [unconditional; conditional] rows; the variance is the conditional half's."""
        # The text is always padded to the tokenizer's length. The decoder decides by the length of the mask whether
        # the mask covers the pixels too: a mask with one entry per pixel by chance would be taken for one that does.
        guidance = Guidance(padded_text(rows, self.pipe.tokenizer.model_max_length), self.guided)
        mask = guidance.both("text_tokens_mask")  # [B or 2B, L]
        whole = guidance.whole()  # text_proj makes the unconditional half itself, of every lane
        tokens, labels = self.pipe.text_proj(
            image_embeddings=rows["image_embeds"].to(self.noise_dtype),
            prompt_embeds=whole.both("text_embeds").to(self.noise_dtype),
            text_encoder_hidden_states=whole.both("text_tokens").to(self.noise_dtype),
            do_classifier_free_guidance=self.guided,
        )  # the image embedding becomes a few more tokens, before the text's
        if guidance.picked is not None:
            tokens, labels = (each.index_select(0, guidance.picked) for each in (tokens, labels))
        image_tokens = mask.new_ones(len(mask), self.pipe.text_proj.clip_extra_context_tokens)
        output = self.pipe.decoder(
            sample=guidance.twice(latents.to(self.dtype)),
            timestep=guidance.twice(timestep),
            encoder_hidden_states=tokens,
            class_labels=labels,
            attention_mask=torch.cat([image_tokens, mask], dim=1),
        ).sample.float()  # [B or 2B, 6, h, w]
        model_output, variance = output.split(latents.shape[1], dim=1)
        return guidance.apply(model_output), guidance.conditional(variance)

    def decoding_networks(self) -> tuple[nn.Module, ...]:
        """Super-resolution, of which the last step may have weights of its own."""
        return tuple(dict.fromkeys((self.pipe.super_res_first, self.pipe.super_res_last)))

    @torch.no_grad()
    def decode(self, latents: Tensor, generators: list[torch.Generator]) -> list[PIL.Image.Image]:
        """Super-resolution, all images at the same step, each with its own generator."""
        pipe, small = self.pipe, latents.to(self.pipe.super_res_first.dtype).clamp(-1, 1)
        channels, side = pipe.super_res_first.config.in_channels // 2, pipe.super_res_first.config.sample_size
        shape = (len(small), channels, side, side)
        scheduler = copy.deepcopy(pipe.super_res_scheduler)
        scheduler.set_timesteps(self.super_res_steps, device=small.device)
        image = randn_tensor(shape, generator=generators, device=small.device, dtype=small.dtype)
        image = image * scheduler.init_noise_sigma
        large = nn.functional.interpolate(
            small.float(),  # not all devices have it in half precision
            (side, side),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        ).to(small.dtype)
        last = len(scheduler.timesteps) - 1
        for k, t in enumerate(scheduler.timesteps):
            unet = pipe.super_res_last if k == last else pipe.super_res_first
            output = unet(sample=torch.cat([image, large], dim=1), timestep=t).sample
            following = None if k == last else scheduler.timesteps[k + 1]
            image = scheduler.step(output, t, image, prev_timestep=following, generator=generators).prev_sample
        return unit_pictures((image * 0.5 + 0.5).clamp(0, 1))


def _check_steps(name: str, value: int) -> None:
    """``ValueError`` for fewer than 2 steps: ``UnCLIPScheduler`` needs a first and a last one."""
    if value < 2:
        raise ValueError(f"{name} is {value}: unCLIP's schedulers need at least 2 steps, a first and a last one")
