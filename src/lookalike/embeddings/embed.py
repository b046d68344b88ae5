"""Embedding many images into a folder, shard by shard; a run that was killed goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lookalike._strings import PackedStrings, first_duplicate
from lookalike.embeddings.folder import OldShards, begin, begun_with, finish, keep_model, write_facts
from lookalike.embeddings.shards import read_shard, shard_path, sources_digest, write_shard
from lookalike.embeddings.store import SHARDS, EmbeddingFacts, ShardRow, load_embeddings
from lookalike.errors import DataError, OptionError
from lookalike.models.facts import MODEL
from lookalike.progress import SILENT, Progress
from lookalike.types import Embeddings, Skipped

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder
    from lookalike.models.stream import Source

SHARD_SIZE = 512
TASK = "embedding"


def embed_to(  # noqa: PLR0913 - all but three by name, with defaults that fit
    images: Iterable[Source | Path | str],
    encoder: Encoder,
    out: Path | str,
    *,
    shard_size: int = SHARD_SIZE,
    batch_size: int | None = None,
    by: Encoder | None = None,
    facts: Mapping[str, Any] | None = None,
    left_out: Sequence[Skipped] = (),
    progress: Progress = SILENT,
) -> Embeddings:
    """Embed images into a folder that can be searched from without anything else.

    Called again with the same model it goes on where it was stopped, returns what is complete, and computes only the
    shards of which a file was changed, added or removed.

    Args:
        images: paths (ids are the paths as given), or items.
        encoder: makes the embeddings, and is stored beside them as a bundle.
        out: a new folder, or one that an earlier call made.
        shard_size: images in a shard, the most that a killed run loses; a folder keeps the size it was begun with.
        batch_size: images a forward pass; None for the encoder's own.
        by: the same model on another engine, which computes in its place.
        facts: further content of the bundle's description.
        left_out: what could not be given, such as folders that cannot be listed; kept with the files that are skipped.
        progress: told the number of images done.

    Returns:
        The embeddings in the order given, their vectors mapped from disk, `(n, dim)` float32.

    Raises:
        DataError: no image, an id that stands twice, or no image that can be read.
        OptionError: a shard or batch size under one.
        FingerprintMismatch: `out` holds embeddings of another model.
        StorageError: `out` holds something else, is damaged, or cannot be written.

    """
    sources = _checked(images, shard_size)
    out = Path(out)
    old, begun = begun_with(out, encoder)
    size = begun or shard_size
    cuts = [sources[start : start + size] for start in range(0, len(sources), size)]
    keys = [sources_digest(encoder.fingerprint, cut) for cut in cuts]
    root = root_of(sources)
    whole = old if old is not None and [row.digest for row in old.shards] == keys else None
    if whole is not None:
        keep_model(encoder, out / MODEL, facts)
        files = whole.skipped[: sum(row.skipped for row in whole.shards)]
        now = replace(whole, root=root, skipped=(*files, *left_out))
        if now != whole:  # the images were moved, or other folders cannot be listed
            write_facts(out, now)
    else:
        again = OldShards(out, old)  # a damaged folder is told of before anything is done to it
        if old is not None and old.root != root and None not in (old.root, root):
            progress.info(f"{out} held embeddings of the images in {old.root}; from now on it holds those in {root}")
        begin(out, by or encoder, size)
        keep_model(encoder, out / MODEL, facts)
        rows, skipped = _compute(out, by or encoder, cuts, keys, again=again, batch_size=batch_size, progress=progress)
        count = sum(row.rows for row in rows)
        if not count:
            raise DataError(f"none of the {len(sources)} images can be read, the first is {skipped[0]}.")
        new = EmbeddingFacts(
            model=encoder.name,
            fingerprint=encoder.fingerprint,
            precision=(by or encoder).precision,
            dim=encoder.dim,
            count=count,
            root=root,
            shard_size=size,
            shards=tuple(rows),
            skipped=(*skipped, *left_out),
        )
        finish(out, new)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    del sources, cuts, keys  # of a hundred thousand images they take as much as the ids that are read now
    made = load_embeddings(out)
    if whole is not None:
        progress.info(f"{out}: no image was added, removed or changed")
    return made


def root_of(sources: Sequence[Source]) -> Path | None:
    """Return the one folder that all ids are relative to, or None when there is no such folder."""
    folders = {_folder_of(source) for source in sources}
    only = folders.pop() if len(folders) == 1 else None
    return None if only is None else only.resolve()


def _folder_of(source: Source) -> Path | None:
    """Take the id off the end of the path."""
    own, whole = PurePath(source.id).parts, source.path.parts
    return Path(*whole[: -len(own)]) if own and whole[-len(own) :] == own else None


def _checked(images: Iterable[Source | Path | str], shard_size: int) -> Sequence[Source]:
    from lookalike.models.encoder import as_sources

    if shard_size < 1:
        raise OptionError(f"the shard size must be at least 1, got {shard_size}.")
    sources = as_sources(images)
    if not sources:
        raise DataError("there is no image to embed; give at least one.")
    duplicate = first_duplicate(PackedStrings(source.id for source in sources))
    if duplicate is not None:
        raise DataError(f"duplicate image {duplicate!r}: give each image once.")
    return sources


def _compute(
    out: Path,
    encoder: Encoder,
    cuts: Sequence[Sequence[Source]],
    keys: Sequence[str],
    *,
    again: OldShards,
    batch_size: int | None,
    progress: Progress,
) -> tuple[list[ShardRow], list[Skipped]]:
    """Put every shard in its place: one from before where its sources are the same, else a new one.

    What is in memory of a shard that is done is how many rows it has and which files it skipped.
    """
    total, done = sum(map(len, cuts)), 0
    told: dict[int, tuple[int, tuple[Skipped, ...]]] = {}
    missing: list[int] = []
    for number, (cut, key) in enumerate(zip(cuts, keys, strict=True)):
        path = shard_path(out, number)
        shard = read_shard(path, key, encoder.fingerprint)
        if shard is None:
            shard = again.get(key)
            if shard is None:
                missing.append(number)
                continue
            write_shard(path, key, shard)
        told[number] = len(shard), shard.skipped
        done += len(cut)
        progress.step(TASK, done, total)
    fresh = encoder.embed_each(
        [cuts[n] for n in missing], batch_size=batch_size, progress=_Part(progress, done, total), task=TASK
    )
    with ThreadPoolExecutor(1) as writer, closing(fresh):  # one shard is written while the next is computed
        writing: Future[None] | None = None
        for number, shard in zip(missing, fresh, strict=True):
            if writing is not None:
                writing.result()
            writing = writer.submit(write_shard, shard_path(out, number), keys[number], shard)
            told[number] = len(shard), shard.skipped
        if writing is not None:
            writing.result()
    found = [told[n] for n in range(len(cuts))]
    rows = [ShardRow(key, count, len(skipped)) for key, (count, skipped) in zip(keys, found, strict=True)]
    return rows, [file for _, skipped in found for file in skipped]


class _Part:
    """Reports one shard's progress as part of the whole."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self._progress.step(task, self._before + done, self._total, detail)

    def info(self, text: str) -> None:
        self._progress.info(text)
