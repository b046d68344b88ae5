"""`export`: a bundle as graphs for OpenVINO or ONNX Runtime, behind a check of what they lose."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import digest, file_digest, follow_link, require_free, storage_errors, temporary_folder
from lookalike._lock import locked
from lookalike._system import installed_versions
from lookalike.api.parity import (
    ComparedMeasures,
    compare_embeddings,
    compare_measures,
    generated_images,
    require_parity,
)
from lookalike.data.dataset import Dataset, Item, sample_evenly
from lookalike.data.layouts import load_training_splits
from lookalike.errors import DataError, MissingExtra, OptionError, renamed_argument
from lookalike.models.bundle import (
    describe_encoder,
    find_bundle,
    is_bundle,
    read_bundle_info,
    read_reranker,
    save_bundle,
)
from lookalike.models.encoder import AnyEncoder, Encoder, Ensemble
from lookalike.models.info import FUNCTION, BundleInfo, GraphInfo, Parity
from lookalike.models.pipeline import decode_batches
from lookalike.progress import SILENT, Progress, resolve_progress
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.graphs import GRAPH_RUNTIMES, ExportedBackbone, write_graph
from lookalike.runtimes.load import load_encoder
from lookalike.runtimes.onnx_backbone import OnnxBackbone
from lookalike.runtimes.select import TORCH, with_runtime
from lookalike.types import Pixels, Skipped

GRAPH_FORMATS = {"openvino": openvino.RUNTIME, "onnx": onnx.RUNTIME}
GRAPH_PRECISIONS = ("auto", "float32", "bfloat16", "int8")
TOLERANCE = 0.5
COMPARED_IMAGES = 64  # images whose embeddings by both models are compared
CALIBRATION_IMAGES = 300  # the ranges of activations are measured on these


@dataclass(frozen=True)
class Exported:
    """A model that was just exported.

    Attributes:
        encoder: the exported encoder, loaded from the new bundle.
        parity: how far it differs from the bundle that it was exported from.
        skipped: files and folders of the data that could not be read; nothing was calibrated or compared on them.
    """

    encoder: AnyEncoder
    parity: Parity
    skipped: tuple[Skipped, ...]


@checked_arguments()
def export(
    bundle: Path | str,
    *,
    out: Path | str,
    format: str = "openvino",
    precision: str = "auto",
    data: Dataset | Path | str | None = None,
    tolerance: float = TOLERANCE,
    replace: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle's graphs for another runtime, and refuse them when they lose too much accuracy.

    Normalisation, pooling, head and L2 norm are in the graph: it takes uint8 pixels. The comparison
    with the bundle is stored in `bundle.json` under `parity`.

    Args:
        bundle: a bundle, or a folder that holds one: embeddings, an index.
        out: the folder.
        format: `openvino` or `onnx`.
        precision: float32, bfloat16 (OpenVINO only) or int8; auto takes bfloat16 with OpenVINO where the processor
            supports it, else float32.
        data: what the bundle was trained on. int8 is calibrated on its training images; the loss is measured on its
            validation images. Without it, float models are compared on generated images alone.
        tolerance: points of precision@3 that may be lost on the validation images.
        replace: overwrite an existing bundle, and nothing else.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Returns:
        The exported encoder, what it loses, and the files that could not be read.

    Raises:
        ModelError: not a bundle, one that was exported already, or the exported model loses too much.
        OptionError: an unknown format or precision, or int8 without data.
        DataError: other data than the bundle was trained on.
        MissingExtra: a package is not installed.
        StorageError: `out` exists or cannot be written.
    """
    bundle, out, progress = find_bundle(bundle) or Path(bundle), follow_link(out), resolve_progress(progress)
    runtime, precision = _target(format, precision)
    if precision == "int8" and data is None:
        raise OptionError("int8 needs `data`, the training data of the bundle, for calibration.", argument="data")
    if not tolerance >= 0:
        raise OptionError(f"`tolerance` must be at least 0, got {tolerance}.", argument="tolerance")
    if not (replace and is_bundle(out)):  # nothing else is replaced
        require_free(out, replaceable=is_bundle(out))
    with renamed_argument("bundle", "model"):
        info = read_bundle_info(bundle)
    if info.is_exported:
        raise OptionError(
            f"{bundle} is an exported model; pass the bundle that it was exported from.", argument="bundle"
        )
    function = next((m.backbone.name for m in info.members if m.backbone.library == FUNCTION), None)
    if function is not None:
        raise OptionError(
            f"{bundle} was made with the Python function {function}, which cannot be exported; export models that are "
            "made of files.",
            argument="bundle",
        )
    _require_packages(runtime, precision)
    with renamed_argument("bundle", "model"):
        encoder = load_encoder(bundle, precision="float32")  # what an exported model is compared with
    split = None if data is None else _data_of(data, info)
    with locked(out), storage_errors(out, "out"), temporary_folder(out) as folder:
        members: list[Encoder] = []
        skipped = [] if split is None else list(split.skipped)
        for number, member in enumerate(encoder.members):
            progress.info(f"{member.name}: exporting to {format}, {precision}")
            images = None
            if split is not None and precision == "int8":
                sample = sample_evenly(split.training, CALIBRATION_IMAGES)
                images = [pixels[None] for pixels in _read_images(member, sample, skipped, progress, "calibration")]
            members.append(_export_member(member, folder, number, runtime, precision, images))
        exported: AnyEncoder = members[0]
        if isinstance(encoder, Ensemble):
            exported = Ensemble(tuple(members), encoder.combination, encoder.alignments, encoder.weights)
        parity = _measure_parity(encoder, exported, split, skipped, progress)
        skipped = list(dict.fromkeys(skipped))
        require_parity(parity, precision, tolerance, skipped)
        progress.info(f"{encoder.name}: {parity}")
        record = describe_encoder(
            exported,
            info,
            exported_from=encoder.fingerprint,
            parity=parity,
            versions={**info.versions, **installed_versions("lookalike", "torch", "timm", runtime, "onnx", "nncf")},
        )
        save_bundle(exported, out, record, reranker=read_reranker(bundle), replace_existing=replace)
    return Exported(load_encoder(out), parity, tuple(skipped))


def _target(format: str, precision: str) -> tuple[str, str]:
    if format not in GRAPH_FORMATS:
        raise OptionError(f"`format` must be one of {', '.join(GRAPH_FORMATS)}, got {format!r}.", argument="format")
    if precision not in GRAPH_PRECISIONS:
        raise OptionError(
            f"`precision` must be one of {', '.join(GRAPH_PRECISIONS)}, got {precision!r}.", argument="precision"
        )
    if format == "onnx":
        if precision == "bfloat16":
            raise OptionError(
                "`precision` must be float32 or int8 with onnx: its runtime has no bfloat16 on CPUs.",
                argument="precision",
            )
        return GRAPH_FORMATS[format], "float32" if precision == "auto" else precision
    supported = openvino.float_precisions()
    if precision == "bfloat16" and precision not in supported:
        raise OptionError(
            "this processor has no bfloat16 arithmetic, so the loss cannot be measured here; omit `precision`, or "
            "export on the machine that runs the model.",
            argument="precision",
        )
    return GRAPH_FORMATS[format], supported[0] if precision == "auto" else precision


def _require_packages(runtime: str, precision: str) -> None:
    purpose = f"exporting for {runtime} in {precision}"
    if runtime == openvino.RUNTIME:
        openvino.import_openvino()
    else:
        onnx.require_packages(purpose)
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise MissingExtra("nncf", "int8", purpose)


def _data_of(data: Dataset | Path | str, info: BundleInfo) -> Dataset:
    """Split the data as for the training of the bundle."""
    split = load_training_splits(data, info.options)
    if info.training_data is not None and info.training_data.fingerprint != split.fingerprint:
        raise DataError(
            f"the bundle was not trained on the images in {split.root}; pass the folder that it was trained on.",
            argument="data",
        )
    return split


def _export_member(
    member: Encoder, folder: Path, number: int, runtime: str, precision: str, images: Sequence[Pixels] | None
) -> Encoder:
    from lookalike.models.torch_backbone import TorchBackbone

    files = [folder / f"member-{number}{suffix}" for suffix in GRAPH_RUNTIMES[runtime].SUFFIXES]
    half = precision != "float32"
    if isinstance(member.backbone, OnnxBackbone):
        member.backbone.write(runtime, files[0], member.head, half=half, calibration=images)
    else:
        backbone = with_runtime(member, TORCH).backbone.prepare((), 1, SILENT)
        assert isinstance(backbone, TorchBackbone)
        write_graph(backbone, runtime, files[0], member.head, half=half, calibration=images)
    digests = {part.name: file_digest(part) for part in files}
    fingerprint = member.fingerprint
    if precision == "int8":  # another model
        fingerprint = digest(fingerprint, precision, *digests.values())
    info = replace(
        member.info,
        fingerprint=fingerprint,
        graph=GraphInfo(runtime, precision, digests, member.info.backbone.fingerprint),
    )
    return Encoder(info, ExportedBackbone(info, files[0]), None)


def _read_images(
    member: Encoder, items: Sequence[Item], skipped: list[Skipped], progress: Progress, task: str
) -> list[Pixels]:
    """Return what an encoder's backbone receives of the images that can be read; add the others to `skipped`."""
    pixels: list[Pixels] = []
    for batch in decode_batches([items], [member.preprocessing]):
        pixels.extend(batch.pixels[0] if batch.pixels else ())
        skipped += batch.skipped
        progress.step(task, batch.done, len(items))
    if not pixels:
        raise DataError(
            f"none of the {len(items)} images for {task} can be read; run 'lookalike check'.", argument="data"
        )
    return pixels


def _measure_parity(
    encoder: AnyEncoder, exported: AnyEncoder, data: Dataset | None, skipped: list[Skipped], progress: Progress
) -> Parity:
    """Compare a bundle and its exported model; add files that cannot be read to `skipped`."""
    cosines, batch_cosines = [], []
    for member, other in zip(encoder.members, exported.members, strict=True):
        if data is None:
            images = generated_images(member.preprocessing.height, member.preprocessing.width)
        else:
            sample = sample_evenly(data.validation, COMPARED_IMAGES)
            images = np.stack(_read_images(member, sample, skipped, progress, "comparison"))
        to_bundle, between_batches = compare_embeddings(member, other, images)
        cosines.append(to_bundle)
        batch_cosines.append(between_batches)
    compared = ComparedMeasures() if data is None else compare_measures(encoder, exported, data, progress)
    skipped += compared.skipped
    return Parity(
        images="generated images" if data is None else "validation images",
        count=len(cosines[0]),
        min_cosine=float(np.min(cosines)),
        mean_cosine=float(np.mean(cosines)),
        batch_cosine=min(batch_cosines),
        validation_images=compared.images,
        measures=compared.means,
        loss=compared.loss,
    )
