"""Encoders: backbone, head and preprocessing, or several of them as an ensemble; images in, embeddings out.

Needs no torch: what executes the backbone is behind the `Backbone` protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image

from lookalike._arguments import checked_arguments
from lookalike._files import digest
from lookalike.data.dataset import sample_evenly
from lookalike.errors import ModelError, OptionError
from lookalike.models.heads import Head
from lookalike.models.info import EncoderInfo, TrainingState, joint_state
from lookalike.models.pipeline import Backbone, ImageInput, Source, as_sources, run_backbones
from lookalike.models.preprocessing import Crop, CropResult, Preprocessing
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Embeddings, Pixels, Skipped, Vectors, l2_normalize

COMBINATIONS = {
    "aligned": "rotate every embedding space onto the first, average, normalise",
    "average": "average, normalise",
    "concat": "concatenate, with weights if there are any, normalise; the dimensions add up",
}
SAMPLE_SIZE = 48  # images that a runtime is selected with
_GROUP_SIZE = 512
_WEIGHTS_TOLERANCE = 1e-6


class _Process:
    """The process that made an encoder; a copy that is unpickled belongs to the process that unpickles it."""

    def __init__(self) -> None:
        self.number = os.getpid()

    def __reduce__(self) -> tuple[type[_Process], tuple[()]]:
        return _Process, ()

    def require_current(self) -> None:
        """Raise `ModelError` in a forked process: the threads of a runtime do not exist there, and it would hang."""
        if os.getpid() != self.number:
            raise ModelError(
                f"the encoder was made in process {self.number}, and its fork, process {os.getpid()}, cannot use it; "
                'start processes with multiprocessing.get_context("spawn"), and load the encoder in each.'
            )


@dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """Maps images to unit-length embeddings.

    Attributes:
        info: its record in a bundle.
        backbone: what executes the backbone.
        head: the projection; None if the backbone's graph includes it (an exported encoder).
    """

    info: EncoderInfo
    backbone: Backbone
    head: Head | None
    _process: _Process = field(default_factory=_Process)

    def __repr__(self) -> str:
        return f"<Encoder: {self.name}, {self.dim} dimensions, {self.state}, runtime {self.runtime}, {self.precision}>"

    @classmethod
    def of(cls, backbone: Backbone, head: Head, state: TrainingState) -> Encoder:
        """Join a backbone and a head; `state` says what was trained."""
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
        """What was trained: untrained, frozen, frozen + trained head, or fine-tuned."""
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
        self._process.require_current()
        return self.project(self.backbone.submit(pixels)())

    def with_crop(self, crop: Callable[[Image.Image], CropResult], *, name: str) -> Encoder:
        """Return an encoder that embeds only a part of each image, such as what a detector finds.

        It is another model with another fingerprint, unless this one was made with a crop of that name: only the name
        is stored, in bundles and indexes, which need the crop again when they embed images.

        Args:
            crop: gets each image as a PIL image in RGB, in full size, and returns the part of it, or its box (left,
                top, right, bottom) in pixels, or None for the whole image. One thread at a time calls it.
            name: changes whenever the crops change; part of the fingerprint.

        Raises:
            OptionError: `crop` is not callable, or `name` is empty.
            ModelError: the encoder was exported with another crop, or without one.
        """
        backbone = self.backbone.with_preprocessing(replace(self.preprocessing, crop=Crop(name, crop)))
        if self.preprocessing.crop == name:
            return replace(self, info=replace(self.info, backbone=backbone.info), backbone=backbone)
        if self.head is None:
            raise ModelError(
                f"{self.name} was exported {'with another crop' if self.preprocessing.crop else 'without a crop'}; add "
                f"the crop {name!r} to the bundle that it was exported from, and export that."
            )
        return Encoder.of(backbone, self.head, self.state)

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Encoder:
        """Return the same encoder on the runtime that suits `count` images such as these."""
        self._process.require_current()
        return replace(self, backbone=self.backbone.prepare(sample, count, progress))

    @checked_arguments(images="if it is a single image, put it in a list")
    def embed(
        self: AnyEncoder,
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
            progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.
            task: name shown with the progress.

        Returns:
            The embeddings in the order of the images, without the unreadable files, which are listed in `.skipped`.

        Raises:
            OptionError: a single image instead of a list.
        """
        sources = as_sources(images)
        if not sources:
            return Embeddings((), np.zeros((0, self.dim), np.float32), self.fingerprint, (), self.precision)
        progress = resolve_progress(progress)
        encoder = self.prepare(sample_evenly(sources, SAMPLE_SIZE), len(sources), progress)
        backbones = [member.backbone for member in encoder.members]
        # in groups, so that the features of a few images are in memory rather than those of all
        groups = [sources[start : start + _GROUP_SIZE] for start in range(0, len(sources), _GROUP_SIZE)]
        ids: list[str] = []
        vectors: list[Vectors] = []
        skipped: list[Skipped] = []
        with closing(run_backbones(backbones, groups, batch_size=batch_size, progress=progress, task=task)) as batches:
            for batch in batches:
                ids += batch.ids
                vectors.append(encoder.combine(batch.features))
                skipped += batch.skipped
        return Embeddings(tuple(ids), np.concatenate(vectors), encoder.fingerprint, tuple(skipped), encoder.precision)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Two or more encoders whose embeddings are combined; each image is decoded once.

    Attributes:
        members: the encoders.
        combination: a key of `COMBINATIONS`.
        alignments: for `aligned`, one `(dim, dim)` orthogonal matrix per member, None for the first.
        weights: for `concat`, the part of each member in the cosine, summing to 1; empty for equal parts.

    Raises:
        ModelError: fewer than two members, members of different dimensions, or alignments or weights that do not fit.
        OptionError: an unknown combination.
    """

    members: tuple[Encoder, ...]
    combination: str = "aligned"
    alignments: tuple[Vectors | None, ...] = ()
    weights: tuple[float, ...] = ()

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
        if self.weights:
            _require_weights(self.weights, self.combination, len(self.members))
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
        return digest(*parts, *map(repr, self.weights))

    @property
    def state(self) -> TrainingState:
        """`untrained` if any member is; `mixed` if they differ; else the state that all have."""
        return joint_state({member.state for member in self.members})

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
        return combine(embeddings, self.combination, self.alignments, self.weights)

    def with_crop(self, crop: Callable[[Image.Image], CropResult], *, name: str) -> Ensemble:
        """Return an ensemble that embeds only a part of each image; see `Encoder.with_crop`."""
        return replace(self, members=tuple(member.with_crop(crop, name=name) for member in self.members))

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Ensemble:
        """Return the same ensemble on the runtimes that suit `count` images such as these."""
        return replace(self, members=tuple(member.prepare(sample, count, progress) for member in self.members))

    embed = Encoder.embed  # of each image one embedding, on the fastest runtimes


AnyEncoder = Encoder | Ensemble


def require_combination(combination: str) -> None:
    """Raise `OptionError` for an unknown combination."""
    if combination not in COMBINATIONS:
        raise OptionError(
            f"`combination` must be one of {', '.join(COMBINATIONS)}, got {combination!r}.", argument="combination"
        )


def _require_weights(weights: Sequence[float], combination: str, members: int) -> None:
    valid = len(weights) == members and all(0 < w <= 1 for w in weights) and abs(sum(weights) - 1) < _WEIGHTS_TOLERANCE
    if combination != "concat" or not valid:
        raise ModelError(
            f"weights are for the combination concat, one above 0 for each of {members} encoders, with a sum of 1, got "
            f"{', '.join(f'{w:g}' for w in weights)} for {combination}."
        )


def combine(
    embeddings: Sequence[Vectors], combination: str, alignments: Sequence[Vectors | None], weights: Sequence[float] = ()
) -> Vectors:
    """Combine unit-length embeddings `(n, dim)` of the same images, one array per encoder, into unit-length rows.

    With weights, which are for `concat`, the cosine of the result is the weighted mean of the encoders' cosines.
    """
    if combination == "concat":
        if weights:
            embeddings = [np.float32(weight**0.5) * rows for weight, rows in zip(weights, embeddings, strict=True)]
        return l2_normalize(np.concatenate(embeddings, axis=1))
    if combination == "aligned":
        pairs = zip(embeddings, alignments, strict=True)
        embeddings = [rows if rotation is None else rows @ rotation for rows, rotation in pairs]
    return l2_normalize(np.mean(embeddings, axis=0, dtype=np.float32))


def _joined(words: Iterable[str]) -> str:
    words = tuple(words)
    return words[0] if len(set(words)) == 1 else "+".join(words)
