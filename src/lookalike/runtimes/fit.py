"""Fit heads to images: the features of a backbone, the principal components of these, the alignments of an ensemble."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from lookalike._files import open_regular, require_uncompressed, write_file
from lookalike.data.dataset import sample_evenly
from lookalike.errors import DataError, LookalikeError
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder, Encoder, Ensemble
from lookalike.models.heads import fit_alignment, pca_head
from lookalike.models.info import TrainingState
from lookalike.models.pipeline import Backbone, Source, run_backbones, sources_digest
from lookalike.progress import Progress
from lookalike.runtimes import openvino
from lookalike.runtimes.load import WeightsOption, load_pretrained
from lookalike.runtimes.select import (
    MIN_IMAGES,
    AutoBackbone,
    TorchWeights,
    backbone_with_runtime,
    fixed_backbone,
    split_precision,
)
from lookalike.types import Embeddings, Skipped, Vectors

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone


FIT_IMAGES = 2000  # a head is fitted on at most this many images; more change its principal components little


@dataclass(frozen=True)
class Features:
    """Pooled features `(n, features)` of images by one backbone."""

    ids: tuple[str, ...]
    rows: Vectors
    skipped: tuple[Skipped, ...]


def project_features(encoder: Encoder, features: Features) -> Embeddings:
    """Return the embeddings that the head of an encoder makes of features of its backbone."""
    return Embeddings(features.ids, encoder.project(features.rows), encoder.fingerprint, features.skipped)


def compute_features(
    backbone: Backbone,
    images: Sequence[Source],
    *,
    progress: Progress,
    task: str,
    cache: Path | None = None,
    min_count: int = 2,
) -> Features:
    """Run a backbone over images, or read what an earlier call stored in the folder `cache`."""
    file = None if cache is None else feature_file(cache, backbone, images)
    features = None if file is None else read_features(file)
    if features is not None:
        return features
    if images:
        with closing(run_backbones([backbone], [images], batch_size=None, progress=progress, task=task)) as batches:
            batch = next(batches)
        features = Features(batch.ids, batch.features[0], batch.skipped)
    else:
        features = Features((), np.zeros((0, backbone.width), np.float32), ())
    _require_readable(len(features.ids), len(images), min_count, backbone.info.name)
    if file is not None and not any(skipped.temporary for skipped in features.skipped):
        _write_features(file, features)
    return features


def feature_file(cache: Path, backbone: Backbone, images: Sequence[Source]) -> Path:
    """Return the file in which `compute_features` keeps the features of these images."""
    return cache / f"features-{sources_digest(f'{backbone.info.fingerprint} {backbone.precision}', images)}.npz"


def read_features(file: Path) -> Features | None:
    """Read features that `compute_features` stored; None if they are missing or damaged."""
    try:
        # opened here, since np.load leaves a damaged file open
        with open_regular(file) as handle:
            require_uncompressed(handle)
            with np.load(handle, allow_pickle=False) as stored:
                skipped = zip(stored["skipped"].tolist(), stored["causes"].tolist(), strict=True)
                files = tuple(Skipped(Path(name), cause) for name, cause in skipped)
                return Features(tuple(stored["ids"].tolist()), stored["rows"], files)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_features(file: Path, features: Features) -> None:
    def write(path: Path) -> None:
        with path.open("wb") as handle:
            np.savez(
                handle,
                ids=np.array(features.ids, dtype=np.str_),
                rows=features.rows,
                skipped=np.array([str(s.path) for s in features.skipped], dtype=np.str_),
                causes=np.array([s.cause for s in features.skipped], dtype=np.str_),
            )

    write_file(file, write)


def _require_readable(readable: int, count: int, min_count: int, name: str) -> None:
    if readable < min_count:
        raise DataError(
            f"at least {min_count} readable images are needed to fit the head of {name}, got {readable} of {count}."
        )


@dataclass(frozen=True)
class FittedEncoder:
    """An encoder whose heads were fitted to images, and the features of those images."""

    encoder: AnyEncoder  # on the runtime that computed the features
    ids: tuple[str, ...]
    features: tuple[Vectors, ...]  # `(n, features)` per member
    skipped: tuple[Skipped, ...]

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Row of the features by image id."""
        return {item_id: row for row, item_id in enumerate(self.ids)}


def fit_encoder(
    backbones: Sequence[tuple[Backbone, TrainingState]], images: Sequence[Source], *, seed: int = 0, progress: Progress
) -> FittedEncoder:
    """Fit heads to the principal components of at least two images, without labels; align several to an ensemble."""
    runners = [backbone for backbone, _ in backbones]
    name = "+".join(backbone.info.name for backbone in runners)
    _require_readable(len(images), len(images), 2, name)
    task = "fitting the head"
    with closing(run_backbones(runners, [images], batch_size=None, progress=progress, task=task)) as batches:
        batch = next(batches)
    _require_readable(len(batch.ids), len(images), 2, name)
    members = tuple(
        Encoder.of(backbone, pca_head(features, seed=seed), state)
        for (backbone, state), features in zip(backbones, batch.features, strict=True)
    )
    encoder = align(members, [m.project(f) for m, f in zip(members, batch.features, strict=True)])
    return FittedEncoder(encoder, batch.ids, batch.features, batch.skipped)


def fit_pretrained(
    name: str,
    weights: WeightsOption,
    sources: Sequence[Source],
    images: Sequence[Source],
    *,
    count: int,
    runtime: str,
    precision: str,
    progress: Progress,
) -> FittedEncoder:
    """Load pretrained backbones by name, on the runtime that suits `count` images such as the sources, and fit heads.

    The heads are fitted on at most `FIT_IMAGES` of `images`.
    """
    sample = sample_evenly(sources, SAMPLE_SIZE)
    backbones = load_pretrained(name, weights)
    precisions = split_precision(precision, len(backbones))
    prepared = [
        (backbone_with_runtime(backbone, runtime, p).prepare(sample, count, progress), state)
        for (backbone, state), p in zip(backbones, precisions, strict=True)
    ]
    subset = sample_evenly(images, FIT_IMAGES, seed=0)
    progress.info(f"{name}: fitting its PCA head on {len(subset):,} of {len(images):,} images (labels are not used)")
    return fit_encoder(prepared, subset, progress=progress)


def align(members: Sequence[Encoder], embeddings: Sequence[Vectors], combination: str = "aligned") -> AnyEncoder:
    """Join encoders to an ensemble, aligned by the embeddings `(n, dim)` of the same images; return a single one."""
    if len(members) == 1:
        return members[0]
    if combination != "aligned":
        return Ensemble(tuple(members), combination)
    rotations = (None, *(fit_alignment(rows, embeddings[0]) for rows in embeddings[1:]))
    return Ensemble(tuple(members), combination, rotations)


def feature_backbone(backbone: Backbone, images: Sequence[Source], progress: Progress) -> Backbone:
    """Return a backbone that computes features for training: on OpenVINO in float32 for many images.

    A backbone on torch is returned for few images, on an accelerator, and where OpenVINO computes other features.
    """
    fixed = fixed_backbone(backbone)
    if fixed is not None:
        return backbone.prepare((), len(images), progress)
    if len(images) < MIN_IMAGES or backbone.device_type != "cpu" or not openvino.is_installed():
        return backbone
    weights = TorchWeights(cast("TorchBackbone", backbone).with_precision("float32"))
    try:
        auto = AutoBackbone(backbone.info, weights, openvino.RUNTIME, "float32")
        return auto.prepare(sample_evenly(images, SAMPLE_SIZE), len(images), progress)
    except LookalikeError:
        return backbone
