"""Load an encoder: from a bundle, an exported bundle, or by the name of a pretrained backbone; also for MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import file_digest
from lookalike.errors import LookalikeError, ModelError, OptionError, renamed_argument
from lookalike.models.backbone_files import parse_backbone_file, require_pretrained
from lookalike.models.bundle import (
    BUNDLE_FILE,
    WEIGHTS_FILE,
    WeightsFile,
    checked_graph_file,
    find_bundle,
    is_bundle,
    read_alignments,
    read_bundle_info,
    read_head,
    weights_digest,
    write_tensors,
)
from lookalike.models.encoder import AnyEncoder, Encoder, Ensemble
from lookalike.models.function_backbone import FunctionBackbone
from lookalike.models.heads import random_head
from lookalike.models.info import FROZEN, FUNCTION, ONNX, BackboneInfo, TrainingState
from lookalike.models.pipeline import Backbone
from lookalike.models.preprocessing import Crop
from lookalike.models.registry import PRETRAINED, find_backbone, hub_repository
from lookalike.runtimes.cache import PretrainedCache
from lookalike.runtimes.graphs import ExportedBackbone
from lookalike.runtimes.onnx_backbone import OnnxBackbone, open_onnx
from lookalike.runtimes.select import AUTO, AutoBackbone, TorchWeights, require_runtime, with_runtime
from lookalike.types import Vectors

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone

WeightsOption = str | Path | Mapping[str, str | Path]
Weights = str | Path | Encoder  # of one backbone; of a function, the encoder from `as_encoder`


@checked_arguments()
def load_encoder(
    model: Path | str,
    *,
    weights: WeightsOption = PRETRAINED,
    runtime: str = AUTO,
    precision: str = AUTO,
    seed: int = 0,
    functions: Sequence[AnyEncoder | Crop] = (),
) -> AnyEncoder:
    """Load an encoder or an ensemble. torch is imported only where no runtime was selected for it before.

    Args:
        model: a bundle, an exported bundle, a folder of embeddings or an index (for the model inside), or the name of a
            backbone; several names are joined by `+`. By name alone the head is a random projection and several
            backbones are concatenated; `embed`, `index` and `evaluate` fit them on the images at hand.
        weights: for a name: `"pretrained"`, `"none"` (random), a file, or a mapping of these by backbone.
        runtime: auto (the fastest on this machine), torch, openvino or onnxruntime.
        precision: auto (the fastest), float32 or bfloat16.
        seed: of random weights and projections.
        functions: the encoders from `as_encoder` and the crops that a bundle was made with: functions are not in it.

    Raises:
        ModelError: not a model, one that needs a function that is not in `functions`, a damaged bundle, or weights that
            do not fit.
        WeightsUnavailable: pretrained weights are not available.
        OptionError: an unknown runtime or precision, or another one than an exported bundle has.
        MissingExtra: the runtime that it was exported for is not installed.
    """
    require_runtime(runtime)
    bundle = find_bundle(model)
    if bundle is not None:
        return with_runtime(load_bundle(bundle, functions), runtime, precision)
    backbones = load_pretrained(str(model), weights, seed=seed)
    members = [Encoder.of(b, random_head(b.width, seed=seed), state) for b, state in backbones]
    encoder = members[0] if len(members) == 1 else Ensemble(tuple(members), "concat")
    return with_runtime(encoder, runtime, precision)


def load_bundle(path: Path, functions: Sequence[AnyEncoder | Crop] = ()) -> AnyEncoder:
    """Load the encoder of a bundle; its runtime is selected when it embeds images."""
    info = read_bundle_info(path)
    members: list[Encoder] = []
    for number, member in enumerate(info.members):
        if member.graph is None:
            backbone = _stored_backbone(path, number, member.backbone, functions)
            members.append(Encoder(member, backbone, read_head(path, number, member)))
        else:
            members.append(Encoder(member, ExportedBackbone(member, checked_graph_file(path, member)), None))
    crops: dict[str, Crop] = {crop: crop for crop in functions if isinstance(crop, Crop)}
    members = [m.with_crop(crops[c].function, name=c) if (c := m.preprocessing.crop) in crops else m for m in members]
    try:
        encoder: AnyEncoder = members[0]
        if info.combination is not None:
            alignments = read_alignments(path, len(members))
            encoder = Ensemble(tuple(members), info.combination, alignments, info.weights)
    except LookalikeError as error:
        cause = str(error).rstrip(".")
        raise ModelError(
            f"{path / BUNDLE_FILE} is damaged ({cause}); create the bundle again.", argument="model"
        ) from error
    if encoder.fingerprint != info.fingerprint:
        raise ModelError(
            f"{path} was changed after it was saved (its fingerprint differs); create the bundle again.",
            argument="model",
        )
    return encoder


def _stored_backbone(path: Path, number: int, info: BackboneInfo, functions: Sequence[AnyEncoder | Crop]) -> Backbone:
    if info.library == FUNCTION:
        return _find_function(path, info, functions)
    weights = WeightsFile(path / WEIGHTS_FILE, f"members.{number}.backbone.")
    source = StoredWeights(info, weights)
    return OnnxBackbone(info, source.arrays) if info.library == ONNX else AutoBackbone(info, source)


def _find_function(path: Path, info: BackboneInfo, functions: Sequence[AnyEncoder | Crop]) -> FunctionBackbone:
    """Return the function that a bundle was made with, with the bundle's preprocessing."""
    encoders = [function for function in functions if not isinstance(function, Crop)]
    for encoder in encoders:
        for member in encoder.members:
            backbone = member.backbone
            if isinstance(backbone, FunctionBackbone) and backbone.computes(info):
                crop = backbone.info.preprocessing.crop
                crop = crop if crop == info.preprocessing.crop else info.preprocessing.crop
                return backbone.with_preprocessing(replace(info.preprocessing, crop=crop))
    names = ", ".join(encoder.name for encoder in encoders)
    raise ModelError(
        f"{path} was made with the function {info.name}, which is not stored in it"
        f"{f', and differs from {names}' if names else ''}; in Python, pass the encoder that as_encoder made of it in "
        "`functions`.",
        argument="functions",
    )


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a backbone in a safetensors file; `rebuild` is called where a file in the cache is damaged."""

    info: BackboneInfo
    file: WeightsFile
    rebuild: Callable[[], tuple[TorchBackbone, TrainingState]] | None = None

    def load(self) -> TorchBackbone:
        """Return the backbone on torch."""
        from lookalike.models.trainable import load_torch_backbone, require_fit

        if self.rebuild is None:
            require_fit(self.info, self.file.shapes())
        return load_torch_backbone(self.info, self.arrays())

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return the saved weights by name, without torch unless a file in the cache is damaged."""
        try:
            arrays = self.file.read()
            if weights_digest(arrays) != self.info.weights_digest:
                raise ModelError(f"{self.file.path} was changed after it was saved (its weights differ).")
            return arrays
        except ModelError:
            if self.rebuild is None:
                raise
            return self.rebuild()[0].weights()


def load_pretrained(
    name: str, weights: WeightsOption | Encoder = PRETRAINED, *, seed: int = 0
) -> list[tuple[Backbone, TrainingState]]:
    """Load backbones by name, joined by `+`, each with its state (untrained or frozen); without torch where cached."""
    if isinstance(weights, Encoder):
        return [(weights.backbone, weights.state)]
    with renamed_argument("model", "backbone"):
        pairs = pair_weights(_split_names(name), weights)
        caches = [PretrainedCache(n, str(source), seed) for n, source in pairs]
        _require_backbones(name, [n for (n, _), cache in zip(pairs, caches, strict=True) if cache.load() is None])
        return [_load_backbone(n, source, seed, cache) for (n, source), cache in zip(pairs, caches, strict=True)]


def weights_identity(name: str, weights: Weights) -> str:
    """Return what identifies the weights of a backbone: their source, or the digest of a function or of files."""
    if isinstance(weights, Encoder):
        return f"{FUNCTION} {weights.fingerprint}"
    file = parse_backbone_file(name)
    if file is not None:
        return file.digest()
    return file_digest(Path(weights)) if Path(weights).is_file() else str(weights)


def _load_backbone(name: str, weights: str | Path, seed: int, cache: PretrainedCache) -> tuple[Backbone, TrainingState]:
    file = parse_backbone_file(name)
    if file is not None:
        require_pretrained(file, weights)
        if file.library == ONNX:
            return open_onnx(file), FROZEN
        cache = PretrainedCache(name, file.digest(), 0)
    cached = cache.load()
    if cached is None:
        backbone, state = _build_pretrained(name, weights, seed, cache)
        return AutoBackbone(backbone.info, TorchWeights(backbone)), state
    info, state, stored = cached
    rebuild = partial(_build_pretrained, name, weights, seed, cache)
    return AutoBackbone(info, StoredWeights(info, WeightsFile(stored, ""), rebuild)), state


def _build_pretrained(
    name: str, weights: str | Path, seed: int, cache: PretrainedCache
) -> tuple[TorchBackbone, TrainingState]:
    from lookalike.models.trainable import build_trainable

    trainable = build_trainable(name, weights, seed=seed)
    backbone = trainable.torch_backbone()
    cache.save(backbone.info, trainable.trained, lambda path: write_tensors(path, backbone.weights()))
    return backbone, trainable.trained


def pair_weights(names: Sequence[str], weights: WeightsOption) -> list[tuple[str, str | Path]]:
    """Return each backbone with its weights; raise `OptionError` if `weights` names another one."""
    by_name = weights if isinstance(weights, Mapping) else dict.fromkeys(names, weights)
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise OptionError(
            f"`weights` names {unknown[0]!r}, which is not among the backbones {', '.join(names) or 'with weights'}.",
            argument="weights",
        )
    return [(name, by_name.get(name, PRETRAINED)) for name in names]


def _split_names(text: str) -> list[str]:
    """Split the names of backbones; what looks like a path gets an error of its own."""
    separators = (os.sep, os.altsep or os.sep)
    names = [
        name
        for name in text.split("+")
        if parse_backbone_file(name) is None and (hub_repository(name) is None or Path(name).exists())
    ]
    if text.startswith(("~", ".")) or any(separator in name for separator in separators for name in names):
        raise _unknown_path(text)
    return text.split("+")


def _unknown_path(text: str) -> ModelError:
    problem = f"is not a bundle: it has no {BUNDLE_FILE}" if Path(text).exists() else "does not exist"
    advice = "pass a bundle made by 'lookalike train' or 'lookalike benchmark'"
    if is_bundle(Path(text) / "best"):
        advice = f"the winner of this benchmark is {Path(text) / 'best'}"
    return ModelError(f"{text} {problem}, and no backbone has this name; {advice}.", argument="model")


def _require_backbones(text: str, names: Sequence[str]) -> None:
    """Raise `ModelError` for a name that is not a backbone's, before any weights are loaded."""
    try:
        for name in names:
            find_backbone(name)
    except ModelError as error:
        if any(parse_backbone_file(name) for name in names):
            raise
        if Path(text).exists():
            raise _unknown_path(text) from error
        if "+" in text:
            raise
        message = f"{text} is neither a bundle nor the name of a backbone: {error}"  # or a misspelt folder
        raise ModelError(message, argument="model") from error


class BundleModel:
    """A bundle as a model of MLflow: `mlflow.pyfunc.load_model(uri).predict(paths)` returns embeddings."""

    def __init__(self, bundle: Path) -> None:
        self.encoder = load_encoder(bundle)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Vectors:  # noqa: ARG002
        """Return embeddings `(n, dim)` float32 of n paths: a list, or a table with the paths in its first column.

        An image that cannot be read is an error: vectors and paths would not match.
        """
        column = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else model_input
        paths: Sequence[str] = [str(path) for path in ([column] if isinstance(column, str | Path) else column)]
        embeddings = self.encoder.embed(dict.fromkeys(paths))
        if embeddings.skipped:
            count, first = len(embeddings.skipped), embeddings.skipped[0]
            raise OptionError(f"{count} images cannot be read, the first is {first}.", argument="model_input")
        rows = {path: row for row, path in enumerate(embeddings.ids)}
        vectors: Vectors = embeddings.vectors[[rows[path] for path in paths]]
        return vectors


def _load_pyfunc(data_path: str) -> BundleModel:
    """Load the bundle that MLflow stored; MLflow looks for this name."""
    return BundleModel(Path(data_path))
