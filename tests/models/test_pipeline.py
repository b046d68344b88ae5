"""Batches through engines: in order, no more in flight than an runtime takes, and who waits for whom."""

import threading
import time

import numpy as np
import pytest
from lookalike.models.stream import Batch, map_ahead

from lookalike.models.pipeline import Pace, encode_batches


class Counting:
    """An runtime that adds up its pixels, and knows how many batches it was given and not asked for."""

    def __init__(self, in_flight, seconds=0.0):
        self.in_flight, self.seconds = in_flight, seconds
        self.open = self.most = 0

    def submit(self, pixels):
        self.open += 1
        self.most = max(self.most, self.open)

        def wait():
            time.sleep(self.seconds)
            self.open -= 1
            return pixels.sum(axis=(1, 2, 3))[:, None].astype(np.float32)

        return wait


def made(count, engines=1, seconds=0.0):
    for n in range(count):
        time.sleep(seconds)
        pixels = np.full((2, 1, 1, 3), n, np.uint8)
        yield Batch((f"{n}a", f"{n}b"), (pixels,) * engines, (), 2 * (n + 1))


@pytest.mark.parametrize("in_flight", [1, 3, 99])
def test_batches_stay_in_order_with_so_many_in_flight(in_flight):
    runtime = Counting(in_flight)
    found = list(encode_batches(made(7), [runtime], Pace()))
    assert [b.ids[0] for b, _ in found] == [f"{n}a" for n in range(7)]
    assert [v[0][0, 0] for _, v in found] == [3 * n for n in range(7)]
    assert (runtime.open, runtime.most) == (0, min(in_flight, 7))


def test_the_engine_that_takes_fewest_counts():
    engines = [Counting(4), Counting(2)]
    found = list(encode_batches(made(6, engines=2), engines, Pace()))
    assert all(len(vectors) == 2 for _, vectors in found)
    assert [e.most for e in engines] == [2, 2]


def test_a_batch_without_pictures_passes_through():
    given = iter([Batch((), (), (), 1), *made(1)])
    found = list(encode_batches(given, [Counting(2)], Pace()))
    assert [len(vectors) for _, vectors in found] == [0, 1]


@pytest.mark.parametrize(
    ("decoding", "model", "words"), [(0.02, 0, "decoding sets the pace"), (0, 0.02, "the model sets the pace")]
)
def test_what_is_waited_for_sets_the_pace(decoding, model, words):
    pace = Pace()
    told = [str(pace) for _ in encode_batches(made(8, seconds=decoding), [Counting(1, model)], pace)]
    assert told[0] == ""
    assert told[-1] == words


def test_decoding_goes_on_while_the_engine_computes_and_the_other_way_round():
    """Each waits for what the other does meanwhile: one after the other they would never end."""
    decoded, computed = threading.Event(), threading.Event()

    def prepare(n):
        if n == 2:
            decoded.set()
        if n == 3:
            assert computed.wait(60)
        return np.full((1, 1, 3), n, np.uint8)

    class Waits(Counting):
        def submit(self, pixels):
            wait = super().submit(pixels)

            def later():
                assert decoded.wait(60)
                computed.set()
                return wait()

            return later

    def given():
        for results in map_ahead(range(5), prepare, 1, ahead=3):
            yield Batch(("a",), (np.stack([r for _, r in results]),), (), 1)

    found = list(encode_batches(given(), [Waits(1)], Pace()))
    assert [v[0][0, 0] for _, v in found] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("where", ["submit", "wait"])
def test_what_another_engine_began_is_waited_for_at_an_error(where):
    class Fails(Counting):
        def submit(self, _):
            if where == "submit":
                raise ValueError

            def wait():
                raise ValueError

            return wait

    first, last = Counting(2), Counting(2)
    with pytest.raises(ValueError):
        list(encode_batches(made(6, engines=3), [first, Fails(2), last], Pace()))
    assert (first.open, last.open) == (0, 0)
    assert first.most > 0
