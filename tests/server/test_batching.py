"""Images of many requests in one batch, back-pressure, errors of one image, and an orderly end."""

from __future__ import annotations

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import UnreadableImage
from lookalike.server.batching import EmbeddingQueue
from lookalike.server.monitoring import Monitor
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem


class Slow:
    """A backbone that waits for permission, and records the sizes of its batches."""

    def __init__(self, backbone):
        self._backbone = backbone
        self.sizes = []
        self.permission = threading.Event()
        self.started = threading.Event()

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def prepare(self, *_arguments):
        return self

    def submit(self, pixels):
        self.sizes.append(len(pixels))
        self.started.set()
        self.permission.wait(60)
        return self._backbone.submit(pixels)


@pytest.fixture
def slow(encoder):
    return Slow(encoder.backbone)


@pytest.fixture
def make_queue(encoder, slow):
    from dataclasses import replace

    queues = []
    pool = ThreadPoolExecutor(2)

    def make(**options):
        queues.append(EmbeddingQueue(replace(encoder, backbone=slow), ServiceOptions(**options), Monitor(), pool))
        return queues[-1]

    yield make
    slow.permission.set()
    for queue in queues:
        queue.close()
    pool.shutdown()


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def pngs(sample_images):
    return [as_png(image) for image in sample_images.values()]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_that_wait_become_one_batch(make_queue, slow, encoder, pngs):
    queue = make_queue()

    async def run():
        first = asyncio.create_task(queue.embed(pngs[:1]))
        await until(slow.started.is_set)
        others = [asyncio.create_task(queue.embed([png])) for png in pngs]
        await until(lambda: len(queue._ready) == len(pngs))
        slow.permission.set()
        return await asyncio.gather(first, *others)

    rows = asyncio.run(run())
    assert slow.sizes == [1, len(pngs)]
    expected = encoder.embed(pngs).vectors
    np.testing.assert_allclose(np.concatenate(rows[1:]), expected, atol=1e-5)
    np.testing.assert_allclose(rows[0], expected[:1], atol=1e-5)
    assert len(queue) == 0


def test_a_batch_has_a_limit(make_queue, slow, pngs):
    queue = make_queue(max_batch=2)
    slow.permission.set()
    rows = asyncio.run(queue.embed([*pngs, pngs[0]]))
    assert len(rows) == 5
    assert max(slow.sizes) == 2
    assert sum(slow.sizes) == 5


def test_more_than_the_queue_holds_is_refused_at_once(make_queue, slow, pngs):
    queue = make_queue(max_queue=3)

    async def run():
        task = asyncio.create_task(queue.embed(pngs[:3]))
        await until(slow.started.is_set)
        with pytest.raises(Problem) as caught:
            await queue.embed(pngs[:1])
        slow.permission.set()
        await task
        await queue.embed(pngs[:3])  # there is room again
        return caught.value

    problem = asyncio.run(run())
    assert (problem.kind, problem.status) == ("busy", 429)
    assert int(problem.headers["Retry-After"]) >= 1


def test_an_image_that_cannot_be_read_does_not_disturb_others(make_queue, slow, pngs, encoder):
    queue = make_queue()
    slow.permission.set()

    async def run():
        return await asyncio.gather(
            queue.embed(pngs[:1]), queue.embed([pngs[1][:200]]), queue.embed([pngs[2]]), return_exceptions=True
        )

    first, broken, last = asyncio.run(run())
    assert isinstance(broken, UnreadableImage)
    expected = encoder.embed(pngs).vectors
    np.testing.assert_allclose(first[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(last[0], expected[2], atol=1e-5)
    assert len(queue) == 0


def test_a_request_that_was_given_up_is_not_embedded(make_queue, slow, pngs):
    queue = make_queue()

    async def run():
        first = asyncio.create_task(queue.embed(pngs[:1]))
        await until(slow.started.is_set)
        given_up = asyncio.create_task(queue.embed(pngs[1:3]))
        await until(lambda: len(queue._ready) == 2)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        last = asyncio.create_task(queue.embed(pngs[3:]))
        await until(lambda: len(queue._ready) == 3)
        slow.permission.set()
        await asyncio.gather(first, last)

    asyncio.run(run())
    assert slow.sizes == [1, 1]
    assert len(queue) == 0


def test_an_error_of_the_runtime_reaches_its_requests_and_no_others(make_queue, slow, pngs, monkeypatch):
    queue = make_queue()
    slow.permission.set()

    def fail(pixels):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(slow, "submit", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            asyncio.run(queue.embed(pngs[:2]))
    assert len(asyncio.run(queue.embed(pngs))) == len(pngs)


def test_closing_finishes_what_is_waiting(make_queue, slow, pngs):
    queue = make_queue()

    async def run():
        tasks = [asyncio.create_task(queue.embed([png])) for png in pngs]
        await until(slow.started.is_set)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        slow.permission.set()
        await closing
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == len(pngs)


def test_an_ensemble_has_the_embeddings_of_python(make_ensemble, pngs):
    ensemble = make_ensemble("aligned")
    with ThreadPoolExecutor(2) as pool:
        queue = EmbeddingQueue(ensemble, ServiceOptions(), Monitor(), pool)
        rows = asyncio.run(queue.embed(pngs))
        queue.close()
    np.testing.assert_allclose(rows, ensemble.embed(pngs).vectors, atol=1e-5)


def test_a_bomb_is_refused_before_it_is_decoded(make_queue, slow):
    queue = make_queue(max_pixels=1000)
    data = as_png(Image.new("1", (4000, 4000)))
    with pytest.raises(UnreadableImage, match="16,000,000 pixels"):
        asyncio.run(queue.embed([data]))
    assert slow.sizes == []
