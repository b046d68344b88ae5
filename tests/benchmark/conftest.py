"""Trials made by hand, whose measures are written in the test, and benchmarks of networks small enough for one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lookalike.benchmark.benchmark import Benchmark, benchmark
from lookalike.benchmark.trial import Interval, Scores, Timing, Trial
from lookalike.training.options import TrainingOptions


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
        from_random: bool = False,
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
            from_random=from_random,
        )

    return build


NAMES = ("test_efficientnet", "test_resnet")
"""Networks of 0.1 to 0.5 million parameters."""
OPTIONS = TrainingOptions(epochs=2, batch_size=8, precision="float32", resolution=0.5)


class Listener:
    """Keeps what it is told; may raise when a step is reached."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.steps: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002 - as it is called
        self.steps.append((task, done))
        if (task, done) == self.stop_at:
            raise KeyboardInterrupt

    def info(self, text: str) -> None:
        self.said.append(text)

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order they began."""
        return list(dict.fromkeys(task for task, _ in self.steps))


def fake_timing(bundles: Sequence[Path], ways: Sequence[str], images: Sequence[Path], **how: Any) -> dict[str, Timing]:
    """Cost 10 ms a bundle, 4 more for a ResNet; average is the quickest way."""
    base = sum(14.0 if "resnet" in bundle.name else 10.0 for bundle in bundles)
    return {way: timing_of(base + {"aligned": 0.25, "concat": 0.5}.get(way, 0.0)) for way in ways}


@pytest.fixture
def listener() -> type[Listener]:
    return Listener


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights files by backbone: models made from them count as pretrained."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    with torch.random.fork_rng(devices=[]):
        for name in NAMES:
            torch.manual_seed(7)
            found[name] = folder / f"{name}.safetensors"
            save_file(timm.create_model(name, num_classes=0).state_dict(), found[name])
    return found


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put made-up milliseconds in the place of measured ones."""
    monkeypatch.setattr("lookalike.benchmark.measuring.measure_timing", fake_timing)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes the longest of all."""
    monkeypatch.setattr(sys.modules["lookalike.benchmark.benchmark"], "write_report", lambda *_: None)


@pytest.fixture(scope="session")
def finished(
    photo_folder_original: Path, tiny_weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Benchmark:
    """Return a benchmark of two backbones that nobody disturbed; never change its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookalike.benchmark.measuring.measure_timing", fake_timing)
        out = tmp_path_factory.mktemp("finished") / "run"
        return benchmark(photo_folder_original, NAMES, out=out, weights=tiny_weights, options=OPTIONS, title="Photos")


@pytest.fixture
def finished_copy(finished: Benchmark, tmp_path: Path) -> Path:
    """Copy of the finished run's folder, yours to change."""
    return Path(shutil.copytree(finished.out, tmp_path / "run"))


@pytest.fixture(scope="session")
def again(photo_folder_original: Path, tiny_weights: dict[str, Path]) -> Callable[..., Benchmark]:
    """Call the benchmark with the arguments of `finished`; any may be given."""

    def run(out: Path, **given: Any) -> Benchmark:
        arguments = {"backbones": NAMES, "weights": tiny_weights, "options": OPTIONS, "title": "Photos", **given}
        return benchmark(arguments.pop("data", photo_folder_original), out=out, **arguments)

    return run
