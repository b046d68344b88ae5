"""The typed records in `bundle.json`: each encoder, and how the bundle was made. Needs no torch.

The format is described in docs/concepts.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lookalike._files import digest, read_json
from lookalike.errors import LookalikeError, ModelError, StorageError
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.records import TrainingReport

BUNDLE_FORMAT = 2
BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FOLDER = "model"  # the bundle inside a folder of embeddings or an index

AS_PRETRAINED = "pretrained"  # the pooling that the weights were trained with
TrainingState = Literal["untrained", "frozen", "fine-tuned"]
UNTRAINED: TrainingState = "untrained"
FROZEN: TrainingState = "frozen"
FINE_TUNED: TrainingState = "fine-tuned"
TRAINING_STATES = (UNTRAINED, FROZEN, FINE_TUNED)


@dataclass(frozen=True)
class Adaptation:
    """Changes to a network as timm builds it; the default changes nothing.

    Attributes:
        pooling: from feature map to features: pretrained, avg, max, avgmax or gem.
        side: side of the input, relative to the size the weights were trained at.

    """

    pooling: str = AS_PRETRAINED
    side: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        """Whether the network stays as timm builds it."""
        return self == Adaptation()


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone with its weights.

    Attributes:
        name: the name that the user gave.
        timm_name: the architecture.
        features: number of pooled features.
        preprocessing: how an image becomes pixels.
        adaptation: changes to the network as timm builds it.
        weights: where the pretrained weights come from.
        weights_digest: digest of the weights.

    """

    name: str
    timm_name: str
    features: int
    preprocessing: Preprocessing
    adaptation: Adaptation
    weights: str
    weights_digest: str

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides the pooled features."""
        settings = json.dumps([asdict(self.preprocessing), asdict(self.adaptation)], sort_keys=True)
        return digest(self.timm_name, settings, self.weights_digest)

    @property
    def architecture(self) -> str:
        """Digest of everything that decides the speed of the backbone: two sets of weights share it."""
        size = f"{self.preprocessing.height}x{self.preprocessing.width}"
        return digest(self.timm_name, repr(self.adaptation), size, str(self.features))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BackboneInfo:
        """Undo `dataclasses.asdict`."""
        return cls(
            name=str(value["name"]),
            timm_name=str(value["timm_name"]),
            features=int(value["features"]),
            preprocessing=Preprocessing.from_dict(value["preprocessing"]),
            adaptation=Adaptation(**value["adaptation"]),
            weights=str(value["weights"]),
            weights_digest=str(value["weights_digest"]),
        )


@dataclass(frozen=True)
class GraphInfo:
    """The graph of an exported encoder.

    Attributes:
        runtime: openvino or onnxruntime.
        precision: float32, bfloat16 or int8.
        digests: by file name inside the bundle, the digest of its bytes; the first file is the one to load.
        backbone: fingerprint of the backbone, so that an edited record is noticed.

    """

    runtime: str
    precision: str
    digests: Mapping[str, str]
    backbone: str


@dataclass(frozen=True)
class EncoderInfo:
    """The record of one encoder.

    Attributes:
        backbone: the backbone.
        dim: dimensions of an embedding.
        head: how the head was made, in words.
        state: untrained (random weights), frozen (pretrained) or fine-tuned.
        fingerprint: digest of everything that decides an embedding.
        graph: of an exported encoder, the graph that includes the head.

    """

    backbone: BackboneInfo
    dim: int
    head: str
    state: TrainingState
    fingerprint: str
    graph: GraphInfo | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EncoderInfo:
        """Undo `dataclasses.asdict`."""
        return cls(
            backbone=BackboneInfo.from_dict(value["backbone"]),
            dim=int(value["dim"]),
            head=str(value["head"]),
            state=training_state(value["state"]),
            fingerprint=str(value["fingerprint"]),
            graph=GraphInfo(**value["graph"]) if value["graph"] else None,
        )


def training_state(value: object) -> TrainingState:
    """Return a training state, or raise `ValueError`."""
    for state in TRAINING_STATES:
        if value == state:
            return state
    raise ValueError(f"{value!r} is not one of {', '.join(TRAINING_STATES)}")


@dataclass(frozen=True)
class TrainingData:
    """The data that a bundle was trained on.

    Attributes:
        fingerprint: of the data set and its splits.
        images, validation_images: their numbers.
        validation: fingerprint of the validation split.
        contents: short digests of the training images' bytes, so that a test set can be compared with them.

    """

    fingerprint: str
    images: int
    validation_images: int
    validation: str
    contents: tuple[str, ...] = ()


@dataclass(frozen=True)
class BundleInfo:
    """The content of `bundle.json`.

    Attributes:
        name: the backbones' names, joined by `+`.
        dim: dimensions of an embedding.
        fingerprint: of the encoder or ensemble.
        members: one encoder, or those of an ensemble.
        combination: of an ensemble; None for a single encoder.
        classes: class names that it was trained on.
        training_data: what it was trained on; None where it was not trained.
        options: the training options.
        training: a report per trained member.
        measures: by split, by measure: `{"mean", "low", "high"}`.
        benchmark: of a winner: how it was selected.
        request: of a pretrained model that was requested by name: names and weights.
        refit_of: fingerprint of the bundle that was trained again on all labelled images.
        exported_from: fingerprint of the bundle that was exported.
        parity: of an exported bundle: how far it differs from that bundle.
        versions: of the packages that it was made with.

    """

    name: str
    dim: int
    fingerprint: str
    members: tuple[EncoderInfo, ...]
    combination: str | None = None
    classes: tuple[str, ...] = ()
    training_data: TrainingData | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[TrainingReport | None, ...] = ()
    measures: Mapping[str, Any] = field(default_factory=dict)
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    refit_of: str | None = None
    exported_from: str | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_exported(self) -> bool:
        """Whether it holds graphs for a runtime instead of weights."""
        return self.members[0].graph is not None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {"format": BUNDLE_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BundleInfo:
        """Undo `to_dict`; a missing or misplaced field raises what Python raises."""
        data = value["training_data"]
        return cls(
            **{f.name: value[f.name] for f in fields(cls)}
            | {
                "members": tuple(map(EncoderInfo.from_dict, value["members"])),
                "classes": tuple(value["classes"]),
                "training_data": TrainingData(**{**data, "contents": tuple(data["contents"])}) if data else None,
                "training": tuple(report and TrainingReport.from_dict(report) for report in value["training"]),
            }
        )


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle."""
    return (path / BUNDLE_FILE).is_file()


def find_bundle(model: Path | str) -> Path | None:
    """Return the bundle that a path means: the path, or the bundle inside a folder of embeddings or an index."""
    path = Path(model)
    return next((folder for folder in (path, path / MODEL_FOLDER) if is_bundle(folder)), None)


def read_bundle_info(path: Path | str) -> BundleInfo:
    """Read a bundle's record without loading its weights."""
    path = Path(path)
    file = path / BUNDLE_FILE
    if not is_bundle(path):
        raise ModelError(f"{path} is not a bundle: it has no {BUNDLE_FILE}; make one with 'lookalike train'.")
    try:
        value = read_json(file, "bundle record")
    except StorageError as error:
        raise ModelError(f"{file} is damaged; make the bundle again.") from error
    version = value.get("format") if isinstance(value, dict) else None
    if version != BUNDLE_FORMAT:
        raise ModelError(
            f"{path} has bundle format {version}, this version reads {BUNDLE_FORMAT}; make the bundle again."
        )
    try:
        info = BundleInfo.from_dict(value)
        if not info.members:
            raise ValueError("no members")
        return info
    except (LookalikeError, KeyError, TypeError, ValueError, AttributeError) as error:
        cause = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise ModelError(f"{file} is damaged ({cause}); make the bundle again.") from error
