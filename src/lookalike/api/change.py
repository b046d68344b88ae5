"""`add`, `remove`, `update` and `sync`: change an index in place; images are embedded by the model in the index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import file_digest
from lookalike.api.index import images_to_index
from lookalike.api.queries import query_id
from lookalike.api.search import LoadedIndex, load_index
from lookalike.data.folders import require_folder
from lookalike.errors import DataError, OptionError, renamed_argument
from lookalike.index.index import Index
from lookalike.index.store import UNCHANGED, FileState, IndexedItem, ItemMetadata, Unchanged, existing_ids
from lookalike.models.pipeline import File, ImageInput, InMemoryImage, Source, as_sources
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Embeddings, Skipped

_CHUNK = 512  # images embedded and added together, the most that an interrupted run loses


@dataclass(frozen=True)
class Changed:
    """What was changed in an index.

    Attributes:
        added: ids of new items.
        replaced: ids of items whose image, label or metadata is new.
        removed: ids of items that are gone.
        unchanged: number of images in the folder that are as they were.
        skipped: files that could not be read; items that they have already are kept.
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {
            "added": list(self.added),
            "replaced": list(self.replaced),
            "removed": list(self.removed),
            "unchanged": self.unchanged,
            "skipped": [{"path": str(file.path), "cause": file.cause} for file in self.skipped],
        }


@checked_arguments(images="if it is a single image, put it in a list", ids="if it is a single id, put it in a list")
def add(
    index: LoadedIndex | Path | str,
    images: Iterable[ImageInput],
    *,
    ids: Sequence[str] | None = None,
    label: str | None = None,
    metadata: ItemMetadata | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Changed:
    """Add images to an index; the next search finds them.

    Args:
        index: a folder from `lookalike index`, or what `load_index` returned.
        images: as in `search`.
        ids: one per image; None for their paths, relative to the root of the index where they are below it.
        label: of all these images.
        metadata: of all these images.
        replace: replace items that exist; without it that is an error.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        DataError: an item exists, or an image in memory has no id.
        OptionError: no image, not as many ids, or metadata that no filter can compare.
        ModelError: the model of the index is missing or damaged.
        StorageError: not an index, or one that cannot be written.
    """
    sources = as_sources(images)
    if not sources or (ids is not None and len(ids) != len(sources)):
        needed = "at least one image, got none" if not sources else f"as many as `ids`, {len(ids or ())}"
        raise OptionError(f"`images` must hold {needed}.", argument="images")
    loaded = index if isinstance(index, LoadedIndex) else load_index(index)
    named = {}
    for number, source in enumerate(sources):
        if ids is None and isinstance(source, InMemoryImage):
            raise DataError("an image in memory needs an id; pass `ids`.", argument="ids")
        item = _item_id(source.path, loaded.index) if ids is None else ids[number]
        named[item] = (
            InMemoryImage(item, source.image) if isinstance(source, InMemoryImage) else File(item, source.path)
        )
    existing = {item.id for item in loaded.index.get_all(list(named)) if item is not None}
    if existing and not replace:
        raise existing_ids(existing, len(named))
    labels = {} if label is None else dict.fromkeys(named, label)
    progress = resolve_progress(progress)
    item_metadata = dict.fromkeys(named, metadata or {})
    written, skipped = _embed_and_add(loaded, list(named.values()), labels, item_metadata, progress)
    if loaded.index.needs_compaction:
        loaded.index.compact(progress=progress)
    return Changed(
        tuple(item for item in written if item not in existing),
        tuple(item for item in written if item in existing),
        skipped=skipped,
    )


@checked_arguments(ids="if it is a single id, put it in a list")
def remove(index: LoadedIndex | Path | str, ids: Sequence[str]) -> Changed:
    """Remove items from an index, all or none of them; `OptionError` for an id that has no item."""
    ids = tuple(dict.fromkeys(ids))
    _items_of(index).remove(ids)
    return Changed(removed=ids)


@checked_arguments(ids="if it is a single id, put it in a list")
def update(
    index: LoadedIndex | Path | str,
    ids: Sequence[str],
    *,
    label: str | Unchanged | None = UNCHANGED,
    metadata: ItemMetadata | None = None,
    image: ImageInput | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Change label, metadata or image of items; each item changes in one step.

    Args:
        index: as in `add`.
        ids: the items.
        label: their new label, None for none.
        metadata: merged with what they have; a value of None removes a name.
        image: the new image of the one item; its embedding replaces the old one.
        progress: as in `add`.

    Raises:
        DataError: the image cannot be read.
        OptionError: an id has no item, nothing to change, or an image for several items.
    """
    if image is not None and len(ids) != 1:
        raise OptionError(f"`image` is for one item, got {len(ids)} ids.", argument="image")
    if image is None and isinstance(label, Unchanged) and not metadata:
        raise OptionError("nothing to change: pass `label`, `metadata` or `image`.", argument="label")
    embeddings: Embeddings | None = None
    path: Path | Unchanged | None = UNCHANGED
    file: FileState | Unchanged | None = UNCHANGED
    items = _items_of(index)
    items.vectors_of(ids)  # an unknown id changes none
    if image is not None:
        loaded = index if isinstance(index, LoadedIndex) else load_index(index)
        (source,) = as_sources([image])
        file = _state(source)
        if isinstance(source, InMemoryImage):
            path, source = None, InMemoryImage(ids[0], source.image)
        else:
            path, source = source.path.absolute(), File(ids[0], source.path)
        embeddings = loaded.encoder.embed([source], progress=resolve_progress(progress), task="images")
        if not len(embeddings):
            raise DataError(f"the image cannot be read: {embeddings.skipped[0].cause}.", argument="image")
        items = loaded.index
    for item in ids:
        items.update(item, label=label, metadata=metadata, embeddings=embeddings, path=path, file=file)
    return Changed(replaced=tuple(ids))


@checked_arguments()
def sync(
    index: LoadedIndex | Path | str,
    folder: Path | str | None = None,
    *,
    allow_removals: bool = False,
    progress: Progress | None = None,
) -> Changed:
    """Let an index hold exactly the images that are in a folder now; only new and changed files are embedded.

    A file is unchanged if its size and time of change are, or its content is. Items of other folders stay. Labels and
    metadata follow the manifest where the folder has one. A run that was stopped resumes.

    Args:
        index: as in `add`.
        folder: as the images of `index`; None for the folder that the index was made of.
        allow_removals: remove items even if most files are gone; without it that is an error, because they may be on a
            disk that is not mounted.
        progress: as in `add`.

    Raises:
        DataError: not a folder, no image in it, or most files are gone.
        OptionError: no folder, where the index has none either.
    """
    loaded = index if isinstance(index, LoadedIndex) else load_index(index)
    items = loaded.index
    folder = items.root if folder is None else Path(folder)
    if folder is None:
        raise OptionError("the index was not made of a folder; pass `folder`.", argument="folder")
    require_folder(folder, "folder")
    progress = resolve_progress(progress)
    with renamed_argument("folder", "images"):
        gallery = images_to_index(folder, progress)
    same_root = items.root is not None and folder.resolve() == items.root.resolve()
    sources = {s.id if same_root else query_id(s.path, items): s for s in gallery.sources}
    items.prepare_changes()  # with the first change, the states of the files become known
    inside = folder.resolve()
    below = {i.id: i for i in items.iter_items() if i.path is not None and i.path.absolute().is_relative_to(inside)}
    gone = [item for item in below if item not in sources]
    if gone and 2 * len(gone) > len(below) and not allow_removals:
        raise DataError(
            f"{len(gone)} of the {len(below)} indexed images in {folder} are gone (first: {gone[0]}); make them "
            "available again, or pass `allow_removals` to remove them.",
            argument="allow_removals",
        )
    labels = {item: gallery.labels[s.id] for item, s in sources.items() if s.id in gallery.labels}
    metadata = {item: gallery.metadata[s.id] for item, s in sources.items() if s.id in gallery.metadata}
    described = bool(labels or metadata)  # without a manifest, what was set by hand stays
    to_embed, replaced, unchanged = [], [], 0
    for item, source in sources.items():
        stored = below.get(item)
        if stored is None or not _same_file(items, stored, source):
            if stored is not None and not described:
                labels |= {} if stored.label is None else {item: stored.label}
                metadata[item] = stored.metadata
            to_embed.append(File(item, source.path))
        elif described and (labels.get(item), dict(metadata.get(item, {}))) != (stored.label, dict(stored.metadata)):
            removed = {name: None for name in stored.metadata if name not in metadata.get(item, {})}
            items.update(item, label=labels.get(item), metadata={**removed, **metadata.get(item, {})})
            replaced.append(item)
        else:
            unchanged += 1
    written, skipped = _embed_and_add(loaded, to_embed, labels, metadata, progress)
    items.remove(gone)
    if items.needs_compaction:
        items.compact(progress=progress)
    return Changed(
        tuple(item for item in written if item not in below),
        (*replaced, *(item for item in written if item in below)),
        tuple(gone),
        unchanged,
        (*gallery.skipped, *skipped),
    )


def _items_of(index: LoadedIndex | Path | str) -> Index:
    """Return the items of an index, without loading its model."""
    if isinstance(index, LoadedIndex):
        return index.index
    with renamed_argument("index", "path"):
        return Index.load(index)


def _same_file(items: Index, stored: IndexedItem, source: Source) -> bool:
    """Whether an item's file is as it was when it was embedded; a new time of change alone is recorded."""
    if stored.file is None:
        return False
    try:
        status = source.path.stat()
        if (status.st_size, status.st_mtime_ns) == (stored.file.size, stored.file.mtime_ns):
            return True
        if status.st_size != stored.file.size or stored.file.digest != file_digest(source.path):
            return False
    except OSError:
        return False  # embedding it gives the reason
    items.update(stored.id, file=FileState(status.st_size, status.st_mtime_ns, stored.file.digest))
    return True


def _state(source: Source) -> FileState | None:
    if isinstance(source, InMemoryImage):
        return None
    try:
        status = source.path.stat()
        return FileState(status.st_size, status.st_mtime_ns, file_digest(source.path))
    except (OSError, ValueError):
        return None  # embedding it gives the reason


def _item_id(path: Path, index: Index) -> str:
    """Return the id of a file: its path relative to the index's root if it is below it, else its absolute path."""
    return query_id(Path(os.path.abspath(path)), index)  # noqa: PTH100 - resolve() would follow a link to the file


def _embed_and_add(
    loaded: LoadedIndex,
    sources: Sequence[Source],
    labels: Mapping[str, str],
    metadata: Mapping[str, ItemMetadata],
    progress: Progress,
) -> tuple[list[str], tuple[Skipped, ...]]:
    """Embed images and add them, a chunk at a time; return the ids that were written, and what could not be read."""
    written: list[str] = []
    skipped: list[Skipped] = []
    for start in range(0, len(sources), _CHUNK):
        chunk = sources[start : start + _CHUNK]
        states = {source.id: _state(source) for source in chunk}  # before it is read: a later change is noticed then
        embeddings = loaded.encoder.embed(chunk, progress=progress, task="images")
        skipped += embeddings.skipped
        loaded.index.add(
            embeddings,
            labels=labels,
            metadata=metadata,
            paths={s.id: None if isinstance(s, InMemoryImage) else s.path.absolute() for s in chunk},
            files={item: state for item, state in states.items() if state is not None},
            replace=True,
        )
        written += embeddings.ids
    return written, tuple(skipped)
