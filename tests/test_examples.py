"""The examples, each imported and run with a tiny pipeline in place of its model; tests/test_ray_data.py runs one."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import pickle
import re
import tarfile
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict

import hsd
import hsd.distributed
import tiny
from tiny.parts import clip_encoder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Loads an example, with other constants, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load(name, **constants):
        spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in constants.items():
            assert hasattr(module, constant)
            setattr(module, constant, value)
        return module

    return load


def pngs(folder):
    return sorted(path.name for path in Path(folder).glob("*.png"))


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metadata.jsonl").read_text().splitlines()]


def saved(folder):
    plan = hsd.Plan.load(Path(folder) / "plan.safetensors")
    return plan.request["budget"], plan.savings


def test_there_are_examples():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_named(name):
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 60
    assert f"python examples/{name}" in text.split('"""')[1]
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text()


def test_every_file_of_the_folder_is_named():
    text = (EXAMPLES / "README.md").read_text()
    named = set(re.findall(r"`([\w.-]+)/?`", text))
    assert {path.name for path in EXAMPLES.iterdir() if not path.name.startswith(("_", "."))} - {"README.md"} <= named


def test_template_set(example, model, capsys):
    script = example("template_set.py", MODEL=model, SAMPLE=6, STEPS=3)
    script.main()
    assert len(pngs("portraits")) == 6
    assert {"animal", "role", "choice_1"} < set(lines("portraits")[0])
    budget, savings = saved("portraits")
    assert savings >= budget == 0.4
    assert Path("portraits/report.html").is_file()
    assert "report.html" in capsys.readouterr().out
    before = Path("portraits/00003.png").stat().st_mtime_ns
    script.main()
    assert Path("portraits/00003.png").stat().st_mtime_ns == before


def test_csv_to_dataset(example, model, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    script = example("csv_to_dataset.py", MODEL=model, STEPS=3)
    script.main()
    found = datasets.load_dataset("imagefolder", data_dir="products", split="train")
    rows = [line.split(",") for line in script.SHEET.read_text().splitlines()[1:]]
    assert found["text"] == [row[0] for row in rows]
    assert found["seed"] == [int(row[1]) for row in rows]
    assert found["colour"] == [row[-1] for row in rows]
    assert set(found["negative_prompt"]) == {"text, watermark", "text, watermark, people"}
    with tarfile.open("products-shards/images-000000.tar") as shard:
        texts = [shard.extractfile(name).read().decode() for name in shard.getnames() if name.endswith(".txt")]
    assert texts == found["text"]
    budget, savings = saved("products")
    assert savings >= budget == 0.2


def test_csv_to_dataset_with_a_failed_image(example, model, monkeypatch):
    monkeypatch.setattr(hsd, "generate", lambda *_, **__: types.SimpleNamespace(failed=(1, 2)))
    with pytest.raises(SystemExit, match=r"^2 images are missing, see products/failed.jsonl"):
        example("csv_to_dataset.py", MODEL=model, STEPS=3).main()


def save_lora(folder):
    """A file of weights as the hub has them."""
    torch.manual_seed(0)
    unet = tiny.sdxl().unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=64, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionXLPipeline.save_lora_weights(folder, get_peft_model_state_dict(unet), weight_name="lora.safetensors")


def with_gpus(script):
    """The script believes that there are GPUs."""
    cuda = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 8)
    script.torch = types.SimpleNamespace(cuda=cuda, float16=torch.float16)


def test_sdxl_with_lora(example, monkeypatch, tmp_path):
    save_lora(tmp_path)
    asked, pipe = [], tiny.sdxl()
    pipe.to = lambda device: asked.append(device) or pipe
    monkeypatch.setattr(
        StableDiffusionXLPipeline, "from_pretrained", lambda name, **options: asked.append((name, options)) or pipe
    )
    script = example("sdxl_with_lora.py", LORA=str(tmp_path), LORA_FILE="lora.safetensors", STEPS=2)
    script.PROMPTS = script.PROMPTS[:3]
    with_gpus(script)
    script.main()
    assert asked == [(script.BASE, {"dtype": torch.float16, "variant": "fp16"}), "cuda"]
    assert pipe.get_active_adapters() == ["style"]
    assert len(pngs("pixel-art")) == 3
    with PIL.Image.open("pixel-art/00000.png") as image:
        assert "Negative prompt: blurry" in image.info["parameters"]


def test_flux_on_8_gpus(example, monkeypatch):
    """The plan is made by a worker: the function for it goes there by pickle, as those of a script do."""
    cloudpickle = pytest.importorskip("ray").cloudpickle
    calls = []

    def here(plan, model, out, *, workers, batch_size, progress, **settings):
        calls.append((model, workers))
        adapter = hsd.load(tiny.flux(), height=64, width=64, **settings)
        made = pickle.loads(cloudpickle.dumps(plan))(adapter, None)
        return hsd.generate(made, adapter, out, batch_size=batch_size)

    monkeypatch.setitem(vars(hsd.distributed), "generate", here)
    script = example("flux_on_8_gpus.py", STEPS=4)
    assert len(set(script.PROMPTS.prompts)) == 480
    script.PROMPTS = script.PROMPTS.prompts[:4]
    with_gpus(script)
    script.main()
    assert calls == [("black-forest-labs/FLUX.1-dev", 8)]
    assert len(pngs("animals")) == 4
    budget, savings = saved("animals")
    assert savings >= budget == 0.2


def test_own_encoder_and_linkage(example, model, monkeypatch, capsys):
    encoder = clip_encoder()
    script = example("own_encoder_and_linkage.py", MODEL=model, STEPS=3)
    script.PROMPTS = script.PROMPTS[:8]
    monkeypatch.setattr(script.AutoTokenizer, "from_pretrained", lambda _: tiny.clip_tokenizer())
    monkeypatch.setattr(script.AutoModel, "from_pretrained", lambda _: encoder)
    script.main()
    printed = re.findall(r"^(\w+) +saves ([\d.]+)%  distance ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert [linkage for linkage, _, _ in printed] == ["ward", "average"]
    assert all(float(savings) >= 30 for _, savings, _ in printed)
    chosen = hsd.Plan.load("own-encoder/plan.safetensors").request["linkage"]
    assert chosen == min(printed, key=lambda one: float(one[2]))[0]
    assert len(pngs("own-encoder")) == 8

    embeddings = script.embed(script.PROMPTS)
    alone = np.concatenate([script.embed([prompt]) for prompt in script.PROMPTS])
    np.testing.assert_allclose(embeddings, alone, atol=1e-5)  # padding does not count
    pair = np.array([[1.0, 0.0], [0.0, 2.0]])  # either is at 45 degrees to their mean, where they share
    plan = hsd.compile(["a", "b"], 10.0, embeddings=pair, steps=4)
    shared = (plan.counts() == 1).mean()
    assert 0 < shared < 1
    assert script.distance(plan, pair) == pytest.approx(shared * (1 - np.sqrt(0.5)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("sdxl_with_lora.py", "needs a GPU, and torch finds none"), ("flux_on_8_gpus.py", "8 GPUs are asked for")],
)
def test_without_a_gpu(example, name, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit, match=message):
        example(name).main()


# ------------------------------------------------------------------------------- the notebook

NOTEBOOK = EXAMPLES / "paper_applications.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
ROW = re.compile(r"^(\S+) +(\d+) +([\d,]+) +([\d,]+) +([\d.]+)% +([\d.]+) +([\d.]+)$", re.MULTILINE)


def run_cell(code, names):
    """The value of its last line, if that is an expression, as notebooks show it."""
    *lines, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        lines, last = [*lines, last], None
    exec(compile(ast.Module(lines, []), NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_the_notebook_runs(monkeypatch, capsys):
    shown = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    monkeypatch.chdir(EXAMPLES)
    names, outputs = {}, []
    for number, cell in enumerate(CELLS):
        code = "".join(cell["source"])
        if number == 0:
            code, changes = re.subn(r"^(IMAGES|STEPS) = \d+", r"\1 = 4", code, flags=re.MULTILINE)
            assert changes == 2
        value = run_cell(code, names)
        outputs += [] if value is None else [shown.format(value)[0]]
    plan, *grids = outputs
    assert re.search(r"<table.*<img alt=\"Savings over tau", plan["text/html"], re.DOTALL)
    assert [PIL.Image.open(io.BytesIO(base64.b64decode(grid["image/jpeg"]))).size for grid in grids] == [
        *[(20 * 48, 48)] * 2,
        *[(8 * 48, 48)] * 2,
    ]
    rows = ROW.findall(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["styles", "subjects", "try-on"]
    for row, (plan, images) in zip(rows, names["shared"].values(), strict=True):
        assert [int(text) for text in row[1:4]] == [len(plan), plan.node_steps, 4 * len(images)]


def test_what_the_notebook_shows():
    """Its outputs are those of a whole run, small, and agree with docs/prompts.md."""
    assert NOTEBOOK.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    page = (EXAMPLES.parent / "docs" / "prompts.md").read_text()
    rows = {row[0]: row for row in ROW.findall("".join(CELLS[-1]["outputs"][0]["text"]))}
    for name in ("styles", "try-on"):  # of the subjects, the notebook has a sample
        _, images, evaluations, without, saved, score, _ = rows[name]
        line = f"| {name} | {images} | {evaluations} instead of {without} | {saved} % | "
        assert float(page.partition(line)[2].split(" |")[0]) == float(score)
