"""`demo`: the whole job on images that a package ships, or on a folder of the user."""

from __future__ import annotations

import shutil
from pathlib import Path

from lookalike._files import require_free
from lookalike.benchmark.benchmark import Benchmark, benchmark
from lookalike.data.samples import DESCRIPTION, is_demo_folder, write_demo_images
from lookalike.errors import StorageError
from lookalike.progress import Progress, resolve_progress
from lookalike.training.config import TrainingOptions

DEMO_BACKBONES = ("efficientnet_lite0", "efficientnet_lite2")
DEMO_OPTIONS = TrainingOptions(epochs=3, resolution=0.75)  # a few minutes on two cores
_IMAGES, _BENCHMARK = "images", "benchmark"


def demo(
    out: Path | str = "lookalike-demo", *, data: Path | str | None = None, progress: Progress | None = None
) -> Benchmark:
    """Benchmark EfficientNet-Lite0 and -Lite2, frozen, fine-tuned and as ensembles, and select one.

    Args:
        out: folder for the images and all results; an interrupted demo resumes there.
        data: a data folder; by default the demo's own images.
        progress: receives progress and messages; default: a bar in a terminal or notebook, else the log.

    Raises:
        MissingExtra: the packages with the images or the weights are not installed.
        DataError: `data` cannot be loaded.
        StorageError: `out` contains anything but a demo.

    """
    out, progress = Path(out), resolve_progress(progress)
    notes: tuple[str, ...] = ()
    if data is None:
        folder = out / _IMAGES
        _write_images(out, folder, progress)
        progress.info(DESCRIPTION)
        name, title, notes = _BENCHMARK, "The demo: which model finds the same scene again?", (DESCRIPTION,)
    else:
        folder = Path(data)
        set_name = folder.resolve().name
        # each data set has a folder of its own
        name, title = f"{_BENCHMARK}-{set_name}", f"Which model finds best in {set_name}?"
    return benchmark(
        folder, DEMO_BACKBONES, out=out / name, options=DEMO_OPTIONS, title=title, notes=notes, progress=progress
    )


def _write_images(out: Path, folder: Path, progress: Progress) -> None:
    """Write the demo's images, unless they are there; remove what an interrupted demo wrote of them."""
    entries = list(out.iterdir()) if out.is_dir() else []
    partial = [path for path in entries if path.name.startswith(f".{_IMAGES}.")]
    demos = [path for path in entries if path.name in (_IMAGES, _BENCHMARK) or path.name.startswith(f"{_BENCHMARK}-")]
    if len(partial) + len(demos) < len(entries) or out.is_file():
        require_free(out)
    if folder.exists() and not is_demo_folder(folder):
        raise StorageError(f"{folder} contains other images than the demo's; choose another `out` or remove it.")
    for path in partial:
        shutil.rmtree(path, ignore_errors=True)
    if not folder.exists():
        progress.info("creating the demo images from scikit-image's samples")
        write_demo_images(folder)
