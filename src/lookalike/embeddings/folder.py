"""The embeddings folder while it is being made: whose it is, what can be used again, and how it becomes whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike._files import read_json, storage_errors, write_ascii_json
from lookalike.embeddings.shards import read_shard, shard_path, write_joined
from lookalike.embeddings.store import (
    FACTS,
    IDS,
    RUN,
    SHARDS,
    VECTORS,
    EmbeddingFacts,
    damaged,
    is_embeddings,
    load_embeddings,
    read_embedding_facts,
)
from lookalike.errors import FingerprintMismatch, LookalikeError, StorageError
from lookalike.models.facts import MODEL, is_bundle, read_facts
from lookalike.types import Embeddings

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder


def begun_with(out: Path, encoder: Encoder) -> tuple[EmbeddingFacts | None, int | None]:
    """Refuse a folder that is not ours to write in.

    Returns:
        What its finished embeddings say of themselves, and the shard size that it was begun with; None for what there
        is not.

    """
    old = read_embedding_facts(out) if is_embeddings(out) else None
    if old is not None:
        model, fingerprint, size = old.model, old.fingerprint, old.shard_size
    elif (out / SHARDS / RUN).is_file():
        run = read_json(out / SHARDS / RUN, "the unfinished run's description")
        try:
            model, fingerprint, size = str(run["model"]), str(run["fingerprint"]), int(run["shard_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(out, f"{SHARDS}/{RUN}") from error
    else:
        with storage_errors(out):
            foreign = out.exists() and (
                not out.is_dir() or any(p.name not in (SHARDS, MODEL) and p.name[0] != "." for p in out.iterdir())
            )
        if foreign:
            raise StorageError(f"{out} already exists and is not an embeddings folder; choose another place.")
        return None, None
    if fingerprint != encoder.fingerprint:
        raise FingerprintMismatch(
            f"{out} holds embeddings made by the model {model} ({fingerprint}), not by {encoder.name} "
            f"({encoder.fingerprint}); choose another place or remove it."
        )
    return old, size


def begin(out: Path, encoder: Encoder, size: int) -> None:
    """Say whose shards these will be, before the first one."""
    run = {
        "model": encoder.name,
        "fingerprint": encoder.fingerprint,
        "precision": encoder.precision,
        "shard_size": size,
    }
    write_ascii_json(out / SHARDS / RUN, run, indent=2)


def keep_model(encoder: Encoder, place: Path, facts: Mapping[str, Any] | None) -> None:
    """Store the encoder, unless it is there already."""
    from lookalike.runtimes.bundle import save_bundle

    if is_bundle(place):
        try:
            if read_facts(place).get("fingerprint") == encoder.fingerprint:
                return
        except LookalikeError:
            pass  # a damaged one is replaced
    save_bundle(encoder, place, facts=facts, replace=True)


class OldShards:
    """The shards of a finished folder, by digest, to be used again where the files are the same."""

    def __init__(self, out: Path, facts: EmbeddingFacts | None) -> None:
        self._fingerprint = facts.fingerprint if facts else ""
        self._places: dict[str, tuple[slice, slice]] = {}
        if facts is None:
            return
        self._all = load_embeddings(out)
        row = skipped = 0
        for shard in facts.shards:
            self._places[shard.digest] = slice(row, row + shard.rows), slice(skipped, skipped + shard.skipped)
            row, skipped = row + shard.rows, skipped + shard.skipped

    def get(self, key: str) -> Embeddings | None:
        """Return the shard with this digest, or None."""
        if key not in self._places:
            return None
        rows, skipped = self._places[key]
        every = self._all
        return Embeddings(every.ids[rows], every.vectors[rows], self._fingerprint, every.skipped[skipped])


def finish(out: Path, facts: EmbeddingFacts) -> None:
    """Join all shards; all files are written beside the shards, then moved: a full disk leaves older ones as they were.

    Until the last file is moved the folder is not finished, and every shard is still there.

    Raises:
        StorageError: when the disk does not take it, or a shard went bad meanwhile.

    """

    def shards() -> Iterator[Embeddings]:
        for number, row in enumerate(facts.shards):
            shard = read_shard(shard_path(out, number), row.digest, facts.fingerprint)
            if shard is None or len(shard) != row.rows:
                raise StorageError(f"{shard_path(out, number)} went bad; run the same command again.")
            yield shard

    made = out / SHARDS
    write_joined(made, shards(), (facts.count, facts.dim))
    write_facts(made, facts)
    with storage_errors(out):
        (out / FACTS).unlink(missing_ok=True)  # from here on the older vectors do not count any more
        for name in (VECTORS, IDS, FACTS):
            (made / name).replace(out / name)


def write_facts(out: Path, facts: EmbeddingFacts) -> None:
    """Write the file that says that the folder is whole."""
    write_ascii_json(out / FACTS, facts.to_dict(), indent=2)
