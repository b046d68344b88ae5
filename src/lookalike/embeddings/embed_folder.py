"""Embed many images into a folder, shard by shard; a run that was stopped resumes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from lookalike._files import storage_errors, write_json
from lookalike._strings import PackedStrings, first_duplicate
from lookalike.data.dataset import sample_evenly
from lookalike.embeddings.folder import (
    RUN_FILE,
    SHARDS_FOLDER,
    EmbeddingsInfo,
    FinishedShards,
    RunInfo,
    ShardInfo,
    is_embeddings,
    join_shards,
    load_embeddings,
    read_embeddings_info,
    read_run,
    read_shard,
    shard_digest,
    shard_path,
    write_embeddings_info,
    write_shard,
)
from lookalike.errors import DataError, FingerprintMismatch, LookalikeError, OptionError, StorageError
from lookalike.models.bundle import MODEL_FOLDER, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder
from lookalike.models.info import BundleInfo
from lookalike.models.pipeline import Source, run_backbones, sources_digest
from lookalike.progress import Progress
from lookalike.runtimes.fit import FittedEncoder
from lookalike.types import Embeddings, Skipped, Vectors

SHARD_SIZE = 512
TASK = "embedding"


@dataclass(frozen=True)
class _Run:
    """The arguments of `embed_folder` that computing its shards needs."""

    sources: Sequence[Source]
    encoder: AnyEncoder
    out: Path
    batch_size: int | None
    computed: FittedEncoder | None
    progress: Progress


def embed_folder(  # noqa: PLR0913 - all but three by name
    sources: Sequence[Source],
    encoder: AnyEncoder,
    out: Path,
    *,
    info: BundleInfo | None = None,
    skipped: Sequence[Skipped] = (),
    computed: FittedEncoder | None = None,
    shard_size: int = SHARD_SIZE,
    batch_size: int | None = None,
    progress: Progress,
) -> Embeddings:
    """Embed images into a folder, with the model next to the embeddings.

    Called again with the same model it resumes where it was stopped, returns what is complete, and computes only the
    shards of which a file was changed, added or removed.

    Args:
        sources: the images.
        encoder: it is stored next to the embeddings as a bundle; its runtime is selected only if there is an image to
            compute.
        out: a new folder, or one that an earlier call made.
        info: further content of the bundle's record.
        skipped: what is not among the images, such as folders that cannot be listed; stored with the skipped files.
        computed: the features that the encoder's heads were fitted on; these images are not computed again.
        shard_size: images per shard, the most that a killed run loses; a folder keeps the size it was started with.
        batch_size: images per forward pass; None lets the runtime choose.
        progress: receives the number of images done.

    Returns:
        The embeddings in the order of the images, memory-mapped.

    Raises:
        DataError: no image, a duplicate id, or no image that can be read.
        OptionError: a shard or batch size below one.
        FingerprintMismatch: `out` holds embeddings of another model.
        StorageError: `out` holds something else, is damaged, or cannot be written.

    """
    _require_images(sources, shard_size)
    size = started_shard_size(out, encoder) or shard_size
    finished = read_embeddings_info(out) if is_embeddings(out) else None
    shards = _split_into_shards(sources, size, {shard.first for shard in finished.shards} if finished else ())
    keys = [sources_digest(encoder.fingerprint, shard) for shard in shards]
    root = root_of(sources)
    unchanged = finished is not None and [shard.digest for shard in finished.shards] == keys
    if finished is not None and unchanged:
        _store_model(encoder, out / MODEL_FOLDER, info)
        files = finished.skipped[: sum(shard.skipped for shard in finished.shards)]
        current = replace(finished, root=root, skipped=(*files, *skipped))
        if current != finished:  # the images were moved, or other folders cannot be listed
            write_embeddings_info(out, current)
    else:
        reusable = FinishedShards(out, finished)  # reports a damaged folder before anything is done to it
        if finished is not None and finished.root != root and None not in (finished.root, root):
            progress.info(
                f"{out} held embeddings of the images in {finished.root}; they are replaced by those of {root}"
            )
        encoder = encoder.prepare(sample_evenly(sources, SAMPLE_SIZE), len(sources), progress)
        run = RunInfo(encoder.name, encoder.fingerprint, encoder.precision, size)
        _store_model(encoder, out / MODEL_FOLDER, info)  # first: a head that was fitted must not be fitted again
        write_json(out / SHARDS_FOLDER / RUN_FILE, asdict(run))
        job = _Run(sources, encoder, out, batch_size, computed, progress)
        rows, unreadable = _compute_shards(job, shards, keys, reusable)
        count = sum(row.rows for row in rows)
        if not count:
            raise DataError(
                f"none of the {len(sources)} images can be read (first: {unreadable[0]}).", argument="images"
            )
        join_shards(out, EmbeddingsInfo(run, encoder.dim, count, root, tuple(rows), (*unreadable, *skipped)))
    shutil.rmtree(out / SHARDS_FOLDER, ignore_errors=True)
    del sources, shards, keys  # of 100,000 images they take as much memory as the ids that are read now
    embeddings = load_embeddings(out)
    if unchanged:
        progress.info(f"{out} is up to date: no image was added, removed or changed")
    return embeddings


def started_shard_size(out: Path, encoder: AnyEncoder) -> int | None:
    """Refuse a folder that holds something else; return the shard size that it was started with, if it was."""
    run = read_run(out)
    if run is None:
        with storage_errors(out):
            foreign = out.exists() and (
                not out.is_dir()
                or any(p.name not in (SHARDS_FOLDER, MODEL_FOLDER) and p.name[0] != "." for p in out.iterdir())
            )
        if foreign:
            raise StorageError(
                f"{out} already exists and is not a folder of embeddings; choose another `out`.", argument="out"
            )
        return None
    if run.fingerprint != encoder.fingerprint:
        raise FingerprintMismatch(
            f"{out} holds embeddings of the model {run.model} ({run.fingerprint}), not of {encoder.name} "
            f"({encoder.fingerprint}); choose another `out`, or remove the folder.",
            argument="out",
        )
    return run.shard_size


def root_of(sources: Sequence[Source]) -> Path | None:
    """Return the one folder that all ids but absolute paths are relative to, or None if there is no such folder."""
    folders: set[Path | None] = set()
    for source in sources:
        if PurePath(source.id).is_absolute():
            continue
        id_parts, path_parts = PurePath(source.id).parts, source.path.parts
        ends_with_id = id_parts and path_parts[-len(id_parts) :] == id_parts
        folders.add(Path(*path_parts[: -len(id_parts)]) if ends_with_id else None)
    folder = folders.pop() if len(folders) == 1 else None
    return None if folder is None else folder.resolve()


def _require_images(sources: Sequence[Source], shard_size: int) -> None:
    if shard_size < 1:
        raise OptionError(f"`shard_size` must be at least 1, got {shard_size}.", argument="shard_size")
    if not sources:
        raise DataError("there are no images to embed; pass at least one.", argument="images")
    duplicate = first_duplicate(PackedStrings(source.id for source in sources))
    if duplicate is not None:
        raise DataError(f"duplicate image {duplicate!r}; pass each image once.", argument="images")


def _split_into_shards(sources: Sequence[Source], size: int, first_ids: Collection[str]) -> list[Sequence[Source]]:
    """Split images into shards of at most `size`.

    A shard of the complete folder starts at the same image again, so that an added image changes one shard, not all
    that follow.
    """
    starts = [0]
    for position, source in enumerate(sources):
        if position > starts[-1] and (position == starts[-1] + size or source.id in first_ids):
            starts.append(position)
    return [sources[start:end] for start, end in itertools.pairwise([*starts, len(sources)])]


def _store_model(encoder: AnyEncoder, folder: Path, info: BundleInfo | None) -> None:
    """Save the encoder, unless it is there already."""
    if is_bundle(folder):
        try:
            if read_bundle_info(folder).fingerprint == encoder.fingerprint:
                return
        except LookalikeError:
            pass  # a damaged bundle is replaced
    save_bundle(encoder, folder, info, replace_existing=True)


def _compute_shards(
    run: _Run, shards: Sequence[Sequence[Source]], keys: Sequence[str], reusable: FinishedShards
) -> tuple[list[ShardInfo], list[Skipped]]:
    """Write every shard, computing those that are missing; only counts and skipped files stay in memory."""
    done = 0
    results: dict[int, tuple[int, tuple[Skipped, ...]]] = {}
    missing: list[int] = []
    for number, (sources, key) in enumerate(zip(shards, keys, strict=True)):
        path = shard_path(run.out, number)
        shard = read_shard(path, key, run.encoder.fingerprint)
        if shard is None:
            shard = reusable.get(key)
            if shard is None:
                missing.append(number)
                continue
            write_shard(path, key, shard)
        results[number] = len(shard), shard.skipped
        done += len(sources)
        run.progress.step(TASK, done, len(run.sources))
    computed = _embed_shards(run, [shards[number] for number in missing], done)
    with ThreadPoolExecutor(1) as writer, closing(computed):  # one shard is written while the next is computed
        pending: Future[None] | None = None
        for number, shard in zip(missing, computed, strict=True):
            if pending is not None:
                pending.result()
            pending = writer.submit(write_shard, shard_path(run.out, number), keys[number], shard)
            results[number] = len(shard), shard.skipped
        if pending is not None:
            pending.result()
    ordered = [results[number] for number in range(len(shards))]
    infos = [
        ShardInfo(shard_digest(key, skipped), sources[0].id, count, len(skipped))
        for key, sources, (count, skipped) in zip(keys, shards, ordered, strict=True)
    ]
    return infos, [file for _, skipped in ordered for file in skipped]


def _embed_shards(run: _Run, shards: Sequence[Sequence[Source]], done: int) -> Generator[Embeddings, None, None]:
    """Yield the embeddings of each shard; only images whose features are not computed yet are decoded."""
    rows = {} if run.computed is None else run.computed.rows
    missing = [[source for source in shard if source.id not in rows] if rows else shard for shard in shards]
    total = len(run.sources)
    done += sum(map(len, shards)) - sum(map(len, missing))
    run.progress.step(TASK, done, total)
    batches = run_backbones(
        [member.backbone for member in run.encoder.members],
        [shard for shard in missing if shard],
        batch_size=run.batch_size,
        progress=run.progress,
        task=TASK,
        done=done,
        total=total,
    )
    with closing(batches):
        for shard, rest in zip(shards, missing, strict=True):
            ids: tuple[str, ...] = ()
            skipped: tuple[Skipped, ...] = ()
            features: Sequence[Vectors] = [np.zeros((0, m.backbone.width), np.float32) for m in run.encoder.members]
            if rest:
                batch = next(batches)
                ids, features, skipped = batch.ids, batch.features, batch.skipped
            if run.computed is not None and len(rest) < len(shard):
                ids, features = _merge(shard, ids, features, run.computed)
            vectors = run.encoder.combine(features)
            yield Embeddings(ids, vectors, run.encoder.fingerprint, skipped, run.encoder.precision)


def _merge(
    shard: Sequence[Source], ids: Sequence[str], features: Sequence[Vectors], earlier: FittedEncoder
) -> tuple[tuple[str, ...], list[Vectors]]:
    """Merge new features and those that were computed earlier, in the order of the shard."""
    rows = {item_id: row for row, item_id in enumerate(ids)}
    order = [source.id for source in shard if source.id in rows or source.id in earlier.rows]
    merged = [
        np.stack([new[rows[i]] if i in rows else old[earlier.rows[i]] for i in order]) if order else new
        for new, old in zip(features, earlier.features, strict=True)
    ]
    return tuple(order), merged
