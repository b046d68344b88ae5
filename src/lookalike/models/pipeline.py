"""Decode images in threads while backbones compute; a short queue of batches bounds the memory. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike._files import digest
from lookalike._strings import PackedStrings
from lookalike._system import cpu_count
from lookalike.data.images import image_in_turn, read_in_memory, read_pipe, read_scaled
from lookalike.errors import OptionError, UnreadableImage, require_integer
from lookalike.models.info import BackboneInfo
from lookalike.models.preprocessing import Preprocessing, prepare_images
from lookalike.progress import Progress
from lookalike.types import Pixels, Skipped, Vectors

DEFAULT_BATCH_SIZE = 16
_ALL_PIXELS = 1 << 30  # a side that no image has: it is decoded at full size
_FILES_PER_TASK = 4  # handing one file over to a thread costs a tenth of decoding it
_WARM_UP_BATCHES = 4  # the first batches wait for everything, so they say nothing about the bottleneck
S = TypeVar("S")
T = TypeVar("T")

_PIPE_FOLDERS = (Path("/dev/fd"), Path("/proc/self/fd"))
# Uint64 array `(n,)` of `image_keys`.
Keys = npt.NDArray[np.uint64]

ImageInput = os.PathLike[str] | str | bytes | bytearray | memoryview | BinaryIO | Image.Image | Pixels
_SINGLE_IMAGES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


class Source(Protocol):
    """Anything with an id and the path of an image: an `Item`, or a `File`."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class File:
    """An image file outside any data set; its path is its id."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class InMemoryImage:
    """An image in memory: encoded bytes, a PIL image or `(h, w, 3)` uint8 pixels."""

    id: str
    image: bytes | Image.Image | Pixels

    @property
    def path(self) -> Path:
        """The id, for messages."""
        return Path(self.id)


@dataclass(frozen=True, slots=True, eq=False)
class ImagePart:
    """A part of an image, cut out when the image is decoded: until then it takes no memory."""

    id: str
    image: Source
    cut: Callable[[Pixels], Pixels]

    @property
    def path(self) -> Path:
        """The path of the whole image."""
        return self.image.path


class Files(Sequence[File]):
    """Image files below a folder, by names relative to it, which are their ids: thirty bytes per file, not hundreds."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self._names = names if isinstance(names, PackedStrings) else PackedStrings(names)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> File: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> File | Files:
        """Return one file, or a slice that shares the text."""
        if isinstance(index, slice):
            return Files(self.root, self._names[index])
        name = self._names[index]
        return File(name, self.root / name)


def as_sources(images: Iterable[Source | ImageInput]) -> Sequence[Source]:
    """Give paths and images in memory an id; items keep theirs."""
    if isinstance(images, Files):
        return images
    require_list(images)
    return [_as_source(image, number) for number, image in enumerate(images)]


def require_list(images: object) -> None:
    """Raise `OptionError` for a single image, and for what cannot be iterated."""
    single_array = isinstance(images, np.ndarray) and images.ndim == 3
    single = single_array or isinstance(images, _SINGLE_IMAGES) or hasattr(images, "read")
    if single or not isinstance(images, Iterable):
        what = "a single image; put it in a list" if single else f"{type(images).__name__}"
        raise OptionError(f"`images` must be a list, got {what}.", argument="images")


def _as_source(image: Source | ImageInput, number: int) -> Source:
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.parent in _PIPE_FOLDERS and path.is_fifo():  # from the shell, as in <(command)
            return InMemoryImage(os.fspath(image), read_pipe(path))
        return File(os.fspath(image), path)
    data = image.read() if hasattr(image, "read") else image
    if isinstance(data, bytes | bytearray | memoryview):
        return InMemoryImage(f"image {number}", bytes(data))
    if isinstance(image, Image.Image):
        return InMemoryImage(f"image {number}", image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise OptionError(
                f"an array in `images` must be uint8 of shape (h, w, 3), got {image.dtype} of shape {image.shape}.",
                argument="images",
            )
        return InMemoryImage(f"image {number}", image)
    if not (hasattr(image, "path") and hasattr(image, "id")):
        raise OptionError(
            "`images` takes paths, bytes, binary files, PIL images and (h, w, 3) uint8 arrays, "
            f"got {type(image).__name__} at position {number}.",
            argument="images",
        )
    return cast(Source, image)


def image_keys(sources: Sequence[Source]) -> Keys:
    """Return a key per image, `(n,)`: a digest of its id, and of its file's size, time of change and readability.

    A key of the id alone would keep the embedding of an image that was replaced by another.
    """
    return np.fromiter(map(_image_key, sources), np.uint64, len(sources))


def _image_key(source: Source) -> int:
    try:
        status = source.path.stat()
    except (OSError, ValueError):  # a name with a null byte
        state = "missing"
    else:
        state = f"{status.st_size} {status.st_mtime_ns} {os.access(source.path, os.R_OK)}"
    text = os.fsencode(f"{source.id}\0{state}")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def sources_digest(fingerprint: str, sources: Sequence[Source]) -> str:
    """Return the digest of a model and of the keys of images."""
    return digest(fingerprint, image_keys(sources).tobytes())


def decode(source: Source, min_sides: Sequence[int]) -> list[Pixels]:
    """Return the image `(h, w, 3)` uint8 once per minimum side, decoded at a reduced scale where that is enough."""
    if isinstance(source, ImagePart):
        return [source.cut(decode(source.image, [_ALL_PIXELS])[0])] * len(min_sides)
    if isinstance(source, InMemoryImage):
        return read_in_memory(source.id, source.image, min_sides)
    return read_scaled(source.path, min_sides)


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded images: `pixels[m]` is `(n, h, w, 3)` uint8 for preprocessing `m`."""

    ids: tuple[str, ...]
    pixels: tuple[Pixels, ...]
    skipped: tuple[Skipped, ...]
    done: int


def decode_batches(
    groups: Sequence[Sequence[Source]], preprocessings: Sequence[Preprocessing], batch_size: int = DEFAULT_BATCH_SIZE
) -> Generator[DecodedBatch, None, None]:
    """Decode each image once and prepare it for every preprocessing; a batch never spans two groups."""
    distinct = tuple(dict.fromkeys(preprocessings))
    slots = [distinct.index(p) for p in preprocessings]
    min_sides = [p.min_side for p in distinct]

    def prepare(source: Source) -> tuple[Pixels, ...]:
        with image_in_turn(source.path):
            return prepare_images(distinct, decode(source, min_sides))

    done = 0
    with closing(map_ahead(groups, prepare, batch_size)) as results:
        for batch in results:
            readable = [(source.id, pixels) for source, pixels in batch if not isinstance(pixels, Skipped)]
            stacks = [np.stack([pixels[i] for _, pixels in readable]) for i in range(len(distinct)) if readable]
            done += len(batch)
            yield DecodedBatch(
                tuple(item_id for item_id, _ in readable),
                tuple(stacks[slot] for slot in slots) if readable else (),
                tuple(pixels for _, pixels in batch if isinstance(pixels, Skipped)),
                done,
            )


def map_ahead(
    groups: Sequence[Sequence[S]], prepare: Callable[[S], T], batch_size: int
) -> Generator[list[tuple[S, T | Skipped]], None, None]:
    """Run `prepare` in threads, a few batches ahead, and yield the batches in order; a batch never spans two groups.

    An `UnreadableImage` becomes a `Skipped`; any other error is raised.
    """
    if require_integer(batch_size, "batch_size") < 1:
        raise OptionError(f"`batch_size` must be at least 1, got {batch_size}.", argument="batch_size")

    def prepare_all(sources: Sequence[S]) -> list[T | Skipped]:
        results: list[T | Skipped] = []
        for source in sources:
            try:
                results.append(prepare(source))
            except UnreadableImage as error:
                results.append(Skipped(error.path, error.cause, error.temporary))
        return results

    batches = (group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size))
    workers = max(2, cpu_count())
    per_task = max(1, min(_FILES_PER_TASK, sum(map(len, groups)) // (4 * workers)))
    ahead = max(3, -(-2 * workers // batch_size))  # every thread has work
    queue: deque[tuple[Sequence[S], list[Future[list[T | Skipped]]]]] = deque()
    pool = ThreadPoolExecutor(workers)

    def submit_next() -> None:
        batch = next(batches, None)
        if batch is not None:
            tasks = (batch[start : start + per_task] for start in range(0, len(batch), per_task))
            queue.append((batch, [pool.submit(prepare_all, task) for task in tasks]))

    try:
        for _ in range(ahead):
            submit_next()
        while queue:
            batch, futures = queue.popleft()
            results = [result for future in futures for result in future.result()]
            submit_next()
            yield list(zip(batch, results, strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Backbone(Protocol):
    """A backbone on a runtime: uint8 pixels `(n, h, w, 3)` in, pooled features `(n, features)` out."""

    @property
    def info(self) -> BackboneInfo:
        """Architecture, preprocessing, weights and fingerprint."""

    @property
    def runtime(self) -> str:
        """The library that executes it: torch, openvino or onnxruntime; auto until one is selected."""

    @property
    def precision(self) -> str:
        """float32, bfloat16 or int8; auto until one is selected."""

    @property
    def device_type(self) -> str:
        """The type of device: cpu, cuda, ..."""

    @property
    def width(self) -> int:
        """Length of the row that it computes per image."""

    @property
    def batch_size(self) -> int:
        """Preferred number of images per batch."""

    @property
    def in_flight(self) -> int:
        """How many batches may be submitted before the first result is awaited."""

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Backbone:
        """Return the backbone on the runtime that suits `count` images such as these; a concrete one returns itself."""

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Start computing; the returned function waits for the result and is called once."""

    def with_preprocessing(self, preprocessing: Preprocessing) -> Any:
        """Return the same backbone for images that are cropped otherwise; size and normalisation do not change."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return all weights by name, for a bundle."""


class FixedBackbone:
    """A backbone that is only run, on one runtime, never trained: a function of the user, or an ONNX file."""

    info: BackboneInfo
    runtime: str
    precision: str

    def with_preprocessing(self, preprocessing: Preprocessing) -> Any:
        """Return the same backbone for images that are cropped otherwise; size and normalisation do not change."""
        raise NotImplementedError

    def with_precision(self, precision: str) -> Any:
        """Return the same backbone in another precision; raise `OptionError` where it has only one."""
        if precision not in ("auto", self.precision):
            raise OptionError(
                f"{self.info.name} computes in {self.precision} only, got `precision` {precision}; omit it.",
                argument="precision",
            )
        return self


@dataclass
class Bottleneck:
    """Seconds spent waiting for decoded images and for the backbones; the longer wait limits the rate."""

    decoding: float = 0.0
    model: float = 0.0
    batches: int = 0

    def __str__(self) -> str:
        if self.batches < _WARM_UP_BATCHES:
            return ""
        return "limited by decoding" if self.decoding > self.model else "limited by the model"


def run_batches(
    batches: Iterator[DecodedBatch], backbones: Sequence[Backbone], bottleneck: Bottleneck
) -> Generator[tuple[DecodedBatch, list[Vectors]], None, None]:
    """Pair each batch with the results of the backbones, one per preprocessing; they work a few batches ahead."""
    in_flight = min(backbone.in_flight for backbone in backbones)
    queue: deque[tuple[DecodedBatch, list[Callable[[], Vectors]]]] = deque()

    def next_result() -> tuple[DecodedBatch, list[Vectors]]:
        batch, pending = queue[0]
        clock = time.perf_counter()
        results: list[Vectors] = []
        while pending:
            results.append(pending.pop(0)())
        queue.popleft()
        bottleneck.model += time.perf_counter() - clock
        return batch, results

    try:
        while True:
            clock = time.perf_counter()
            batch = next(batches, None)
            bottleneck.decoding += time.perf_counter() - clock
            if batch is None:
                break
            bottleneck.batches += 1
            if len(queue) == in_flight:
                yield next_result()
            clock = time.perf_counter()
            pending: list[Callable[[], Vectors]] = []
            queue.append((batch, pending))  # before submitting, so that an error still waits for what has started
            pending.extend(b.submit(pixels) for b, pixels in zip(backbones, batch.pixels, strict=False))
            bottleneck.model += time.perf_counter() - clock
        while queue:
            yield next_result()
    finally:
        for _, pending in queue:  # stopped early: what has started must finish before its pixels are freed
            for wait in pending:
                with contextlib.suppress(Exception):
                    wait()


@dataclass(frozen=True)
class FeatureBatch:
    """The features of a group of images, `(n, features)` float32 per backbone, without the unreadable files."""

    ids: tuple[str, ...]
    features: tuple[Vectors, ...]
    skipped: tuple[Skipped, ...]


def run_backbones(
    backbones: Sequence[Backbone],
    groups: Sequence[Sequence[Source]],
    *,
    batch_size: int | None,
    progress: Progress,
    task: str,
    done: int = 0,
    total: int | None = None,
) -> Generator[FeatureBatch, None, None]:
    """Run backbones over groups of images without a pause between them, and yield each group when it is done.

    Each image is decoded once for all backbones. A group has at least one image. Progress counts the images of all
    groups, after `done` earlier ones, of `total`.
    """
    ends = itertools.accumulate(map(len, groups))
    total = sum(map(len, groups)) if total is None else total
    size = min(backbone.batch_size for backbone in backbones) if batch_size is None else batch_size
    bottleneck = Bottleneck()
    end = next(ends, 0)
    ids: list[str] = []
    skipped: list[Skipped] = []
    # the first part is empty, for a group without a readable image
    rows = [[np.zeros((0, backbone.width), np.float32)] for backbone in backbones]
    with (  # threads and requests end with them, whatever happens
        closing(decode_batches(groups, [b.info.preprocessing for b in backbones], size)) as batches,
        closing(run_batches(batches, backbones, bottleneck)) as results,
    ):
        for batch, features in results:
            ids += batch.ids
            skipped += batch.skipped
            for backbone_rows, batch_rows in zip(rows, features, strict=False):
                backbone_rows.append(batch_rows)
            progress.step(task, done + batch.done, total, str(bottleneck))
            if batch.done == end:
                yield FeatureBatch(tuple(ids), tuple(map(np.concatenate, rows)), tuple(skipped))
                ids, skipped, end = [], [], next(ends, 0)
                rows = [part[:1] for part in rows]
