"""Embeddings of every split of a data set, kept in a folder so that a later run reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeGuard

from lookalike.data.dataset import Dataset, Item, Split, sample_evenly
from lookalike.embeddings.shards import Shard, read_shard, write_shard
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder, Encoder
from lookalike.models.info import FINE_TUNED
from lookalike.models.pipeline import image_keys
from lookalike.progress import Progress
from lookalike.runtimes.fit import compute_features, feature_file, project_features, read_features
from lookalike.types import Embeddings

SPLITS = (Split.TRAINING, Split.VALIDATION, Split.QUERY, Split.GALLERY)


def embed_splits(
    data: Dataset,
    load: Callable[[], AnyEncoder],
    fingerprint: str,
    *,
    cache: Path,
    name: str,
    progress: Progress,
    kind: str = "",
    share_features: bool = False,
) -> dict[str, Embeddings]:
    """Embed all splits, or read them from the folder `cache`; `load` returns the encoder, if something is embedded.

    A cached split is valid for the same weights and the same files, compared by size and time of change. `kind` is
    runtime and precision of an exported encoder, which its fingerprint does not include. `share_features` also keeps
    the features of a frozen backbone, which its other heads then use; the last bit of an embedding may then differ from
    that of `Encoder.embed`.
    """
    encoder: AnyEncoder | None = None
    embeddings: dict[str, Embeddings] = {}
    by_keys: dict[bytes, Embeddings] = {}
    for split in SPLITS:
        items = data.split(split)
        # by fingerprint: a fine-tuned model that validation reset is the frozen one, and is not embedded again
        path = cache / f"{'-'.join(filter(None, (split, fingerprint, kind)))}.npz"
        keys = image_keys(items)
        stored = by_keys.get(keys.tobytes())  # leave-one-out: of both splits
        shard = read_shard(path) if stored is None else None
        if shard is not None:
            stored = shard.embeddings(items, keys, fingerprint)
        if stored is None:
            if encoder is None:
                encoder = load().prepare(sample_evenly(data.items, SAMPLE_SIZE), len(data.items), progress)
            task = f"{name}: {split}"
            if share_features and _is_frozen(encoder):
                features = compute_features(
                    encoder.backbone, items, progress=progress, task=task, cache=cache, min_count=0
                )
                stored = project_features(encoder, features)
            elif split == Split.TRAINING:  # it fits the alignments, for which the last bit does not matter
                stored = _from_features(cache, encoder, items)
            if stored is None:
                stored = encoder.embed(items, progress=progress, task=task)
            write_shard(path, Shard.of(items, keys, stored))
        embeddings[split] = by_keys[keys.tobytes()] = stored
    return embeddings


def _is_frozen(encoder: AnyEncoder) -> TypeGuard[Encoder]:
    return isinstance(encoder, Encoder) and encoder.head is not None and encoder.state != FINE_TUNED


def _from_features(cache: Path, encoder: AnyEncoder, items: Sequence[Item]) -> Embeddings | None:
    """Apply the head to the cached features of a frozen backbone; None if there are none."""
    if not isinstance(encoder, Encoder) or encoder.head is None:
        return None
    features = read_features(feature_file(cache, encoder.backbone, items))
    return None if features is None else project_features(encoder, features)
