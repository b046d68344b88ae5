"""Counts and times of a service, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

STAGES = ("receive", "resolve", "decode", "wait", "embed", "search", "read", "thumbnail", "change")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Monitor:
    """What `/metrics` shows, of one service."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests = ("route", "method", "status")
        self._requests = Counter("lookalike_requests", "Answered requests", requests, registry=self.registry)
        self._request_seconds = Histogram(
            "lookalike_request_seconds", "Time from headers to answer", ("route",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        stages = Histogram(
            "lookalike_stage_seconds",
            "Time per stage: receive (the body), resolve (a query's items), decode (an image), wait (for a batch), "
            "embed (a batch), search, read (items), thumbnail, change (of an index)",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self.batch_images = Histogram(
            "lookalike_batch_images", "Images embedded at once", buckets=_IMAGES, registry=self.registry
        )
        self.refused = Counter("lookalike_refused", "Images refused with status 429", registry=self.registry)
        self._queue = Gauge(
            "lookalike_queue_images", "Images being decoded, waiting or embedded", registry=self.registry
        )
        self._items = Gauge("lookalike_index_items", "Items of an index", ("index",), registry=self.registry)

    def watch_queue(self, count: Callable[[], float]) -> None:
        """Ask this function for the images in the queue."""
        self._queue.set_function(count)

    def watch_index(self, name: str, count: Callable[[], float]) -> None:
        """Ask this function for the number of items of an index."""
        self._items.labels(name).set_function(count)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Record the time of a stage."""
        self._stages[name].observe(seconds)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage(stage, time.perf_counter() - start)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
