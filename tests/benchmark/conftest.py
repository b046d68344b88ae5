"""Benchmarks of small networks, and what makes them fast; the finished one is in `small_benchmark`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lookalike.benchmark import benchmark as benchmark_module
from lookalike.benchmark import run_trials
from lookalike.benchmark.benchmark import Benchmark, benchmark
from lookalike.benchmark.spec import BenchmarkSpec, select_measures
from lookalike.benchmark.trial import Trial
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.progress import SILENT
from small_benchmark import NAMES, OPTIONS, fake_timing


class Listener:
    """Records progress; can interrupt at a step."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.steps: list[tuple[str, int]] = []
        self.messages: list[str] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002 - the protocol's name
        self.steps.append((task, done))
        if (task, done) == self.stop_at:
            raise KeyboardInterrupt

    def info(self, text: str) -> None:
        self.messages.append(text)

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order they began."""
        return list(dict.fromkeys(task for task, _ in self.steps))


@pytest.fixture
def listener() -> type[Listener]:
    return Listener


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measured milliseconds by fixed ones."""
    monkeypatch.setattr(run_trials, "measure_timing", fake_timing)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, the slowest step."""
    monkeypatch.setattr(benchmark_module, "write_report", lambda *_, **__: None)


@pytest.fixture(scope="session")
def again(data_folder_original: Path, tiny_weights: dict[str, Path]) -> Callable[..., Benchmark]:
    """Call the benchmark with the arguments of `finished`, which can be overridden."""

    def run(out: Path, **overrides: Any) -> Benchmark:
        arguments = {"backbones": NAMES, "weights": tiny_weights, "options": OPTIONS, "title": "Benchmark"}
        arguments = {"measure": "precision@3", **arguments, **overrides}
        return benchmark(arguments.pop("data", data_folder_original), out=out, **arguments)

    return run


@pytest.fixture
def data(data_folder_original: Path) -> Dataset:
    """Load the data folder with its validation split."""
    return with_validation(load_dataset(data_folder_original))


@pytest.fixture
def make_spec(data: Dataset, finished_copy: Path, tiny_weights: dict[str, Path]) -> Callable[..., BenchmarkSpec]:
    """Return the spec of the finished benchmark on a copy of its folder, with changes."""
    names, measures = frozenset(NAMES), select_measures(data, "precision@3", OPTIONS)
    spec = BenchmarkSpec(
        data, finished_copy, tiny_weights, (), names, OPTIONS, measures, None, "auto", "Benchmark", (), SILENT
    )  # fmt: skip
    return partial(replace, spec)


@pytest.fixture
def trials(make_trial: Callable[..., Trial]) -> list[Trial]:
    """One trial of each kind: frozen, ensemble, fine-tuned and untrained."""
    half, most = [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    return [
        make_trial("lite_0 frozen", half, 8, test=[0.0, 0.0, 1.0, 0.0], state="frozen"),
        make_trial("lite_0 + lite_2 fine-tuned", most, 20, test=most, kind="ensemble", combination="aligned"),
        make_trial("lite_2 fine-tuned", half, 12, test=half),
        make_trial("random", half, 5, test=[1.0] * 4, state="untrained"),
    ]
