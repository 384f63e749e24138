"""What a report of a folder costs, and how soon its first page is seen.

    python benches/report.py [--images 5000] [--side 512] [--many 20000] [--folder DIR] [--json FILE]

The report of a folder of PNG files is timed: the first one, one after nothing has changed, and one after 100 more
images. Beside it, Pillow alone makes the same thumbnails in as many threads: that is the work that cannot be left out.
Then headless Chromium opens the first page, from a cold start of the page: until the gallery stands, and until every
image in the window is decoded. The same for a folder of 200 images and one of --many small ones. Runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image

import hsd
from hsd.reporting.thumbs import _QUALITY, SIDE
from hsd.work.files import digest_of

BASES = 16
STYLES = ("oil", "watercolour", "ink", "pencil")
ROUNDS = 5


def pictures(side: int) -> list[bytes]:
    """PNG files that compress as photographs do: smooth shapes with a little noise."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(BASES):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), PIL.Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + rng.integers(-5, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = BytesIO()
        PIL.Image.fromarray(noisy).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def own(png: bytes, number: int) -> bytes:
    """The same picture as a file of its own: with a text chunk before its last one."""
    body = b"tEXtnumber\0%d" % number
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:-12] + chunk + png[-12:]


def fill(folder: Path, n: int, side: int) -> list[str]:
    """A folder of n images with plan and metadata; returns the lines of the metadata."""
    folder.mkdir(parents=True)
    bases = pictures(side)
    prompts = [
        f"A {STYLES[i % 4]} painting of subject {i // 4}, seen from {'above' if i % 3 else 'below'}" for i in range(n)
    ]
    rng = np.random.default_rng(1)
    points = np.repeat(rng.standard_normal((-(-n // 4), 16)), 4, axis=0)[:n] + 0.4 * rng.standard_normal((n, 16))
    hsd.compile(prompts, 1.0, embeddings=points, metric="cosine", steps=40).save(folder / "plan.safetensors")
    lines = []
    for i, text in enumerate(prompts):
        data = own(bases[i % BASES], i)
        (folder / f"{i:05d}.png").write_bytes(data)
        line = {"file_name": f"{i:05d}.png", "text": text, "index": i, "seed": i, "style": STYLES[i % 4]}
        lines.append(json.dumps({**line, "size": len(data), "digest": digest_of(data)}) + "\n")
    return lines


def alone(folder: Path, out: Path) -> None:
    """Pillow makes all thumbnails, as the report makes them, and nothing else."""
    out.mkdir()

    def one(path: Path) -> None:
        with PIL.Image.open(path) as image:
            image.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
            image.save(out / f"{path.stem}.webp", "WEBP", **_QUALITY)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, sorted(folder.glob("*.png"))))


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock, and of the processors: the second does not depend on what else the machine does."""
    begin, busy = time.perf_counter(), time.process_time()
    work()
    return {"seconds": round(time.perf_counter() - begin, 2), "cpu": round(time.process_time() - busy, 2)}


SEEN = """(() => {
  const look = () => {
    if (!document.documentElement) return requestAnimationFrame(look);
    const mark = performance.getEntriesByName('hsd-shown')[0];
    const here = Array.from(document.images).filter((i) => {
      const box = i.getBoundingClientRect();
      return box.bottom > 0 && box.top < innerHeight && box.height;
    });
    const paint = performance.getEntriesByName('first-contentful-paint')[0];
    const there = mark && paint && here.length && here.every((i) => i.complete && i.naturalWidth);
    if (!there) return requestAnimationFrame(look);
    Promise.all(here.map((i) => i.decode())).then(() => {
      window.seen = { shown: mark.startTime, seen: performance.now(), images: here.length, paint: paint.startTime };
    });
  };
  look();
})()"""


def opened(page: Path) -> dict[str, float]:
    """Milliseconds since the navigation began: medians of several profiles."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(ROUNDS + 1):
            context = browser.new_context(viewport={"width": 1280, "height": 860})
            tab = context.new_page()
            tab.add_init_script(SEEN)
            tab.goto(page.as_uri())
            found.append(tab.wait_for_function("window.seen").json_value())
            context.close()
        browser.close()
    return {name: round(statistics.median(one[name] for one in found[1:]), 1) for name in found[0]}


def measure(args: argparse.Namespace, base: Path) -> dict[str, object]:
    n, results = args.images, {}
    lines = fill(base / "images", n + 100, args.side)
    (base / "images" / "metadata.jsonl").write_text("".join(lines[:n]))
    (base / "later").mkdir()
    for path in sorted((base / "images").glob("*.png"))[n:]:
        path.rename(base / "later" / path.name)
    mebibytes = sum(path.stat().st_size for path in (base / "images").glob("*.png")) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results["first"] = timed(lambda: hsd.report(base / "images"))
    results["memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    results["pillow_alone"] = timed(lambda: alone(base / "images", base / "alone"))
    results["again"] = timed(lambda: hsd.report(base / "images"))
    for path in (base / "later").iterdir():
        path.rename(base / "images" / path.name)
    (base / "images" / "metadata.jsonl").write_text("".join(lines))
    results["100_more"] = timed(lambda: hsd.report(base / "images"))
    results["open"] = opened(base / "images" / "report.html")
    for count, side in ((200, args.side), (args.many, 64)):
        folder = base / f"images-{count}"
        (base / "metadata").write_text("".join(fill(folder, count, side)))
        shutil.move(base / "metadata", folder / "metadata.jsonl")
        results[f"report_{count}"] = timed(lambda folder=folder: hsd.report(folder))
        results[f"open_{count}"] = opened(folder / "report.html")
    thumbs = sum(path.stat().st_size for path in (base / "images" / "__report__" / "thumbs").iterdir()) / 2**20
    return {"images_mib": mebibytes, "thumbs_mib": thumbs, **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the images are made; default: the temporary one"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as base:
        results = measure(args, Path(base))
    about = {"date": date.today().isoformat(), "machine": platform.machine(), "threads": os.cpu_count()}
    content = {**about, "images": args.images, "side": args.side, **results}
    print(json.dumps(content, indent=1))
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
