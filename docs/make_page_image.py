"""Draw docs/images/page.png: the web page with a query of the data set `clothing` and its hits.

    python docs/make_page_image.py [--model BUNDLE]

Reads the data set `clothing` (CC0) from $LOOKALIKE_SHARED/data (default ../shared/data), and needs the browser
`chromium`. With a bundle that has a calibration the hits show probabilities.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import lookalike as la

IMAGE = Path(__file__).parent / "images" / "page.png"
SIZE = {"width": 1280, "height": 860}
CROP = ((0.12, 0.08), (0.88, 0.9))  # two corners, in shares of the sides


def take(url: str, query: Path) -> bytes:
    """Search with a part of the query and return the image of the page."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.set_input_files("#file", query)
        page.wait_for_selector(".score")
        area = page.locator("#preview").bounding_box()
        assert area is not None
        (left, top), (right, bottom) = CROP
        page.mouse.move(area["x"] + left * area["width"], area["y"] + top * area["height"])
        page.mouse.down()
        page.mouse.move(area["x"] + right * area["width"], area["y"] + bottom * area["height"], steps=3)
        page.mouse.up()
        page.locator("[data-mark=positive]").first.click()
        page.wait_for_load_state("networkidle")
        return page.screenshot()


def main() -> None:
    """Index the gallery, serve it, and write the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=IMAGE)
    args = parser.parse_args()
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parents[2] / "shared"))
    data = la.load_dataset(shared / "data" / "clothing")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "clothing.index"
        la.index(data.root, args.model, out=index)
        command = [sys.executable, "-m", "lookalike", "serve", str(index), "--port", "0"]
        service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert service.stderr is not None
        try:
            url = next(line.split("serving on ")[1].split(",")[0] for line in service.stderr if "serving on" in line)
            image = take(url, data.root / data.query[0].id)
        finally:
            service.terminate()
            service.wait()
    with Image.open(io.BytesIO(image)) as screen:
        screen.convert("RGB").quantize(256).save(args.out, optimize=True)
    sys.stdout.write(f"{args.out}: {args.out.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
