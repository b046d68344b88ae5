"""The embeddings of every candidate, each part in a file of its own so that a killed run loses at most one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lookalike.api.load_model import on_runtime
from lookalike.benchmark.candidates import Candidate
from lookalike.benchmark.run import Run
from lookalike.data.dataset import Item
from lookalike.embeddings.fit import kept_features
from lookalike.embeddings.shards import read_shard, sources_digest, write_shard
from lookalike.models.encoder import Encoder
from lookalike.models.member import TrainableEncoder
from lookalike.runtimes.bundle import load_bundle
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
    quick: Encoder | None = None
    found: dict[str, Embeddings] = {}
    for part in PARTS:
        items = run.data.split(part)
        # by the weights: a fine-tuned model that validation gave up is the frozen one, and needs no second pass
        name = "-".join(filter(None, (part, candidate.fingerprint, candidate.exported)))
        place = run.cache / f"{name}.npz"
        key = sources_digest(candidate.fingerprint, items)
        cached = read_shard(place, key, candidate.fingerprint)
        if cached is None:
            encoder = encoder or load_bundle(candidate.bundle)
            cached = _from_features(run, encoder, items) if part == "training" else None
            if cached is None:
                quick = quick or _quick(run, candidate, encoder)
                cached = quick.embed(items, progress=run.progress, task=f"{candidate.name}: {part}")
            write_shard(place, key, cached)
        found[part] = cached
    return found


def _quick(run: Run, candidate: Candidate, encoder: Encoder) -> Encoder:
    """Return the model on the requested or fastest runtime, in full precision; an exported model as it is."""
    runtime = "auto" if candidate.exported else run.runtime
    return on_runtime(encoder, run.data.items, (runtime, "auto"), run.progress, exact=True)


def _from_features(run: Run, encoder: Encoder, items: Sequence[Item]) -> Embeddings | None:
    """Apply the head to what the frozen backbone saw when the head was fitted; None where that is not kept.

    Good for the training part, which is embedded to fit alignments only: it may differ in the last bit.
    """
    member = encoder.members[0]
    if encoder.is_ensemble or not isinstance(member, TrainableEncoder):
        return None
    kept = kept_features(member, items, run.cache)
    if kept is None:
        return None
    return Embeddings(kept.ids, member.project(kept.rows), encoder.fingerprint, kept.skipped)


def skipped_files(parts: Parts) -> tuple[Skipped, ...]:
    """Return the files that some candidate could not read, each once, in the order of the parts."""
    found = {s.path: s for part in PARTS for own in parts.values() for s in own[part].skipped}
    return tuple(found.values())
