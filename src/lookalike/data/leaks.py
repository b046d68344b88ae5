"""Training images that are in query or gallery too: what is measured there then would flatter the model."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from lookalike.data.dataset import Dataset, Item, Split
from lookalike.data.duplicates import pixel_digest
from lookalike.data.images import read_image
from lookalike.errors import DataError, UnreadableImage
from lookalike.progress import SILENT, Progress

LEARNING = (Split.TRAINING, Split.VALIDATION)
MEASURING = (Split.QUERY, Split.GALLERY)
_SUBMIT = 1024  # images handed to the threads at a time, so that an interrupt is heard soon


def is_leak(splits: Collection[Split]) -> bool:
    """Whether one picture in all these parts has leaked from learning to measuring."""
    return bool(set(splits) & set(LEARNING)) and bool(set(splits) & set(MEASURING))


def find_leaks(data: Dataset, *, progress: Progress = SILENT) -> list[tuple[Item, ...]]:
    """Return the groups of images with the same decoded pixels which stand on both sides.

    Only images whose size occurs on both sides are decoded; a file that cannot be read is passed over.
    """
    learning, measuring = ([i for i in data.items if i.split in side] for side in (LEARNING, MEASURING))
    if not learning or not measuring:
        return []
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        sizes = [set(pool.map(_size, side)) - {None} for side in (learning, measuring)]
        both = sizes[0] & sizes[1]
        candidates = [i for i in (*learning, *measuring) if _size(i) in both]
        groups: dict[str, list[Item]] = {}
        for start in range(0, len(candidates), _SUBMIT):
            some = candidates[start : start + _SUBMIT]
            for done, (item, pixels) in enumerate(zip(some, pool.map(_pixels, some), strict=True), start=start + 1):
                if pixels is not None:
                    groups.setdefault(pixels, []).append(item)
                progress.step("looking for leaks", done, len(candidates))
    return [tuple(group) for group in groups.values() if is_leak({i.split for i in group})]


def _size(item: Item) -> tuple[int, int] | None:
    """Return the sides, the shorter first: the orientation may turn the picture."""
    try:
        with Image.open(item.path) as image:
            return min(image.size), max(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _pixels(item: Item) -> str | None:
    try:
        return pixel_digest(read_image(item.path))
    except UnreadableImage:
        return None


def require_no_leaks(data: Dataset, *, allowed: bool = False, progress: Progress = SILENT) -> None:
    """Refuse data whose training images are in query or gallery too; where that is allowed, say so.

    Raises:
        DataError: naming the images and the ways out.

    """
    groups = find_leaks(data, progress=progress)
    if not groups:
        return
    count = sum(item.split in LEARNING for group in groups for item in group)
    what = f"{count} training {'image is' if count == 1 else 'images are'} in query or gallery too ({_pairs(groups)})"
    if allowed:
        progress.info(f"{what}; as allowed, they stay, and what is measured there flatters the model")
        return
    raise DataError(
        f"{what}, which would flatter what is measured there; leave them out with 'lookalike check {data.root} "
        "--clean-manifest CLEAN/manifest.csv' and train on CLEAN, or allow it with --allow-leaks."
    )


def _pairs(groups: Sequence[tuple[Item, ...]]) -> str:
    shown = [" = ".join(item.id for item in group) for group in groups[:3]]
    more = [f"{len(groups) - 3} more"] if len(groups) > 3 else []
    return ", ".join([*shown, *more])
