"""A head without training: the principal components of what a backbone sees in some images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookalike._files import write_file
from lookalike.embeddings.shards import sources_digest
from lookalike.errors import DataError
from lookalike.progress import SILENT, Progress
from lookalike.types import Pixels, Skipped, Vectors

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder
    from lookalike.models.engine import Computes
    from lookalike.models.member import TrainableEncoder
    from lookalike.models.stream import Source

_SHOWN = 4
"""Pictures by which it is seen whether an engine computes what torch does."""


@dataclass(frozen=True)
class Features:
    """Pooled features `(n, features)` of images by one backbone."""

    ids: tuple[str, ...]
    rows: Vectors
    skipped: tuple[Skipped, ...]


def compute_features(
    member: TrainableEncoder,
    images: Sequence[Source],
    *,
    batch_size: int | None = None,
    progress: Progress = SILENT,
    task: str,
    cache: Path | None = None,
    least: int = 2,
) -> Features:
    """Run the backbone without its head over the images.

    Args:
        member: its head is not looked at.
        images: the files.
        batch_size: images a forward pass.
        progress: told the number of images done.
        task: what to call it there.
        cache: a folder that keeps the features, by the backbone's weights and the files' names, sizes and times.
        least: how many of them must be readable.

    Raises:
        DataError: when fewer can be read.

    """
    if cache is None:
        return _compute(member, images, batch_size, progress, task, least)
    kept = kept_features(member, images, cache)
    if kept is None:
        kept = _compute(member, images, batch_size, progress, task, least)
        _write(_place(member, images, cache), kept)
    return kept


def kept_features(member: TrainableEncoder, images: Sequence[Source], cache: Path) -> Features | None:
    """Return the features that `compute_features` kept of these images; None where it has not seen them."""
    return _read(_place(member, images, cache))


def _place(member: TrainableEncoder, images: Sequence[Source], cache: Path) -> Path:
    return cache / f"features-{sources_digest(member.backbone_fingerprint, images)}.npz"


def _read(place: Path) -> Features | None:
    try:
        # opened here, since np.load leaves a damaged file open
        with place.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            skipped = zip(stored["skipped"].tolist(), stored["causes"].tolist(), strict=True)
            return Features(
                tuple(stored["ids"].tolist()), stored["rows"], tuple(Skipped(Path(p), cause) for p, cause in skipped)
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or cut short: computed anew


def _write(place: Path, features: Features) -> None:
    def fill(path: Path) -> None:
        with path.open("wb") as handle:
            np.savez(
                handle,
                ids=np.array(features.ids, dtype=np.str_),
                rows=features.rows,
                skipped=np.array([str(s.path) for s in features.skipped], dtype=np.str_),
                causes=np.array([s.cause for s in features.skipped], dtype=np.str_),
            )

    write_file(place, fill)


def _compute(
    member: TrainableEncoder,
    images: Sequence[Source],
    batch_size: int | None,
    progress: Progress,
    task: str,
    least: int,
) -> Features:
    from lookalike.models.pipeline import Pace, encode_batches
    from lookalike.models.stream import batches

    engine = _engine(member, images)
    size = engine.batch_size if batch_size is None else batch_size
    ids: list[str] = []
    rows: list[Vectors] = []
    skipped: list[Skipped] = []
    pace = Pace()
    with (
        closing(batches([images], [member.preprocessing], size)) as given,
        closing(encode_batches(given, [engine], pace)) as found,
    ):
        for batch, encoded in found:
            ids.extend(batch.ids)
            skipped.extend(batch.skipped)
            rows.extend(encoded)
            progress.step(task, batch.done, len(images), str(pace))
    if len(ids) < least:
        raise DataError(
            f"at least {least} readable images are needed to fit {member.backbone}, got {len(ids)} of {len(images)}."
        )
    joined = np.concatenate(rows) if rows else np.zeros((0, member.features_width), np.float32)
    return Features(tuple(ids), joined, tuple(skipped))


class _Torch:
    """A member's backbone, by torch."""

    in_flight = 1

    def __init__(self, member: TrainableEncoder) -> None:
        self._member = member
        self.batch_size = member.batch_size

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        rows = self._member.features(pixels)
        return lambda: rows


def _engine(member: TrainableEncoder, images: Sequence[Source]) -> Computes:
    """Return what computes the features: another engine where there are many pictures and it computes the same."""
    from lookalike.models.stream import batches
    from lookalike.runtimes.features import quick_features

    def shown() -> Pixels | None:
        with closing(batches([images[: 4 * _SHOWN]], [member.preprocessing], _SHOWN)) as given:
            return next((batch.pixels[0] for batch in given if batch.pixels), None)

    quick = quick_features(member, len(images), shown)
    return _Torch(member) if quick is None else quick


def fit_projection(member: TrainableEncoder, features: Features, *, seed: int = 0) -> None:
    """Put the principal components of training features in the member's head."""
    from lookalike.models.projection import fit_pca

    member.head.set(*fit_pca(features.rows, member.dim, seed=seed))
    member.origin["head"] = f"PCA of {len(features.ids)} images"
    member.changed()


def fitted_encoder(
    members: Sequence[TrainableEncoder],
    images: Sequence[Source],
    *,
    how: str = "aligned",
    seed: int = 0,
    skip: Callable[[Skipped], None] | None = None,
    progress: Progress = SILENT,
) -> Encoder:
    """Fit every member's head on the images (no label is used), and the alignments of an ensemble.

    Args:
        members: one, or those of an ensemble.
        images: the files.
        how: how several members are combined.
        seed: of the principal components.
        skip: is told once of each file that cannot be read.
        progress: is told what happens.

    """
    from lookalike.models.alignment import fit_alignment
    from lookalike.models.encoder import Encoder

    projected: list[dict[str, np.ndarray]] = []
    skipped: dict[Skipped, None] = {}
    for member in members:
        features = compute_features(member, images, progress=progress, task=f"fitting {member.backbone}")
        fit_projection(member, features, seed=seed)
        skipped |= dict.fromkeys(features.skipped)
        projected.append(dict(zip(features.ids, member.project(features.rows), strict=True)))
    if skip is not None:
        for one in skipped:
            skip(one)
    if len(members) == 1:
        return Encoder(members)
    shared = [i for i in projected[0] if all(i in p for p in projected)]
    stacks = [np.stack([p[i] for i in shared]) for p in projected]
    alignments = [None, *(fit_alignment(s, stacks[0]) for s in stacks[1:])] if how == "aligned" else None
    return Encoder(members, how, alignments)
