"""Trials by hand, and a finished benchmark of two networks that are small enough for tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lookalike.benchmark import run_trials
from lookalike.benchmark.benchmark import Benchmark, benchmark
from lookalike.benchmark.timing import TimingRequest
from lookalike.benchmark.trial import Member, SplitMeasures, Timing, Trial
from lookalike.training.config import TrainingOptions
from lookalike.types import Estimate

NAMES = ("test_efficientnet", "test_resnet")  # 0.1 to 0.5 million parameters
OPTIONS = TrainingOptions(epochs=2, batch_size=8, precision="float32", resolution=0.5)


def measures_of(values: Sequence[float], *, prefix: str = "q") -> SplitMeasures:
    """Return measures with these values of precision@3; its interval is 0.1 to both sides of the mean."""
    mean = sum(values) / len(values)
    hit = [float(v > 0) for v in values]
    share = sum(hit) / len(hit)
    measures = {
        "precision@3": Estimate(mean, mean - 0.1, mean + 0.1),
        "hit@3": Estimate(share, share - 0.1, share + 0.1),
        "hit@1": Estimate(share / 2, 0.0, 1.0),
        "map@r": Estimate(mean / 2, 0.0, 1.0),
    }
    ids = tuple(f"{prefix}{n:03}" for n in range(len(values)))
    return SplitMeasures(measures, len(values), 2, 50, {"precision@3": tuple(values), "hit@3": tuple(hit)}, ids)


def timing_of(ms: float) -> Timing:
    """Return a timing with the median `ms`; p95 is 1.5 times, batched half of it."""
    return Timing(ms, 1.5 * ms, 0.2 * ms, 0.8 * ms, ms / 2, 32, 900.0, 100, 2, "cpu")


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
        state: str = "fine-tuned",
        combination: str = "",
        note: str = "",
        from_random: bool = False,
        members: Mapping[str, str] | None = None,  # state by name
    ) -> Trial:
        return Trial(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            members=tuple(Member(m, "", s) for m, s in (members or {name: state}).items()),  # type: ignore[arg-type]
            combination=combination,
            state=state,  # type: ignore[arg-type]
            dim=512,
            validation=measures_of(values),
            test=None if test is None else measures_of(test, prefix="t"),
            timing=None if ms is None else timing_of(ms),
            note=note,
            from_random=from_random,
        )

    return build


def fake_timing(request: TimingRequest) -> dict[str, Timing]:
    """Cost 10 ms per bundle, 14 ms for a ResNet; average is the fastest combination."""
    base = sum(14.0 if "resnet" in bundle.name else 10.0 for bundle in request.bundles)
    return {c: timing_of(base + {"aligned": 0.25, "concat": 0.5}.get(c, 0.0)) for c in request.combinations}


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights files by backbone, which count as pretrained."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    with torch.random.fork_rng(devices=[]):
        for name in NAMES:
            torch.manual_seed(7)
            files[name] = folder / f"{name}.safetensors"
            save_file(timm.create_model(name, num_classes=0).state_dict(), files[name])
    return files


@pytest.fixture(scope="session")
def finished(
    data_folder_original: Path, tiny_weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Benchmark:
    """Run a benchmark of two backbones without interruption; never change its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_trials, "measure_timing", fake_timing)
        out = tmp_path_factory.mktemp("finished") / "run"
        options = {"weights": tiny_weights, "options": OPTIONS, "measure": "precision@3", "title": "Benchmark"}
        return benchmark(data_folder_original, NAMES, out=out, **options)  # type: ignore[arg-type]


@pytest.fixture
def finished_copy(finished: Benchmark, tmp_path: Path) -> Path:
    """Copy the folder of the finished benchmark, for a test to change."""
    return Path(shutil.copytree(finished.out, tmp_path / "run"))
