"""Embeds the images of all connections: decoded in threads, computed in batches by one thread."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lookalike.data.images import image_in_turn, read_header
from lookalike.errors import UnreadableImage
from lookalike.models.encoder import AnyEncoder
from lookalike.models.pipeline import ImagePart, InMemoryImage, Source, decode
from lookalike.models.preprocessing import prepare_images
from lookalike.progress import SILENT
from lookalike.runtimes.graphs import SINGLE_MAX
from lookalike.server.monitoring import Monitor
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem
from lookalike.types import Pixels, Vectors

# what uploads may be: Pillow knows more formats, among them some that start other programs
FORMATS = frozenset(
    ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "HEIF", "TIFF", "PPM", "JPEG2000")
)  # fmt: skip
_RATE_MEMORY = 0.9  # weight of earlier batches in the mean rate


def require_acceptable(name: str, data: bytes, max_pixels: int) -> None:
    """Raise `UnreadableImage` for what the header of an image shows: another format, or too many pixels."""
    image_format, pixels = read_header(name, data)
    if image_format not in FORMATS:
        raise UnreadableImage(name, f"images of the format {image_format} are not accepted")
    if pixels > max_pixels:
        raise UnreadableImage(name, f"it has {pixels:,} pixels, more than {max_pixels:,}")


@dataclass(eq=False)
class _Job:
    """An image on its way to its embedding `(dim,)`."""

    image: Source  # encoded, in memory, or a part of such an image
    embedding: Future[Vectors] = field(default_factory=Future)
    pixels: tuple[Pixels, ...] = ()  # by member of the encoder
    decoded_s: float = 0.0  # when it was decoded


class _Runner:
    """An encoder on the runtime for a number of images."""

    def __init__(self, encoder: AnyEncoder, count: int) -> None:
        self._encoder = encoder.prepare((), count, SILENT)
        backbones = [member.backbone for member in self._encoder.members]
        self.batch_size = min(backbone.batch_size for backbone in backbones)
        self.in_flight = min(backbone.in_flight for backbone in backbones)

    def submit(self, jobs: Sequence[_Job]) -> Callable[[], Vectors]:
        """Start computing; the returned function waits for the embeddings `(n, dim)`."""
        members = self._encoder.members
        waits = [
            member.backbone.submit(np.stack([job.pixels[number] for job in jobs]))
            for number, member in enumerate(members)
        ]
        return lambda: self._encoder.combine([wait() for wait in waits])


class EmbeddingQueue:
    """Embeds images for any number of requests at once.

    An image is decoded by one of a few threads, then waits for the embedding thread. That thread takes what is ready,
    and waits a few milliseconds for more only while other images are being decoded: a lone request does not wait.

    Args:
        encoder: what embeds.
        options: the limits.
        monitor: receives the times.
        decoders: the threads that decode.

    """

    def __init__(
        self, encoder: AnyEncoder, options: ServiceOptions, monitor: Monitor, decoders: ThreadPoolExecutor
    ) -> None:
        self.encoder = encoder
        self.created = int(time.time())
        self._options = options
        self._monitor = monitor
        self._decoders = decoders
        preprocessings = [member.preprocessing for member in encoder.members]
        self._preprocessings = tuple(dict.fromkeys(preprocessings))
        self._slots = [self._preprocessings.index(preprocessing) for preprocessing in preprocessings]
        self._few, self._many = _Runner(encoder, 1), _Runner(encoder, SINGLE_MAX + 1)
        self._ready: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._decoding = 0
        self._pending = 0  # images that have no embedding yet
        self._rate = 0.0  # images per second
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._pending

    def close(self) -> None:
        """Embed what is waiting, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    async def embed(self, images: Sequence[bytes | Source]) -> Vectors:
        """Return the embeddings `(n, dim)` of encoded images: bytes, or sources of these, or parts of these.

        Raises:
            UnreadableImage: one of them cannot be decoded, or is not accepted; its path is that of the source.
            OptionError: a part is outside of its image.
            Problem: too many images are waiting.

        """
        jobs = self._submit(images)
        try:
            rows = await asyncio.gather(*(asyncio.wrap_future(job.embedding) for job in jobs))
        except BaseException:
            for job in jobs:
                job.embedding.cancel()
            raise
        return np.stack(rows)

    def _submit(self, images: Sequence[bytes | Source]) -> list[_Job]:
        with self._changed:
            waiting = max(self._pending, self._decoding)  # what was given up is still being decoded
            if waiting + len(images) > self._options.max_queue:
                self._monitor.refused.inc(len(images))
                wait_s = max(1, math.ceil(waiting / self._rate)) if self._rate else 1
                raise Problem(
                    "busy",
                    f"{waiting} images are waiting; try again in {wait_s} s.",
                    headers={"Retry-After": str(wait_s)},
                )
            self._pending += len(images)
            self._decoding += len(images)
        jobs = [
            _Job(InMemoryImage(f"image {number}", image) if isinstance(image, bytes) else image)
            for number, image in enumerate(images)
        ]
        for job in jobs:
            job.embedding.add_done_callback(self._finished)
            self._decoders.submit(self._decode, job)
        return jobs

    def _finished(self, _embedding: Future[Vectors]) -> None:
        with self._changed:
            self._pending -= 1

    def _decode(self, job: _Job) -> None:
        try:
            if not job.embedding.cancelled():
                with self._monitor.timed("decode"), image_in_turn(job.image.path):
                    require_acceptable(str(job.image.path), _encoded(job.image), self._options.max_pixels)
                    decoded = decode(job.image, [p.min_side for p in self._preprocessings])
                    prepared = prepare_images(self._preprocessings, decoded)
                job.pixels = tuple(prepared[slot] for slot in self._slots)
                job.decoded_s = time.perf_counter()
        except BaseException as error:
            if job.embedding.set_running_or_notify_cancel():
                job.embedding.set_exception(error)
        with self._changed:
            self._decoding -= 1
            if job.pixels:
                self._ready.append(job)
            self._changed.notify_all()

    def _take(self, *, wait: bool) -> list[_Job] | None:
        """Return jobs for one batch, possibly none; None when the queue is closed and empty."""
        limit = min(self._options.max_batch, max(self._few.batch_size, self._many.batch_size))
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._ready or (self._closed and not self._decoding))
                if not self._ready:
                    return None
                self._changed.wait_for(
                    lambda: len(self._ready) >= limit or not self._decoding, self._options.max_wait_ms / 1000
                )
            jobs = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        return [job for job in jobs if job.embedding.set_running_or_notify_cancel()]

    def _run(self) -> None:
        pending: deque[tuple[list[_Job], Callable[[], Vectors], float]] = deque()
        while True:
            jobs = self._take(wait=not pending)
            if jobs is None:
                return
            if jobs:
                start = time.perf_counter()
                for job in jobs:
                    self._monitor.stage("wait", start - job.decoded_s)
                runner = self._many if len(jobs) >= self._many.batch_size else self._few
                try:
                    pending.append((jobs, runner.submit(jobs), start))
                except Exception as error:
                    _fail(jobs, error)
            if pending and (len(pending) >= self._many.in_flight or not jobs):
                self._finish(*pending.popleft())

    def _finish(self, jobs: list[_Job], wait: Callable[[], Vectors], start: float) -> None:
        try:
            embeddings = wait()
        except Exception as error:
            _fail(jobs, error)
            return
        seconds = time.perf_counter() - start
        self._monitor.stage("embed", seconds)
        self._monitor.batch_images.observe(len(jobs))
        rate = len(jobs) / seconds
        self._rate = _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate if self._rate else rate
        for job, embedding in zip(jobs, embeddings, strict=True):
            job.embedding.set_result(embedding)


def _encoded(source: Source) -> bytes:
    """Return the encoded image of a source: nothing that a client sends becomes the path of a file."""
    whole = source.image if isinstance(source, ImagePart) else source
    assert isinstance(whole, InMemoryImage) and isinstance(whole.image, bytes)
    return whole.image


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    for job in jobs:
        job.embedding.set_exception(error)
