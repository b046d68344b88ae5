"""The typed records in `bundle.json`: each encoder, how it was trained, and how the bundle was made. Needs no torch.

The format is described in docs/reference/files.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from lookalike._files import checked_record, digest, with_digest
from lookalike._records import read_record
from lookalike.errors import ModelError
from lookalike.models.preprocessing import Preprocessing
from lookalike.reranking.steps import Reranking
from lookalike.types import Calibration, Comparison, Estimate

BUNDLE_FORMAT = 4
REPORT_VERSION = 2  # of a `TrainingReport`
MIN_PLANNED_SHARE = 0.25  # fewer of the recipe's steps do not show whether fine-tuning helps

# what defines the network of a backbone
Library = Literal["timm", "onnx", "transformers", "function"]
TIMM: Library = "timm"
ONNX: Library = "onnx"
TRANSFORMERS: Library = "transformers"
FUNCTION: Library = "function"

AS_PRETRAINED = "pretrained"  # the pooling of the network as timm builds it
PROJECTED = "projected"  # that pooling, then the projection into the space that images and texts share
TOKEN, TOKEN_AVG = "token", "token+avg"  # the class token; and joined with the mean of the patches
# What the weights of an encoder are, in the words that names, tables and pages show.
TrainingState = Literal["untrained", "frozen", "frozen + trained head", "fine-tuned", "mixed"]
UNTRAINED: TrainingState = "untrained"
FROZEN: TrainingState = "frozen"
TRAINED_HEAD: TrainingState = "frozen + trained head"
FINE_TUNED: TrainingState = "fine-tuned"
MIXED: TrainingState = "mixed"

# what a bundle may hold; its record decides how much memory is taken, before the weights are compared with it
POOLINGS = (AS_PRETRAINED, "avg", "max", "avgmax", "gem", TOKEN, TOKEN_AVG, PROJECTED)
_ARCHITECTURE = re.compile(r"\w+(\.\w+)?", re.ASCII)  # no source of weights before it, such as hf-hub: or local-dir:
_FILE_NAME = re.compile(r"[\w-]+(\.[\w-]+)+", re.ASCII)
_MAX_SIDE_FACTOR = 8.0
_MAX_WIDTH = 1 << 16
_MAX_HEAD = 1 << 27
_MAX_MEMBERS = 16


def joint_state(states: Collection[TrainingState]) -> TrainingState:
    """Return the state of an ensemble: `untrained` if any member is; `mixed` if they differ; else that of all."""
    if UNTRAINED in states:
        return UNTRAINED
    return next(iter(states)) if len(set(states)) == 1 else MIXED


@dataclass(frozen=True)
class Adaptation:
    """Changes to a network as timm builds it; the default changes nothing."""

    # from feature map or tokens to features: pretrained, avg, max, avgmax, gem, token, token+avg or projected
    pooling: str = AS_PRETRAINED
    side: float = 1.0  # side of the input, relative to the size the weights were trained at

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ModelError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}.")
        if not 0 < self.side <= _MAX_SIDE_FACTOR:
            raise ModelError(f"side must be above 0 and at most {_MAX_SIDE_FACTOR:g}, got {self.side}.")


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone with its weights."""

    name: str  # the name that the user gave
    timm_name: str  # the architecture: in timm, or of transformers the class; `onnx` or `function` for the others
    features: int
    preprocessing: Preprocessing  # how an image becomes pixels
    adaptation: Adaptation  # changes to the network as timm builds it
    weights: str  # where the pretrained weights come from
    weights_digest: str  # digest of the weights; of a function, of the fingerprint that the user gave
    library: Library = TIMM  # what defines the network: timm, onnx, transformers or function
    config: str = ""  # what the library needs to build it, as JSON; empty for timm

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides the pooled features."""
        preprocessing = {
            key: value for key, value in asdict(self.preprocessing).items() if (key, value) != ("crop", "")
        }
        settings = json.dumps([preprocessing, asdict(self.adaptation)], sort_keys=True)
        network = (self.timm_name,) if self.library == TIMM else (self.library, self.timm_name, self.config)
        return digest(*network, settings, self.weights_digest)

    @property
    def architecture(self) -> str:
        """Digest of everything that decides the speed of the backbone: two sets of weights share it."""
        size = f"{self.preprocessing.height}x{self.preprocessing.width}"
        parts = (self.timm_name, repr(self.adaptation), size, str(self.features))
        return digest(*parts) if self.library == TIMM else digest(*parts, self.library, self.weights_digest)

    def require_safe(self) -> None:
        """Raise `ValueError` for what no stored backbone has: a name that leads elsewhere, or a huge size."""
        if not _ARCHITECTURE.fullmatch(self.timm_name):
            raise ValueError(f"timm_name is {self.timm_name!r:.60}, not the plain name of an architecture")
        require_between("features", self.features, _MAX_WIDTH)


@dataclass(frozen=True)
class GraphInfo:
    """The graph of an exported encoder."""

    runtime: str  # openvino or onnxruntime
    precision: str  # float32, bfloat16 or int8
    # by file name inside the bundle, the digest of its bytes; the first file is the one to load
    digests: Mapping[str, str]
    backbone: str  # fingerprint of the backbone, so that an edited record is noticed


@dataclass(frozen=True)
class EncoderInfo:
    """The record of one encoder."""

    backbone: BackboneInfo
    dim: int  # dimensions of an embedding
    head: str  # how the head was made, in words
    state: TrainingState  # untrained (random weights), frozen (pretrained), frozen + trained head, or fine-tuned
    fingerprint: str  # digest of everything that decides an embedding
    graph: GraphInfo | None = None  # of an exported encoder, the graph that includes the head

    def require_safe(self) -> None:
        """Raise `ValueError` for what no stored encoder has: a huge size, or files outside the bundle."""
        self.backbone.require_safe()
        require_between("dim", self.dim, _MAX_WIDTH)
        require_between("dim × features", self.dim * self.backbone.features, _MAX_HEAD)
        if self.graph is not None and not self.graph.digests:
            raise ValueError("the graph has no file")
        for name in self.graph.digests if self.graph is not None else ():
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r:.60} is not a plain file name inside the bundle; export the model again")


def require_between(name: str, value: int, largest: int) -> None:
    """Raise `ValueError` unless a number is between 1 and `largest`."""
    if not 1 <= value <= largest:
        raise ValueError(f"{name} must be between 1 and {largest:,}, got {value}")


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
class EpochReport:
    """One epoch of fine-tuning: mean training loss, wall-clock seconds, and the validation measure if one was taken."""

    loss: float
    seconds: float
    measure: float | None = None


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates of the backbone and of the head, and the epoch from which they hold, counted from 0."""

    epoch: int
    lr: float
    head_lr: float


@dataclass(frozen=True)
class HeadFit:
    """Parameters of a whitening head: `Whitening.fit` takes them."""

    shrinkage: float
    emphasis: float

    def __str__(self) -> str:
        """Return the parameters in words."""
        return f"shrinkage {self.shrinkage:g}, emphasis {self.emphasis:g}"


@dataclass(frozen=True)
class StageMeasures:
    """The validation measure after each stage of a training; None for a stage that did not run."""

    frozen: float  # the pretrained backbone with the principal components as head
    head: float  # the pretrained backbone with its best head
    fine_tuned: float | None = None  # the best epoch of fine-tuning
    selected: float | None = None  # the weights and the head that were selected in the end

    def __str__(self) -> str:
        """Return the measures in one line: `frozen 0.5102, head 0.6034`."""
        values = {name.replace("_", "-"): value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


@dataclass(frozen=True)
class TrainingReport:
    """How one encoder was trained."""

    backbone: str  # the name that the user gave
    options: Mapping[str, Any]  # the training options, as `TrainingOptions(**options)` takes them
    recipe: Mapping[str, Any]  # the values of the whole recipe, by field
    recipe_name: str  # the recipe's name; for `auto`, the selected one
    family: str  # kind of network: cnn, mobile-cnn, transformer or hybrid
    precision: str  # the precision that was trained in; for `auto`, the selected one
    sampler: str  # how batches were made; for `auto`, the selected one
    crop_mode: str = "pretrained"  # how an image becomes the network's input; for `auto`, the selected one
    run: str = ""  # fingerprint of all that decided the run: weights, images, options, recipe
    # the whitening head that fine-tuning started from; None for principal components
    initial_head: HeadFit | None = None
    head_epochs: int = 0  # epochs of training the head on the frozen backbone; 0 if they did not help
    # the validation measure after each stage; for a refit, those of the first training
    measures: StageMeasures | None = None
    images: int = 0  # number of training images that could be read
    skipped: tuple[str, ...] = ()  # files that could not be read, with their causes
    epochs: tuple[EpochReport, ...] = ()  # of fine-tuning
    planned_epochs: int = 0  # the number of epochs that the learning-rate schedule is for; 0 without fine-tuning
    planned_share: float = 1.0  # share of the recipe's steps that the time budget allowed
    steps_per_epoch: int = 0  # the number of steps in each
    rates: tuple[LearningRates, ...] = ()  # peak learning rates; several where a resumed run changed them
    # share of the fine-tuned weights in the interpolation with the pretrained ones; None without fine-tuning
    fine_tuned_share: float | None = None
    share_measures: Mapping[str, float] = field(default_factory=dict)  # validation measure of each share that was tried
    posthoc_head: HeadFit | None = None  # the whitening head fitted after fine-tuning; None if the trained head is used
    warnings: tuple[str, ...] = ()  # what went wrong during fine-tuning and what followed, one sentence each
    seconds: float = 0.0  # wall-clock time over all sessions
    version: int = REPORT_VERSION  # of this record

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation measure, counted from 1; 0 if none was measured."""
        measures = [-math.inf if epoch.measure is None else epoch.measure for epoch in self.epochs]
        return measures.index(max(measures)) + 1 if any(map(math.isfinite, measures)) else 0


@dataclass(frozen=True)
class MeasuredCandidate:
    """A row of the leaderboard of a benchmark."""

    name: str  # without folders
    type: str  # such as "single, fine-tuned"
    accuracy: Estimate
    ms: float | None  # median milliseconds of one image; None if it was not measured
    winner: bool = False


@dataclass(frozen=True)
class BenchmarkInfo:
    """How a winner was selected: its name among the candidates, the reason in words, the seed, and the leaderboard."""

    candidate: str
    reason: str
    seed: int
    measure: str = ""  # of the accuracies
    measured_on: str = ""  # test (query and gallery) or validation
    leaderboard: tuple[MeasuredCandidate, ...] = ()  # best first


@dataclass(frozen=True)
class RequestInfo:
    """A pretrained model that was requested by name: its backbones, and of each the source or digest of its weights."""

    backbones: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Parity:
    """How far an exported model differs from its bundle.

    Attributes:
        images: which images were compared.
        count: their number.
        min_cosine, mean_cosine: between an image's embeddings by the two, the lower of one by one and in batches.
        batch_cosine: the smallest between its embeddings one by one and in batches.
        validation_images: number that the measures were taken on; 0 without data.
        measures: by name, of the bundle and of the exported model.
        loss: points of precision@3 that the exported model is below the bundle, with the 95 % interval of the paired
            bootstrap; None without data.
    """

    images: str
    count: int
    min_cosine: float
    mean_cosine: float
    batch_cosine: float
    validation_images: int
    measures: Mapping[str, tuple[float, float]]
    loss: Comparison | None = None

    def __str__(self) -> str:
        text = (
            f"cosine to the bundle at least {self.min_cosine:.4f}, mean {self.mean_cosine:.4f}, "
            f"on {self.count} {self.images}"
        )
        changes = [f"{name} {before:.4f} to {after:.4f}" for name, (before, after) in self.measures.items()]
        if changes:
            text += f"; on {self.validation_images} validation images {', '.join(changes)}"
        if self.loss is not None:
            loss = self.loss
            text += f" (a loss of {loss.difference:.2f} points, 95 % interval {loss.low:.2f} to {loss.high:.2f})"
        return text


@dataclass(frozen=True)
class RerankingInfo:
    """The re-ranking that validation selected for an encoder."""

    steps: Reranking
    class_means: str = ""  # digest of the class means in the bundle; "" if no step needs them

    @property
    def unused(self) -> str:
        """The sentence of a command that does not apply it: a search of one image knows no other queries."""
        kind = ", transductive" if self.steps.transductive else ""
        return f"the model's re-ranking ({self.steps}{kind}) is for evaluate and submit; not applied here"


@dataclass(frozen=True)
class BundleInfo:
    """The content of `bundle.json`."""

    name: str  # the backbones' names, joined by `+`
    dim: int  # dimensions of an embedding
    fingerprint: str  # of the encoder or ensemble
    members: tuple[EncoderInfo, ...]  # one encoder, or those of an ensemble
    combination: str | None = None  # of an ensemble; None for a single encoder
    weights: tuple[float, ...] = ()  # of the members of an ensemble; empty for equal ones
    classes: tuple[str, ...] = ()  # class names that it was trained on
    training_data: TrainingData | None = None  # what it was trained on; None if it was not trained
    options: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[TrainingReport | None, ...] = ()  # a report per trained member
    measures: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)  # by split, by measure
    benchmark: BenchmarkInfo | None = None  # of a winner: how it was selected
    request: RequestInfo | None = None  # of a pretrained model that was requested by name
    refit_of: str | None = None  # fingerprint of the bundle that was trained again on all labelled images
    exported_from: str | None = None  # fingerprint of the bundle that was exported
    parity: Parity | None = None  # of an exported bundle: how far it differs from that bundle
    reranking: RerankingInfo | None = None  # what `evaluate` and `submit` apply to its embeddings; None for nothing
    calibration: Calibration | None = None  # from cosines to probabilities; None without enough validation images
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that it was made with

    @property
    def is_exported(self) -> bool:
        """Whether it holds graphs for a runtime instead of weights."""
        return self.members[0].graph is not None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return with_digest({"format": BUNDLE_FORMAT, **asdict(self)})

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BundleInfo:
        """Undo `to_dict`; a missing, wrong or changed field raises ValueError or ModelError."""
        content = checked_record(value)
        for report in filter(None, content.get("training") or ()):
            version = report.get("version") if isinstance(report, Mapping) else None
            if version != REPORT_VERSION:
                raise ModelError(f"the training report has version {version}, expected {REPORT_VERSION}; train again.")
        content.pop("format", None)
        info = read_record(cls, content)
        require_between("members", len(info.members), _MAX_MEMBERS)
        require_between("dim", info.dim, _MAX_WIDTH * _MAX_MEMBERS)
        for member in info.members:
            member.require_safe()
        return info
