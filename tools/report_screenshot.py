"""Write the picture of ``docs/report.md``: the gallery and the tree of a report, side by side.

hsd generate demo --out images --keep-forks && hsd report images
python tools/report_screenshot.py images docs/report.webp
"""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path

import PIL.Image
from playwright.sync_api import sync_playwright

WINDOW = {"width": 1040, "height": 900}
GAP = 24


def main(folder: Path, out: Path) -> None:
    """Open both pages of the report of ``folder`` and write their picture."""
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in ("report.html", "__report__/tree.html"):
            page = browser.new_page(viewport=WINDOW)
            page.goto((folder.resolve() / name).as_uri())
            page.locator(".tile img").first.wait_for()
            page.wait_for_load_state("networkidle")
            shots.append(PIL.Image.open(BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    width = sum(shot.width for shot in shots) + GAP
    sheet = PIL.Image.new("RGB", (width, shots[0].height), (208, 208, 204))
    for number, shot in enumerate(shots):
        sheet.paste(shot, (number * (shot.width + GAP), 0))
    sheet.thumbnail((1700, 1700), PIL.Image.Resampling.LANCZOS)
    sheet.save(out, "WEBP", quality=82, method=6)
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
