"""Exact and near duplicates, and leaks between training and test.

Exact means equal decoded pixels, whatever the bytes. Near means that three things agree: a 64-bit perceptual hash
(pHash: low DCT frequencies against their median; Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010), the correlation of grey thumbnails and the difference of colour thumbnails. The hash makes the search
fast; the thumbnails reject images that only resemble each other, such as different things on one white board.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike._files import open_regular
from lookalike._system import cpu_count
from lookalike.data.dataset import TEST_SPLITS, TRAINING_SPLITS, Dataset, Item, Split
from lookalike.data.images import MAX_BYTES, image_in_turn, open_image, read_image
from lookalike.errors import DataError, UnreadableImage
from lookalike.progress import SILENT, Progress
from lookalike.types import Skipped

# Largest Hamming distance of two hashes for a candidate pair: two hashes within 7 bits share one of their 8 bytes.
MAX_DISTANCE = 7

# Smallest correlation of grey thumbnails. Shirts laid out on one red cloth reach 0.976, two images of one thing 0.98.
MIN_CORRELATION = 0.98

# Largest mean absolute difference of the colour thumbnails without their mean levels, of 255: another exposure passes,
# another colour does not.
MAX_DIFFERENCE = 16.0

# Smallest standard deviation of a grey thumbnail, in levels: below it the hash is noise; blank images are never near.
MIN_CONTRAST = 2.0

_GREY, _COLOUR = 32, 8  # sides of the thumbnails
_HASHED_PIXELS = 1 << 24  # at once: the bytes of a large image would take its memory three times
_PAIRS = 1 << 21  # hash pairs compared in one step: about 50 MB
_SUBMIT = 1024  # items given to the threads at a time, so that an interrupt takes effect soon

Rows = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Scan:
    """What `scan` computes of n readable images; row i of every array belongs to `ids[i]`."""

    ids: tuple[str, ...]  # n item ids
    pixels: tuple[str, ...]  # n hashes of the decoded RGB pixels and their size
    hashes: npt.NDArray[np.uint64]  # `(n,)` uint64 perceptual hashes
    grey: npt.NDArray[np.uint8]  # `(n, 1024)` uint8, grey thumbnails of 32x32
    colour: npt.NDArray[np.uint8]  # `(n, 192)` uint8, RGB thumbnails of 8x8
    skipped: Mapping[str, Skipped]  # the files that could not be read, by item id


@dataclass(frozen=True, eq=False)
class _Trace:
    pixels: str
    grey: npt.NDArray[np.uint8]
    colour: npt.NDArray[np.uint8]


def scan(items: Sequence[Item], progress: Progress) -> Scan:
    """Read every image once, in threads."""
    traces: dict[str, _Trace] = {}
    skipped: dict[str, Skipped] = {}
    for item, result in _map_threads(_trace, items, "checking", progress):
        if isinstance(result, Skipped):
            skipped[item.id] = result
        else:
            traces[item.id] = result
    grey = np.array([t.grey for t in traces.values()], np.uint8).reshape(-1, _GREY * _GREY)
    return Scan(
        ids=tuple(traces),
        pixels=tuple(t.pixels for t in traces.values()),
        hashes=perceptual_hashes(grey),
        grey=grey,
        colour=np.array([t.colour for t in traces.values()], np.uint8).reshape(-1, _COLOUR * _COLOUR * 3),
        skipped=skipped,
    )


def _map_threads(
    function: Callable[[Item], T], items: Sequence[Item], task: str, progress: Progress
) -> Iterator[tuple[Item, T]]:
    with ThreadPoolExecutor(max(2, cpu_count())) as pool:
        for start in range(0, len(items), _SUBMIT):
            batch = items[start : start + _SUBMIT]
            for done, (item, result) in enumerate(zip(batch, pool.map(function, batch), strict=True), start=start + 1):
                yield item, result
                progress.step(task, done, len(items))


def _trace(item: Item) -> _Trace | Skipped:
    try:
        with image_in_turn(item.path):
            image = read_image(item.path)
            small = image.resize((_GREY, _GREY), Image.Resampling.BILINEAR, reducing_gap=2.0)
            colour = small.resize((_COLOUR, _COLOUR), Image.Resampling.BOX)
            return _Trace(_pixel_hash(image), np.asarray(small.convert("L")), np.asarray(colour))
    except UnreadableImage as error:
        return Skipped(item.path, error.cause, error.temporary)


def _pixel_hash(image: Image.Image) -> str:
    state = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    rows = max(1, _HASHED_PIXELS // image.width)
    for top in range(0, image.height, rows):
        state.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return state.hexdigest()


def perceptual_hashes(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the pHash of each 32x32 thumbnail of `(n, 1024)` as `(n,)` uint64.

    The highest bit is the lowest frequency; a bit is set if its coefficient is above the median.
    """
    steps = (2 * np.arange(_GREY) + 1) * (np.pi / (2 * _GREY))
    basis = np.cos(np.arange(8)[:, None] * steps[None])  # (8, 32): the first rows of an unscaled DCT-II
    basis[0] /= np.sqrt(2)  # the orthonormal weighting, up to a common factor
    hashes = np.zeros(len(grey), np.uint64)
    for start in range(0, len(grey), 4096):
        block = grey[start : start + 4096].reshape(-1, _GREY, _GREY).astype(np.float64)
        low = (basis @ block @ basis.T).reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + 4096] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def exact_groups(scanned: Scan) -> list[list[int]]:
    """Return groups of two or more rows with equal decoded pixels, in the order of their first row."""
    rows: dict[str, list[int]] = {}
    for row, pixels in enumerate(scanned.pixels):
        rows.setdefault(pixels, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_pairs(scanned: Scan, rows: Sequence[int]) -> Rows:
    """Return the pairs of `rows` that are near but not exact duplicates, as sorted `(m, 2)`."""
    distinct = np.unique(np.asarray(rows, np.int64))
    distinct = distinct[scanned.grey[distinct].std(axis=1) >= MIN_CONTRAST]
    confirmed = [pairs[_confirm(scanned, pairs)] for pairs in _candidates(scanned.hashes[distinct], distinct)]
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *confirmed]), axis=0)


def _candidates(hashes: npt.NDArray[np.uint64], rows: Rows) -> Iterator[Rows]:
    """Yield pairs of rows within `MAX_DISTANCE`, some of them several times.

    Two hashes that differ in at most 7 bits agree on at least one of their 8 bytes (the pigeonhole principle), so only
    rows that share a byte in the same position are compared, and never all pairs at once.
    """
    octets = hashes.astype(">u8")[:, None].view(np.uint8)  # (n, 8)
    for band in octets.T:
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            step = max(1, _PAIRS // max(1, len(bucket)))
            for start in range(0, len(bucket) - 1, step):
                block = bucket[start : start + step]
                others = bucket[start:]
                close = _distances(hashes[block], hashes[others]) <= MAX_DISTANCE
                first, second = np.nonzero(np.triu(close, k=1))
                if len(first):
                    yield np.sort(rows[np.stack([block[first], others[second]], axis=1)], axis=1)


_BITS = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _distances(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    words = (a[:, None] ^ b[None]).view(np.uint16).reshape(len(a), len(b), 4)
    total: npt.NDArray[np.uint8] = _BITS[words].sum(axis=2, dtype=np.uint8)
    return total


def _confirm(scanned: Scan, pairs: Rows) -> npt.NDArray[np.bool_]:
    """Return for each candidate `(m, 2)` whether the thumbnails agree as well and the pixels differ."""
    result = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), 4096):
        first, second = pairs[start : start + 4096].T
        a, b = (_standardise(scanned.grey[rows]) for rows in (first, second))
        correlation = (a * b).mean(axis=1)
        colours = scanned.colour[first].astype(np.float32) - scanned.colour[second]
        difference = np.abs(colours - colours.mean(axis=1, keepdims=True)).mean(axis=1)
        differ = np.array([scanned.pixels[i] != scanned.pixels[j] for i, j in zip(first, second, strict=True)])
        result[start : start + 4096] = (correlation >= MIN_CORRELATION) & (difference <= MAX_DIFFERENCE) & differ
    return result


def _standardise(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = grey.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = values / values.std(axis=1, keepdims=True)
    return scaled


def connected_groups(pairs: Rows) -> list[list[int]]:
    """Return the connected components of pairs of rows, each sorted, in the order of their first row."""
    groups: dict[int, list[int]] = {}  # of each row
    for pair in pairs.tolist():
        smaller, larger = sorted((groups.setdefault(row, [row]) for row in pair), key=len)
        if smaller is not larger:
            larger.extend(smaller)
            groups.update(dict.fromkeys(smaller, larger))
    return sorted(sorted(group) for row, group in groups.items() if row == group[0])


def is_leak(splits: Collection[Split]) -> bool:
    """Whether an image in these splits has leaked from test to training."""
    return bool(set(splits) & set(TRAINING_SPLITS)) and bool(set(splits) & set(TEST_SPLITS))


def find_leaks(data: Dataset, progress: Progress) -> list[tuple[Item, ...]]:
    """Return the groups of images with equal decoded pixels that are in training and in test.

    Only images whose size occurs on both sides are decoded; unreadable files are skipped.
    """
    training, test = ([i for i in data.items if i.split in side] for side in (TRAINING_SPLITS, TEST_SPLITS))
    if not training or not test:
        return []
    sizes = {item.id: size for item, size in _map_threads(_size, (*training, *test), "reading image sizes", SILENT)}
    shared = ({sizes[i.id] for i in training} & {sizes[i.id] for i in test}) - {None}
    candidates = [item for item in (*training, *test) if sizes[item.id] in shared]
    groups: dict[str, list[Item]] = {}
    for item, pixels in _map_threads(_pixels, candidates, "looking for leaks", progress):
        if pixels is not None:
            groups.setdefault(pixels, []).append(item)
    return [tuple(group) for group in groups.values() if is_leak({item.split for item in group})]


def _size(item: Item) -> tuple[int, int] | None:
    """Return the sides, the shorter first: EXIF orientation may swap them."""
    try:
        with open_regular(item.path, MAX_BYTES) as file, open_image(file) as image:
            return min(image.size), max(image.size)
    except (OSError, ValueError, SyntaxError):
        return None


def _pixels(item: Item) -> str | None:
    try:
        with image_in_turn(item.path):
            return _pixel_hash(read_image(item.path))
    except UnreadableImage:
        return None


def require_no_leaks(data: Dataset, *, allowed: bool, progress: Progress) -> None:
    """Raise `DataError` if training images also appear in query or gallery; if allowed, report them."""
    groups = find_leaks(data, progress)
    if not groups:
        return
    count = sum(item.split in TRAINING_SPLITS for group in groups for item in group)
    pairs = [" = ".join(item.id for item in group) for group in groups[:3]]
    if len(groups) > len(pairs):
        pairs.append(f"{len(groups) - len(pairs)} more")
    images = "1 training image also appears" if count == 1 else f"{count} training images also appear"
    leak = f"data leak: {images} in query or gallery ({', '.join(pairs)}), which inflates the scores"
    if allowed:
        progress.info(f"{leak}; continuing, since leaks are allowed")
        return
    raise DataError(
        f"{leak}; remove them with 'lookalike check {data.root} --clean-manifest CLEAN/manifest.csv' and train on "
        "CLEAN, or pass `allow_leaks`.",
        argument="allow_leaks",
    )
