"""Draw docs/images/before-after.png: one query with its ten nearest images, before and after fine-tuning.

    python docs/make_before_after.py [--model BUNDLE] [--max-minutes 8]

Reads the data set `clothing` (CC0) from $LOOKALIKE_SHARED/data (default ../shared/data). Without --model,
EfficientNet-Lite0 is fine-tuned first, with the default recipe. The query is chosen by a rule, see `choose_query`; the
script prints it with its numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

import lookalike as la

IMAGE = Path(__file__).parent / "images" / "before-after.png"
BACKBONE = "efficientnet_lite0"
HITS = 10
HEIGHT, FRAME, GAP = 150, 5, 8  # of a hit, in pixels
WIDTH = HEIGHT * 3 // 4
GREEN, RED, TEXT, BACKGROUND = "#0a7d34", "#c8102e", "#1f2328", "#ffffff"


def count_right(evaluation: la.Evaluation) -> npt.NDArray[np.int64]:
    """Return the number of right hits among the first ten of each query."""
    return np.rint(evaluation.per_query(f"precision@{HITS}") * HITS).astype(int)


def choose_query(before: la.Evaluation, after: la.Evaluation) -> int:
    """Return the row of the query with the median change, of the queries whose number of right hits changes.

    Of several with this change, the one whose number of right hits before is nearest to their mean; then the first by
    id.
    """
    right = count_right(before)
    change = count_right(after) - right
    changes = np.sort(change[change != 0])
    rows = np.flatnonzero(change == changes[len(changes) // 2])
    distances = np.abs(right[rows] - right[rows].mean())
    return int(min(zip(distances, (before.query_ids[row] for row in rows), rows, strict=True))[2])


def draw(data: la.Dataset, row: int, rows: list[tuple[str, la.Evaluation]]) -> Image.Image:
    """Return the image: the query on the left, and one line of hits per evaluation."""
    labels = {item.id: item.label for item in (*data.query, *data.gallery)}
    query = rows[0][1].query_ids[row]
    fonts = ImageFont.load_default(22), ImageFont.load_default(16)
    line = HEIGHT + 66
    left = round(line * 1.25) + 3 * GAP
    canvas = Image.new("RGB", (left + HITS * (WIDTH + GAP), len(rows) * line + GAP), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, GAP), f"query: {labels[query]}", TEXT, fonts[0])
    height = len(rows) * line - 66
    canvas.paste(_thumbnail(data.root / query, left - 4 * GAP, height), (GAP, 40))
    for number, (title, evaluation) in enumerate(rows):
        top = number * line + GAP
        hits = evaluation.hits[row]
        right = sum(labels[hit.id] == labels[query] for hit in hits)
        pen.text((left, top), f"{title}: {right} of {HITS} right", TEXT, fonts[0])
        for rank, hit in enumerate(hits):
            colour = GREEN if labels[hit.id] == labels[query] else RED
            x, y = left + rank * (WIDTH + GAP), top + 32
            pen.rectangle((x, y, x + WIDTH - 1, y + HEIGHT - 1), fill=colour)
            canvas.paste(_thumbnail(data.root / hit.id, WIDTH - 2 * FRAME, HEIGHT - 2 * FRAME), (x + FRAME, y + FRAME))
            pen.text((x, y + HEIGHT + 2), str(labels[hit.id]), colour, fonts[1])
    return canvas


def _thumbnail(path: Path, width: int, height: int) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (width, height))


def main() -> None:
    """Measure both models, choose the query, and write the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a fine-tuned bundle; default: train one")
    parser.add_argument("--max-minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=IMAGE)
    args = parser.parse_args()
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parents[2] / "shared"))
    data = la.load_dataset(shared / "data" / "clothing")
    model = args.model or Path("runs/before-after")
    if not model.exists():
        la.train(data, backbone=BACKBONE, max_minutes=args.max_minutes, out=model)
    before, after = la.evaluate(data, BACKBONE), la.evaluate(data, model)
    row = choose_query(before, after)
    canvas = draw(data, row, [("frozen", before), ("fine-tuned", after)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(args.out, optimize=True)
    change = count_right(after) - count_right(before)
    counts = f"{(change > 0).sum()} improve, {(change < 0).sum()} get worse, {(change == 0).sum()} stay equal"
    sys.stdout.write(f"{args.out}: {before.query_ids[row]}; of {len(change)} queries {counts}\n")


if __name__ == "__main__":
    main()
