"""The encoder: one member, or several whose embeddings are combined."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from lookalike._files import digest
from lookalike.errors import ModelError, OptionError
from lookalike.models.engine import Engine
from lookalike.models.pipeline import Pace, encode_batches
from lookalike.models.stream import File, Files, Source, batches
from lookalike.progress import SILENT, Progress
from lookalike.types import Embeddings, Skipped, Vectors, l2_normalize

_Found = tuple[list[Vectors], tuple[str, ...], tuple[Skipped, ...]]
"""Each member's embeddings `(n, dim)`, the ids, and what was skipped."""

COMBINATIONS = {
    "aligned": "rotate every space onto the first, average, normalise",
    "average": "average as they are, normalise",
    "concat": "join end to end, normalise; the size adds up",
}


def require_combination(how: str) -> None:
    """Raise `OptionError` for an unknown way of combining."""
    if how not in COMBINATIONS:
        raise OptionError(f"a combination must be one of {', '.join(COMBINATIONS)}, got {how!r}.")


def combine(parts: Sequence[Vectors], how: str, alignments: Sequence[Vectors | None]) -> Vectors:
    """Combine unit-length embeddings `(n, dim)` of the same images, one array a member, into unit-length rows."""
    if how == "concat":
        return l2_normalize(np.concatenate(parts, axis=1))
    if how == "aligned":
        parts = [part if r is None else part @ r for part, r in zip(parts, alignments, strict=True)]
    return l2_normalize(np.mean(parts, axis=0, dtype=np.float32))


def joint_fingerprint(fingerprints: Sequence[str], how: str, alignments: Sequence[Vectors | None]) -> str:
    """Return the fingerprint of an encoder whose members have these."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    parts: list[bytes | str] = [how]
    for fingerprint, alignment in zip(fingerprints, alignments, strict=True):
        parts += [fingerprint, b"" if alignment is None else alignment.tobytes()]
    return digest(*parts)


class Encoder:
    """Turns images into embeddings.

    Args:
        members: one, or two and more for an ensemble, each on its engine.
        how: for an ensemble, one of `COMBINATIONS`.
        alignments: for `aligned`, one `(dim, dim)` orthogonal matrix a member, None for the first.

    Raises:
        ModelError: without members, or with members of different sizes.
        OptionError: for an unknown combination.

    """

    def __init__(
        self, members: Sequence[Engine], how: str = "aligned", alignments: Sequence[Vectors | None] | None = None
    ) -> None:
        if not members:
            raise ModelError("an encoder needs at least one member, got none.")
        require_combination(how)
        if how != "concat" and len({m.dim for m in members}) > 1:
            raise ModelError(
                f"members must have one size to be averaged, got {', '.join(str(m.dim) for m in members)}."
            )
        self.members = tuple(members)
        self.how = how
        self.alignments = tuple(alignments) if alignments is not None else (None,) * len(self.members)
        if len(self.alignments) != len(self.members):
            raise ModelError(
                f"an encoder of {len(self.members)} members needs as many alignments, got {len(self.alignments)}."
            )
        if how == "aligned" and any(r is None for r in self.alignments[1:]):
            raise ModelError(
                "an aligned ensemble needs an alignment for every member but the first; "
                "fit them on training embeddings."
            )

    @property
    def name(self) -> str:
        """The members' backbones, joined by plus signs."""
        return "+".join(m.backbone for m in self.members)

    @property
    def is_ensemble(self) -> bool:
        """Whether there is more than one member."""
        return len(self.members) > 1

    @property
    def dim(self) -> int:
        """Number of dimensions of an embedding."""
        dims = [m.dim for m in self.members]
        return sum(dims) if self.is_ensemble and self.how == "concat" else dims[0]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that decides an embedding."""
        return joint_fingerprint([m.fingerprint for m in self.members], self.how, self.alignments)

    @property
    def precision(self) -> str:
        """What is computed in: one word, or one for each member, joined by plus signs, where they differ."""
        own = [m.precision for m in self.members]
        return own[0] if len(set(own)) == 1 else "+".join(own)

    def combine(self, parts: Sequence[Vectors]) -> Vectors:
        """Combine the members' embeddings, one `(n, dim)` array each."""
        return parts[0] if not self.is_ensemble else combine(parts, self.how, self.alignments)

    def embed(
        self,
        images: Iterable[Source | Path | str],
        *,
        batch_size: int | None = None,
        progress: Progress = SILENT,
        task: str = "embedding",
    ) -> Embeddings:
        """Embed images; each file is decoded once, whatever the number of members.

        Args:
            images: paths (ids are the paths as given), or catalogue items.
            batch_size: images a forward pass; None for what suits the engine.
            progress: told the number of images done.
            task: what to call it there.

        Returns:
            Embeddings in the order given, without the unreadable files, which are listed in `.skipped`.

        """
        parts, ids, skipped = self.embed_members(images, batch_size=batch_size, progress=progress, task=task)
        return Embeddings(ids, self.combine(parts), self.fingerprint, skipped, self.precision)

    def embed_members(
        self,
        images: Iterable[Source | Path | str],
        *,
        batch_size: int | None = None,
        progress: Progress = SILENT,
        task: str = "embedding",
    ) -> tuple[list[Vectors], tuple[str, ...], tuple[Skipped, ...]]:
        """Return each member's own embeddings `(n, dim)` before they are combined, the ids, and what was skipped."""
        sources = as_sources(images)
        (found,) = self._each_by_member([sources], batch_size, progress, task) if sources else [self._nothing()]
        return found

    def embed_each(
        self,
        groups: Sequence[Sequence[Source]],
        *,
        batch_size: int | None = None,
        progress: Progress = SILENT,
        task: str = "embedding",
    ) -> Generator[Embeddings, None, None]:
        """Embed groups of images without a pause between them, and yield each group's embeddings when it is done.

        Args:
            groups: of one image and more.
            batch_size: images a forward pass; None for what suits the engine.
            progress: told the number of images done, of all groups.
            task: what to call it there.

        """
        for parts, ids, skipped in self._each_by_member(groups, batch_size, progress, task):
            yield Embeddings(ids, self.combine(parts), self.fingerprint, skipped, self.precision)

    def _each_by_member(
        self, groups: Sequence[Sequence[Source]], batch_size: int | None, progress: Progress, task: str
    ) -> Generator[_Found, None, None]:
        """Yield the members' own embeddings of each group."""
        ends = list(itertools.accumulate(map(len, groups)))
        wanted, size = [m.preprocessing for m in self.members], self._size(batch_size)
        pace, parts, ids, skipped = Pace(), *self._nothing()
        left = iter(ends)
        end = next(left, 0)
        with (  # threads and requests end with them, whatever happens
            closing(batches(groups, wanted, size)) as given,
            closing(encode_batches(given, self.members, pace)) as found,
        ):
            rows: list[list[Vectors]] = [[p] for p in parts]
            for batch, encoded in found:
                ids += batch.ids
                skipped += batch.skipped
                for row, vectors in zip(rows, encoded, strict=False):
                    row.append(vectors)
                progress.step(task, batch.done, ends[-1], str(pace))
                if batch.done == end:
                    yield [np.concatenate(row) for row in rows], ids, skipped
                    rows, (_, ids, skipped), end = [[p] for p in parts], self._nothing(), next(left, 0)

    def _nothing(self) -> _Found:
        return [np.zeros((0, m.dim), np.float32) for m in self.members], (), ()

    def _size(self, given: int | None) -> int:
        return min(m.batch_size for m in self.members) if given is None else given


def split_precision(precision: str, members: int) -> list[str]:
    """Return an encoder's precision for each of its members.

    Raises:
        OptionError: for another number of them.

    """
    parts = precision.split("+")
    if len(parts) not in (1, members):
        raise OptionError(f"precision {precision} is of {len(parts)} members, the model has {members}.")
    return parts * members if len(parts) == 1 else parts


def as_sources(images: Iterable[Source | Path | str]) -> Sequence[Source]:
    """Give plain paths an id; items keep theirs."""
    if isinstance(images, Files):
        return images
    if isinstance(images, str | Path):
        raise OptionError(f"embed takes a list of images, got the single path {images}; put it in a list.")
    return [File(str(i), Path(i)) if isinstance(i, str | Path) else i for i in images]
