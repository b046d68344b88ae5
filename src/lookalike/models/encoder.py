"""Encoders: backbone, head and preprocessing, or several of them as an ensemble; images in, embeddings out.

Needs no torch: what executes the backbone is behind the `Backbone` protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from lookalike._files import digest
from lookalike.data.dataset import sample_evenly
from lookalike.errors import ModelError, OptionError
from lookalike.models.heads import Head
from lookalike.models.info import FINE_TUNED, BackboneInfo, EncoderInfo, TrainingState
from lookalike.models.pipeline import (
    BatchRunner,
    Bottleneck,
    ImageInput,
    Source,
    as_sources,
    decode_batches,
    run_batches,
)
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Embeddings, Pixels, Skipped, Vectors, l2_normalize

COMBINATIONS = {
    "aligned": "rotate every embedding space onto the first, average, normalise",
    "average": "average, normalise",
    "concat": "concatenate, normalise; the dimensions add up",
}
# the smallest cosine to torch's float32 embedding of the same image that a precision may have
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.98, "int8": 0.90}

SAMPLE_SIZE = 48  # images that a runtime is selected with
_GROUP_SIZE = 512


class Backbone(BatchRunner, Protocol):
    """A backbone on a runtime: uint8 pixels `(n, h, w, 3)` in, pooled features `(n, features)` out."""

    @property
    def info(self) -> BackboneInfo:
        """Architecture, preprocessing, weights and fingerprint."""

    @property
    def runtime(self) -> str:
        """The library that executes it: torch, openvino or onnxruntime; auto until one is selected."""

    @property
    def precision(self) -> str:
        """float32, bfloat16 or int8; auto until one is selected."""

    @property
    def device_type(self) -> str:
        """The type of device: cpu, cuda, ..."""

    @property
    def width(self) -> int:
        """Length of the row that it computes per image."""

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Backbone:
        """Return the backbone on the runtime that suits `count` images such as these; a concrete one returns itself."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return all weights by name, for a bundle."""


@dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """Maps images to unit-length embeddings.

    Attributes:
        info: its record in a bundle.
        backbone: what executes the backbone.
        head: the projection; None where the backbone's graph includes it (an exported encoder).

    """

    info: EncoderInfo
    backbone: Backbone
    head: Head | None

    def __repr__(self) -> str:
        return f"<Encoder: {self.name}, {self.dim} dimensions, {self.state}, runtime {self.runtime}, {self.precision}>"

    @classmethod
    def of(cls, backbone: Backbone, head: Head, state: TrainingState) -> Encoder:
        """Join a backbone and a head; `state` is untrained, frozen or fine-tuned."""
        fingerprint = head.fingerprint(backbone.info.fingerprint)
        return cls(EncoderInfo(backbone.info, len(head.bias), head.origin, state, fingerprint), backbone, head)

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.info.backbone.name

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.info.dim

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides an embedding, apart from runtime and precision."""
        return self.info.fingerprint

    @property
    def state(self) -> TrainingState:
        """Whether it is untrained, frozen or fine-tuned."""
        return self.info.state

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes pixels."""
        return self.info.backbone.preprocessing

    @property
    def runtime(self) -> str:
        """The library that executes the backbone; auto until one is selected."""
        return self.backbone.runtime

    @property
    def precision(self) -> str:
        """float32, bfloat16 or int8; auto until one is selected."""
        return self.backbone.precision

    @property
    def members(self) -> tuple[Encoder, ...]:
        """The encoder itself, as an ensemble of one."""
        return (self,)

    def project(self, features: Vectors) -> Vectors:
        """Return the embeddings `(n, dim)` of what the backbone computed."""
        return features if self.head is None else self.head(features)

    def combine(self, features: Sequence[Vectors]) -> Vectors:
        """Return the embeddings `(n, dim)` of the features of each member."""
        return self.project(features[0])

    def encode(self, pixels: Pixels) -> Vectors:
        """Return the embeddings `(n, dim)` of preprocessed pixels `(n, h, w, 3)` uint8."""
        return self.project(self.backbone.submit(pixels)())

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Encoder:
        """Return the same encoder on the runtime that suits `count` images such as these."""
        return replace(self, backbone=self.backbone.prepare(sample, count, progress))

    def embed(
        self,
        images: Iterable[Source | ImageInput],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        task: str = "embedding",
    ) -> Embeddings:
        """Embed images on the fastest runtime.

        Args:
            images: paths (the paths are the ids), items, bytes, PIL images or `(h, w, 3)` uint8 arrays.
            batch_size: images per forward pass; None lets the runtime choose.
            progress: receives the number of images done; None for a bar where a person watches, else the logger.
            task: name shown with the progress.

        Returns:
            The embeddings in the order of the images, without the unreadable files, which are listed in `.skipped`.

        Raises:
            OptionError: a single image instead of a list.

        """
        return _embed(self, images, batch_size, progress, task)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Two or more encoders whose embeddings are combined; each image is decoded once.

    Attributes:
        members: the encoders.
        combination: a key of `COMBINATIONS`.
        alignments: for `aligned`, one `(dim, dim)` orthogonal matrix per member, None for the first.

    Raises:
        ModelError: fewer than two members, members of different dimensions, or alignments that do not fit.
        OptionError: an unknown combination.

    """

    members: tuple[Encoder, ...]
    combination: str = "aligned"
    alignments: tuple[Vectors | None, ...] = ()

    def __post_init__(self) -> None:
        require_combination(self.combination)
        if len(self.members) < 2:
            raise ModelError(f"an ensemble needs at least 2 encoders, got {len(self.members)}.")
        dims = [member.dim for member in self.members]
        if self.combination != "concat" and len(set(dims)) > 1:
            raise ModelError(f"encoders must have the same dimensions to be averaged, got {', '.join(map(str, dims))}.")
        alignments = self.alignments or (None,) * len(self.members)
        object.__setattr__(self, "alignments", tuple(alignments))
        if len(alignments) != len(self.members):
            raise ModelError(f"{len(self.members)} encoders need as many alignments, got {len(alignments)}.")
        if self.combination == "aligned" and any(rotation is None for rotation in alignments[1:]):
            raise ModelError(
                "an aligned ensemble needs an alignment for every encoder but the first; fit them on training images."
            )

    def __repr__(self) -> str:
        return (
            f"<Ensemble: {self.name}, {self.combination}, {self.dim} dimensions, {self.state}, "
            f"runtime {self.runtime}, {self.precision}>"
        )

    @property
    def name(self) -> str:
        """The backbones' names, joined by `+`."""
        return "+".join(member.name for member in self.members)

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        dims = [member.dim for member in self.members]
        return sum(dims) if self.combination == "concat" else dims[0]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides an embedding, apart from runtime and precision."""
        parts: list[bytes | str] = [self.combination]
        for member, rotation in zip(self.members, self.alignments, strict=True):
            parts += [member.fingerprint, b"" if rotation is None else np.ascontiguousarray(rotation).tobytes()]
        return digest(*parts)

    @property
    def state(self) -> TrainingState:
        """Fine-tuned if any member is, else the state of the first."""
        states = [member.state for member in self.members]
        return FINE_TUNED if FINE_TUNED in states else states[0]

    @property
    def runtime(self) -> str:
        """The members' runtimes; one word where they agree."""
        return _joined(member.runtime for member in self.members)

    @property
    def precision(self) -> str:
        """The members' precisions; one word where they agree."""
        return _joined(member.precision for member in self.members)

    def combine(self, features: Sequence[Vectors]) -> Vectors:
        """Return the embeddings `(n, dim)` of the features of each member."""
        embeddings = [member.project(rows) for member, rows in zip(self.members, features, strict=True)]
        return combine(embeddings, self.combination, self.alignments)

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Ensemble:
        """Return the same ensemble on the runtimes that suit `count` images such as these."""
        return replace(self, members=tuple(member.prepare(sample, count, progress) for member in self.members))

    def embed(
        self,
        images: Iterable[Source | ImageInput],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        task: str = "embedding",
    ) -> Embeddings:
        """Embed images on the fastest runtimes; arguments, result and errors are those of `Encoder.embed`."""
        return _embed(self, images, batch_size, progress, task)


AnyEncoder = Encoder | Ensemble


def require_combination(combination: str) -> None:
    """Raise `OptionError` for an unknown combination."""
    if combination not in COMBINATIONS:
        raise OptionError(
            f"`combination` must be one of {', '.join(COMBINATIONS)}, got {combination!r}.", argument="combination"
        )


def combine(embeddings: Sequence[Vectors], combination: str, alignments: Sequence[Vectors | None]) -> Vectors:
    """Combine unit-length embeddings `(n, dim)` of the same images, one array per encoder, into unit-length rows."""
    if combination == "concat":
        return l2_normalize(np.concatenate(embeddings, axis=1))
    if combination == "aligned":
        pairs = zip(embeddings, alignments, strict=True)
        embeddings = [rows if rotation is None else rows @ rotation for rows, rotation in pairs]
    return l2_normalize(np.mean(embeddings, axis=0, dtype=np.float32))


@dataclass(frozen=True)
class FeatureBatch:
    """The features of a group of images, `(n, features)` float32 per backbone, without the unreadable files."""

    ids: tuple[str, ...]
    features: tuple[Vectors, ...]
    skipped: tuple[Skipped, ...]


def run_backbones(
    backbones: Sequence[Backbone],
    groups: Sequence[Sequence[Source]],
    *,
    batch_size: int | None,
    progress: Progress,
    task: str,
) -> Generator[FeatureBatch, None, None]:
    """Run backbones over groups of images without a pause between them, and yield each group when it is done.

    Each image is decoded once for all backbones. A group has at least one image. Progress counts the images of all
    groups.
    """
    ends = itertools.accumulate(map(len, groups))
    total = sum(map(len, groups))
    size = min(backbone.batch_size for backbone in backbones) if batch_size is None else batch_size
    bottleneck = Bottleneck()
    end = next(ends, 0)
    ids: list[str] = []
    skipped: list[Skipped] = []
    rows: list[list[Vectors]] = [[] for _ in backbones]
    with (  # threads and requests end with them, whatever happens
        closing(decode_batches(groups, [b.info.preprocessing for b in backbones], size)) as batches,
        closing(run_batches(batches, backbones, bottleneck)) as results,
    ):
        for batch, features in results:
            ids += batch.ids
            skipped += batch.skipped
            for backbone_rows, batch_rows in zip(rows, features, strict=False):
                backbone_rows.append(batch_rows)
            progress.step(task, batch.done, total, str(bottleneck))
            if batch.done == end:
                yield FeatureBatch(tuple(ids), tuple(map(_stack, rows, backbones)), tuple(skipped))
                ids, skipped, rows, end = [], [], [[] for _ in backbones], next(ends, 0)


def _stack(rows: Sequence[Vectors], backbone: Backbone) -> Vectors:
    return np.concatenate(rows) if rows else np.zeros((0, backbone.width), np.float32)


def embed_groups(
    encoder: AnyEncoder,
    groups: Sequence[Sequence[Source]],
    *,
    batch_size: int | None = None,
    progress: Progress,
    task: str,
) -> Generator[Embeddings, None, None]:
    """Embed groups of images without a pause between them, and yield each group's embeddings when it is done."""
    if not groups:
        return
    sample = [group[0] for group in sample_evenly(groups, SAMPLE_SIZE)] if len(groups) > 1 else groups[0][:SAMPLE_SIZE]
    encoder = encoder.prepare(sample, sum(map(len, groups)), progress)
    backbones = [member.backbone for member in encoder.members]
    for batch in run_backbones(backbones, groups, batch_size=batch_size, progress=progress, task=task):
        embeddings = encoder.combine(batch.features)
        yield Embeddings(batch.ids, embeddings, encoder.fingerprint, batch.skipped, encoder.precision)


def _embed(
    encoder: AnyEncoder,
    images: Iterable[Source | ImageInput],
    batch_size: int | None,
    progress: Progress | None,
    task: str,
) -> Embeddings:
    sources = as_sources(images)
    if not sources:
        return Embeddings((), np.zeros((0, encoder.dim), np.float32), encoder.fingerprint, (), encoder.precision)
    # in groups, so that the features of a few images are in memory rather than those of all
    groups = [sources[start : start + _GROUP_SIZE] for start in range(0, len(sources), _GROUP_SIZE)]
    progress = resolve_progress(progress)
    with closing(embed_groups(encoder, groups, batch_size=batch_size, progress=progress, task=task)) as results:
        parts = list(results)
    return Embeddings(
        tuple(item_id for part in parts for item_id in part.ids),
        np.concatenate([part.vectors for part in parts]),
        encoder.fingerprint,
        tuple(file for part in parts for file in part.skipped),
        parts[0].precision,
    )


def _joined(words: Iterable[str]) -> str:
    words = tuple(words)
    return words[0] if len(set(words)) == 1 else "+".join(words)
