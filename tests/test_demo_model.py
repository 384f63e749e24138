"""The bundled model: its language, drawings and folder, and whether its pictures show what the prompts describe."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "python" / "hsd" / "demo"
sys.path.insert(0, str(ROOT / "tools"))

from demo_model.codes import embed, read  # noqa: E402
from demo_model.draw import draw, random_jitter  # noqa: E402
from demo_model.judge import marks  # noqa: E402
from demo_model.language import describe, parse  # noqa: E402
from demo_model.scenes import ATTRIBUTES, COLUMN, PAIR_ONLY, SINGLE_ONLY, Scene, held_out, sample  # noqa: E402

PROMPTS = (DEMO / "prompts.txt").read_text().splitlines()


@st.composite
def scenes(draw_value: st.DrawFn) -> Scene:
    count = draw_value(st.sampled_from(ATTRIBUTES["count"]))
    foreign = SINGLE_ONLY if count == "pair" else PAIR_ONLY
    names = [name for name in ATTRIBUTES if name != "count" and name not in foreign]
    values = {name: draw_value(st.sampled_from((None, *ATTRIBUTES[name]))) for name in names}
    return Scene(count, **values)


@given(scenes(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_wording_of_a_scene_parses_back(scene: Scene, seed: int) -> None:
    assert parse(describe(scene)) == scene
    assert parse(describe(scene, np.random.default_rng(seed))) == scene
    assert Scene.from_row(scene.row()) == scene


def test_swapped_relations_are_one_scene() -> None:
    assert parse("a red star left of a blue ring") == parse("a blue ring to the right of a red star")
    assert parse("a red star above a blue ring") == parse("a blue ring under a red star")
    assert parse("a red star above a blue ring") != parse("a blue ring above a red star")


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat", "a red star red", "a red star and a blue ring in the center"]
)
def test_what_is_not_the_language_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="language of scenes|only for scenes of one"):
        parse(prompt)


def test_bad_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="'mauve' is not one of red"):
        Scene(color="mauve")
    with pytest.raises(ValueError, match="no meaning in a single scene"):
        Scene(second_color="red")


def test_splits_are_disjoint_fixed_and_visible() -> None:
    train, other = (sample(np.random.default_rng(1), 500, split=split) for split in ("train", "held-out"))
    assert not held_out(train).any()
    assert held_out(other).all()
    everything = sample(np.random.default_rng(2), 20_000, split="all")
    assert held_out(everything).mean() == pytest.approx(0.1, abs=0.01)
    assert (everything[:, COLUMN["color"]] != everything[:, COLUMN["background"]]).all()
    assert (sample(np.random.default_rng(1), 500) == train).all()


def test_drawings_are_deterministic_and_every_attribute_shows() -> None:
    rng = np.random.default_rng(3)
    rows = sample(rng, 24, split="all")
    jitter = random_jitter(rng, len(rows))
    pictures = draw(rows, jitter)
    assert pictures.shape == (24, 3, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(pictures, draw(rows, jitter))
    for i, row in enumerate(rows):
        for name, values in ATTRIBUTES.items():
            if row[COLUMN[name]] < 0 or name == "count":
                continue
            for value in range(len(values)):
                other = row.copy()
                other[COLUMN[name]] = value
                same = value == row[COLUMN[name]]
                assert torch.equal(draw(other[None], jitter[i : i + 1])[0], pictures[i]) == same, (name, value)


def test_embeddings_are_read_back_and_an_open_attribute_is_the_mean() -> None:
    rows = sample(np.random.default_rng(4), 200)
    named = rows >= 0
    assert (read(embed(rows)) == rows)[named].all()
    base = Scene(shape="star", background="blue")
    colors = np.stack([base.vary(color=color).row() for color in ATTRIBUTES["color"]])
    torch.testing.assert_close(embed(colors).mean(dim=0), embed(base.row()), atol=1e-5, rtol=0)


def test_the_judge_distinguishes_true_drawings_from_others() -> None:
    rng = np.random.default_rng(5)
    rows = sample(rng, 16, split="all")
    pictures = draw(rows, random_jitter(rng, 16))
    assert np.nanmean(marks(pictures, rows)) > 0.99
    assert np.nanmean(marks(pictures.roll(1, dims=0), rows)) < 0.5


def test_prompts_are_many_distinct_and_in_the_language() -> None:
    assert 100 <= len(PROMPTS) <= 140
    assert len(set(PROMPTS)) == len(PROMPTS)
    for prompt in PROMPTS:
        parse(prompt)


def test_prompts_file_is_what_the_generator_writes() -> None:
    from demo_prompts import prompts

    assert prompts() == PROMPTS


def test_draws_of_prompt_sets_have_nothing_in_common(tmp_path) -> None:
    from demo_draw import KINDS, draw
    from demo_sets import FOLDER
    from hsd.demo.evaluator import named_attributes

    first = draw(1, 64, [])
    assert draw(1, 64, []) == first
    for kind, texts in first.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(texts) + "\n")
    second = draw(2, 64, [tmp_path])
    bundled = {kind: (FOLDER / f"{kind}.txt").read_text().splitlines() for kind in KINDS}
    scenes = [{parse(text) for texts in made.values() for text in texts} for made in (bundled, first, second)]
    assert not any(scenes[i] & scenes[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    for kind in KINDS:
        # Of the same kind: equally many prompts, which name as many attributes, except that objects have a size too.
        for made in (first, second):
            assert len(made[kind]) == len(bundled[kind]) == 64
            named = [np.mean([len(named_attributes(text)) for text in sets[kind]]) for sets in (made, bundled)]
            assert named[0] - named[1] == pytest.approx(1 if kind == "objects" else 0, abs=1)
    assert draw(3, 8, [tmp_path])["templates"] != draw(4, 8, [tmp_path])["templates"]


def test_model_folder_is_small_and_complete() -> None:
    files = [path for path in (DEMO / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (DEMO / "model" / "prior_tokenizer").iterdir()}


@pytest.fixture(scope="module")
def pipe() -> Iterator[object]:
    from diffusers import KandinskyV22CombinedPipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        pipe = KandinskyV22CombinedPipeline.from_pretrained(DEMO / "model", dtype=torch.float32, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def test_every_word_is_one_token(pipe) -> None:
    tokenizer = pipe.prior_tokenizer
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        assert len(ids) == 2 + len(prompt.replace(",", " ,").split()), prompt
        assert len(ids) <= tokenizer.model_max_length
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == prompt
    assert tokenizer.decode(tokenizer("naïve ☃").input_ids, skip_special_tokens=True) == "naïve ☃"


def test_null_condition_is_zero(pipe) -> None:
    assert pipe.prior_pipe.get_zero_embed().abs().max() < 0.02


def test_text_encoder_and_prior_find_the_designed_embedding(pipe) -> None:
    rng = np.random.default_rng(6)
    rows = np.concatenate([sample(rng, 16), sample(rng, 16, split="held-out")])
    prompts = [describe(Scene.from_row(row), rng) for row in rows]
    generator = torch.Generator().manual_seed(0)
    embeds = pipe.prior_pipe(prompts, guidance_scale=1.0, generator=generator).image_embeds
    assert torch.nn.functional.cosine_similarity(embeds, embed(rows)).min() > 0.95
    assert (read(embeds) == rows)[rows >= 0].mean() > 0.99


@pytest.mark.parametrize(
    ("guidance", "prior_guidance", "wanted"),
    [(2.0, 1.0, 0.8), (4.0, 4.0, 0.6)],
    ids=["recommended", "the pipeline's own"],
)
def test_pictures_show_what_was_asked(pipe, guidance: float, prior_guidance: float, wanted: float) -> None:
    """With shuffled prompts less than half of the attributes are right, with an untrained model less than a third."""
    rng = np.random.default_rng(8)
    rows = sample(rng, 12, split="all")
    prompts = [describe(Scene.from_row(row)) for row in rows]
    out = pipe(
        prompts,
        height=64,
        width=64,
        num_inference_steps=16,
        guidance_scale=guidance,
        prior_guidance_scale=prior_guidance,
        generator=[torch.Generator().manual_seed(i) for i in range(len(rows))],
        output_type="np",
    )
    images = torch.from_numpy(np.asarray(out.images)).permute(0, 3, 1, 2).float()
    right = marks(images, rows)
    assert np.nanmean(right) > wanted
    assert np.nanmean(right[:, COLUMN["background"]]) > wanted
    assert np.nanmean(marks(images.roll(1, dims=0), rows)) < 0.5
