r"""From a JPEG file to the pixels that a network receives: Lookalike and other decoders.

    python benchmarks/decoding.py --rounds 5
    python benchmarks/decoding.py --large --rounds 5        images of 12 megapixels

All contenders decode the same images, by default those of `clothing` in $LOOKALIKE_SHARED/data, with as many threads
as there are processors, and resize and crop them to 224 × 224 as for EfficientNet-Lite0 (a crop of 256, bicubic). With
`--large` the images are enlarged to 4000 × 3000 first. Besides images per second, the result has the difference of the
pixels from Pillow's in grey levels, mean and maximum. Ratios are to `Pillow`.
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

from contest import answer, contest, make_parser, save_result, shared_folder
from lookalike._system import cpu_count
from lookalike.models.preprocessing import PILLOW_FILTERS, Preprocessing

PREPROCESSING = Preprocessing(224, 224)
Pixels = np.ndarray


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="a contender; may be repeated")
    args = parser.parse_args()
    if args.contender:
        measure(CONTENDERS[args.contender], sorted(args.work.iterdir()))
        return
    with tempfile.TemporaryDirectory() as work:
        count = prepare(args, Path(work))
        result = contest(
            __file__,
            args.only or list(CONTENDERS),
            args.rounds,
            arguments=["--work", work],
            baseline="Pillow",
            facts={"images": count, "data": args.data.name, "large": args.large, "threads": cpu_count()},
        )
    name = f"decoding{'-large' if args.large else ''}"
    save_result(name, result, complete=not args.only, folder=args.out)


def prepare(args: argparse.Namespace, work: Path) -> int:
    """Put the files into one folder, enlarged with `--large`."""
    from lookalike.data.layouts import load_dataset

    files = [item.path for item in load_dataset(args.data).gallery if item.path.suffix.lower() in (".jpg", ".jpeg")]
    files = files[: min(40, args.images) if args.large else args.images]
    for number, file in enumerate(files):
        path = work / f"{number:05}.jpg"
        if args.large:
            with Image.open(file) as image:
                image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=92)
        else:
            path.symlink_to(file.resolve())
    return len(files)


def measure(decode: Callable[[Path], Pixels], files: list[Path]) -> None:
    sample = files[:: max(1, len(files) // 20)]
    differences = [np.abs(decode(file).astype(int) - pillow(file)) for file in sample]
    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(decode, files[:20]))
        clock = time.perf_counter()
        for _ in pool.map(decode, files):
            pass
        seconds = time.perf_counter() - clock
    answer(
        per_second=len(files) / seconds,
        mean_difference=float(np.mean([difference.mean() for difference in differences])),
        max_difference=float(max(difference.max() for difference in differences)),
    )


def pillow(file: Path, draft: bool = False) -> Pixels:
    with Image.open(file) as image:
        if draft:
            image.draft("RGB", (PREPROCESSING.min_side, PREPROCESSING.min_side))
        rgb = image.convert("RGB")
    resized = rgb.resize(resized_size(np.asarray(rgb)), PILLOW_FILTERS[PREPROCESSING.interpolation])
    return center_crop(np.asarray(resized))


def ours(file: Path) -> Pixels:
    from lookalike.data.images import read_pixels

    return PREPROCESSING.pixels(read_pixels(file, PREPROCESSING.min_side))


def ours_with_torch(file: Path) -> Pixels:
    from lookalike.data.images import read_pixels

    return resize_with_torch(read_pixels(file, PREPROCESSING.min_side))


def torchvision(file: Path) -> Pixels:
    from torchvision.io import ImageReadMode, decode_image

    return resize_with_torch(decode_image(str(file), ImageReadMode.RGB).permute(1, 2, 0).numpy())


def resize_with_torch(pixels: Pixels) -> Pixels:
    import torch

    width, height = resized_size(pixels)
    x = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
    with torch.inference_mode():
        x = torch.nn.functional.interpolate(x, size=(height, width), mode=PREPROCESSING.interpolation, antialias=True)
    return center_crop(x[0].permute(1, 2, 0).contiguous().numpy())


def opencv(file: Path) -> Pixels:
    import cv2

    pixels = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    return center_crop(cv2.resize(pixels, resized_size(pixels), interpolation=cv2.INTER_AREA))


def resized_size(pixels: Pixels) -> tuple[int, int]:
    """Return width and height of the image when it is resized for a square crop."""
    side, (height, width) = int(PREPROCESSING.width / PREPROCESSING.crop_pct), pixels.shape[:2]
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def center_crop(pixels: Pixels) -> Pixels:
    top, left = (round((pixels.shape[axis] - PREPROCESSING.height) / 2) for axis in (0, 1))
    return pixels[top : top + PREPROCESSING.height, left : left + PREPROCESSING.width]


CONTENDERS: dict[str, Callable[[Path], Pixels]] = {
    "Pillow": pillow,
    "Pillow, draft": partial(pillow, draft=True),
    "ours": ours,
    "ours, resized with torch": ours_with_torch,
    "torchvision": torchvision,
    "OpenCV, area": opencv,
}

if __name__ == "__main__":
    main()
