"""A set that grows: what went wrong once."""

import shutil

import numpy as np
import pytest
import torch

import hsd
from disk import check_pixels, fill
from helpers import PROMPTS

ROWS = np.random.default_rng(0).normal(size=(8, 4))


# trunks are keyed by indices only: another plan or model that takes over a folder begins from them
@pytest.mark.parametrize("what", ["seeds", "model"])
def test_trunks_of_another_plan_are_not_used(model, tmp_path, what):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    plan = hsd.compile(PROMPTS, 0.9, model=model, steps=4, seeds=100)
    hsd.generate(plan, model, out, batch_size=1, keep_trunks=True)
    for path in [*out.glob("*.png"), out / "metadata.jsonl"]:
        path.unlink()
    other = model if what == "seeds" else hsd.load(model.pipe, height=32, width=32, guidance_scale=9.0)
    plan = hsd.compile(PROMPTS, 0.9, model=other, steps=4, seeds=500 if what == "seeds" else 100)
    for path in (out, fresh):
        hsd.generate(plan, other, path, batch_size=1)
    check_pixels(out, fresh, within=1)  # 201 of 255 apart


# names of images depend on N
def test_names_of_images_stay(tmp_path):
    base = hsd.compile([f"p{i}" for i in range(100_000)], 0.0, steps=2, seeds=0)
    fill(tmp_path / "o", base.prune([0, 1]))
    assert fill(tmp_path / "o", base.extend(["new"]).prune([0, 1, 100_000]))[0] == [100_000]  # [0, 1, 100000]


# rows of a list in bfloat16 are read as integers
def test_bfloat16_rows_of_a_list():
    rows = torch.tensor(ROWS).bfloat16()
    plan = hsd.compile(list("abcd"), 0.9, embeddings=rows[:4], steps=4)
    found = hsd.compile(list("abcdef"), 0.9, embeddings=rows[:6], steps=4, extend=plan)
    assert found.fingerprint == plan.extend(list("ef"), embeddings=rows[4:6]).fingerprint


# an image depends on which others are missing: of new prompts whose conditioning is equal
def test_a_new_twin_is_the_same_image_when_made_alone(model, tmp_path):
    rows = np.array([[1, 0], [1, 0.5], [1, -0.5]])
    plan = hsd.compile(["a dog"], 3.0, embeddings=rows[:1], model=model, steps=4, seeds=1)
    plan = plan.extend(["a cat"], embeddings=rows[1:2], seeds=[7]).extend(["A  CAT"], embeddings=rows[2:], seeds=[9])
    hsd.generate(plan, model, tmp_path / "a", batch_size=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "00002.png").unlink()
    hsd.generate(plan, model, tmp_path / "b", batch_size=1)
    check_pixels(tmp_path / "a", tmp_path / "b", within=1)  # 227 apart


# a list with all its embeddings is refused where the folder's vectors are lost
def test_all_rows_of_a_list_are_enough(tmp_path):
    rows = ROWS + 2
    fill(tmp_path, hsd.compile(list("abcde"), 0.9, embeddings=rows[:5], steps=4, seeds=1))
    (tmp_path / "vectors.safetensors").unlink()
    assert hsd.compile(list("abcdef"), 0.9, embeddings=rows[:6], steps=4, seeds=1, extend=tmp_path).extensions == (5,)


# vectors have no digest
def test_vectors_with_a_flipped_bit_are_encoded_again(tmp_path):
    rows = ROWS + 2
    calls = []

    def encoder(texts):
        calls.append(len(texts))
        return rows[[ord(text) - 97 for text in texts]]

    fill(tmp_path, hsd.compile(list("abcde"), 0.9, encoder=encoder, steps=4, seeds=1))
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    hsd.compile(list("abcdef"), 0.9, encoder=encoder, steps=4, seeds=1, extend=tmp_path)
    assert calls[-1] == 6


# new prompts of which none can be encoded end extend; compile gives a notice
def test_a_new_prompt_that_cannot_be_encoded(model, monkeypatch):
    encode = type(model).encode

    def failing(self, batch):
        if any("broken" in text for text in batch.prompts):
            raise ValueError("cannot encode it")
        return encode(self, batch)

    plan = hsd.compile(PROMPTS[:4], 0.9, model=model, steps=4, seeds=1)
    monkeypatch.setattr(type(model), "encode", failing)
    with pytest.warns(hsd.Notice, match="1 of .* cannot be encoded.*prompt 4"):
        grown = plan.extend(["broken"], model=model)
    assert grown.n_prompts == 5


# images_per_prompt and rows per given prompt, as compile takes them
def test_rows_per_given_prompt():
    plan = hsd.compile(list("ab"), 0.9, embeddings=ROWS[:2] + 2, steps=4)
    assert plan.extend(["c"], embeddings=ROWS[2:3] + 2, images_per_prompt=2).n_prompts == 4


# seeds that were given and happen to follow each other are taken for one first seed
def test_given_seeds_of_an_estimate(model, tmp_path):
    hsd.generate(hsd.compile(["a cat", "a dog", "the sea"], 0.9, steps=4, seeds=[5, 6, 7]), model, tmp_path)
    part = hsd.compile(["a dog", "the sea"], 0.9, steps=4, seeds=[6, 7])
    assert hsd.generate(part, model, tmp_path).images == 0


# where clusters are divided, the trunks that were found belong to others: all members are needed again
@pytest.mark.parametrize("kept", [True, 50_000, 20_000])
def test_a_prompt_that_fails_where_trunks_are_used(model, tmp_path, monkeypatch, kept):
    plan = hsd.compile(PROMPTS, 1.2, model=model, steps=6, seeds=1)
    hsd.generate(plan, model, tmp_path / "images", keep_trunks=kept)
    shutil.copytree(tmp_path / "images", tmp_path / "before")
    encode, broken = type(model).encode, PROMPTS[1]

    def failing(self, batch):
        if broken in batch.prompts:
            raise ValueError("cannot encode it")
        return encode(self, batch)

    monkeypatch.setattr(type(model), "encode", failing)
    for path in (tmp_path / "images").glob("*.png"):
        path.unlink()
    plan = hsd.Plan.load(tmp_path / "images" / "plan.safetensors")
    run = hsd.generate(plan, model, tmp_path / "images", failed=lambda _: None)
    assert [failure.index for failure in run.failed] == [1]
    assert run.images == len(PROMPTS) - 1


def test_a_prior_that_shares_steps_cannot_grow(tmp_path):
    model = hsd.load("demo", share_prior=True)
    plan = hsd.compile(["a red star", "a red ring"], 0.5, model=model, steps=4)
    hsd.generate(plan, model, tmp_path)
    with pytest.raises(hsd.PlanMismatch, match="share_prior"):
        hsd.generate(plan.more(1), model, tmp_path)


def test_a_list_with_other_curves_lengths_or_encoders():
    def compiled(n, embeddings, schedule, **options):
        return hsd.compile(list("abcdef")[:n], 0.9, embeddings=embeddings, schedule=schedule, steps=4, **options)

    base = compiled(3, ROWS[:3] + 2, lambda x: 1 - x)
    assert compiled(4, ROWS[:4] + 2, lambda x: 1 - x, extend=base).extensions == (3,)
    assert compiled(4, ROWS[:4] + 2, lambda x: (1 - x) ** 3, extend=base).extensions == ()
    with pytest.raises(ValueError, match="embeddings has 3 rows for 4 prompts"):
        compiled(4, ROWS[:3] + 2, lambda x: 1 - x, extend=base)

    def one(prompts):
        return np.ones((len(prompts), 4)) + np.arange(len(prompts))[:, None] * [0, 0, 0, 1.0]

    plan = hsd.compile(list("ab"), 0.9, encoder=one, steps=4)
    assert plan.extend(["c"], encoder=one).n_prompts == 3
    with pytest.raises(hsd.PlanMismatch, match="clustered by one, and encoder= is <lambda>"):
        plan.extend(["c"], encoder=lambda prompts: one(prompts))
