"""What stays the same all through one benchmark, and the folder that belongs to it alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike._files import digest, file_digest, read_json, write_json
from lookalike.benchmark.trial import hit_beside
from lookalike.data.dataset import Dataset
from lookalike.errors import OptionError, StorageError
from lookalike.evaluation.evaluation import DEFAULT_MEASURES
from lookalike.evaluation.measures import Measure
from lookalike.progress import Progress
from lookalike.training.options import TrainingOptions
from lookalike.training.tracking.tracked import UNTRACKED, Tracked

_DESCRIPTION = "run.json"


def slug(name: str) -> str:
    """Return a file name for a candidate's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


@dataclass(frozen=True)
class Run:
    """One benchmark.

    Attributes:
        data: with its validation part.
        out: the folder for everything.
        options: of the training.
        measures: what is taken on every trial; the first is the one to choose by.
        progress: is told what happens.
        tracked: is told of each epoch.
        runtime: what computes embeddings, in float32: auto, torch, openvino or onnxruntime.

    """

    data: Dataset
    out: Path
    options: TrainingOptions
    measures: tuple[str, ...]
    progress: Progress
    tracked: Tracked = UNTRACKED
    runtime: str = "auto"

    @property
    def cache(self) -> Path:
        """Folder of features and embeddings, which can be made again."""
        return self.out / "cache"

    def member(self, backbone: str, kind: str) -> Path:
        """Return where the bundle of a backbone is kept; `kind` is frozen or fine-tuned."""
        return self.out / "members" / f"{slug(backbone)}-{kind}"

    def claim(self, weights: Mapping[str, str | Path]) -> None:
        """Make the folder this run's own, or see that it already is: backbones may join, what was used may not change.

        Args:
            weights: by backbone.

        Raises:
            StorageError: the folder holds something else, or a benchmark of other data, options or weights.

        """
        place = self.out / _DESCRIPTION
        facts = self._facts(weights)
        if not place.is_file():
            _require_unused(self.out)
            write_json(place, facts)
            return
        stored = read_json(place, "the description of the benchmark run")
        before = stored.get("weights") if isinstance(stored, dict) else None
        if not isinstance(before, dict):
            raise StorageError(f"{place} is not the description of a benchmark; choose another --out or remove it.")
        differs = [name.replace("_", " ") for name in facts if name != "weights" and stored.get(name) != facts[name]]
        differs += [f"weights of {b}" for b, mark in facts["weights"].items() if before.get(b, mark) != mark]
        if differs:
            raise StorageError(
                f"{self.out} holds a benchmark with other {' and '.join(differs)}; choose another --out or remove it."
            )
        if not facts["weights"].keys() <= before.keys():
            write_json(place, {**stored, "weights": {**before, **facts["weights"]}})

    def _facts(self, weights: Mapping[str, str | Path]) -> dict[str, Any]:
        data = self.data
        return {
            "training_data": data.fingerprint,
            "validation_images": digest(*(i.id for i in data.validation)),
            "test_data": digest(*(f"{i.id}\t{i.label}\t{i.split}" for i in (*data.query, *data.gallery))),
            "options": self.options.to_dict(),
            "weights": {backbone: _mark(given) for backbone, given in weights.items()},
        }


def _mark(weights: str | Path) -> str:
    path = Path(weights)
    return file_digest(path) if path.is_file() else str(weights)


def _require_unused(out: Path) -> None:
    """Raise `StorageError` when the folder holds anything; half a description that a killed run left does not count."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(not p.name.startswith(f".{_DESCRIPTION}.") for p in out.iterdir()):
        raise StorageError(f"{out} is not empty and holds no benchmark; choose another --out.")


def measures_for(
    data: Dataset, measure: str, options: TrainingOptions, readable: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Return what to take: the measure to choose by, hit@k of its k, and the usual ones that fit into the parts.

    Args:
        data: with its validation part, where every image is searched for among all the others.
        measure: to choose by.
        options: their measure decides early stopping.
        readable: number of images in validation and gallery that every candidate could read, once that is known.

    Raises:
        OptionError: for an unknown measure, or one that looks deeper than validation or gallery are.

    """
    counts = {"validation": len(data.validation), "gallery": len(data.gallery), **(readable or {})}
    sizes = {"validation, where an image is not its own hit,": counts["validation"] - 1}
    if data.test_is_labelled:
        sizes["the gallery"] = counts["gallery"]
    where, least = min(sizes.items(), key=lambda found: found[1])
    chosen = Measure.parse(measure)
    for wanted in (chosen, Measure.parse(options.stop_on)):
        if wanted.min_gallery > least:
            raise OptionError(
                f"{wanted} needs {wanted.min_gallery} hits, but {where} has only {max(least, 0)} images to find; "
                "choose a smaller k or give more images."
            )
    usual = [m for m in map(Measure.parse, (hit_beside(chosen), *DEFAULT_MEASURES)) if m.min_gallery <= least]
    return tuple(dict.fromkeys(str(m) for m in (chosen, *usual)))
