"""Pairs of candidates, combined from the embeddings that their members already have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from lookalike._files import digest
from lookalike.benchmark.candidates import Candidate, together
from lookalike.benchmark.embedded import Parts
from lookalike.benchmark.trial import Trained
from lookalike.errors import DataError
from lookalike.models.alignment import fit_alignment
from lookalike.models.encoder import Encoder, combine
from lookalike.runtimes.bundle import load_bundle
from lookalike.types import Embeddings, Vectors

WAYS = ("aligned", "average", "concat")
_MEASURED = ("validation", "query", "gallery")


@dataclass(frozen=True)
class Pair:
    """Two candidates whose embeddings are combined.

    Attributes:
        first, second: the candidates.
        how: aligned, average or concat.

    """

    first: Candidate
    second: Candidate
    how: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.first.name} + {self.second.name}, {self.how}"

    @property
    def trained(self) -> Trained:
        """Untrained when a member is; fine-tuned when a member is; else frozen."""
        return together({self.first.trained, self.second.trained})

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.first.dim + self.second.dim if self.how == "concat" else self.first.dim


def pairs(candidates: Sequence[Candidate]) -> list[Pair]:
    """Return every pair of single candidates in every way; given ensembles are not paired again.

    Nor is a model that was exported with one that was not: no bundle can hold both.
    """
    singles = [c for c in candidates if not c.is_ensemble]
    fitting = [(a, b) for a, b in combinations(singles, 2) if a.exported == b.exported]
    return [Pair(a, b, how) for a, b in fitting for how in WAYS if a.dim == b.dim or how == "concat"]


def alignment_of(pair: Pair, parts: Parts) -> Vectors | None:
    """Fit the second member's rotation onto the first, on training embeddings only; None when not aligned.

    Raises:
        DataError: when the members have fewer than two training images in common.

    """
    if pair.how != "aligned":
        return None
    first, second = parts[pair.first.name]["training"], parts[pair.second.name]["training"]
    shared = _shared(first, second)
    if len(shared) < 2:
        raise DataError(
            f"aligning {pair.name} needs at least 2 training images that both members read, got {len(shared)}."
        )
    return fit_alignment(second.take(shared).vectors, first.take(shared).vectors)


def pair_parts(pair: Pair, parts: Parts) -> dict[str, Embeddings]:
    """Combine two members' embeddings of every part that is measured; costs no forward pass."""
    alignment = alignment_of(pair, parts)
    return {part: _combined(pair, alignment, part, parts) for part in _MEASURED}


def _combined(pair: Pair, alignment: Vectors | None, part: str, parts: Parts) -> Embeddings:
    first, second = parts[pair.first.name][part], parts[pair.second.name][part]
    shared = _shared(first, second)
    vectors = combine([first.take(shared).vectors, second.take(shared).vectors], pair.how, [None, alignment])
    key = digest(first.fingerprint, second.fingerprint, pair.how, b"" if alignment is None else alignment.tobytes())
    return Embeddings(shared, vectors, key)


def _shared(first: Embeddings, second: Embeddings) -> tuple[str, ...]:
    """Ids that both have: one of them may have met a file while it could not be read."""
    kept = set(second.ids)
    return tuple(i for i in first.ids if i in kept)


def joined_encoder(pair: Pair, parts: Parts) -> Encoder:
    """Load both members as one encoder that embeds as `pair_parts` combines."""
    members = [*load_bundle(pair.first.bundle).members, *load_bundle(pair.second.bundle).members]
    return Encoder(members, pair.how, [None, alignment_of(pair, parts)])
