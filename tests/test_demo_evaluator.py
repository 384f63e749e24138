"""The bundled evaluator: its parser inverts the prompts' language, and its network recognises what drawings show."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hsd.demo.evaluator import ATTRIBUTES as READ
from hsd.demo.evaluator import WEIGHTS, DemoEvaluator, Reader, named_attributes

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "python" / "hsd" / "demo"
sys.path.insert(0, str(ROOT / "tools"))

from demo_model.draw import draw, random_jitter  # noqa: E402
from demo_model.judge import recognise  # noqa: E402
from demo_model.language import describe, parse  # noqa: E402
from demo_model.scenes import ATTRIBUTES, COLUMN, PAIR_ONLY, SINGLE_ONLY, Scene, sample  # noqa: E402
from demo_model.words import WORDS  # noqa: E402

PROMPTS = (DEMO / "prompts.txt").read_text().splitlines()
OUTSIDE = ("", "a photo of a cat", "a red star red", "a red star and a blue ring in the center", "a red star,")


def named(scene: Scene) -> dict[str, str]:
    values = {name: getattr(scene, name) for name in ATTRIBUTES}
    return {name: value for name, value in values.items() if value is not None}


def pillow(pictures: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(p) for p in (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module")
def evaluator() -> Iterator[DemoEvaluator]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads wait for each other
    yield DemoEvaluator()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def drawings() -> tuple[np.ndarray, list[Image.Image], list[str]]:
    """Scenes that neither the evaluator nor the generator was trained on, their pictures and prompts."""
    rng = np.random.default_rng(11)
    rows = sample(rng, 500, split="held-out")
    pictures = torch.cat([draw(rows[i : i + 50], random_jitter(rng, 50)) for i in range(0, 500, 50)])
    return rows, pillow(pictures), [describe(Scene.from_row(row), rng) for row in rows]


def test_attributes_and_values_are_the_generators() -> None:
    assert list(READ.items()) == list(ATTRIBUTES.items())


@st.composite
def scenes(draw_value: st.DrawFn) -> Scene:
    count = draw_value(st.sampled_from(ATTRIBUTES["count"]))
    foreign = SINGLE_ONLY if count == "pair" else PAIR_ONLY
    names = [name for name in ATTRIBUTES if name != "count" and name not in foreign]
    return Scene(count, **{name: draw_value(st.sampled_from((None, *ATTRIBUTES[name]))) for name in names})


@given(scenes(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_the_parser_inverts_every_wording(scene: Scene, seed: int) -> None:
    assert named_attributes(describe(scene)) == named(scene)
    assert named_attributes(describe(scene, np.random.default_rng(seed))) == named(scene)


def test_the_parser_inverts_thousands_of_random_prompts() -> None:
    rng = np.random.default_rng(12)
    rows = sample(rng, 4000, split="all")
    unnamed = rng.random(rows.shape) < rng.random((len(rows), 1)) * 0.8
    unnamed[:, COLUMN["count"]] = False
    for row in np.where(unnamed, -1, rows):
        scene = Scene.from_row(row)
        prompt = describe(scene, rng)
        assert named_attributes(prompt) == named(scene), prompt
        assert named_attributes("  " + prompt.upper().replace(" ", "  ")) == named(scene), prompt


def test_the_parser_refuses_what_the_language_refuses() -> None:
    """Words removed, doubled or replaced: mostly nonsense, sometimes another prompt of the language."""
    rng = np.random.default_rng(13)
    accepted = 0
    for row in sample(rng, 1500, split="all"):
        words = re.findall(r"[\w]+|,", describe(Scene.from_row(row), rng))
        at = int(rng.integers(len(words)))
        words[at : at + 1] = [[], [words[at]] * 2, [str(rng.choice(WORDS))]][int(rng.integers(3))]
        prompt = " ".join(words).replace(" ,", ",")
        try:
            wanted = named(parse(prompt))
        except ValueError:
            wanted = None
        assert named_attributes(prompt) == wanted, prompt
        accepted += wanted is not None
    assert 100 < accepted < 1400


@pytest.mark.parametrize("prompt", PROMPTS[::8])
def test_the_built_in_prompts_are_understood(prompt: str) -> None:
    assert named_attributes(prompt) == named(parse(prompt))


@pytest.mark.parametrize("prompt", [*OUTSIDE, "a flat drawing of a red star, in outline style"])
def test_prompts_outside_the_language_give_nothing(prompt: str) -> None:
    assert named_attributes(prompt) is None


def thin(rows: np.ndarray) -> np.ndarray:
    """True where all objects are small rings or crosses, so thin that flat and outline are the same drawing. [N]."""
    shapes = [ATTRIBUTES["shape"].index(name) for name in ("cross", "ring")]
    first, second = (
        np.isin(rows[:, COLUMN[prefix + "shape"]], shapes) & (rows[:, COLUMN[prefix + "size"]] == 0)
        for prefix in ("", "second_")
    )
    styles = [ATTRIBUTES["style"].index(name) for name in ("flat", "outline")]
    return first & (second | (rows[:, 0] == 0)) & np.isin(rows[:, COLUMN["style"]], styles)


def test_some_styles_cannot_be_distinguished() -> None:
    scene = Scene("single", "top", None, "ring", "red", "small", background="blue", pattern="plain", style="flat")
    for shape in ("ring", "cross"):
        rows = np.stack([scene.vary(shape=shape, style=style).row() for style in ("flat", "outline")])
        assert thin(rows).all()
        assert torch.equal(*draw(rows))
    assert not thin(np.stack([scene.vary(size="medium").row(), scene.vary(style="glowing").row()])).any()


def test_held_out_drawings_are_read_rightly(evaluator: DemoEvaluator, drawings) -> None:
    rows, images, prompts = drawings
    wanted = [named(Scene.from_row(row)) for row in rows]
    shown = evaluator.attributes(images)
    for name in ATTRIBUTES:
        fair = ~thin(rows) if name == "style" else np.ones(len(rows), dtype=bool)
        cases = [(have, want) for have, want, ok in zip(shown, wanted, fair, strict=True) if ok and name in want]
        assert np.mean([have.get(name) == want[name] for have, want in cases]) >= 0.985, name
    marks = evaluator.marks(images, prompts)
    assert marks.shape == (500, 12)
    np.testing.assert_array_equal(np.isnan(marks), rows < 0)
    assert np.nanmean(marks) >= 0.99
    assert evaluator.score(images, prompts).mean() >= 0.99


def test_scores_distinguish_right_prompts_from_shuffled_ones(evaluator: DemoEvaluator, drawings) -> None:
    _, images, prompts = drawings
    images, prompts = images[:96], prompts[:96]
    shuffled = prompts[1:] + prompts[:1]
    assert evaluator.score(images, shuffled).mean() < 0.5
    assert evaluator.log_likelihood(images, prompts).mean() > -0.1
    assert evaluator.log_likelihood(images, shuffled).mean() < -2
    assert (evaluator.log_likelihood(images, prompts) > evaluator.log_likelihood(images, shuffled)).mean() > 0.97


def test_only_what_a_prompt_names_is_scored(evaluator: DemoEvaluator) -> None:
    scene = Scene("single", "center", None, "star", "red", "large", background="blue", pattern="plain", style="flat")
    images = pillow(draw(scene.row()[None])) * 4
    prompts = ["a star", "a blue star", "a red star and a red ring", "a cat"]
    np.testing.assert_array_equal(evaluator.score(images, prompts)[:2], [1.0, 2 / 3])
    marks = dict(zip(ATTRIBUTES, evaluator.marks(images, prompts)[2], strict=True))
    assert marks["count"] == marks["second_color"] == marks["second_shape"] == 0
    assert np.isnan(evaluator.marks(images, prompts)[3]).all()
    for values in (evaluator.score(images, prompts), evaluator.log_likelihood(images, prompts)):
        np.testing.assert_array_equal(np.isnan(values), [False, False, False, True])


def test_any_size_and_mode_is_read(evaluator: DemoEvaluator, drawings) -> None:
    _, images, prompts = drawings
    images, prompts = images[:32], prompts[:32]
    for change in (
        lambda image: image.convert("RGBA"),
        lambda image: image.resize((512, 512), Image.Resampling.LANCZOS),
        lambda image: image.resize((128, 96), Image.Resampling.BICUBIC),
        lambda image: image.quantize(256),
    ):
        assert evaluator.score([change(image) for image in images], prompts).mean() > 0.97
    grey = [image.convert("L") for image in images]
    marks = evaluator.marks(grey, prompts)
    assert np.nanmean(marks[:, COLUMN["count"]]) > 0.8  # what needs no colour can still be read
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    np.testing.assert_array_equal(evaluator.embed([clear]), evaluator.embed([Image.new("RGB", (64, 64), "white")]))


def test_results_do_not_depend_on_the_batch(evaluator: DemoEvaluator, drawings) -> None:
    _, images, prompts = drawings
    images, prompts = images[:70], prompts[:70]
    features, likelihood = evaluator.embed(images), evaluator.log_likelihood(images, prompts)
    for some in (slice(3, 4), slice(60, 70), slice(None, None, -1)):
        np.testing.assert_array_equal(evaluator.embed(images[some]), features[some])
        np.testing.assert_array_equal(evaluator.log_likelihood(images[some], prompts[some]), likelihood[some])
        assert evaluator.attributes(images[some]) == evaluator.attributes(images)[some]


def test_features_are_of_unit_length_and_similar_for_similar_pictures(evaluator: DemoEvaluator) -> None:
    rng = np.random.default_rng(14)
    rows = sample(rng, 24, split="all")
    one, other = (evaluator.embed(pillow(draw(rows, random_jitter(rng, 24)))) for _ in range(2))
    assert one.dtype == np.float32
    assert one.shape == (24, Reader.WIDTH)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    cosines = one @ other.T
    assert (cosines.argmax(axis=1) == np.arange(24)).mean() > 0.9
    assert np.diag(cosines).mean() > cosines[~np.eye(24, dtype=bool)].mean() + 0.2


def test_no_pictures_and_wrong_lengths(evaluator: DemoEvaluator) -> None:
    assert evaluator.attributes([]) == []
    assert evaluator.marks([], []).shape == (0, 12)
    assert evaluator.score([], []).shape == (0,)
    assert evaluator.log_likelihood([], []).shape == (0,)
    assert evaluator.embed([]).shape == (0, Reader.WIDTH)
    for method in (evaluator.score, evaluator.marks, evaluator.log_likelihood):
        with pytest.raises(ValueError, match="0 pictures for 1 prompts"):
            method([], ["a star"])


def test_the_state_of_torch_does_not_change() -> None:
    state, dtype, grad = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    fresh = DemoEvaluator()
    assert "network" not in vars(fresh)
    assert re.fullmatch(r"[0-9a-f]{16}", fresh.version)
    assert fresh.name == "demo"
    fresh.score([Image.new("RGB", (64, 64))], ["a star"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled() == grad
    assert not any(weight.requires_grad for weight in fresh.network.parameters())


def test_the_folder_stays_small() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert WEIGHTS.stat().st_size <= 250_000
    assert sum(path.stat().st_size for path in files) <= 16_100_000


def test_it_agrees_with_the_judge_that_learned_nothing(evaluator: DemoEvaluator) -> None:
    """On the bundled generator's pictures, which the evaluator never saw."""
    from diffusers import KandinskyV22CombinedPipeline

    pipe = KandinskyV22CombinedPipeline.from_pretrained(DEMO / "model", dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(15)
    rows = sample(rng, 24, split="all")
    out = pipe(
        [describe(Scene.from_row(row)) for row in rows],
        height=64,
        width=64,
        num_inference_steps=10,
        guidance_scale=2.0,
        prior_guidance_scale=1.0,
        prior_num_inference_steps=10,
        generator=[torch.Generator().manual_seed(i) for i in range(len(rows))],
        output_type="pil",
    )
    agree = []
    for image, row, shown in zip(out.images, rows, evaluator.attributes(out.images), strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        agree += [shown.get(name) == value for name, value in recognise(pixels, row).items()]
    assert np.mean(agree) > 0.9
