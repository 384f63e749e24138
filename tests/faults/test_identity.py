"""Images of another model are never mixed: what decides an image is recorded, compared, and named where it differs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import diffusers
import pytest
import torch
from typer.testing import CliRunner

import hsd
import tiny
from families import FAMILIES
from hsd import cli
from hsd.choice.trials import Trials
from hsd.generation.differences import claim_model, model_differences
from hsd.models.identity import image_identity
from hsd.models.networks import network_state
from hsd.reproduction.lab import Lab, PromptSet
from model_changes import CHANGES, OTHERS, PROMPTS, SAME, SETTINGS, add_lora

pytestmark = pytest.mark.faults


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
    # Without catch-up, as earlier versions made it: for them it was off by default.
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=2, catch_up=0.0)
    hsd.generate(plan.prune([0, 2]), model, folder, progress=False)
    return plan, folder


def contents(folder):
    """The files of a folder, without hidden ones such as locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


@pytest.mark.filterwarnings("ignore:.* has a forward of another package:hsd.errors.Notice")
@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_half_a_folder_is_not_continued_by_a_changed_model(change, named, half):
    plan, folder = half
    pipe = tiny.stable_diffusion()
    change(pipe)
    before = contents(folder)
    with pytest.raises(hsd.PlanMismatch, match=f"another .*model.*{named}.*choose another folder"):
        hsd.generate(plan, pipe, folder, progress=False, **SETTINGS)
    assert contents(folder) == before


@pytest.mark.parametrize(("build", "change", "named"), OTHERS.values(), ids=OTHERS)
def test_parts_of_all_families_count(build, change, named):
    pipe = build()
    before = identity(hsd.load(pipe))
    assert not model_differences(before, identity(hsd.load(build())))
    change(pipe)
    found = model_differences(before, identity(hsd.load(pipe)))
    assert any(named in text for text in found), found


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
    if hasattr(model.pipe, "resolutions"):  # the sizes of a tiny Kandinsky 5, which a folder does not hold
        parts[0].resolutions = model.pipe.resolutions
    again = hsd.load(parts[0] if len(parts) == 1 else tuple(parts), **settings)
    found = model_differences(before, identity(again, family.steps))
    # A pair of a combined pipeline; and tests/families/sana.py puts a hook before the text encoder.
    assert [text for text in found if not re.match("pipeline: |text_encoder hooks: .*_encode_once", text)] == []


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
    euler = diffusers.EulerDiscreteScheduler.from_config(scheduler.config)
    with pytest.raises(hsd.PlanMismatch, match="DDIMScheduler before, EulerDiscreteScheduler now"):
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
    (folder / "identity.json").unlink()


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
    (folder / "identity.json").write_text(json.dumps(document["identity"]))


def test_other_versions_and_devices_are_a_warning(copied):
    plan, folder = copied
    with_identity(folder, lambda model: model["versions"].update(torch="1.0", diffusers="0.1"))
    with_identity(folder, lambda model: model.update(device="cuda"))
    told = "torch 1.0 before, .* now; diffusers 0.1 before, .*; on cuda before, on cpu now"
    with pytest.warns(hsd.OtherVersions, match=told):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, **SETTINGS)


@pytest.mark.parametrize("damage", [{"networks": 3}, {"tokenizers": None}, {"scheduler": "x"}, {"options": [1]}])
def test_a_damaged_record_is_an_error_with_advice(damage, copied):
    plan, folder = copied
    with_identity(folder, lambda model: model.update(damage))
    with pytest.raises(hsd.Error, match="choose another folder"):
        hsd.generate(plan, tiny.stable_diffusion(), folder, progress=False, **SETTINGS)


def test_a_damaged_record_is_put_right_by_the_other(copied):
    plan, folder = copied
    intact = (folder / "identity.json").read_bytes()
    for damage in ({"networks": None}, {"name": "x", "settings": {}, "networks": {}}):
        with_identity(folder, lambda model, damage=damage: model.update(damage))
        (folder / "identity.json").write_bytes(intact)
        run = hsd.generate(plan.prune([0]), tiny.stable_diffusion(), folder, progress=False, **SETTINGS)
        assert any("run.json does not say what identity.json says" in text for text in run.repaired)
        assert json.loads((folder / "run.json").read_bytes())["identity"] == json.loads(intact)


def test_the_command_line_warns_in_one_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    command = ["generate", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--steps", "2"]
    runner = CliRunner()
    assert runner.invoke(cli.app, command).exit_code == 0
    with_identity(tmp_path / "out", lambda model: model["versions"].update(torch="1.0"))
    again = runner.invoke(cli.app, command)
    assert again.exit_code == 0, again.output
    lines = [line for line in again.stderr.splitlines() if "torch 1.0 before" in line]
    assert len(lines) == 1
    assert lines[0].startswith("hsd: ")
    assert "OtherVersions" not in again.output


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


def trials(model, out):
    return Trials(model, PROMPTS, 0, None, out, None, batch_size=4)


def lab(model, out):
    return Lab(model, [PromptSet("few", tuple(PROMPTS))], out, None, steps=2, seed=0, batch_size=4)


@pytest.mark.parametrize("study", [trials, lab])
def test_images_of_a_study_are_not_used_for_a_changed_model(study, tmp_path):
    """Their images are used again without another look, so the study itself has to know its model."""
    model = hsd.load(tiny.stable_diffusion(), **SETTINGS)
    study(model, tmp_path)
    study(hsd.load(tiny.stable_diffusion(), **SETTINGS), tmp_path)
    (tmp_path / "model.json").rename(tmp_path / "kept")  # a study of an earlier version
    study(model, tmp_path)
    add_lora(model.pipe.unet)
    with pytest.raises(hsd.PlanMismatch, match="unet LoRA: none before, style at 4 now"):
        study(model, tmp_path)
