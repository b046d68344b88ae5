"""`index`: from a folder of images, or of embeddings, to an index that can be searched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import follow_link, new_folder, require_free
from lookalike._lock import locked
from lookalike.api.embed import FolderImages, embed_images, find_images, has_split_folders, load_images
from lookalike.data.folders import require_folder, skipped_suffix
from lookalike.data.layouts import find_manifest
from lookalike.embeddings.folder import (
    KEYS_FILE,
    LABELS_FILE,
    is_embeddings,
    is_unfinished,
    load_embeddings,
    read_embeddings_info,
)
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError, renamed_argument
from lookalike.index.autotune import Budget
from lookalike.index.index import Index
from lookalike.index.storage import is_index, read_labels_and_metadata, remove_checkpoint, write_keys
from lookalike.models.bundle import MODEL_FOLDER, find_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder
from lookalike.models.registry import PRETRAINED
from lookalike.progress import Progress, resolve_progress
from lookalike.runtimes.load import WeightsOption
from lookalike.runtimes.select import AUTO, require_runtime
from lookalike.types import Skipped


@dataclass(frozen=True)
class BuiltIndex:
    """An index that was just written.

    Attributes:
        index: the index.
        skipped: files and folders that are not in it.
    """

    index: Index
    skipped: tuple[Skipped, ...]


@checked_arguments(images="pass the folder of the images")
def index(  # noqa: PLR0913 - all but two by name, with defaults that fit
    images: Path | str,
    model: AnyEncoder | Path | str | None = None,
    *,
    out: Path | str,
    weights: WeightsOption = PRETRAINED,
    min_recall: float = 1.0,
    max_memory: int | str | None = None,
    max_ms: float | None = None,
    runtime: str = AUTO,
    precision: str = AUTO,
    allow_removals: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> BuiltIndex:
    """Index a folder of images, or the embeddings that `embed` made, and store the model with the index.

    Labels and metadata come from a manifest or the folders of a data set; embeddings keep them. Of a data set with
    training and test split, or with a manifest, only the gallery is indexed. Embeddings are made in
    `<out>.embedding`, and an approximate index is built in `<out>.building`, so that a run that was stopped resumes;
    both are removed at the end.

    Args:
        images: a folder of images, or of embeddings.
        model: as in `embed`; None for embeddings, which have theirs.
        out: the index's folder, put in place in one step.
        weights: of a backbone by name.
        min_recall: as in `Index.build`.
        max_memory: as in `Index.build`.
        max_ms: as in `Index.build`.
        runtime: as in `embed`.
        precision: as in `embed`.
        allow_removals: as in `embed`, for the embeddings of a run that was stopped.
        replace: exchange an existing index when the new one is complete; nothing but an index is replaced.
        progress: as in `embed`.

    Raises:
        DataError: not a folder, no readable image in it, a data set without a gallery, or a manifest that is wrong.
        OptionError: images without a model, a value outside what is allowed, or no index within the budget.
        ModelError: the model cannot be used.
        FingerprintMismatch: the embeddings are of another model.
        StorageError: `out` exists or cannot be written, or the embeddings are damaged or unfinished.
    """
    images, out = Path(images), follow_link(out)
    progress = resolve_progress(progress)
    budget = Budget.parse(min_recall, max_memory, max_ms)
    require_runtime(runtime, precision)
    if not (replace and is_index(out)):  # nothing else is replaced
        require_free(out, replaceable=is_index(out))
    require_folder(images, "images")
    if is_embeddings(images) or is_unfinished(images):
        if (runtime, precision) != (AUTO, AUTO):
            raise OptionError(
                f"`runtime` and `precision` are for embedding, but {images} holds embeddings already; omit them.",
                argument="runtime",
            )
        with locked(out), renamed_argument("images", "path"):
            _require_model_of(model, images)
            return _write_index(images, out, budget, replace=replace, progress=progress)
    gallery = images_to_index(images, progress)
    if model is None:
        raise OptionError(
            f"{images} holds no embeddings, so `model` is needed: a bundle or the name of a backbone.", argument="model"
        )
    embeddings = out.with_name(out.name + ".embedding")
    with locked(out), renamed_argument("out", "path"):
        if embeddings.exists():
            progress.info(f"resuming from {embeddings}, which a stopped run has left")
        embed_images(
            gallery,
            model,
            embeddings,
            weights,
            runtime=runtime,
            precision=precision,
            allow_removals=allow_removals,
            progress=progress,
        )
        built = _write_index(embeddings, out, budget, replace=replace, progress=progress)
        shutil.rmtree(embeddings, ignore_errors=True)
    return built


def images_to_index(folder: Path, progress: Progress) -> FolderImages:
    """Find the images to index: the gallery of a data set, else every image in the folder."""
    manifest = find_manifest(folder)
    if manifest is None and not has_split_folders(folder):
        return find_images(folder, progress)
    data = load_images(folder, progress)
    others = len(data) - len(data.gallery)
    if not data.gallery:
        advice = "put them in test/gallery" if manifest is None else f"list them in {manifest.name} as gallery"
        raise DataError(
            f"{folder} has no gallery image to index, only {others} for training and query"
            f"{skipped_suffix(data.skipped)}; {advice}, or pass a folder with only the images to index.",
            argument="images",
        )
    if others:
        progress.info(
            f"{folder} is a data set: its {len(data.gallery)} gallery images are indexed, "
            f"its {others} training and query images are not"
        )
    return FolderImages.of_items(data.gallery, data.training or data.gallery, data.skipped, progress)


def _require_model_of(model: AnyEncoder | Path | str | None, folder: Path) -> None:
    """Refuse embeddings of another model; a backbone's name means the model that it led to then."""
    if model is None:
        return
    run = read_embeddings_info(folder).run
    if not isinstance(model, str | Path):
        same = model.fingerprint == run.fingerprint
    elif (bundle := find_bundle(model)) is not None:
        same = read_bundle_info(bundle).fingerprint == run.fingerprint
    else:  # a backbone's name does not mean a model that was trained
        stored = find_bundle(folder)
        same = run.model == str(model) and (stored is None or read_bundle_info(stored).training_data is None)
    if not same:
        name = model if isinstance(model, str | Path) else model.name
        raise FingerprintMismatch(
            f"{folder} holds embeddings of the model {run.model} ({run.fingerprint}), not of {name}; "
            "omit `model`, or embed again with it.",
            argument="model",
        )


def _write_index(folder: Path, out: Path, budget: Budget, *, replace: bool, progress: Progress) -> BuiltIndex:
    """Index complete embeddings and put index and model in place in one step."""
    if find_bundle(folder) is None:
        raise StorageError(
            f"{folder} has no {MODEL_FOLDER} folder to embed queries with; embed again.", argument="images"
        )
    embeddings = load_embeddings(folder)
    labels, metadata = read_labels_and_metadata(folder / LABELS_FILE)
    checkpoint = out.with_name(out.name + ".building")
    built = Index.build(
        embeddings,
        root=read_embeddings_info(folder).root,
        labels=labels,
        metadata=metadata,
        min_recall=budget.min_recall,
        max_memory=budget.max_memory,
        max_ms=budget.max_ms,
        checkpoint=checkpoint,
        progress=progress,
    )
    with new_folder(out, replace=replace) as temporary:
        built.write_into(temporary)
        shutil.copytree(folder / MODEL_FOLDER, temporary / MODEL_FOLDER)
        write_keys(temporary, embeddings.ids, np.load(folder / KEYS_FILE))
    remove_checkpoint(checkpoint)
    return BuiltIndex(built, embeddings.skipped)
