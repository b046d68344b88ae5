"""`embed` and `index`: from a folder of images to embeddings and to an index."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike._files import file_digest, follow_link, locked, new_folder, require_free, require_writable
from lookalike._strings import PackedStrings
from lookalike.data.dataset import TEST_SPLITS, Split
from lookalike.data.folders import ImageFinder, require_folder, skipped_suffix
from lookalike.data.layouts import find_manifest, find_split_folders, load_dataset
from lookalike.embeddings.embed_folder import embed_folder, require_embeddings_of
from lookalike.embeddings.folder import (
    is_embeddings,
    is_unfinished,
    load_embeddings,
    read_embeddings_info,
    read_run,
)
from lookalike.errors import (
    DataError,
    FingerprintMismatch,
    LookalikeError,
    OptionError,
    StorageError,
    renamed_argument,
)
from lookalike.index.autotune import Budget
from lookalike.index.index import Index
from lookalike.index.storage import is_index, remove_checkpoint
from lookalike.models.bundle import MODEL_FOLDER, describe_encoder, find_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder
from lookalike.models.info import BundleInfo
from lookalike.models.pipeline import Files, Source
from lookalike.models.registry import PRETRAINED
from lookalike.progress import Progress, resolve_progress
from lookalike.runtimes.fit import fit_pretrained
from lookalike.runtimes.load import WeightsOption, load_encoder, pair_weights
from lookalike.runtimes.select import AUTO, require_runtime, with_runtime
from lookalike.types import Embeddings, Skipped

_CURVES = "curves.png"  # the only image in the folder of a trained model


@dataclass(frozen=True)
class BuiltIndex:
    """An index that was just written.

    Attributes:
        index: the index.
        skipped: files and folders that are not in it.

    """

    index: Index
    skipped: tuple[Skipped, ...]


def embed(
    images: Path | str,
    model: AnyEncoder | Path | str | None = None,
    *,
    out: Path | str,
    weights: WeightsOption = PRETRAINED,
    runtime: str = AUTO,
    precision: str = AUTO,
    allow_removals: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed every image in a folder; a run that was stopped resumes, and only new and changed files are embedded again.

    Args:
        images: a folder, searched recursively; ids are paths relative to it.
        model: an encoder, a bundle, or the name of a backbone. The head of a name is fitted on the images, once. None
            for the model that `out` holds from an earlier run.
        out: the folder of embeddings.
        weights: of a backbone by name, as in `load_encoder`.
        runtime: auto (the fastest on this machine), torch, openvino or onnxruntime.
        precision: auto (the fastest, or what the folder was started with), float32 or bfloat16.
        allow_removals: remove embeddings from `out` even if most images are gone, or all of a folder; without it that
            is an error, because they may be on a disk that is not mounted.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        DataError: not a folder, no readable image in it, or too many images are gone.
        OptionError: no model where `out` has none either, or an unknown runtime or precision.
        ModelError: the model cannot be used.
        FingerprintMismatch: `out` holds embeddings of another model.
        StorageError: `out` cannot be written or holds something else.

    """
    progress = resolve_progress(progress)
    gallery = _all_images(_folder(images), progress)
    out = follow_link(out)
    require_writable(out, "out")
    require_runtime(runtime, precision)
    if model is None:
        model = find_bundle(out)
    if model is None:
        raise OptionError(
            f"{out} holds no model from an earlier run, so `model` is needed: a bundle or the name of a backbone.",
            argument="model",
        )
    with locked(out), renamed_argument("out", "path"):
        return _embed_images(
            gallery,
            model,
            out,
            weights,
            runtime=runtime,
            precision=precision,
            allow_removals=allow_removals,
            progress=progress,
        )


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

    Of a data set with training, query and gallery only the gallery is indexed. Embeddings are made in
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
        replace: overwrite an existing index.
        progress: as in `embed`.

    Raises:
        DataError: not a folder, or no readable image in it.
        OptionError: images without a model, a value outside what is allowed, or no index within the budget.
        ModelError: the model cannot be used.
        FingerprintMismatch: the embeddings are of another model.
        StorageError: `out` exists or cannot be written, or the embeddings are damaged or unfinished.

    """
    images, out = _folder(images), follow_link(out)
    progress = resolve_progress(progress)
    budget = Budget.parse(min_recall, max_memory, max_ms)
    require_runtime(runtime, precision)
    if not replace:
        require_free(out)
    require_folder(images, "images")
    if is_embeddings(images) or is_unfinished(images):
        if (runtime, precision) != (AUTO, AUTO):
            raise OptionError(
                f"`runtime` and `precision` are for embedding, but {images} holds embeddings already; omit them.",
                argument="runtime",
            )
        with locked(out), renamed_argument("images", "path"):
            _require_model_of(model, images)
            return _write_index(images, {}, out, budget, replace=replace, progress=progress)
    gallery = _images_to_index(images, progress)
    if model is None:
        raise OptionError(
            f"{images} holds no embeddings, so `model` is needed: a bundle or the name of a backbone.", argument="model"
        )
    embeddings = out.with_name(out.name + ".embedding")
    with locked(out), renamed_argument("out", "path"):
        if embeddings.exists():
            progress.info(f"resuming from {embeddings}, which a stopped run has left")
        _embed_images(
            gallery,
            model,
            embeddings,
            weights,
            runtime=runtime,
            precision=precision,
            allow_removals=allow_removals,
            progress=progress,
        )
        built = _write_index(embeddings, gallery.metadata, out, budget, replace=replace, progress=progress)
        shutil.rmtree(embeddings, ignore_errors=True)
    return built


@dataclass(frozen=True)
class _Images:
    """The images of a folder that are embedded."""

    sources: Sequence[Source]
    fit_on: Sequence[Source]  # to fit a head on
    metadata: Mapping[str, Mapping[str, str]]  # by id
    skipped: tuple[Skipped, ...]  # folders that cannot be listed


def _folder(images: Path | str) -> Path:
    if not isinstance(images, str | Path):
        raise OptionError(
            f"`images` must be a folder, got {type(images).__name__}; load_encoder(model).embed takes a list.",
            argument="images",
        )
    return Path(images)


def _images_to_index(folder: Path, progress: Progress) -> _Images:
    """Find the images to index: the gallery of a data set, else every image in the folder."""
    splits = set(find_split_folders(folder))
    if find_manifest(folder) is not None or (Split.TRAINING in splits and splits & set(TEST_SPLITS)):
        data = load_dataset(folder)
        for note in data.notes:
            progress.info(note)
        if data.gallery:
            others = len(data) - len(data.gallery)
            if others:
                progress.info(
                    f"{folder} is a data set: its {len(data.gallery)} gallery images are indexed, "
                    f"its {others} training and query images are not"
                )
            metadata = {item.id: item.metadata for item in data.gallery if item.metadata}
            return _Images(data.gallery, data.training or data.gallery, metadata, data.skipped)
        if data.skipped:
            raise DataError(f"{folder} has no gallery image to index{skipped_suffix(data.skipped)}.", argument="images")
    return _all_images(folder, progress)


def _all_images(folder: Path, progress: Progress) -> _Images:
    """Find every image in a folder, recursively; ids are paths relative to it, with forward slashes."""
    require_folder(folder, "images")
    finder = ImageFinder()
    # sorted as in an index, which then takes the vectors without copying them
    names = PackedStrings(sorted(p.relative_to(folder).as_posix() for p in finder.walk(folder)))
    skipped = finder.skipped
    if not names or names == (_CURVES,):
        _refuse_output(folder)
    if not names:
        raise DataError(
            f"{folder} holds no image{skipped_suffix(skipped)}; expected files such as .jpg, .png or .webp.",
            argument="images",
        )
    for note in finder.notes():
        progress.info(note)
    sources = Files(folder, names)
    return _Images(sources, sources, {}, tuple(skipped))


def _refuse_output(folder: Path) -> None:
    """Raise `DataError` for an index, embeddings or a model instead of images."""
    if is_index(folder):
        content = "an index"
    elif is_embeddings(folder) or is_unfinished(folder):
        content = "a folder of embeddings"
    elif find_bundle(folder) is not None:
        content = "a model"
    else:
        return
    raise DataError(f"{folder} is {content}, not a folder of images; pass the images.", argument="images")


def _embed_images(
    gallery: _Images,
    model: AnyEncoder | Path | str,
    out: Path,
    weights: WeightsOption,
    *,
    runtime: str,
    precision: str,
    allow_removals: bool,
    progress: Progress,
) -> Embeddings:
    """Embed with the given model; a name means the model that it led to when the folder was started."""
    precision = _precision_of_run(out, precision)
    fitted, info = None, None
    if not isinstance(model, str | Path):
        encoder = model
    elif (bundle := find_bundle(model)) is not None:
        encoder, info = load_encoder(bundle), dataclasses.replace(read_bundle_info(bundle), request={})
    else:
        names = str(model).split("+")
        files = [file for _, file in pair_weights(names, weights)]
        digests = [file_digest(Path(file)) if Path(file).is_file() else str(file) for file in files]
        request = {"backbones": names, "weights": digests}
        stored = _stored_model(out, str(model), request)
        if stored is None:
            # the features are reused below, so that no image is computed twice
            fitted = fit_pretrained(
                str(model),
                weights,
                gallery.sources,
                gallery.fit_on,
                count=len(gallery.sources),
                runtime=runtime,
                precision=precision,
                progress=progress,
            )
            stored = fitted.encoder, describe_encoder(fitted.encoder, request=request)
        encoder, info = stored
    if fitted is None:
        require_embeddings_of(encoder, out)  # before runtimes are timed
        encoder = with_runtime(encoder, runtime, precision)
    skipped = [*gallery.skipped, *(fitted.skipped if fitted else ())]
    if skipped:
        paths = {source.path for source in gallery.sources}  # embedding them reports which cannot be read
        skipped = [file for file in skipped if file.path not in paths]
    return embed_folder(
        gallery.sources,
        encoder,
        out,
        info=info,
        skipped=skipped,
        computed=fitted,
        allow_removals=allow_removals,
        progress=progress,
    )


def _precision_of_run(out: Path, precision: str) -> str:
    """Return the precision for a folder, which keeps the one that it was started with."""
    run = read_run(out)
    if run is None or not {"float32", "bfloat16"}.issuperset(run.precision.split("+")):
        return precision
    if precision not in (AUTO, run.precision):
        raise OptionError(
            f"`precision` is {precision}, but the embeddings in {out} were computed in {run.precision}; omit it, "
            "or choose another `out`.",
            argument="precision",
        )
    return run.precision


def _stored_model(out: Path, name: str, request: Mapping[str, Any]) -> tuple[AnyEncoder, BundleInfo] | None:
    """Load the model of `out` if the same request led to it: its head was fitted then and does not change."""
    run = read_run(out)
    if run is None:
        return None
    stored = None
    try:
        info = read_bundle_info(out / MODEL_FOLDER)
        same = run.model == name and info.request == request
        if same:
            stored = load_encoder(out / MODEL_FOLDER), info
    except LookalikeError:  # missing or damaged: fitted again
        same = run.model == name
    if not same:
        raise FingerprintMismatch(
            f"{out} holds embeddings of another model, {run.model} ({run.fingerprint}), not of {name} with these "
            "weights; choose another `out`, or remove the folder.",
            argument="out",
        )
    return stored


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


def _write_index(
    folder: Path,
    metadata: Mapping[str, Mapping[str, str]],
    out: Path,
    budget: Budget,
    *,
    replace: bool,
    progress: Progress,
) -> BuiltIndex:
    """Index complete embeddings and put index and model in place in one step."""
    if find_bundle(folder) is None:
        raise StorageError(
            f"{folder} has no {MODEL_FOLDER} folder to embed queries with; embed again.", argument="images"
        )
    embeddings = load_embeddings(folder)
    checkpoint = out.with_name(out.name + ".building")
    built = Index.build(
        embeddings,
        root=read_embeddings_info(folder).root,
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
    remove_checkpoint(checkpoint)
    return BuiltIndex(built, embeddings.skipped)
