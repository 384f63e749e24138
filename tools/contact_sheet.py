"""Puts the images of a folder of `hsd generate` on one picture, in the order of the prompts.

python tools/contact_sheet.py styles docs/prompts/styles.webp --columns 20 --size 48
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from PIL import Image


def contact_sheet(folder: Path, columns: int, size: int) -> Image.Image:
    """The images side by side in rows, each in a square of `size` pixels."""
    lines = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    names = [line["file_name"] for line in sorted(lines, key=lambda line: line["index"])]
    sheet = Image.new("RGB", (columns * size, math.ceil(len(names) / columns) * size), "white")
    for i, name in enumerate(names):
        with Image.open(folder / name) as image:
            image.thumbnail((size, size))
            sheet.paste(image, (i % columns * size, i // columns * size))
    return sheet


def main() -> None:
    """Writes the sheet, as WebP or PNG by its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of hsd generate")
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="pixels of one image on the sheet")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(args.folder, args.columns, args.size).save(args.out, quality=80)


if __name__ == "__main__":
    main()
