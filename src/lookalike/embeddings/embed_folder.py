"""Embed many images into a folder, shard by shard; a run that was stopped resumes."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import overload

import numpy as np
import numpy.typing as npt

from lookalike._files import storage_errors, write_json
from lookalike._strings import PackedStrings, first_duplicate
from lookalike.data.dataset import sample_evenly
from lookalike.embeddings.folder import (
    RUN_FILE,
    SHARDS_FOLDER,
    EmbeddingsInfo,
    RunInfo,
    is_embeddings,
    load_embeddings,
    read_embeddings_info,
    read_run,
    write_embeddings_info,
)
from lookalike.embeddings.shards import Shard, StoredVectors, finish_join, join_shards, shard_path, write_shard
from lookalike.errors import DataError, FingerprintMismatch, LookalikeError, OptionError, StorageError
from lookalike.models.bundle import MODEL_FOLDER, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder
from lookalike.models.info import BundleInfo
from lookalike.models.pipeline import Keys, Source, image_keys, run_backbones
from lookalike.progress import Progress
from lookalike.reranking.reranker import Reranker
from lookalike.runtimes.fit import FittedEncoder
from lookalike.types import Embeddings, Skipped, Vectors

SHARD_SIZE = 512
TASK = "embedding"


@dataclass(frozen=True)
class _Job:
    """The arguments of `embed_folder`, and the keys of the images."""

    sources: Sequence[Source]
    keys: Keys
    encoder: AnyEncoder
    out: Path
    info: BundleInfo | None
    reranker: Reranker | None
    skipped: Sequence[Skipped]
    shard_size: int
    batch_size: int | None
    computed: FittedEncoder | None
    progress: Progress


def embed_folder(  # noqa: PLR0913 - all but three by name
    sources: Sequence[Source],
    encoder: AnyEncoder,
    out: Path,
    *,
    info: BundleInfo | None = None,
    reranker: Reranker | None = None,
    skipped: Sequence[Skipped] = (),
    computed: FittedEncoder | None = None,
    allow_removals: bool = False,
    shard_size: int = SHARD_SIZE,
    batch_size: int | None = None,
    progress: Progress,
) -> Embeddings:
    """Embed images into a folder, with the model next to the embeddings, and return them memory-mapped.

    Called again with the same model it resumes where it was stopped, and computes only the images that were added or
    changed. The embeddings of images that are gone are removed; `allow_removals` allows it even if most are gone, or
    all of a folder. A runtime is selected only if there is an image to compute; those of `computed`, the features that
    the encoder's heads were fitted on, are not. `info` and `reranker` are further content of the bundle, `skipped` what
    is not among the images, such as folders that cannot be listed. A killed run loses at most one shard.
    """
    _require_images(sources, shard_size)
    require_embeddings_of(encoder, out)
    finish_join(out)
    keys = image_keys(sources)
    job = _Job(sources, keys, encoder, out, info, reranker, skipped, shard_size, batch_size, computed, progress)
    unchanged = _update(job, allow_removals=allow_removals)
    shutil.rmtree(out / SHARDS_FOLDER, ignore_errors=True)
    del sources, keys, job  # of 100,000 images they take as much memory as the ids that are read now
    embeddings = load_embeddings(out)
    if unchanged:
        progress.info(f"{out} is up to date: no image was added, removed or changed")
    return embeddings


def _update(job: _Job, *, allow_removals: bool) -> bool:
    """Let a folder hold the embeddings of exactly these images; return whether it did already."""
    finished = read_embeddings_info(job.out) if is_embeddings(job.out) else None
    stored = StoredVectors(job.out, finished)
    rows = stored.find(job.keys)
    missing = [row for row in np.flatnonzero(rows < 0).tolist() if int(job.keys[row]) not in stored.failed]
    root = root_of(job.sources)
    is_same = finished is not None and np.array_equal(rows[rows >= 0], np.arange(finished.count))
    if finished is not None and not missing and is_same and job.keys[rows < 0].tolist() == list(finished.failed):
        _store_model(job)
        current = replace(finished, root=root, retried=tuple(job.skipped))
        if current != finished:  # the images were moved, or other folders cannot be listed
            write_embeddings_info(job.out, current)
        return True
    if finished is not None:
        removed = _removed_ids(job.sources, rows, stored.complete.ids)
        _report_changes(job, removed, finished, root, allowed=allow_removals)
    _embed_missing(job, np.array(missing, np.int64), stored, root)
    return False


def _embed_missing(job: _Job, missing: npt.NDArray[np.int64], stored: StoredVectors, root: Path | None) -> None:
    """Embed the images at some positions, and join them with what is stored of the others."""
    if len(missing):
        sample = sample_evenly(job.sources, SAMPLE_SIZE)
        job = replace(job, encoder=job.encoder.prepare(sample, len(job.sources), job.progress))
    earlier, encoder = read_run(job.out), job.encoder
    run = RunInfo(encoder.name, encoder.fingerprint, encoder.precision)
    if earlier is not None and not len(missing):
        run = earlier
    _store_model(job)  # first: a head that was fitted must not be fitted again
    write_json(job.out / SHARDS_FOLDER / RUN_FILE, asdict(run))
    retried = _compute_shards(job, missing, stored)
    rows = stored.find(job.keys)
    failed = {key: stored.failed[key] for key in job.keys[rows < 0].tolist() if key in stored.failed}
    readable = np.flatnonzero(rows >= 0)
    if not len(readable):
        first = (*failed.values(), *retried)[0]
        raise DataError(f"none of the {len(job.sources)} images can be read (first: {first}).", argument="images")
    result = EmbeddingsInfo(run, encoder.dim, len(readable), root, failed, (*retried, *job.skipped))
    ids = (job.sources[position].id for position in readable.tolist())
    join_shards(job.out, result, ids, job.keys[readable], rows[readable], stored)


def require_embeddings_of(encoder: AnyEncoder, out: Path) -> None:
    """Refuse a folder that holds something else than embeddings of this encoder, unless it is empty or missing."""
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
    elif run.fingerprint != encoder.fingerprint:
        raise FingerprintMismatch(
            f"{out} holds embeddings of the model {run.model} ({run.fingerprint}), not of {encoder.name} "
            f"({encoder.fingerprint}); choose another `out`, or remove the folder.",
            argument="out",
        )


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


def _removed_ids(sources: Sequence[Source], rows: npt.NDArray[np.int64], ids: Sequence[str]) -> list[str]:
    """Return the ids that have embeddings and no image any more; an image that changed has its id still."""
    same = np.zeros(len(ids), bool)
    same[rows[(rows >= 0) & (rows < len(ids))]] = True
    gone = np.flatnonzero(~same).tolist()
    if not gone:
        return []
    new = {sources[position].id for position in np.flatnonzero((rows < 0) | (rows >= len(ids))).tolist()}
    return [item_id for item_id in (ids[row] for row in gone) if item_id not in new]


def _report_changes(
    job: _Job, removed: Sequence[str], finished: EmbeddingsInfo, root: Path | None, *, allowed: bool
) -> None:
    """Report images that are gone, or come from another folder; `DataError` if whole folders or most images are gone.

    They may be on a disk that is not mounted today.
    """
    moved = finished.root != root and None not in (finished.root, root)
    folders = _folders(removed) - _folders(source.id for source in job.sources) if removed else set()
    if not allowed and (folders or 2 * len(removed) > finished.count):
        details = f"first: {removed[0]}"
        if folders:
            first = min(folders, key=lambda folder: (folder.count("/"), folder))
            others = f" and {len(folders) - 1} others" if len(folders) > 1 else ""
            details = f"among them all of the folder {first}{others}"
        origin = f"{finished.root}; the images are now those of {root}" if moved else root or "the images"
        raise DataError(
            f"{len(removed)} of the {finished.count} embedded images in {job.out} are gone from {origin} ({details}); "
            "make them available again, or pass `allow_removals` to remove their embeddings.",
            argument="allow_removals",
        )
    if moved:
        job.progress.info(
            f"{job.out} held embeddings of the images in {finished.root}; they are replaced by those of {root}"
        )
    if removed:
        noun = "embedded image is" if len(removed) == 1 else "embedded images are"
        job.progress.info(f"{len(removed)} {noun} gone and removed from {job.out} (first: {removed[0]})")


def _folders(ids: Iterable[str]) -> set[str]:
    """Return the folders that the ids are in, and the folders of these."""
    nearest = {item_id.rpartition("/")[0] for item_id in ids}
    return {str(folder) for path in nearest for folder in (PurePath(path), *PurePath(path).parents)} - {".", "/"}


class _Subset(Sequence[Source]):
    """Images at some positions of a sequence, 8 bytes per image."""

    def __init__(self, sources: Sequence[Source], positions: npt.NDArray[np.int64]) -> None:
        self._sources = sources
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> _Subset: ...
    def __getitem__(self, index: int | slice) -> Source | _Subset:
        if isinstance(index, slice):
            return _Subset(self._sources, self.positions[index])
        return self._sources[int(self.positions[index])]


def _store_model(job: _Job) -> None:
    """Save the encoder, unless it is there already."""
    folder = job.out / MODEL_FOLDER
    if is_bundle(folder):
        try:
            if read_bundle_info(folder).fingerprint == job.encoder.fingerprint:
                return
        except LookalikeError:
            pass  # a damaged bundle is replaced
    save_bundle(job.encoder, folder, job.info, reranker=job.reranker, replace_existing=True)


def _compute_shards(job: _Job, missing: npt.NDArray[np.int64], stored: StoredVectors) -> list[Skipped]:
    """Compute the images at some positions, shard by shard; return the files that could not be read for now."""
    shards = [
        _Subset(job.sources, missing[start : start + job.shard_size])
        for start in range(0, len(missing), job.shard_size)
    ]
    retried: list[Skipped] = []
    computed = _embed_shards(job, shards, len(job.sources) - len(missing))
    with ThreadPoolExecutor(1) as writer, closing(computed):  # one shard is written while the next is computed
        pending: Future[None] | None = None
        for sources, embeddings in zip(shards, computed, strict=True):
            if pending is not None:
                pending.result()
            shard, number = Shard.of(sources, job.keys[sources.positions], embeddings), stored.next_number
            pending = writer.submit(write_shard, shard_path(job.out, number), shard)
            stored.add(number, shard)
            retried += [file for file in embeddings.skipped if file.temporary]
        if pending is not None:
            pending.result()
    return retried


def _embed_shards(job: _Job, shards: Sequence[Sequence[Source]], done: int) -> Generator[Embeddings, None, None]:
    """Yield the embeddings of each shard; only images whose features are not computed yet are decoded."""
    rows = {} if job.computed is None else job.computed.rows
    missing = [[source for source in shard if source.id not in rows] if rows else shard for shard in shards]
    total = len(job.sources)
    done += sum(map(len, shards)) - sum(map(len, missing))
    job.progress.step(TASK, done, total)
    batches = run_backbones(
        [member.backbone for member in job.encoder.members],
        [shard for shard in missing if shard],
        batch_size=job.batch_size,
        progress=job.progress,
        task=TASK,
        done=done,
        total=total,
    )
    with closing(batches):
        for shard, rest in zip(shards, missing, strict=True):
            ids: tuple[str, ...] = ()
            skipped: tuple[Skipped, ...] = ()
            features: Sequence[Vectors] = [np.zeros((0, m.backbone.width), np.float32) for m in job.encoder.members]
            if rest:
                batch = next(batches)
                ids, features, skipped = batch.ids, batch.features, batch.skipped
            if job.computed is not None and len(rest) < len(shard):
                ids, features = _merge(shard, ids, features, job.computed)
            vectors = job.encoder.combine(features)
            yield Embeddings(ids, vectors, job.encoder.fingerprint, skipped, job.encoder.precision)


def _merge(
    shard: Sequence[Source], ids: Sequence[str], features: Sequence[Vectors], earlier: FittedEncoder
) -> tuple[tuple[str, ...], list[Vectors]]:
    rows = {item_id: row for row, item_id in enumerate(ids)}
    order = [source.id for source in shard if source.id in rows or source.id in earlier.rows]
    merged = [
        np.stack([new[rows[i]] if i in rows else old[earlier.rows[i]] for i in order]) if order else new
        for new, old in zip(features, earlier.features, strict=True)
    ]
    return tuple(order), merged
