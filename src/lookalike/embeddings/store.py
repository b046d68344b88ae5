"""The embeddings folder once it is finished: vectors that can be mapped, ids, and what made them.

- `vectors.npy`: float32 (n, dim), unit length
- `ids.json`: n ids, row by row, each in a line of its own
- `embeddings.json`: format, model, fingerprint, shards, skipped files; written last, so it says that the rest is whole
- `model/`: the bundle of the encoder
- `shards/`: only while the folder is being made
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import read_json, reading_errors
from lookalike._strings import PackedStrings, read_json_lines
from lookalike.errors import DataError, LookalikeError, StorageError
from lookalike.types import Embeddings, Skipped, Vectors

FORMAT = 1
FACTS = "embeddings.json"
IDS = "ids.json"
VECTORS = "vectors.npy"
SHARDS = "shards"
RUN = "run.json"


@dataclass(frozen=True)
class ShardRow:
    """One shard's part of the vectors: the digest of its sources, its rows, and how many files it skipped."""

    digest: str
    rows: int
    skipped: int


@dataclass(frozen=True)
class EmbeddingFacts:
    """What `embeddings.json` says.

    Attributes:
        model: the encoder's name.
        fingerprint: the encoder's.
        precision: that it computed in, as `Encoder.precision`.
        dim: dimensions of a vector.
        count: number of vectors.
        root: the folder that every id is relative to; None where there is no such folder.
        shard_size: sources in a shard.
        shards: in the order of the rows.
        skipped: files that could not be read, in the order of the shards, then what else was left out.

    """

    model: str
    fingerprint: str
    precision: str
    dim: int
    count: int
    root: Path | None
    shard_size: int
    shards: tuple[ShardRow, ...]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON; `from_dict` takes it back."""
        return {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "dim": self.dim,
            "count": self.count,
            "root": None if self.root is None else str(self.root),
            "skipped": skipped_rows(self.skipped),
            "shard_size": self.shard_size,
            "shards": [asdict(row) for row in self.shards],
            "complete": True,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EmbeddingFacts:
        """Undo `to_dict`; a missing or odd field raises what Python raises."""
        return cls(
            model=str(value["model"]),
            fingerprint=str(value["fingerprint"]),
            precision=str(value.get("precision", "float32")),  # before there was another
            dim=int(value["dim"]),
            count=int(value["count"]),
            root=None if value["root"] is None else Path(value["root"]),
            shard_size=int(value["shard_size"]),
            shards=tuple(ShardRow(**row) for row in value["shards"]),
            skipped=skipped_files(value["skipped"]),
        )


def skipped_rows(skipped: Iterable[Skipped]) -> list[dict[str, str]]:
    """Return skipped files as plain structures for JSON."""
    return [{"path": str(s.path), "cause": s.cause} for s in skipped]


def skipped_files(rows: Iterable[Mapping[str, str]]) -> tuple[Skipped, ...]:
    """Undo `skipped_rows`."""
    return tuple(Skipped(Path(row["path"]), row["cause"]) for row in rows)


def is_embeddings(path: Path | str) -> bool:
    """Whether a folder holds finished embeddings."""
    return (Path(path) / FACTS).is_file()


def is_unfinished(path: Path | str) -> bool:
    """Whether a folder holds embeddings that are still being made, or whose making was stopped."""
    return not is_embeddings(path) and (Path(path) / SHARDS / RUN).is_file()


def read_embedding_facts(path: Path | str) -> EmbeddingFacts:
    """Read what made the embeddings in a folder.

    Raises:
        StorageError: no embeddings folder, one that is not finished, of another format, or damaged.

    """
    path = Path(path)
    if not is_embeddings(path):
        if is_unfinished(path):
            raise StorageError(
                f"{path} holds embeddings that are not finished; run the same 'lookalike embed' again to finish them."
            )
        raise StorageError(
            f"{path} is not an embeddings folder: it has no {FACTS}; make one with 'lookalike embed IMAGES --out DIR'."
        )
    value = read_json(path / FACTS, "the embeddings' description")
    got = value.get("format") if isinstance(value, dict) else None
    if got != FORMAT:
        raise StorageError(
            f"{path} has embeddings format {got}, this version reads {FORMAT}; update lookalike or embed again."
        )
    try:
        return EmbeddingFacts.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{FACTS}: {type(error).__name__} {error}") from error


def begun_precision(path: Path | str) -> str | None:
    """Return what the embeddings in a folder, finished or not, are computed in; None where none were begun."""
    path = Path(path)
    if is_embeddings(path):
        return read_embedding_facts(path).precision
    if is_unfinished(path):
        run = read_json(path / SHARDS / RUN, "the unfinished run's description")
        return str(run.get("precision", "float32")) if isinstance(run, dict) else None
    return None


def load_embeddings(path: Path | str, *, mmap: bool = True) -> Embeddings:
    """Load a finished embeddings folder.

    Args:
        path: made by `embed_to`.
        mmap: leave the vectors on disk and read what is used; else load all.

    Raises:
        StorageError: no embeddings folder, one that is not finished, of another format, or damaged.

    """
    path = Path(path)
    facts = read_embedding_facts(path)
    vectors = read_vectors(path, mmap=mmap)
    if vectors.shape != (facts.count, facts.dim):
        raise damaged(path, f"{VECTORS} has the shape {vectors.shape}, not {(facts.count, facts.dim)}")
    ids = _read_ids(path)
    if len(ids) != facts.count:
        raise damaged(path, f"{IDS} holds {len(ids)} ids for {facts.count} vectors")
    try:
        return Embeddings(ids, vectors, facts.fingerprint, facts.skipped, facts.precision)
    except DataError as error:
        raise damaged(path, str(error).rstrip(".")) from error


def _read_ids(path: Path) -> PackedStrings:
    with reading_errors(path / IDS, "the embeddings' ids"), (path / IDS).open(encoding="utf-8") as file:
        try:
            return read_json_lines(file)
        except ValueError as error:
            raise damaged(path, f"{IDS}: {error}") from error


def read_vectors(path: Path, *, mmap: bool = True) -> Vectors:
    """Open the vectors of an embeddings folder.

    Raises:
        StorageError: missing, cut short, or no float32 array.

    """
    try:
        vectors = np.load(path / VECTORS, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, f"{VECTORS}: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise damaged(path, f"{VECTORS} is no float32 array")
    return vectors.view(np.ndarray)


def damaged(path: Path, what: str) -> LookalikeError:
    """Return the error for a folder whose content does not fit together."""
    return StorageError(f"the embeddings in {path} are damaged ({what}); remove the folder and embed again.")
