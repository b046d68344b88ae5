"""`demo`: the whole job on photographs that a package ships, or on a user's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from lookalike._files import require_free
from lookalike.benchmark.benchmark import Benchmark, benchmark
from lookalike.data.builtin import DESCRIPTION, is_builtin, make_builtin
from lookalike.data.downloads import SOURCES, is_torchvision_name, torchvision_dataset
from lookalike.errors import DataError, StorageError
from lookalike.progress import SILENT, Progress
from lookalike.training.options import TrainingOptions

BACKBONES = ("efficientnet_lite0", "efficientnet_lite2")
OPTIONS = TrainingOptions(epochs=3, resolution=0.75)  # a few minutes on two cores
_PER_CLASS = 60
_PHOTOGRAPHS, _BENCHMARK = "photographs", "benchmark"


def demo(
    out: Path | str = "lookalike-demo", *, data: Path | str | None = None, progress: Progress = SILENT
) -> Benchmark:
    """Benchmark EfficientNet-Lite0 and -Lite2, as they come, fine-tuned and as ensembles, and pick one.

    Args:
        out: folder for the photographs and all results; an interrupted demo goes on there.
        data: a data folder, or the name of a torchvision data set; by default the built-in photographs.
        progress: is told what happens.

    Raises:
        MissingExtra: the packages with photographs or weights are not installed.
        DataError: no such folder or data set, or the download is impossible here.
        StorageError: `out` holds something else than a demo, or one of other data.

    """
    out = Path(out)
    notes: tuple[str, ...] = ()
    if data is None:
        folder, place = _builtin(out, progress), _BENCHMARK
        title = "The demo: which model finds the same scene again?"
        notes = (DESCRIPTION,)
        progress.info(DESCRIPTION)
    else:
        folder = _given(str(data), out, progress)
        place = f"{_BENCHMARK}-{folder.resolve().name}"  # beside the built-in one, each set has its own
        title = f"Which model finds best in {folder.resolve().name}?"
    return benchmark(folder, BACKBONES, out=out / place, options=OPTIONS, title=title, notes=notes, progress=progress)


def _builtin(out: Path, progress: Progress) -> Path:
    folder = out / _PHOTOGRAPHS
    _require_ours(out)
    if folder.exists() and not is_builtin(folder):
        raise StorageError(f"{folder} holds other pictures than the demo's; choose another --out, or remove it.")
    if not folder.exists():
        progress.info("cutting the demo's views from scikit-image's photographs")
        make_builtin(folder)
    return folder


def _given(data: str, out: Path, progress: Progress) -> Path:
    if Path(data).exists():
        return Path(data)
    if not is_torchvision_name(data):
        known = ", ".join(sorted((s.name for s in SOURCES.values()), key=str.lower))
        raise DataError(
            f"{data} is neither a folder nor the name of a data set that can be downloaded; the names are {known}."
        )
    folder = out / data.lower()
    if not folder.exists():
        _require_ours(out)
        progress.info(f"downloading {data} (at most {_PER_CLASS} images a class)")
        torchvision_dataset(data, folder, per_class=_PER_CLASS)
    return folder


def _require_ours(out: Path) -> None:
    """Refuse a folder that holds something else than a demo; sweep out what a demo killed half-way left behind."""
    names = (_PHOTOGRAPHS, *SOURCES)
    entries = list(out.iterdir()) if out.is_dir() else []
    halves = [p for p in entries if p.name.startswith((*(f".{name}." for name in names), ".lookalike-download-"))]
    ours = {p for p in entries if p.name in names or p.name == _BENCHMARK or p.name.startswith(f"{_BENCHMARK}-")}
    if any(p not in halves and p not in ours for p in entries) or out.is_file():
        require_free(out)
    for half in halves:
        shutil.rmtree(half, ignore_errors=True)
