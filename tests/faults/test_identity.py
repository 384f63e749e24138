"""Images of another model are never mixed: what decides an image is recorded, compared, and named where it differs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import diffusers
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import hsd
import tiny
from families import FAMILIES
from hsd.generation.differences import claim_model, model_differences, plan_differences
from hsd.models.identity import image_identity
from hsd.models.networks import network_state
from hsd.models.weights import digest

pytestmark = pytest.mark.faults

PROMPTS = ["a cat", "a dog", "the sea", "a red bicycle"]
SETTINGS = {"height": 16, "width": 16}


def identity(model, steps=4):
    """As a run records it and reads it back."""
    return json.loads(json.dumps(image_identity(model, [model.sampler(steps)]), allow_nan=False))


def differences(before, now):
    """What two models differ in."""
    return model_differences(identity(before), identity(now))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A plan, and a folder with half of its images, made by ``tiny.stable_diffusion()``."""
    folder, model = tmp_path_factory.mktemp("half") / "out", hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2)
    hsd.generate(plan.prune([0, 2]), model, folder, progress=False)
    return plan, folder


def contents(folder):
    """The files of a folder, without hidden ones such as locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


# --------------------------------------------------------------------- changes of a pipeline


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


@pytest.mark.parametrize("change, named", CHANGES.values(), ids=CHANGES)
def test_half_a_folder_is_not_continued_by_a_changed_model(change, named, half):
    plan, folder = half
    pipe = tiny.stable_diffusion()
    change(pipe)
    before = contents(folder)
    with pytest.raises(hsd.PlanMismatch, match=f"another model.*{named}.*choose another folder"):
        hsd.generate(plan, pipe, folder, progress=False, **SETTINGS)
    assert contents(folder) == before


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
    "super-resolution": (tiny.karlo, lambda p: next(p.super_res_last.parameters()).data.add_(1), "super_res_last: other"),
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


@pytest.mark.parametrize("build, change, named", OTHERS.values(), ids=OTHERS)
def test_parts_of_all_families_count(build, change, named):
    pipe = build()
    before = identity(hsd.load(pipe))
    assert not model_differences(before, identity(hsd.load(build())))
    change(pipe)
    found = model_differences(before, identity(hsd.load(pipe)))
    assert any(named in text for text in found), found


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
    "LoRA off": with_unused_loras,
    "LoRA deleted": with_deleted_lora,
    "LoRA unloaded": unloaded,
    "compiled": compiled,
    "after a run of the pipeline": after_a_run,
    "unfused weights as views": done(lambda p: p.unet.requires_grad_(True)),
}
"""What changes no image, or its rounding only."""


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_changes_rounding_only_is_not_refused(change, half, tmp_path):
    now = hsd.load(change(tiny.stable_diffusion(), tmp_path), **SETTINGS)
    assert differences(hsd.load(tiny.stable_diffusion(), **SETTINGS), now) == []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_nothing_differs_after_a_run_and_after_loading_again(family, tmp_path):
    settings = family.settings(family.unguided, family.size)
    model = hsd.load(family.loadable(family.build()), **settings)
    before = identity(model, family.steps)
    plan = hsd.compile(["a cat"], 0.0, model=model, steps=family.steps)
    list(hsd.stream(plan, model))
    after = identity(model, family.steps)
    assert model_differences(before, after) == []
    assert after == before
    for i, pipe in enumerate(model.pipes()):
        pipe.save_pretrained(tmp_path / str(i))
    parts = [model.load_pipeline(str(tmp_path / str(i)), torch.float32) for i in range(len(model.pipes()))]
    again = hsd.load(parts[0] if len(parts) == 1 else tuple(parts), **settings)
    found = model_differences(before, identity(again, family.steps))
    assert [text for text in found if not text.startswith("pipeline: ")] == []  # a pair, of a combined pipeline


def test_the_name_of_a_lora_does_not_count_and_its_scale_does():
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    add_lora(pipe.unet, "one")
    add_lora(other.unet, "two")
    model = hsd.load(pipe)
    before = identity(model)
    assert differences(model, hsd.load(other)) == []
    pipe.set_adapters(["one"], [0.5])
    assert model_differences(before, identity(model)) == ["unet LoRA: one at 4 before, one at 2 now"]
    add_lora(pipe.unet, "more", seed=1)
    pipe.set_adapters(["one", "more"], [1.0, 1.0])
    assert "unet LoRA: one at 4 before," in model_differences(before, identity(model))[0]
    pipe.set_adapters(["one"], [1.0])
    assert model_differences(before, identity(model)) == []
    with torch.no_grad():
        next(p for name, p in pipe.unet.named_parameters() if "lora_B.one" in name).add_(1)
    assert model_differences(before, identity(model)) == ["unet LoRA: other weights of one at 4"]


def test_a_model_that_is_changed_in_place_between_two_halves(tmp_path):
    """In one process, with one model object: each change is refused, and undone it is continued."""
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2)
    hsd.generate(plan.prune([0, 2]), model, tmp_path, progress=False)
    weight, scheduler = model.pipe.unet.conv_in.weight, model.pipe.scheduler
    kept = weight.detach().clone()
    weight.data.mul_(1.001)
    with pytest.raises(hsd.PlanMismatch, match="unet: other weights"):
        hsd.generate(plan, model, tmp_path, progress=False)
    weight.data.copy_(kept)
    model.pipe.scheduler = diffusers.DDPMScheduler.from_config(scheduler.config)
    with pytest.raises(hsd.PlanMismatch, match="DDIMScheduler before, DDPMScheduler now"):
        hsd.generate(plan, model, tmp_path, progress=False)
    with pytest.raises(hsd.PlanMismatch, match="DDIMScheduler before, EulerDiscreteScheduler now"):
        euler = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
        hsd.generate(plan, model.with_scheduler(euler), tmp_path, progress=False)
    with pytest.raises(hsd.PlanMismatch, match="guidance_scale: 7.5 before, 3.0 now"):
        hsd.generate(plan, model, tmp_path, progress=False, guidance_scale=3.0)
    # the same scheduler as another object, in the other way
    same = model.with_scheduler(diffusers.DDIMScheduler.from_config(scheduler.config))
    run = hsd.generate(plan, same, tmp_path, progress=False, batch_size=1, channels_last=True)
    assert (run.existing, run.images) == (2, 2)


# ------------------------------------------------------------------------- earlier folders, versions


def as_it_was(folder, **changes):
    """Rewrite the run record to what earlier versions recorded."""
    document = json.loads((folder / "run.json").read_bytes())
    model = document["identity"]["model"]
    document["identity"] = {
        "plan": document["identity"]["plan"],
        "model": {"name": model["name"], "settings": model["settings"], **changes},
    }
    (folder / "run.json").write_text(json.dumps(document))


@pytest.fixture
def copied(half, tmp_path):
    plan, folder = half
    shutil.copytree(folder, tmp_path / "out")
    return plan, tmp_path / "out"


def test_a_folder_of_an_earlier_version_is_continued_and_then_known(copied):
    plan, folder = copied
    as_it_was(folder)
    pipe = tiny.stable_diffusion()
    with pytest.raises(hsd.PlanMismatch, match="guidance_scale: 7.5 before, 2.0 now"):
        hsd.generate(plan, pipe, folder, progress=False, guidance_scale=2.0, **SETTINGS)
    other = hsd.load(pipe, **SETTINGS).with_scheduler(pipe.scheduler)
    with pytest.raises(hsd.PlanMismatch, match="scheduler: none before, 'DDIMScheduler' now"):
        hsd.generate(plan, other, folder, progress=False)
    hsd.generate(plan.prune([0, 1, 2]), pipe, folder, progress=False, **SETTINGS)
    pipe.unet.conv_in.weight.data.mul_(2)
    with pytest.raises(hsd.PlanMismatch, match="unet: other weights"):
        hsd.generate(plan, pipe, folder, progress=False, **SETTINGS)


def test_a_given_scheduler_of_an_earlier_version(copied):
    plan, folder = copied
    as_it_was(folder, scheduler="DDIMScheduler")
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    with pytest.raises(hsd.PlanMismatch, match="scheduler: 'DDIMScheduler' before, none now"):
        hsd.generate(plan, model, folder, progress=False)
    hsd.generate(plan, model.with_scheduler(model.pipe.scheduler), folder, progress=False)


def with_identity(folder, change):
    """Change the recorded identity of the model."""
    document = json.loads((folder / "run.json").read_bytes())
    change(document["identity"]["model"])
    (folder / "run.json").write_text(json.dumps(document))


def test_other_versions_and_devices_are_a_warning(copied):
    plan, folder = copied
    with_identity(folder, lambda model: model["versions"].update(torch="1.0", diffusers="0.1"))
    with_identity(folder, lambda model: model.update(device="cuda"))
    told = "torch 1.0 before, .* now; diffusers 0.1 before, .*; on cuda before, on cpu now"
    with pytest.warns(hsd.OtherVersions, match=told):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, **SETTINGS)


def test_entries_that_another_version_wrote_do_not_refuse_by_themselves(copied):
    plan, folder = copied

    def other_version(model):
        model["versions"]["diffusers"] = "0.1"
        del model["networks"]["unet"]["config"]["norm_eps"]
        model["networks"]["unet"]["config"]["an_old_one"] = 3
        model["networks"]["unet"].update(layers="other")
        model["scheduler"]["config"]["an_old_one"] = 3
        model["settings"].pop("guidance_rescale")  # as if it were new: its default is what there was

    with_identity(folder, other_version)
    with pytest.raises(hsd.PlanMismatch, match="guidance_rescale: 0.0 before, 0.5 now"):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, guidance_rescale=0.5, **SETTINGS)
    with pytest.warns(hsd.OtherVersions, match="diffusers 0.1 before"):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, **SETTINGS)


def test_weights_that_cannot_be_read_are_said_to_be_unknown(copied):
    plan, folder = copied
    with_identity(folder, lambda model: model["networks"]["unet"].update(weights=None))
    with pytest.warns(hsd.OtherVersions, match="weights of unet are not in memory"):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, **SETTINGS)
    network = tiny.stable_diffusion().unet.to("meta")
    assert network_state(network)["weights"] is None


# ------------------------------------------------------------------------------------ plans


PLANS = {
    "tau": ({"tau": 0.5}, "tau: 0.9 before, 0.5 now"),
    "budget": ({"tau": None, "budget": 0.1}, "budget: none before, 0.1 now"),
    "steps": ({"steps": 3}, "steps: 2 before, 3 now"),
    "linkage": ({"linkage": "average"}, "linkage: 'ward' before, 'average' now"),
    "metric": ({"metric": "euclidean"}, "metric: 'cosine' before, 'euclidean' now"),
    "noise": ({"noise": "shared"}, "noise: 'independent' before, 'shared' now"),
    "catch-up": ({"catch_up": 0.5}, "catch_up: none before, 0.5 now"),
    "seeds": ({"seeds": [0, 1, 7, 8]}, r"seed of prompt 2: 2 before, 7 now \(2 of 4 differ\)"),
    "prompt": (
        {"prompts": ["a cat", "a fox", "the sea", "a hat"]},
        r"prompt 1: 'a dog' before, 'a fox' now \(2 of 4 differ\)",
    ),
    "number": ({"prompts": PROMPTS[:3]}, "prompts: 4 before, 3 now"),
    "repeats": ({"images_per_prompt": 2}, "images_per_prompt: 1 before, 2 now"),
    "settings": (
        {"settings": [{}, {}, {"guidance_scale": 2.0}, {}]},
        r"settings of prompt 2: guidance_scale: none before, 2.0 now \(1 of 4 prompts differ\)",
    ),
    "embeddings": (
        {"embeddings": torch.eye(4), "metric": "cosine"},
        "encoder: 'stable-diffusion' before, 'embeddings' now",
    ),
}
"""Other arguments of ``compile``, and what the refusal names."""


@pytest.mark.parametrize("change, named", PLANS.values(), ids=PLANS)
def test_another_plan_is_refused_and_what_differs_is_named(change, named, half):
    _, folder = half
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    arguments = {"prompts": PROMPTS, "tau": 0.9, "steps": 2, **change}
    plan = hsd.compile(model=model, **arguments)
    with pytest.raises(hsd.PlanMismatch, match=f"another plan.*({named}).*choose another folder"):
        hsd.generate(plan, model, folder, progress=False)


def test_another_tree_of_the_same_request():
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plans = [hsd.compile(PROMPTS, 0.9, embeddings=torch.eye(4).roll(i, 0) + i, steps=2) for i in (0, 1)]
    assert plan_differences(plans[0], plans[0].shard(2)[0]) == []
    assert "another tree: the embeddings differ" in plan_differences(*plans)[0]


# ------------------------------------------------------------------------------------ encodings


STALE = {
    "textual inversion": (tiny.stable_diffusion, textual_inversion),
    "weights through data": (
        tiny.stable_diffusion,
        lambda p: next(p.text_encoder.parameters()).data.mul_(1.01),
    ),
    "weights by copy_": (tiny.stable_diffusion, lambda p: one_bit(p.text_encoder)),
    "weights by load_state_dict": (tiny.stable_diffusion, CHANGES["text encoder"][0]),
    "LoRA": (tiny.stable_diffusion, CHANGES["LoRA of the text encoder"][0]),
    "tokenizer": (tiny.stable_diffusion, CHANGES["token length"][0]),
    "another tokenizer": (tiny.stable_diffusion, lambda p: setattr(p, "tokenizer", other_tokenizer())),
    "epsilon": (
        tiny.stable_diffusion,
        lambda p: setattr(next(m for m in p.text_encoder.modules() if isinstance(m, nn.LayerNorm)), "eps", 0.1),
    ),
    "prior": (tiny.k22_combined, OTHERS["prior weights"][1]),
    "scheduler of the prior": (tiny.k22_combined, OTHERS["prior scheduler"][1]),
    "tensors of the prior's scheduler": (
        tiny.k22_combined,
        lambda p: p.prior_pipe.scheduler.alphas_cumprod.mul_(0.9),
    ),
    "image encoder": (tiny.k22_combined, OTHERS["image encoder"][1]),
    "second encoder": (tiny.sdxl, OTHERS["second text encoder"][1]),
    "noising scheduler": (
        tiny.stable_unclip,
        lambda p: p.image_noising_scheduler.register_to_config(beta_schedule="linear"),
    ),
    "option": (tiny.sdxl, OTHERS["option of the pipeline"][1]),
}
"""Changes after which the encodings that a plan has are stale."""


def other_tokenizer():
    tokenizer = tiny.clip_tokenizer()
    tokenizer.add_tokens(["cat</w>"])
    return tokenizer


@pytest.mark.parametrize("build, change", STALE.values(), ids=STALE)
def test_encodings_of_a_changed_model_are_stale(build, change):
    model = hsd.load(build())
    before = model.encoding_key()
    assert model.encoding_key() == before
    change(model.pipe)
    assert model.encoding_key() != before


FRESH = {
    **{name: change for name, change in SAME.items() if "offload" not in name},
    "unet weights": done(CHANGES["unet weights"][0]),
    "vae weights": done(CHANGES["vae weights"][0]),
    "LoRA of the unet": done(CHANGES["LoRA"][0]),
    "scheduler": done(CHANGES["scheduler class"][0]),
    "text encoder offloaded": done(lambda p: cpu_offload(p.text_encoder, "cpu")),
}
"""After these, prompts are encoded as before."""


@pytest.mark.parametrize("change", FRESH.values(), ids=FRESH)
def test_encodings_are_used_again_where_nothing_changed(change, tmp_path):
    pipe = tiny.stable_diffusion()
    before = hsd.load(pipe).encoding_key()
    assert hsd.load(change(pipe, tmp_path)).encoding_key() == before


def test_a_plan_is_encoded_again_after_a_change_only(monkeypatch):
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2)
    encoded, own = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, batch: encoded.append(batch) or own(self, batch))
    before = {image.index: image.pil for image in hsd.stream(plan, model)}
    assert not encoded
    next(model.pipe.text_encoder.parameters()).data.mul_(3.0)
    after = {image.index: image.pil for image in hsd.stream(plan, model)}
    assert encoded
    assert any(before[i].tobytes() != after[i].tobytes() for i in before)


def test_draws_of_a_prior_follow_its_scheduler():
    """The decoder draws after the prior: how much the prior draws must not be remembered from another scheduler."""
    pipe = tiny.k22_combined()
    model = hsd.load(pipe)
    model.generator(3)
    pipe.prior_pipe.scheduler = diffusers.DDIMScheduler(prediction_type="sample")
    assert torch.equal(model.generator(3).get_state(), hsd.load(pipe).generator(3).get_state())


# ------------------------------------------------------------------------------------ digests


def test_digests_do_not_depend_on_layout_or_place_in_memory():
    values = torch.randn(70_000)
    whole = digest([values])
    assert digest([torch.cat([torch.zeros(1), values])[1:]]) == whole
    image = torch.randn(8, 4, 3, 3)
    assert digest([image]) == digest([image.to(memory_format=torch.channels_last)])
    assert digest([values.view(7, -1)]) != whole
    assert digest([values.view(torch.int32)]) != whole
    assert digest([values, values[:3]]) != digest([values[:3], values])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.bool, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 32_768 * 4 + 3])
def test_every_change_of_one_value_changes_a_digest(dtype, n):
    values = torch.ones(n, dtype=torch.float32).to(dtype)
    for at in {0, n // 2, n - 1}:
        other = values.clone()
        other.view(torch.uint8).view(-1)[at * values.itemsize] ^= 1
        assert digest([values]) != digest([other]), at
    assert digest([values]) != digest([values[1:]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs_of_signs_change_a_digest(dtype):
    values = torch.randn(64).to(dtype)
    seen = {digest([values])}
    for i in range(0, 64, 2):
        other = values.clone()
        other[[i, 63]] *= -1
        seen.add(digest([other]))
    assert len(seen) == 33


def test_large_weights_are_summed_in_threads_to_the_same(monkeypatch):
    values = [torch.randn(50_000) for _ in range(4)]
    before = digest(values)
    monkeypatch.setattr("hsd.models.weights._THREADED", 1)
    assert digest(values) == before


def test_quantised_weights_count_by_codes_and_scales():
    class State:
        absmax = torch.ones(4)

    codes = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    codes.quant_state = State()
    before = digest([codes])
    State.absmax = torch.ones(4) * 2
    assert digest([codes]) != before


# ------------------------------------------------------------------------------------ studies


def test_a_study_is_continued_by_its_model_only(tmp_path):
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    claim_model(tmp_path, image_identity(model))
    claim_model(tmp_path, image_identity(dataclasses.replace(model)))
    model.pipe.vae.decoder.conv_out.bias.data.add_(0.1)
    with pytest.raises(hsd.PlanMismatch, match="vae: other weights.*choose another folder"):
        claim_model(tmp_path, image_identity(model))
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(hsd.Error, match="delete the file"):
        claim_model(tmp_path, image_identity(model))
