"""Trials made by hand: what they measure is written in the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from lookalike.bench.trial import Interval, Scores, Timing, Trial


def scores_of(values: Sequence[float], *, prefix: str = "q") -> Scores:
    """Scores whose precision@3 are these values; the interval is made wide by 0.1 on both sides."""
    mean = sum(values) / len(values)
    hit = [float(v > 0) for v in values]
    share = sum(hit) / len(hit)
    measures: dict[str, Interval] = {
        "precision@3": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1},
        "hit@3": {"mean": share, "low": share - 0.1, "high": share + 0.1},
        "hit@1": {"mean": share / 2, "low": 0.0, "high": 1.0},
        "map@r": {"mean": mean / 2, "low": 0.0, "high": 1.0},
    }
    ids = [f"{prefix}{n:03}" for n in range(len(values))]
    return Scores(measures, {"precision@3": list(values), "hit@3": hit}, ids, len(values), 2, 50)


def timing_of(ms: float) -> Timing:
    """Timing whose median is `ms`; p95 is a half more, batched a half of it."""
    return Timing(ms, 1.5 * ms, 0.2 * ms, 0.8 * ms, ms / 2, ms / 4, 32, 900.0, 100, 2, "cpu")


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """Build a trial from its name, its validation values and its time."""

    def build(
        name: str,
        values: Sequence[float],
        ms: float | None = 10.0,
        *,
        test: Sequence[float] | None = None,
        kind: str = "single",
        trained: str = "fine-tuned",
        combine: str = "",
        note: str = "",
    ) -> Trial:
        return Trial(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            members=(name,) if kind == "single" else tuple(name.split(" + ")),
            combine=combine,
            trained=trained,  # type: ignore[arg-type]
            dim=512,
            validation=scores_of(values),
            test=None if test is None else scores_of(test, prefix="t"),
            timing=None if ms is None else timing_of(ms),
            note=note,
        )

    return build
