r"""From a JPEG file to the pixels that a network sees: ours beside other decoders.

    python benchmarks/decoding.py --rounds 5
    python benchmarks/decoding.py --large --rounds 5        photographs of 12 megapixels

Every contender decodes the same photographs, those of `clothing` in $LOOKALIKE_SHARED/data by default, with as many
threads as there are processors, and brings them to 224 × 224 as EfficientNet-Lite0 sees them (a crop of 256, bicubic).
With `--large` they are enlarged to 4000 × 3000 first. Beside images a second: how far the pixels are from Pillow's,
as the mean difference in grey levels, and the largest one. Ratios are to `Pillow`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from contest import answer, contest, keep, shared_folder
from lookalike._system import cpu_count
from lookalike.models.preprocessing import Preprocessing

SEEN = Preprocessing(224, 224)
Pixels = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="a contender; may be repeated")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        measure(CONTENDERS[given.contender], sorted(given.work.iterdir()))
        return
    with tempfile.TemporaryDirectory() as work:
        count = prepare(given, Path(work))
        result = contest(
            __file__,
            given.only or list(CONTENDERS),
            given.rounds,
            arguments=["--work", work],
            against="Pillow",
            facts={"images": count, "data": given.data.name, "large": given.large, "threads": cpu_count()},
        )
    keep(f"decoding{'-large' if given.large else ''}", result, whole=not given.only)


def prepare(given: argparse.Namespace, work: Path) -> int:
    """Put the files into one folder, enlarged if need be."""
    from lookalike.data.layouts import load_dataset

    files = [item.path for item in load_dataset(given.data).gallery if item.path.suffix.lower() in (".jpg", ".jpeg")]
    files = files[: 40 if given.large else given.images]
    for number, file in enumerate(files):
        place = work / f"{number:05}.jpg"
        if given.large:
            with Image.open(file) as picture:
                picture.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(place, quality=92)
        else:
            place.symlink_to(file.resolve())
    return len(files)


def measure(decode: Callable[[Path], Pixels], files: list[Path]) -> None:
    off = [np.abs(decode(file).astype(int) - pillow(file)) for file in files[:: max(1, len(files) // 20)]]
    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(decode, files[:20]))
        clock = time.perf_counter()
        for _ in pool.map(decode, files):
            pass
        seconds = time.perf_counter() - clock
    answer(
        per_second=len(files) / seconds,
        mean_difference=float(np.mean([one.mean() for one in off])),
        most_difference=float(max(one.max() for one in off)),
    )


def pillow(file: Path, drafted: bool = False) -> Pixels:
    with Image.open(file) as picture:
        if drafted:
            picture.draft("RGB", (SEEN.at_least, SEEN.at_least))
        whole = picture.convert("RGB")
    return cropped(np.asarray(whole.resize(new_size(np.asarray(whole)), SEEN.resampling)))


def ours(file: Path) -> Pixels:
    from lookalike.data.images import read_pixels

    return SEEN.pixels(read_pixels(file, SEEN.at_least))


def ours_by_torch(file: Path) -> Pixels:
    from lookalike.data.images import read_pixels

    return by_torch(read_pixels(file, SEEN.at_least))


def torchvision(file: Path) -> Pixels:
    from torchvision.io import ImageReadMode, decode_image

    return by_torch(decode_image(str(file), ImageReadMode.RGB).permute(1, 2, 0).numpy())


def by_torch(pixels: Pixels) -> Pixels:
    import torch

    width, height = new_size(pixels)
    x = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
    with torch.inference_mode():
        x = torch.nn.functional.interpolate(x, size=(height, width), mode=SEEN.interpolation, antialias=True)
    return cropped(x[0].permute(1, 2, 0).contiguous().numpy())


def opencv(file: Path) -> Pixels:
    import cv2

    pixels = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    return cropped(cv2.resize(pixels, new_size(pixels), interpolation=cv2.INTER_AREA))


def new_size(pixels: Pixels) -> tuple[int, int]:
    """Return width and height of the whole picture, resized for a square crop."""
    side, (high, wide) = int(SEEN.width / SEEN.crop_pct), pixels.shape[:2]
    return (side, int(side * high / wide)) if wide <= high else (int(side * wide / high), side)


def cropped(pixels: Pixels) -> Pixels:
    top, left = (round((pixels.shape[axis] - SEEN.height) / 2) for axis in (0, 1))
    return pixels[top : top + SEEN.height, left : left + SEEN.width]


CONTENDERS: dict[str, Callable[[Path], Pixels]] = {
    "Pillow": pillow,
    "Pillow, draft": partial(pillow, drafted=True),
    "ours": ours,
    "ours, resized by torch": ours_by_torch,
    "torchvision": torchvision,
    "OpenCV, area": opencv,
}

if __name__ == "__main__":
    main()
