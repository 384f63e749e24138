"""What may be done to a pipeline: what decides its images, and what does not."""

from __future__ import annotations

import diffusers
import torch
from accelerate import cpu_offload, disk_offload
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import tiny

PROMPTS = ["a cat", "a dog", "the sea", "a red bicycle"]
SETTINGS = {"height": 16, "width": 16}


def add_lora(network, name="style", seed=0, targets=("to_q", "to_v")):
    """A LoRA with random weights, active at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
        if hasattr(network, "set_adapters"):  # diffusers
            network.add_adapter(config, adapter_name=name)
        else:
            inject_adapter_in_model(config, network, adapter_name=name)


def textual_inversion(pipe, token="<toy>"):
    pipe.load_textual_inversion({token: torch.full((1, tiny.WIDTH), 0.1)}, token=token)


@torch.no_grad()
def flip_two_signs(network):
    """The sign bits of two values: two changes of 2^63 are none in a plain sum modulo 2^64."""
    weight = max(network.parameters(), key=lambda p: p.numel()).data.view(-1)
    weight[1] *= -1
    weight[3] *= -1


@torch.no_grad()
def exchange(network):
    """Two weights of one shape change places."""
    norms = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
    a, b = next((a, b) for a in norms for b in norms if a is not b and a.shape == b.shape and not torch.equal(a, b))
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)


@torch.no_grad()
def one_bit(network):
    """The last bit of the last value of the last weight."""
    weight = list(network.parameters())[-1].data.view(-1).view(torch.int32)
    weight[-1] ^= 1


class Muted(diffusers.models.attention_processor.AttnProcessor2_0):
    """A user's own."""


def fused(pipe):
    add_lora(pipe.unet)
    pipe.fuse_lora(components=["unet"])


def fused_and_unloaded(pipe):
    fused(pipe)
    pipe.unload_lora_weights()


def circular(network):
    """The well-known way to make tiles that repeat."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def set_scheduler(pipe, scheduler):
    pipe.scheduler = scheduler


def set_norm_epsilon(network):
    next(m for m in network.modules() if isinstance(m, nn.GroupNorm)).eps = 0.1


def add_checker(pipe):
    from transformers import CLIPConfig, CLIPImageProcessor

    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
    config = CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
        projection_dim=8,
    )
    pipe.register_modules(safety_checker=checker(config).eval(), feature_extractor=CLIPImageProcessor())


CHANGES = {
    "scheduler class": (
        lambda p: set_scheduler(p, diffusers.EulerDiscreteScheduler.from_config(p.scheduler.config)),
        "scheduler: DDIMScheduler before, EulerDiscreteScheduler now",
    ),
    "scheduler configuration": (
        lambda p: set_scheduler(p, diffusers.DDIMScheduler.from_config(p.scheduler.config, beta_end=0.02)),
        "scheduler beta_end: 0.012 before, 0.02 now",
    ),
    "scheduler configuration in place": (
        lambda p: p.scheduler.register_to_config(prediction_type="v_prediction"),
        "scheduler prediction_type: 'epsilon' before, 'v_prediction' now",
    ),
    "scheduler tensors in place": (
        lambda p: p.scheduler.alphas_cumprod.mul_(0.98),
        "scheduler: other steps, with the same configuration",
    ),
    "unet weights": (lambda p: p.unet.conv_in.weight.data.mul_(1.001), "unet: other weights"),
    "unet, one bit": (lambda p: one_bit(p.unet), "unet: other weights"),
    "unet, two signs": (lambda p: flip_two_signs(p.unet), "unet: other weights"),
    "unet, two layers exchanged": (lambda p: exchange(p.unet), "unet: other weights"),
    "vae weights": (lambda p: p.vae.decoder.conv_out.bias.data.add_(0.1), "vae: other weights"),
    "text encoder": (
        lambda p: p.text_encoder.load_state_dict({k: v * 1.01 for k, v in p.text_encoder.state_dict().items()}),
        "text_encoder: other weights",
    ),
    "dtype": (lambda p: p.to(torch.bfloat16), "unet dtype: float32 before, bfloat16 now"),
    "dtype of one network": (lambda p: p.vae.to(torch.float64), "vae dtype: float32 before, float64 now"),
    "LoRA": (lambda p: add_lora(p.unet), "unet LoRA: none before, style at 4 now"),
    "LoRA of the text encoder": (
        lambda p: add_lora(p.text_encoder, targets=["q_proj"]),
        "text_encoder LoRA: none before, style at 4 now",
    ),
    "fused LoRA": (fused, "unet: other weights"),
    "fused LoRA, unloaded": (fused_and_unloaded, "unet: other weights"),
    "textual inversion": (textual_inversion, "text_encoder: other weights.*tokenizer: tokens <toy> were added"),
    "token length": (
        lambda p: setattr(p.tokenizer, "model_max_length", 20),
        "tokenizer model_max_length: 77 before, 20 now",
    ),
    "padding side": (
        lambda p: setattr(p.tokenizer, "padding_side", "left"),
        "tokenizer padding_side: 'right' before, 'left' now",
    ),
    "safety checker": (add_checker, "safety_checker: none before, StableDiffusionSafetyChecker now"),
    "FreeU": (lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4), r"unet FreeU: none before, \[0.9, 0.2, 1.2, 1.4\] now"),
    "tiling": (lambda p: p.vae.enable_tiling(), "vae tiling: none before"),
    "scaling factor": (
        lambda p: p.vae.register_to_config(scaling_factor=0.13),
        "vae scaling_factor: 0.18215 before, 0.13 now",
    ),
    "attention processor": (lambda p: p.unet.set_attn_processor(Muted()), "unet attention processors: none .*Muted"),
    "hook": (lambda p: p.unet.register_forward_hook(lambda *_: None), "unet hooks: none before"),
    "forward replaced": (lambda p: setattr(p.unet, "forward", lambda *_, **__: None), "unet hooks: none before"),
    "padding of convolutions": (lambda p: circular(p.unet), "unet: other settings of its layers"),
    "an epsilon": (lambda p: set_norm_epsilon(p.vae), "vae: other settings of its layers"),
}
"""What is done to a pipeline after half of a folder, and what the refusal names."""


OTHERS = {
    "prior weights": (
        tiny.k22_combined,
        lambda p: p.prior_prior.proj_in.bias.data.add_(1),
        "prior: other weights",
    ),
    "prior scheduler": (
        tiny.k22_combined,
        lambda p: p.prior_pipe.scheduler.register_to_config(clip_sample_range=3.0),
        "scheduler clip_sample_range: 10.0 before, 3.0 now",
    ),
    "movq": (tiny.k22_combined, lambda p: p.movq.post_quant_conv.bias.data.add_(1), "movq: other weights"),
    "image encoder": (
        tiny.k22_combined,
        lambda p: next(p.prior_image_encoder.parameters()).data.add_(1),
        "image_encoder: other weights",
    ),
    "second text encoder": (
        tiny.sdxl,
        lambda p: p.text_encoder_2.text_projection.weight.data.neg_(),
        "text_encoder_2: other weights",
    ),
    "option of the pipeline": (
        tiny.sdxl,
        lambda p: p.register_to_config(force_zeros_for_empty_prompt=False),
        "force_zeros_for_empty_prompt: True before, False now",
    ),
    "super-resolution": (
        tiny.karlo,
        lambda p: next(p.super_res_last.parameters()).data.add_(1),
        "super_res_last: other",
    ),
    "a part of Karlo": (tiny.karlo, lambda p: next(p.text_proj.parameters()).data.add_(1), "text_proj: other weights"),
    "shift of flow matching": (tiny.flux, lambda p: p.scheduler.set_shift(2.0), "scheduler"),
    "batch norm": (tiny.flux2, lambda p: p.vae.bn.running_mean.add_(0.1), "vae: other weights"),
    "image normalizer": (
        tiny.stable_unclip,
        lambda p: next(p.image_normalizer.parameters()).data.add_(0.1),
        "image_normalizer: other weights",
    ),
}
"""Parts that other families have."""


def nothing(pipe, folder):
    return pipe


def reloaded(pipe, folder):
    pipe.save_pretrained(folder)
    return diffusers.StableDiffusionPipeline.from_pretrained(folder)


def with_unused_loras(pipe, folder):
    add_lora(pipe.unet, "one")
    pipe.unet.disable_adapters()
    return pipe


def with_deleted_lora(pipe, folder):
    add_lora(pipe.unet, "one")
    pipe.delete_adapters("one")
    return pipe


def unloaded(pipe, folder):
    add_lora(pipe.unet, "one")
    pipe.unload_lora_weights()
    return pipe


def compiled(pipe, folder):
    pipe.unet = torch.compile(pipe.unet)
    return pipe


def after_a_run(pipe, folder):
    pipe(PROMPTS[:2], num_inference_steps=3, output_type="latent")
    return pipe


def offload_groups(network, folder=None):
    where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    path = None if folder is None else str(folder)
    apply_group_offloading(network, **where, offload_type="leaf_level", offload_to_disk_path=path)


def done(action):
    def change(pipe, folder):
        action(pipe)
        return pipe

    return change


SAME = {
    "nothing": nothing,
    "moving": done(lambda p: p.to("cpu")),
    "channels_last": done(lambda p: p.unet.to(memory_format=torch.channels_last)),
    "attention slicing": done(lambda p: p.enable_attention_slicing()),
    "other attention kernels": done(lambda p: p.unet.set_default_attn_processor()),
    "vae slicing": done(lambda p: p.vae.enable_slicing()),
    "tiling, off again": done(lambda p: (p.vae.enable_tiling(), p.vae.disable_tiling())),
    "FreeU, off again": done(lambda p: (p.enable_freeu(0.9, 0.2, 1.2, 1.4), p.disable_freeu())),
    "progress bar": done(lambda p: p.set_progress_bar_config(disable=False)),
    "reloaded from disk": reloaded,
    "offloaded to the host": done(lambda p: cpu_offload(p.unet, "cpu")),
    "offloaded to disk": lambda p, folder: (disk_offload(p.unet, str(folder), "cpu"), p)[1],
    "groups offloaded": done(lambda p: offload_groups(p.unet)),
    "groups offloaded to disk": lambda p, folder: (offload_groups(p.unet, folder), p)[1],
    "LoRA off": with_unused_loras,
    "LoRA deleted": with_deleted_lora,
    "LoRA unloaded": unloaded,
    "compiled": compiled,
    "after a run of the pipeline": after_a_run,
    "unfused weights as views": done(lambda p: p.unet.requires_grad_(True)),
}
"""What changes no image, or its rounding only."""
