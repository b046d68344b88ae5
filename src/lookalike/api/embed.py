"""`embed` and `index`: from a folder of images to what can be searched."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike._files import file_digest, new_folder, require_free, require_writable
from lookalike._strings import PackedStrings
from lookalike.api.load_model import Weights, on_runtime, resolve_model, weights_of
from lookalike.data.layouts import load_dataset, may_be_folder, require_folder, skipped_suffix, walk_images
from lookalike.embeddings.embed import embed_to
from lookalike.embeddings.folder import begun_with
from lookalike.embeddings.store import (
    EmbeddingFacts,
    begun_precision,
    is_embeddings,
    is_unfinished,
    load_embeddings,
    read_embedding_facts,
)
from lookalike.errors import DataError, FingerprintMismatch, LookalikeError, OptionError, StorageError
from lookalike.index.autotune import Budget
from lookalike.index.index import Index, remove_checkpoint
from lookalike.index.storage import is_index
from lookalike.models.facts import MODEL, bundle_at
from lookalike.progress import SILENT, Progress
from lookalike.runtimes.choice import require_runtime
from lookalike.types import Embeddings, Skipped

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder
    from lookalike.models.stream import Source


_CURVES = "curves.png"
"""The picture that training leaves beside a model."""


@dataclass(frozen=True)
class MadeIndex:
    """An index that was just written, and the files and folders that are not in it."""

    index: Index
    skipped: tuple[Skipped, ...]


def embed(
    images: Path | str,
    model: Encoder | Path | str | None = None,
    *,
    out: Path | str,
    weights: Weights = "pretrained",
    runtime: str = "auto",
    precision: str = "auto",
    progress: Progress = SILENT,
) -> Embeddings:
    """Embed every image in a folder; a run that was stopped goes on where it was, changed files are embedded again.

    Args:
        images: a folder, searched with all folders in it; ids are paths relative to it.
        model: as in `resolve_model`; a name's head is learnt from the images, once: a folder keeps the model it has,
            so that to bring it up to date it may be None.
        out: the folder of embeddings.
        weights: for a name.
        runtime: what computes: auto, torch, openvino or onnxruntime; auto takes what was found to be fastest here.
        precision: auto, float32 or bfloat16; auto takes the fastest, or what the folder was begun with.
        progress: is told what happens.

    Raises:
        DataError: no folder, or no readable image in it.
        OptionError: no model where `out` has none either, or an runtime or precision that there is not.
        ModelError: the model cannot be used.
        FingerprintMismatch: `out` holds embeddings by another model.
        StorageError: `out` cannot be written or holds something else.

    """
    found = images_in(Path(images))
    require_writable(Path(out))
    require_runtime(runtime, precision)
    if model is None:
        model = bundle_at(Path(out))
    if model is None:
        raise OptionError(
            f"{out} holds no model from an earlier run, so one is needed; give a bundle or a backbone's name."
        )
    return _embed(found, model, Path(out), weights, (runtime, precision), progress)


def index(  # noqa: PLR0913 - all but two by name, with defaults that fit
    images: Path | str,
    model: Encoder | Path | str | None = None,
    *,
    out: Path | str,
    weights: Weights = "pretrained",
    min_recall: float = 1.0,
    max_memory: int | str | None = None,
    max_ms: float | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    replace: bool = False,
    progress: Progress = SILENT,
) -> MadeIndex:
    """Make an index of a folder of images, or of the embeddings that `embed` made, and write it with its model.

    Of a data set with training, query and gallery only the gallery is indexed. Embeddings are made beside `out`, in
    `<out>.embedding`, and an approximate index is built in `<out>.building`, so that a run that was stopped goes on
    where it was; both are removed in the end.

    Args:
        images: a folder of images, or of embeddings.
        model: as in `resolve_model`; embeddings come with theirs, so for them it may be None.
        out: the index's folder, put in place in one step.
        weights: for a backbone's name.
        min_recall: as in `Index.build`.
        max_memory: as in `Index.build`.
        max_ms: as in `Index.build`.
        runtime: as in `embed`.
        precision: as in `embed`.
        replace: take the place of an older index.
        progress: is told what happens.

    Raises:
        DataError: no folder, or no readable image in it.
        OptionError: images without a model, a value outside what is allowed, or no index stays within the budget.
        ModelError: the model cannot be used.
        FingerprintMismatch: the embeddings are by another model.
        StorageError: `out` is taken or cannot be written, or the embeddings are damaged or not finished.

    """
    images, out = Path(images), Path(out)
    budget = Budget.parse(min_recall, max_memory, max_ms)
    require_runtime(runtime, precision)
    if not replace:
        require_free(out)
    require_folder(images)
    if is_embeddings(images) or is_unfinished(images):
        if (runtime, precision) != ("auto", "auto"):
            raise OptionError(
                f"runtime and precision are for embedding, and {images} holds embeddings already; leave them out."
            )
        _require_made_by(model, images, read_embedding_facts(images))
        return _write_index(images, {}, out, budget, replace=replace, progress=progress)
    if model is None:
        if next(walk_images(images, lambda _: None), None) is None:
            _refuse_what_we_made(images)
        raise OptionError(f"{images} holds no embeddings, so a model is needed; give a bundle or a backbone's name.")
    gallery = gallery_of(images, progress)
    work = out.with_name(out.name + ".embedding")
    _embed(gallery, model, work, weights, (runtime, precision), progress)
    made = _write_index(work, gallery.metadata, out, budget, replace=replace, progress=progress)
    shutil.rmtree(work, ignore_errors=True)
    return made


@dataclass(frozen=True)
class Gallery:
    """What of a folder is to be embedded.

    Attributes:
        sources: the images.
        fit_on: images to learn a head from.
        metadata: further facts by id.
        skipped: folders that cannot be listed.

    """

    sources: Sequence[Source]
    fit_on: Sequence[Source]
    metadata: Mapping[str, Mapping[str, str]]
    skipped: tuple[Skipped, ...]


def gallery_of(folder: Path, progress: Progress = SILENT) -> Gallery:
    """Find the images to index: the gallery of a data set, else every image in the folder.

    Raises:
        DataError: no folder, no image in it, or a manifest that cannot be used.

    """
    manifest = any((folder / name).is_file() for name in ("manifest.csv", "manifest.parquet"))
    if manifest or (may_be_folder(folder / "training") and may_be_folder(folder / "test" / "gallery")):
        data = load_dataset(folder)
        if data.gallery:
            others = len(data) - len(data.gallery)
            if others:
                progress.info(
                    f"{folder} is a data set: its {len(data.gallery)} gallery images are indexed, "
                    f"the {others} images for training and queries are not"
                )
            metadata = {item.id: item.metadata for item in data.gallery if item.metadata}
            return Gallery(data.gallery, data.training or data.gallery, metadata, data.skipped)
        if data.skipped:
            raise DataError(f"{folder} has no gallery image to index{skipped_suffix(data.skipped)}.")
    return images_in(folder)


def images_in(folder: Path) -> Gallery:
    """Find every image in a folder and the folders in it; ids are paths relative to it, with forward slashes.

    Raises:
        DataError: no folder, or no image in it.

    """
    from lookalike.models.stream import Files

    require_folder(folder)
    skipped: list[Skipped] = []
    # sorted as an index has them, which takes the vectors as they lie then
    names = PackedStrings(sorted(p.relative_to(folder).as_posix() for p in walk_images(folder, skipped.append)))
    if not names or names == (_CURVES,):  # what the folder of a trained model may hold
        _refuse_what_we_made(folder)
    if not names:
        raise DataError(f"{folder} contains no image{skipped_suffix(skipped)}; expected files such as .jpg or .png.")
    sources = Files(folder, names)
    return Gallery(sources, sources, {}, tuple(skipped))


def _refuse_what_we_made(folder: Path) -> None:
    """Raise `DataError` for a folder of ours that somebody takes for one of images."""
    if is_index(folder):
        what = "an index"
    elif is_embeddings(folder) or is_unfinished(folder):
        what = "a folder of embeddings"
    elif bundle_at(folder) is not None:
        what = "a model"
    else:
        return
    raise DataError(f"{folder} is {what}, not a folder of images; give the images themselves.")


def _embed(
    found: Gallery,
    model: Encoder | Path | str,
    out: Path,
    weights: Weights,
    way: tuple[str, str],
    progress: Progress,
) -> Embeddings:
    """Embed with the model that is asked for, or with the one that the same words led to when the folder was begun."""
    asked = _asked_for(model, weights)
    before = _stored_model(out / MODEL, asked)
    left_out = list(found.skipped)
    encoder = before or resolve_model(
        model, fit_on=found.fit_on, weights=weights, skip=left_out.append, progress=progress
    )
    begun_with(out, encoder)  # says before engines are measured that this is not its folder
    facts = _facts_of(model) if asked is None else {"asked_for": asked}
    if left_out:
        own = {source.path for source in found.sources}  # embedding them says itself which of them cannot be read
        left_out = [one for one in left_out if one.path not in own]
        del own
    by = on_runtime(encoder, found.sources, _as_begun(out, way), progress)
    return embed_to(found.sources, encoder, out, by=by, facts=facts, left_out=left_out, progress=progress)


def _as_begun(out: Path, way: tuple[str, str]) -> tuple[str, str]:
    """Return runtime and precision for a folder, which keeps the precision that it was begun with."""
    runtime, precision = way
    begun = begun_precision(out)
    if begun is None:
        return way
    if precision not in ("auto", begun):
        raise OptionError(
            f"precision is {precision}, but what is in {out} was computed in {begun}; leave it out, or choose another "
            "place."
        )
    return runtime, begun


def _asked_for(model: Encoder | Path | str, weights: Weights) -> dict[str, Any] | None:
    """Return the words that a backbone's name and weights come down to; None for a model that is complete."""
    if not isinstance(model, str | Path) or bundle_at(model) is not None:
        return None
    chosen = {name: weights_of(weights, name) for name in str(model).split("+")}
    files = {name: file_digest(Path(w)) if Path(w).is_file() else str(w) for name, w in chosen.items()}
    return {"backbones": list(files), "weights": list(files.values())}


def _facts_of(model: Encoder | Path | str) -> dict[str, Any] | None:
    """Return what a bundle says of its training, to be said where it is stored again; None for an encoder."""
    from lookalike.models.facts import read_facts

    place = bundle_at(model) if isinstance(model, str | Path) else None
    if place is None:
        return None
    return {key: value for key, value in read_facts(place).items() if key != "asked_for"}


def _stored_model(place: Path, asked: dict[str, Any] | None) -> Encoder | None:
    """Load the folder's own model when the same words led to it: its head was learnt then and stays as it is."""
    from lookalike.models.facts import is_bundle, read_facts
    from lookalike.runtimes.bundle import load_bundle

    if asked is None or not is_bundle(place):
        return None
    try:
        return load_bundle(place) if read_facts(place).get("asked_for") == asked else None
    except LookalikeError:
        return None  # a damaged one is made again


def _require_made_by(model: Encoder | Path | str | None, folder: Path, facts: EmbeddingFacts) -> None:
    """Refuse embeddings that another model made; a backbone's name is taken for the model that it became then."""
    if model is None:
        return
    if isinstance(model, str | Path):
        from lookalike.models.facts import read_facts

        place = bundle_at(model)
        if place is not None:
            same = read_facts(place).get("fingerprint") == facts.fingerprint
        else:  # one that was trained is not what its backbone's name stands for
            kept = bundle_at(folder)
            same = facts.model == str(model) and (kept is None or "training_data" not in read_facts(kept))
    else:
        same = model.fingerprint == facts.fingerprint
    if not same:
        name = model if isinstance(model, str | Path) else model.name
        raise FingerprintMismatch(
            f"{folder} was made by the model {facts.model} ({facts.fingerprint}), not by {name}; "
            "leave out the model, or embed again with it."
        )


def _write_index(
    folder: Path,
    metadata: Mapping[str, Mapping[str, str]],
    out: Path,
    budget: Budget,
    *,
    replace: bool,
    progress: Progress,
) -> MadeIndex:
    """Index finished embeddings and put index and model in place in one step."""
    if bundle_at(folder) is None:
        raise StorageError(f"{folder} has no {MODEL} folder, so nothing could be searched for; embed again.")
    facts = read_embedding_facts(folder)
    embeddings = load_embeddings(folder)
    checkpoint = out.with_name(out.name + ".building")
    made = Index.build(
        embeddings,
        root=facts.root,
        metadata=metadata,
        min_recall=budget.min_recall,
        max_memory=budget.max_memory,
        max_ms=budget.max_ms,
        checkpoint=checkpoint,
        progress=progress,
    )
    with new_folder(out, replace=replace) as place:
        made.write_into(place)
        shutil.copytree(folder / MODEL, place / MODEL)
    remove_checkpoint(checkpoint)
    return MadeIndex(made, embeddings.skipped)
