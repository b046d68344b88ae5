"""`embed`: from a folder of images to embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike._arguments import checked_arguments
from lookalike._files import follow_link, require_writable
from lookalike._lock import locked
from lookalike._strings import PackedStrings
from lookalike.data.dataset import TEST_SPLITS, Dataset, Item, Split
from lookalike.data.folders import ImageFinder, require_folder, skipped_suffix
from lookalike.data.layouts import find_manifest, find_split_folders, load_dataset
from lookalike.embeddings.embed_folder import embed_folder, require_embeddings_of
from lookalike.embeddings.folder import LABELS_FILE, is_embeddings, is_unfinished, read_run
from lookalike.errors import DataError, FingerprintMismatch, LookalikeError, OptionError, renamed_argument
from lookalike.index.filters import ID, Value, read_number
from lookalike.index.storage import Labels, Metadata, is_index, write_labels_and_metadata
from lookalike.models.bundle import MODEL_FOLDER, describe_encoder, find_bundle, read_bundle_info, read_reranker
from lookalike.models.encoder import AnyEncoder
from lookalike.models.info import BundleInfo, RequestInfo
from lookalike.models.pipeline import Files, Source
from lookalike.models.registry import PRETRAINED
from lookalike.progress import Progress, count_noun, resolve_progress
from lookalike.runtimes.fit import fit_pretrained
from lookalike.runtimes.load import WeightsOption, load_encoder, pair_weights, weights_identity
from lookalike.runtimes.select import AUTO, require_runtime, with_runtime
from lookalike.types import Embeddings, Skipped

_CURVES = "curves.png"  # the only image in the folder of a trained model


@checked_arguments(images="load_encoder(model).embed takes a list of images")
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
        images: a folder, searched recursively, or one whose manifest lists the images; ids are paths relative to it.
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
        DataError: not a folder, no readable image in it, a manifest that is wrong, or too many images are gone.
        OptionError: no model where `out` has none either, or an unknown runtime or precision.
        ModelError: the model cannot be used.
        FingerprintMismatch: `out` holds embeddings of another model.
        StorageError: `out` cannot be written or holds something else.
    """
    progress = resolve_progress(progress)
    gallery = find_images(Path(images), progress)
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
        return embed_images(
            gallery,
            model,
            out,
            weights,
            runtime=runtime,
            precision=precision,
            allow_removals=allow_removals,
            progress=progress,
        )


@dataclass(frozen=True)
class FolderImages:
    """The images in a folder that are to be embedded."""

    sources: Sequence[Source]
    fit_on: Sequence[Source]  # to fit a head on
    skipped: tuple[Skipped, ...]  # folders that cannot be listed
    labels: Labels = dataclasses.field(default_factory=dict)
    metadata: Metadata = dataclasses.field(default_factory=dict)

    @classmethod
    def of_items(
        cls, items: Sequence[Item], fit_on: Sequence[Item], skipped: tuple[Skipped, ...], progress: Progress
    ) -> FolderImages:
        """Return items of a data set with their labels and metadata."""
        if any(ID in item.metadata for item in items):
            progress.info("the column 'id' is not stored: an item's id is its path")
        return cls(items, fit_on, skipped, _labels(items), _typed_metadata(items))


def _labels(items: Sequence[Item]) -> Labels:
    return {item.id: item.label for item in items if item.label is not None}


def _typed_metadata(items: Sequence[Item]) -> Metadata:
    """Return the columns of a manifest by item: a column of numbers only as numbers, and an empty cell as none.

    A column of codes such as 007, or of numbers that float64 does not hold exactly, stays text.
    """
    columns = dict.fromkeys(name for item in items for name in item.metadata if name != ID)
    metadata: dict[str, dict[str, Value | None]] = {}
    for name in columns:
        cells = {item.id: item.metadata[name] for item in items if item.metadata.get(name)}
        numbers = {cell: read_number(cell) for cell in set(cells.values())}
        is_numeric = None not in numbers.values()
        for item, cell in cells.items():
            metadata.setdefault(item, {})[name] = numbers[cell] if is_numeric else cell
    return metadata


def has_split_folders(folder: Path) -> bool:
    """Whether a folder is a data set of split folders, training and test."""
    splits = set(find_split_folders(folder))
    return Split.TRAINING in splits and bool(splits & set(TEST_SPLITS))


def find_images(folder: Path, progress: Progress) -> FolderImages:
    """Find the images that a folder's manifest lists, else every image in it; ids are paths relative to the folder."""
    require_folder(folder, "images")
    manifest = find_manifest(folder)
    if manifest is not None:
        data = load_images(folder, progress)
        count = count_noun(len(data), "image")
        progress.info(f"the images are those of {manifest}, {count}; others in the folder are not used")
        items = sorted(data.items, key=lambda item: item.id)
        return FolderImages.of_items(items, items, data.skipped, progress)
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
    labels: Labels = {}
    if has_split_folders(folder):
        with renamed_argument("images", "data"):
            labels = _labels(load_dataset(folder).items)
    return FolderImages(sources, sources, tuple(skipped), labels)


def load_images(folder: Path, progress: Progress) -> Dataset:
    """Load the images of a folder as a data set, and pass on its notes."""
    with renamed_argument("images", "data"):
        data = load_dataset(folder)
    for note in data.notes:
        progress.info(note)
    return data


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


def embed_images(
    gallery: FolderImages,
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
    fitted, info, reranker = None, None, None
    if not isinstance(model, str | Path):
        encoder = model
    elif (bundle := find_bundle(model)) is not None:
        encoder, info = load_encoder(bundle), dataclasses.replace(read_bundle_info(bundle), request=None)
        if info.reranking is not None:
            progress.info(info.reranking.unused)
            reranker = read_reranker(bundle)
    else:
        names = str(model).split("+")
        identities = [weights_identity(*pair) for pair in pair_weights(names, weights)]
        request = RequestInfo(tuple(names), tuple(identities))
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
    embeddings = embed_folder(
        gallery.sources,
        encoder,
        out,
        info=info,
        reranker=reranker,
        skipped=skipped,
        computed=fitted,
        allow_removals=allow_removals,
        progress=progress,
    )
    write_labels_and_metadata(out / LABELS_FILE, gallery.labels, gallery.metadata)
    return embeddings


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


def _stored_model(out: Path, name: str, request: RequestInfo) -> tuple[AnyEncoder, BundleInfo] | None:
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
