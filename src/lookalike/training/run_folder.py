"""The folder next to a bundle in which an unfinished training keeps its checkpoints. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from lookalike._files import require_free, require_writable
from lookalike.errors import StorageError
from lookalike.models.bundle import is_bundle
from lookalike.progress import SILENT, Progress


def run_folder(bundle: Path) -> Path:
    """Return the folder of the run that writes a bundle."""
    return bundle.with_name(f"{bundle.name}.training")


def prepare_run_folder(bundle: Path, *, resume: bool, replace: bool, progress: Progress = SILENT) -> Path:
    """Check that the bundle can be written, and return the folder next to it for checkpoints."""
    require_writable(bundle, "out")
    folder = run_folder(bundle)
    if not ((replace or resume) and is_bundle(bundle)):  # nothing else is replaced
        require_free(bundle, replaceable=is_bundle(bundle))
    if folder.exists() and not resume:
        raise StorageError(
            f"{folder} has an unfinished run; use `resume` to continue it, or remove the folder to start again.",
            argument="resume",
        )
    if resume and not folder.exists() and not is_bundle(bundle):
        progress.info(f"no unfinished run next to {bundle}; starting a new one")
    return folder
