"""Large sets of embeddings to cluster, made from a seed: expanded templates, a mixture around real prompts, noise.

    python benches/prompt_sets.py            # what the sets look like, beside the real ones

Row i of a set does not depend on how many rows are asked for: a smaller set is the beginning of a larger one.

``templates``  prompts expanded from `prompt_grammar` by `dynamicprompts`, all different, embedded by HSD's default
               static encoder: the mean of their tokens, without the part that hears order. 256 dimensions.
``mixture``    rows drawn around 4,200 real prompts' sentence embeddings (four sets, 384 dimensions), with the noise
               that near neighbours differ by; more dimensions by a fixed orthonormal lift and a little noise.
``noise``      independent normal entries: no structure at all, the hard case.

Needs `dynamicprompts` and `platformdirs`; the mixture needs the folder of real embeddings (`--embeddings`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path
from prompt_grammar import TEMPLATES, WILDCARDS

import hsd
from hsd.planning.encoders import default_encoder
from hsd.planning.schedule import schedule_shape

NAMES = ("templates", "mixture", "noise")
TEMPLATE_DIM = 256
MIXTURE_DIM = 384
CHUNK = 10_000
EMBEDDINGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "embeddings"
SOURCES = ("prompt_sets.py", "prompt_grammar.py")  # a change in either makes the cached files anew
CACHE = user_cache_path("hsd") / "benches"

NEIGHBOURS = 8
SPREAD = 0.65  # chosen so that nearest neighbours among 2,000 rows are as far as among the real rows: run this file
GRAIN = 0.05  # norm of the isotropic noise: no row of the mixture lies in the span of a few real ones

Matrix = NDArray[np.float32]


def dimensions(name: str, wanted: int) -> int:
    """The dimensions a set comes in when ``wanted`` are asked for."""
    return TEMPLATE_DIM if name == "templates" else wanted


def cached(name: str, n: int, dim: int, *, seed: int = 0, folder: Path = CACHE, embeddings: Path = EMBEDDINGS) -> Path:
    """An .npy file with the first ``n`` rows of a set, (n, dim) float32: made once, chunk by chunk."""
    path = folder / f"{name}-{n}x{dim}-seed{seed}-{recipe()}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(n, dim))
        done = 0
        for rows in chunks(name, dim, seed, embeddings):
            rows = rows[: n - done]
            out[done : done + len(rows)] = rows
            done += len(rows)
            if done == n:
                break
        out.flush()
        del out
        part.rename(path)
    return path


def recipe() -> str:
    """A digest of what makes the rows."""
    return hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)).hexdigest()[:8]


def draw(name: str, n: int, dim: int, *, seed: int = 0, embeddings: Path = EMBEDDINGS) -> Matrix:
    """The first ``n`` rows of a set, (n, dim) float32, in memory and without a file."""
    count = -(-n // CHUNK)
    return np.concatenate(list(islice(chunks(name, dim, seed, embeddings), count)))[:n]


def chunks(name: str, dim: int, seed: int, embeddings: Path = EMBEDDINGS) -> Iterator[Matrix]:
    """An endless stream of (CHUNK, dim) rows."""
    if name == "templates":
        if dim != TEMPLATE_DIM:
            raise ValueError(f"the templates' embeddings have {TEMPLATE_DIM} dimensions, not {dim}")
        return template_chunks(seed)
    if name == "mixture":
        return mixture_chunks(dim, seed, embeddings)
    if name == "noise":
        return noise_chunks(dim, seed)
    raise ValueError(f"no set is called {name!r}: {', '.join(NAMES)}")


def noise_chunks(dim: int, seed: int) -> Iterator[Matrix]:
    """Isotropic Gaussian rows."""
    for chunk in count_up():
        yield np.random.default_rng([seed, chunk]).standard_normal((CHUNK, dim), dtype=np.float32)


def template_chunks(seed: int) -> Iterator[Matrix]:
    """Embeddings of the prompts: the mean of their tokens, from the encoder that `hsd.compile` takes by default."""
    encoder = default_encoder()
    stream = prompts(seed)
    while True:
        yield encoder(list(islice(stream, CHUNK)))[:, :TEMPLATE_DIM]


def prompts(seed: int) -> Iterator[str]:
    """An endless stream of prompts, all different; every template equally often."""
    rand = Random(seed)
    samplers = [expansions(template, Random(f"{seed} {name}")) for name, template in TEMPLATES.items()]
    seen: set[str] = set()
    while True:
        prompt = next(rand.choice(samplers))
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def expansions(template: str, rand: Random) -> Iterator[str]:
    """Random expansions of one template, the parsing done once.

    A wildcard is written out as the variant that it stands for: `dynamicprompts` would parse each value anew whenever
    it draws one, which is ten times slower.
    """
    from dynamicprompts.enums import SamplingMethod
    from dynamicprompts.parser.parse import parse
    from dynamicprompts.sampling_context import SamplingContext
    from dynamicprompts.wildcards import WildcardManager

    variants = re.sub(r"__(\w+?)__", lambda match: "{" + WILDCARDS[match[1]] + "}", template)
    context = SamplingContext(SamplingMethod.RANDOM, WildcardManager(), rand=rand)
    return map(str, context.generator_from_command(parse(variants)))


def mixture_chunks(dim: int, seed: int, embeddings: Path) -> Iterator[Matrix]:
    """Rows around the real ones, which stand for the modes of a density.

    A row starts at a real row r, half of the time on the way from it to one of its nearest neighbours within its set,
    and gets noise that is a random combination of differences between r's neighbours: the local covariance.
    """
    rows, near = real_rows(embeddings), neighbours(embeddings)
    lift = None if dim == MIXTURE_DIM else lift_to(dim)
    for chunk in count_up():
        rng = np.random.default_rng([seed, chunk])
        yield around(rows, near, lift, dim, rng)


def around(rows: Matrix, near: NDArray[np.int64], lift: Matrix | None, dim: int, rng: np.random.Generator) -> Matrix:
    """One chunk of the mixture, (CHUNK, dim), rows of length 1."""
    base = rng.integers(len(rows), size=CHUNK)

    def pick() -> Matrix:
        return rows[near[base, rng.integers(NEIGHBOURS, size=CHUNK)]]

    way = np.where(rng.random(CHUNK) < 0.5, rng.random(CHUNK), 0.0).astype(np.float32)[:, None]
    out = rows[base] * (1 - way) + pick() * way
    pairs = NEIGHBOURS // 2
    for _ in range(pairs):
        out += SPREAD / np.sqrt(pairs) * rng.standard_normal((CHUNK, 1), dtype=np.float32) * (pick() - pick())
    if lift is not None:
        out = out @ lift
    out += GRAIN / np.sqrt(dim) * rng.standard_normal((CHUNK, dim), dtype=np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@cache
def real_sets(embeddings: Path) -> dict[str, Matrix]:
    """The real prompt sets' embeddings by name, rows of length 1."""
    files = sorted(embeddings.glob("*.npy"))
    if not files:
        raise FileNotFoundError(f"no real embeddings (*.npy, {MIXTURE_DIM} dimensions) in {embeddings}: --embeddings")
    sets = {path.name.split(".")[0]: np.load(path).astype(np.float32) for path in files}
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in sets.items()}


def real_rows(embeddings: Path) -> Matrix:
    """All real rows, set after set."""
    return np.concatenate(list(real_sets(embeddings).values()))


def neighbours(embeddings: Path) -> NDArray[np.int64]:
    """(M, NEIGHBOURS) row numbers of each real row's nearest neighbours within its own set."""
    found, first = [], 0
    for rows in real_sets(embeddings).values():
        likeness = rows @ rows.T
        np.fill_diagonal(likeness, -np.inf)
        found.append(first + np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS])
        first += len(rows)
    return np.concatenate(found)


def lift_to(dim: int) -> Matrix:
    """A fixed (MIXTURE_DIM, dim) map that keeps all angles."""
    if dim < MIXTURE_DIM:
        raise ValueError(f"the mixture has {MIXTURE_DIM} dimensions or more, not {dim}")
    square = np.random.default_rng(1).standard_normal((dim, MIXTURE_DIM))
    return np.ascontiguousarray(np.linalg.qr(square)[0].T, dtype=np.float32)


def count_up() -> Iterator[int]:
    """0, 1, 2, …"""
    number = 0
    while True:
        yield number
        number += 1


def look(rows: Matrix) -> dict[str, NDArray[np.float64]]:
    """Quantiles that say what clustering will meet: nearest neighbours, merge heights; and savings at K = 40."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    tree = hsd.build_tree(rows, "ward")
    line = schedule_shape("linear", 40)
    return {
        "nearest neighbour 5 25 50 75 95 %": np.quantile(distance.min(axis=1), [0.05, 0.25, 0.5, 0.75, 0.95]),
        "ward heights 10 50 90 99 100 %": np.quantile(tree.heights, [0.1, 0.5, 0.9, 0.99, 1.0]),
        "savings tau 0.5 1 1.5": np.array([1 - tree.node_steps(t * line) / (40 * len(rows)) for t in (0.5, 1.0, 1.5)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="rows of each set to look at")
    parser.add_argument("--embeddings", type=Path, default=EMBEDDINGS, help="folder of the real prompts' embeddings")
    parser.add_argument("--make", nargs=3, metavar=("SET", "ROWS", "DIM"), help="make a set's file and print its path")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of those files")
    args = parser.parse_args()
    if args.make:
        name, n, dim = args.make
        print(cached(name, int(n), int(dim), folder=args.cache, embeddings=args.embeddings))
        return
    real = real_rows(args.embeddings)
    n = min(args.rows, len(real))
    sets = {f"real, {n} of {len(real)} rows": real[np.random.default_rng(0).permutation(len(real))[:n]]}
    for name, dim in (("mixture", 384), ("mixture", 1280), ("templates", 256), ("noise", 1280)):
        sets[f"{name}, D = {dim}"] = draw(name, n, dim, embeddings=args.embeddings)
    for name, rows in sets.items():
        print(name)
        for what, values in look(rows).items():
            print(f"    {what:36}" + "".join(f"{value:9.4f}" for value in values))
    print("prompts")
    for prompt in islice(prompts(0), 12):
        print(f"    {prompt}")


if __name__ == "__main__":
    main()
