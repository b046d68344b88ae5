"""Finding images that are the same, or nearly: every file is read once, the rest is arithmetic on what was kept of it.

Exact means the same decoded pixels, whatever the bytes. Near means that three things agree: a 64-bit perceptual hash
(pHash: low DCT frequencies against their median; Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010), the correlation of grey thumbnails and the difference of colour thumbnails. The hash makes the search
fast, the thumbnails throw out what only resembles, such as different things photographed on one white board.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike._files import file_digest
from lookalike.data.dataset import Item
from lookalike.data.images import read_image
from lookalike.errors import UnreadableImage
from lookalike.types import Skipped

MAX_DISTANCE = 7
"""Hamming distance of two hashes up to which they are candidates: with 8 bands of 8 bits, two of them share a band."""
MIN_CORRELATION = 0.98
"""Of the grey thumbnails. Shirts laid out on one red cloth reach 0.976, two photographs of one thing 0.98 and more."""
MAX_DIFFERENCE = 16.0
"""Mean absolute difference of the colour thumbnails less their mean levels, of 255: another exposure may pass, another
colour not."""
MIN_CONTRAST = 2.0
"""Standard deviation of a grey thumbnail, in levels, under which its hash is noise: blank images are never near."""

_GREY, _COLOUR = 32, 8  # sides of the thumbnails
_AT_ONCE = 1 << 21  # hash pairs compared in one step: about 50 MB
_SUBMIT = 1024  # images handed to the threads at a time, so that an interrupt is heard soon

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scan:
    """What one reading of `n` readable images has left; row i of every array belongs to `ids[i]`.

    Attributes:
        ids: `n` item ids.
        files: `n` digests of the files' bytes.
        pixels: `n` digests of the decoded RGB pixels and their size.
        hashes: `(n,)` uint64 perceptual hashes.
        grey: `(n, 1024)` uint8, grey thumbnails of 32×32.
        colour: `(n, 192)` uint8, RGB thumbnails of 8×8.
        skipped: the files that could not be read, by item id.

    """

    ids: tuple[str, ...]
    files: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: npt.NDArray[np.uint64]
    grey: npt.NDArray[np.uint8]
    colour: npt.NDArray[np.uint8]
    skipped: Mapping[str, Skipped]


@dataclass(frozen=True, eq=False)
class _Trace:
    file: str
    pixels: str
    grey: npt.NDArray[np.uint8]
    colour: npt.NDArray[np.uint8]


def scan(items: Sequence[Item], *, workers: int = 2, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Read every image once, in `workers` threads; a file that cannot be read is kept with its cause.

    `progress` is called with how many images are done, and of how many.
    """
    read: dict[str, _Trace] = {}
    skipped: dict[str, Skipped] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(items), _SUBMIT):
            some = items[start : start + _SUBMIT]
            for done, (item, result) in enumerate(zip(some, pool.map(_read, some), strict=True), start=start + 1):
                if isinstance(result, Skipped):
                    skipped[item.id] = result
                else:
                    read[item.id] = result
                if progress:
                    progress(done, len(items))
    traces = tuple(read.values())
    grey = np.array([t.grey for t in traces], np.uint8).reshape(-1, _GREY * _GREY)
    colour = np.array([t.colour for t in traces], np.uint8).reshape(-1, _COLOUR * _COLOUR * 3)
    files, pixels = tuple(t.file for t in traces), tuple(t.pixels for t in traces)
    return Scan(tuple(read), files, pixels, perceptual_hashes(grey), grey, colour, skipped)


def _read(item: Item) -> _Trace | Skipped:
    try:
        image = read_image(item.path)
        file = file_digest(item.path)
    except UnreadableImage as error:
        return Skipped(item.path, error.cause)
    except OSError as error:  # gone, or a failing disk, between the two readings
        return Skipped(item.path, f"it cannot be read ({error.strerror})")
    small = image.resize((_GREY, _GREY), Image.Resampling.BILINEAR, reducing_gap=2.0)
    colour = small.resize((_COLOUR, _COLOUR), Image.Resampling.BOX)
    return _Trace(file, pixel_digest(image), np.asarray(small.convert("L")), np.asarray(colour))


def pixel_digest(image: Image.Image) -> str:
    """Return the digest of a picture's decoded pixels and its size: the same for what is exactly the same picture."""
    size = f"{image.width}x{image.height}:".encode()
    return hashlib.blake2b(size + image.tobytes(), digest_size=16).hexdigest()


def perceptual_hashes(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the pHash of each 32×32 thumbnail of `(n, 1024)` as `(n,)` uint64.

    The first bit (the highest) is the lowest frequency; a bit is set where its coefficient is above the median.
    """
    steps = (2 * np.arange(_GREY) + 1) * (np.pi / (2 * _GREY))
    basis = np.cos(np.arange(8)[:, None] * steps[None])  # (8, 32): the first rows of an unscaled DCT-II
    basis[0] /= np.sqrt(2)  # the orthonormal weighting, up to one factor for all
    hashes = np.zeros(len(grey), np.uint64)
    for start in range(0, len(grey), 4096):
        part = grey[start : start + 4096].reshape(-1, _GREY, _GREY).astype(np.float64)
        low = (basis @ part @ basis.T).reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + 4096] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def exact_groups(found: Scan) -> list[list[int]]:
    """Return the rows that share their decoded pixels, groups of two and more in the order of their first row."""
    rows: dict[str, list[int]] = {}
    for row, pixels in enumerate(found.pixels):
        rows.setdefault(pixels, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_links(found: Scan, rows: Sequence[int]) -> Rows:
    """Return the pairs of `rows` that are near but not exact duplicates, as `(m, 2)`, each pair and the list sorted."""
    chosen = np.unique(np.asarray(rows, np.int64))
    chosen = chosen[found.grey[chosen].std(axis=1) >= MIN_CONTRAST]
    kept = [pairs[_confirmed(found, pairs)] for pairs in _candidates(found.hashes[chosen], chosen)]
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *kept]), axis=0)


def _candidates(hashes: npt.NDArray[np.uint64], rows: Rows) -> Iterator[Rows]:
    """Yield pairs of rows within `MAX_DISTANCE`; a pair may come more than once.

    Two hashes that differ in at most 7 bits agree on at least one of their 8 bytes (the pigeonhole principle), so only
    rows that share a byte at the same place are compared, and never all pairs at once.
    """
    octets = hashes.astype(">u8")[:, None].view(np.uint8)  # (n, 8)
    for band in octets.T:
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            step = max(1, _AT_ONCE // max(1, len(bucket)))
            for start in range(0, len(bucket) - 1, step):
                some = bucket[start : start + step]
                others = bucket[start:]
                close = _distances(hashes[some], hashes[others]) <= MAX_DISTANCE
                first, second = np.nonzero(np.triu(close, k=1))
                if len(first):
                    yield np.sort(rows[np.stack([some[first], others[second]], axis=1)], axis=1)


_BITS = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _distances(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return the Hamming distances `(len(a), len(b))`."""
    parts = (a[:, None] ^ b[None]).view(np.uint16).reshape(len(a), len(b), 4)
    total: npt.NDArray[np.uint8] = _BITS[parts].sum(axis=2, dtype=np.uint8)
    return total


def _confirmed(found: Scan, pairs: Rows) -> npt.NDArray[np.bool_]:
    """Say for each candidate `(m, 2)` whether the thumbnails agree as well and the pixels are not the very same."""
    result = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), 4096):
        first, second = pairs[start : start + 4096].T
        a, b = (_standardised(found.grey[rows]) for rows in (first, second))
        correlation = (a * b).mean(axis=1)
        colours = found.colour[first].astype(np.float32) - found.colour[second]
        difference = np.abs(colours - colours.mean(axis=1, keepdims=True)).mean(axis=1)
        other = np.array([found.pixels[i] != found.pixels[j] for i, j in zip(first, second, strict=True)])
        result[start : start + 4096] = (correlation >= MIN_CORRELATION) & (difference <= MAX_DIFFERENCE) & other
    return result


def _standardised(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = grey.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = values / values.std(axis=1, keepdims=True)
    return scaled


def connected(links: Rows) -> list[list[int]]:
    """Join linked rows into groups, each sorted, in the order of their first row."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]  # halve the path on the way
            row = parent[row]
        return row

    for first, second in links.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for row in sorted(parent):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())
