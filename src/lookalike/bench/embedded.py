"""The embeddings of every candidate, each part in a file of its own so that a killed run loses at most one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lookalike.backbones import Encoder, load_bundle
from lookalike.bench.candidates import Candidate
from lookalike.bench.run import Run
from lookalike.data import Item
from lookalike.errors import DataError
from lookalike.files import digest, write_file
from lookalike.types import Embeddings, Skipped

PARTS = ("training", "validation", "query", "gallery")

Parts = Mapping[str, Mapping[str, Embeddings]]
"""By candidate, then by part."""


def embedded(run: Run, candidate: Candidate) -> dict[str, Embeddings]:
    """Embed all parts with a candidate, or read them from the cache of an earlier sitting.

    A cached part holds for these weights and these files, told by size and time of change; what could not be read is
    in it too.
    """
    encoder: Encoder | None = None
    found: dict[str, Embeddings] = {}
    for part in PARTS:
        items = run.data.part(part)
        # by the weights: a fine-tuned model that validation gave up is the frozen one, and needs no second pass
        place = run.out / "cache" / f"{candidate.fingerprint}-{part}.npz"
        key = digest(*(f"{i.id}\t{_stamp(i)}" for i in items))
        cached = _read_cache(place, key, candidate.fingerprint)
        if cached is None:
            encoder = encoder or load_bundle(candidate.bundle)
            cached = encoder.embed(items, progress=run.progress, task=f"{candidate.name}: {part}")
            _write_cache(place, key, cached)
        found[part] = cached
    return found


def skipped_files(parts: Parts) -> tuple[Skipped, ...]:
    """Return the files that some candidate could not read, each once, in the order of the parts."""
    found = {s.path: s for part in PARTS for own in parts.values() for s in own[part].skipped}
    return tuple(found.values())


def _stamp(item: Item) -> str:
    try:
        stat = item.path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size}/{stat.st_mtime_ns}"


def _read_cache(place: Path, key: str, fingerprint: str) -> Embeddings | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            skipped = zip(stored["skipped"].tolist(), stored["causes"].tolist(), strict=True)
            return Embeddings(
                tuple(stored["ids"].tolist()),
                stored["vectors"],
                fingerprint,
                tuple(Skipped(Path(path), cause) for path, cause in skipped),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DataError):
        return None  # absent or damaged: it is made anew


def _write_cache(place: Path, key: str, embeddings: Embeddings) -> None:
    columns = {
        "ids": embeddings.ids,
        "skipped": [str(s.path) for s in embeddings.skipped],
        "causes": [s.cause for s in embeddings.skipped],
    }
    texts = {name: np.array(values, dtype=np.str_) for name, values in columns.items()}

    def fill(path: Path) -> None:
        with path.open("wb") as handle:
            np.savez(handle, key=np.array(key), vectors=embeddings.vectors, **texts)

    write_file(place, fill)
