"""From a bundle to a folder that another runtime computes."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import require_free
from lookalike._versions import versions_of
from lookalike.api.parity import Parity, compare, generated, measured
from lookalike.data.dataset import Dataset, Item, sample_evenly
from lookalike.data.images import read_pixels
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import DataError, MissingExtra, OptionError
from lookalike.models.adapt import family_of
from lookalike.models.encoder import Encoder
from lookalike.models.engine import Engine
from lookalike.models.facts import bundle_at, read_facts
from lookalike.models.member import TrainableEncoder, members_of
from lookalike.models.stream import map_ahead
from lookalike.models.torch_bundle import load_bundle as load_weights
from lookalike.progress import SILENT, Progress
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.bundle import graph_file, is_exported, load_bundle, save_bundle
from lookalike.runtimes.members import open_member
from lookalike.runtimes.quantise import CALIBRATION_IMAGES, quantise
from lookalike.types import Pixels, Skipped

FORMATS = {"openvino": openvino.RUNTIME, "onnx": onnx.RUNTIME}
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
TOLERANCE = 0.5
GOLDEN = 64


def export(
    bundle: Path | str,
    *,
    out: Path | str,
    format: str = "openvino",
    precision: str = "auto",
    data: Dataset | Path | str | None = None,
    tolerance: float = TOLERANCE,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Encoder:
    """Write a bundle's graphs for another runtime, and refuse them when they lose too much.

    Normalisation, pooling, head and L2 norm are in the graph: it takes uint8 pixels. What it is compared by stands in
    its `bundle.json` under `parity`.

    Args:
        bundle: a folder that `train` or `benchmark` made, or one that holds it: embeddings, an index.
        out: the folder.
        format: `openvino` or `onnx`.
        precision: float32, bfloat16 (OpenVINO only) or int8; auto takes bfloat16 with OpenVINO where the processor
            computes in it, else float32.
        data: what the bundle was trained on. int8 is calibrated on its training images; what is lost is measured on
            its validation part. Without it, float models are compared on generated pictures alone.
        tolerance: points of precision@3 that may be lost on the validation part.
        replace: take the place of an older folder.
        progress: is told what happens.

    Returns:
        The exported encoder, loaded.

    Raises:
        ModelError: no bundle, one that was exported already, or the exported model loses too much.
        OptionError: an unknown format or precision, or int8 without data.
        DataError: other data than the bundle was trained on.
        MissingExtra: a package is not installed.
        StorageError: `out` is taken or cannot be written.

    """
    bundle, out = bundle_at(bundle) or Path(bundle), Path(out)
    runtime, precision = _chosen(format, precision)
    _require_packages(runtime, precision)
    if precision == "int8" and data is None:
        raise OptionError("int8 needs the data that the bundle was trained on, to calibrate and to measure with.")
    if not tolerance >= 0:
        raise OptionError(f"tolerance must be at least 0, got {tolerance}.")
    if not replace:
        require_free(out)
    facts = read_facts(bundle)
    if is_exported(facts):
        raise OptionError(f"{bundle} is an exported model; give the bundle that it was exported from.")
    encoder = load_weights(bundle)
    cut = None if data is None else _as_trained(data, facts)
    with tempfile.TemporaryDirectory(prefix="lookalike-export-") as folder:
        members, alone = [], []
        for n, (member, row) in enumerate(zip(members_of(encoder), facts["members"], strict=True)):
            progress.info(f"{member.backbone}: to {format}, {precision}")
            pictures = _calibration(member, cut, progress) if cut is not None and precision == "int8" else None
            file = Path(folder) / graph_file(n, runtime)
            _write_graph(member, file, runtime, precision, pictures)
            members.append(open_member(file, row, runtime=runtime, precision=precision, kept=False))
            alone.append(open_member(file, row, runtime=runtime, precision=precision, kept=False, single=True))
        exported = Encoder(members, encoder.how, encoder.alignments)
        found = _parity(encoder, exported, alone, cut, progress)
        found.require(precision, tolerance)
        progress.info(f"{encoder.name}: {found}")
        own = {
            "exported_from": encoder.fingerprint,
            "parity": found.to_dict(),
            "versions": _versions(runtime, precision),
        }
        save_bundle(exported, out, facts={**facts, **own}, replace=replace)
    return load_bundle(out)


def _chosen(format: str, precision: str) -> tuple[str, str]:
    if format not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "bfloat16" and format == "onnx":
        raise OptionError("precision must be float32 or int8 with onnx: its runtime does not compute in bfloat16 here.")
    if format == "onnx":
        return FORMATS[format], "float32" if precision == "auto" else precision
    able = openvino.precisions()
    if precision == "bfloat16" and precision not in able:
        raise OptionError(
            "this processor does not compute in bfloat16, so what an export loses by it cannot be measured here; leave "
            "precision out, or export where it is to run."
        )
    return FORMATS[format], able[0] if precision == "auto" else precision


def _require_packages(runtime: str, precision: str) -> None:
    """Raise `MissingExtra` or `ModelError` before anything is done."""
    what = f"exporting for {runtime} in {precision}"
    if runtime == openvino.RUNTIME:
        openvino.package()
    else:
        onnx.require_packages(what)
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise MissingExtra("nncf", "int8", what)


def _as_trained(data: Dataset | Path | str, facts: dict[str, Any]) -> Dataset:
    """Cut the data as for the training of the bundle."""
    options = facts.get("options") or {}
    seed, disjoint = int(options.get("seed", 0)), options.get("class_disjoint")
    if not isinstance(data, Dataset):
        data = load_dataset(data, seed=seed, class_disjoint=bool(disjoint))
    cut = with_validation(data, seed=seed, class_disjoint=disjoint)
    known = (facts.get("training_data") or {}).get("fingerprint")
    if known is not None and known != cut.fingerprint:
        raise DataError(
            f"the bundle was not trained on the images in {cut.root}; give the folder that it was trained on."
        )
    return cut


def _write_graph(
    member: TrainableEncoder, file: Path, runtime: str, precision: str, pictures: Sequence[Pixels] | None
) -> None:
    transformer = family_of(member.module) in ("transformer", "hybrid")
    if runtime == openvino.RUNTIME:
        graph = openvino.convert(member)
        if pictures is not None:
            graph = quantise(graph, runtime, pictures, transformer=transformer)
        openvino.save(graph, file, half=precision != "float32")
        return
    onnx.write(member, file)
    if pictures is not None:
        onnx.rewrite(file, lambda graph: quantise(graph, runtime, pictures, transformer=transformer))


def _calibration(member: TrainableEncoder, data: Dataset, progress: Progress) -> list[Pixels]:
    return [p[None] for p in _pixels(member, sample_evenly(data.training, CALIBRATION_IMAGES), progress, "calibration")]


def _pixels(member: TrainableEncoder, items: Sequence[Item], progress: Progress, task: str) -> list[Pixels]:
    """Return what a member is shown of the images that can be read."""

    def prepare(item: Item) -> Pixels:
        return member.preprocessing.pixels(read_pixels(item.path, member.preprocessing.at_least))

    found: list[Pixels] = []
    for batch in map_ahead(items, prepare, 16):
        found += [p for _, p in batch if not isinstance(p, Skipped)]
        progress.step(task, len(found), len(items))
    if not found:
        raise DataError(f"none of the {len(items)} images for {task} can be read; run 'lookalike check'.")
    return found


def _parity(
    encoder: Encoder, exported: Encoder, alone: Sequence[Engine], data: Dataset | None, progress: Progress
) -> Parity:
    cosines, batch = [], []
    for member, other, by_itself in zip(members_of(encoder), exported.members, alone, strict=True):
        p = member.preprocessing
        golden = generated(p.height, p.width)
        if data is not None:
            golden = np.stack(_pixels(member, sample_evenly(data.validation, GOLDEN), progress, "golden pictures"))
        found, between = compare(member, other, by_itself, golden)
        cosines.append(found)
        batch.append(between)
    measures, loss = ({}, None) if data is None else measured(encoder, exported, data, progress)
    return Parity(
        pictures="generated pictures" if data is None else "validation images",
        images=len(cosines[0]),
        min_cosine=float(np.min(cosines)),
        mean_cosine=float(np.mean(cosines)),
        batch_cosine=min(batch),
        validation_images=0 if data is None else len(data.validation),
        measures=measures,
        loss=loss,
    )


def _versions(runtime: str, precision: str) -> dict[str, str]:
    names = ["lookalike", "torch", "timm", "numpy", "pillow", runtime]
    names += ["onnx"] if runtime == onnx.RUNTIME else []
    names += ["nncf"] if precision == "int8" else []
    return versions_of(*names)
