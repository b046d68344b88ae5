"""What a benchmark measures, checked before hours are spent on it, and the folder that belongs to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lookalike._files import digest, read_json, require_writable, storage_errors, write_json
from lookalike._records import read_record
from lookalike.benchmark.selection import Preference, require_budget
from lookalike.benchmark.trial import matching_hit
from lookalike.data.dataset import Dataset
from lookalike.errors import ModelError, OptionError, StorageError, renamed_argument
from lookalike.evaluation.evaluation import DEFAULT_MEASURES
from lookalike.evaluation.measures import Measure
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.bundle import read_bundle_info
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.info import UNTRAINED, TrainingState, joint_state
from lookalike.models.registry import NONE, find_backbone
from lookalike.progress import Progress
from lookalike.runtimes.load import WeightsOption, load_bundle, pair_weights, weights_identity
from lookalike.training.config import TrainingOptions
from lookalike.training.tracking import NO_TRACKER, RunTracker

_RECORD = "run.json"
_VERSION = 1


def bundle_name(bundle: Path, state: TrainingState) -> str:
    """Return the name of a candidate that was passed in as a bundle: its folder, and what its weights are."""
    return f"{bundle.resolve().name} ({state})"


def slug(name: str) -> str:
    """Return the file name of a candidate; a bracket becomes `_`, so that no bundle has that of a backbone."""
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in name.split(" ("))


@dataclass(frozen=True)
class BenchmarkSpec:
    """Everything that decides one benchmark."""

    data: Dataset
    out: Path
    weights: Mapping[str, str | Path]  # by backbone, in the order of the table: `pretrained`, `none` or a file
    bundles: tuple[Path, ...]
    finetune: frozenset[str]
    options: TrainingOptions
    measures: tuple[str, ...]  # taken on every trial; the first one is selected by
    budget_ms: float | None  # maximum milliseconds per image, None for no limit
    runtime: str  # runtime for accuracy and time, in float32
    title: str | None  # heading of the report, None for the default
    notes: tuple[str, ...]
    progress: Progress
    # backbones that are candidates themselves, and pairs of which only the ensembles are; None for all backbones
    requested: tuple[str, ...] | None = None
    measure_is_default: bool = False  # the selection may replace it by one that validation can show
    prefer: Preference = "efficiency"  # what the selection prefers among candidates of equal accuracy
    transductive: bool = True  # whether a re-ranking may use other queries or change the gallery
    tracker: RunTracker = NO_TRACKER  # trackers that receive every epoch and the results
    functions: Mapping[str, Encoder] = field(default_factory=dict)  # by name, those among the backbones

    def is_requested(self, backbones: Sequence[str]) -> bool:
        """Whether a single backbone or a pair is a candidate, not only a member of others; "" is a bundle."""
        if self.requested is None:
            return True
        joined = "+".join(backbones), "+".join(reversed(backbones))
        return any(name in self.requested for name in joined) or all(not b or b in self.requested for b in backbones)

    @property
    def cache(self) -> Path:
        """Folder of cached features and embeddings."""
        return self.out / "cache"

    def bundle_folder(self, backbone: str, state: Literal["frozen", "fine-tuned"]) -> Path:
        """Return the folder of the bundle of a backbone, as pretrained, or after training."""
        return member_folder(self.out, backbone, state)


def member_folder(out: Path, backbone: str, state: str) -> Path:
    """Return the folder of the bundle of a backbone in the folder of a benchmark."""
    return out / "members" / f"{slug(backbone)}-{state}"


def require_request(
    backbones: Sequence[str | AnyEncoder], bundles: Sequence[Path | str], out: Path | None, budget_ms: float | None
) -> None:
    """Check what can be checked without torch, whose import takes seconds."""
    if not backbones and not bundles:
        raise OptionError(
            "a benchmark needs at least one of `backbones` and `bundles`, got none.", argument="backbones"
        )
    require_budget(budget_ms)
    for folder in map(Path, bundles):
        if not folder.exists():
            raise ModelError(
                f"bundle {folder} does not exist; pass a folder written by 'lookalike train'.", argument="bundles"
            )
        with renamed_argument("bundles", "model"):
            read_bundle_info(folder)
    if out is not None:
        require_benchmark_folder(out)


def check_candidates(
    backbones: Sequence[str],
    bundles: Sequence[Path | str],
    weights: WeightsOption,
    finetune: bool | Collection[str],
    functions: Mapping[str, Encoder] | None = None,
) -> tuple[dict[str, str | Path], tuple[Path, ...], frozenset[str]]:
    """Check what a benchmark is to measure, and return weights by backbone, bundles, and backbones to fine-tune.

    An ensemble among the backbones, such as `a+b`, means its members.
    """
    folders, functions = tuple(map(Path, bundles)), functions or {}
    _require_backbone_names(backbones)
    backbones = tuple(dict.fromkeys(name for b in backbones for name in b.split("+")))
    for argument, names in (("weights", weights), ("finetune", finetune)):
        unknown = () if isinstance(names, bool | str | Path) else [name for name in names if name not in backbones]
        if unknown:
            raise OptionError(
                f"`{argument}` names {unknown[0]!r}, but the backbones of this benchmark are {list(backbones)}.",
                argument=argument,
            )
    with renamed_argument("backbones", "backbone"):
        for backbone in set(backbones) - set(functions):
            find_backbone(backbone)
    by_backbone = dict(pair_weights(backbones, weights))
    by_backbone |= {name: encoder.fingerprint for name, encoder in functions.items()}
    fixed = {name for name in backbones if name in functions or parse_backbone_file(name)}
    finetuned = _finetuned(finetune, backbones, fixed)
    states: list[TrainingState] = []
    for folder in folders:
        with renamed_argument("bundles", "model"):
            encoder = load_bundle(folder)  # which verifies it
        states.append(joint_state({member.state for member in encoder.members}))
    _require_bundle_names([bundle_name(*pair) for pair in zip(folders, states, strict=True)])
    trained = [state != UNTRAINED for state in states]
    if not any((*trained, *finetuned, *(str(w) != NONE for w in by_backbone.values()))):
        raise OptionError(
            "every candidate would have random weights, which can never win; "
            "use pretrained `weights` for at least one backbone, or fine-tune it.",
            argument="weights",
        )
    return by_backbone, folders, finetuned


def _finetuned(finetune: bool | Collection[str], backbones: Collection[str], fixed: set[str]) -> frozenset[str]:
    """Return the backbones to fine-tune; those that cannot be are skipped, or an error where they are named."""
    if isinstance(finetune, bool):
        return frozenset(backbones) - fixed if finetune else frozenset()
    if fixed.intersection(finetune):
        raise OptionError(
            f"`finetune` names {min(fixed.intersection(finetune))!r}, which cannot be fine-tuned, only used as it is; "
            "remove it.",
            argument="finetune",
        )
    return frozenset(finetune)


def _require_backbone_names(backbones: Sequence[str]) -> None:
    """Raise `OptionError` for an ensemble that is not of two backbones, or for a name that is there twice."""
    for ensemble in (b.split("+") for b in backbones if "+" in b):
        if len(ensemble) != 2 or ensemble[0] == ensemble[1]:
            raise OptionError(
                f"an ensemble in `backbones` must join two different names, got {'+'.join(ensemble)!r}; pass pairs, or "
                "single names, of which every pair is measured.",
                argument="backbones",
            )
    name, count = next(iter(Counter(backbones).most_common(1)), ("", 0))
    if count > 1:
        raise OptionError(f"duplicate {name!r} in `backbones`: names must be unique; remove it.", argument="backbones")


def _require_bundle_names(names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        other = next((other for other in names[:number] if slug(other) == slug(name)), None)
        if other is not None:
            raise OptionError(
                f"the results of two `bundles`, {other!r} and {name!r}, have the same file name; rename one folder.",
                argument="bundles",
            )


def select_measures(
    data: Dataset, measure: str, options: TrainingOptions, readable: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Return the measures to take: the one to select by, its hit@k, and the default ones that the splits allow.

    `readable` counts the images in validation and gallery that every candidate can read, once that is known.
    Raises `OptionError` if `measure` or `stop_on` need more images.
    """
    images = {"validation": len(data.validation), "gallery": len(data.gallery), **(readable or {})}
    depth, where = images["validation"] - data.validation_excluded, "validation, where an image is never its own hit,"
    never_hits = len(data.gallery) - data.max_hits  # a query itself, and its file
    if data.test_is_labelled and images["gallery"] - never_hits < depth:
        depth, where = images["gallery"] - never_hits, "the gallery" + (" besides the query itself" * bool(never_hits))
    selected_by = Measure.parse(measure)
    for argument, required in (("measure", selected_by), ("stop_on", Measure.parse(options.stop_on))):
        if required.min_gallery > depth:
            raise OptionError(
                f"{required} needs {required.min_gallery} hits, but {where} has only {max(depth, 0)} images to find; "
                f"set `{argument}` to a smaller k or add images.",
                argument=argument,
            )
    defaults = [m for m in map(Measure.parse, (matching_hit(selected_by), *DEFAULT_MEASURES)) if m.min_gallery <= depth]
    return tuple(dict.fromkeys(map(str, (selected_by, *defaults))))


def validation_ceiling(data: Dataset, measure: str) -> float:
    """Return the mean of a measure on validation that the best possible ranking has."""
    labels = data.labels("validation")
    itself = not data.validation_query_ids  # leave-one-out: an image is in the gallery that it is searched in
    sizes = Counter(item.label for item in data.validation_gallery)
    same = {query: [labels.get(other) for other in ids] for query, ids in data.same_file_ids.items()}
    relevant = [
        sizes[item.label] - itself - same.get(item.id, []).count(item.label)
        for item in data.validation_query
        if item.label is not None
    ]
    total = np.array([count for count in relevant if count > 0], dtype=np.int64)
    return Measure.parse(measure).ceiling(total) if len(total) else 1.0


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json: what must stay the same when a benchmark is resumed."""

    training_data: str  # fingerprint of the training and validation images
    validation_images: str  # fingerprint of the ids of the validation split
    test_data: str  # fingerprint of ids and labels of query and gallery
    options: Mapping[str, Any]
    weights: Mapping[str, str]  # by backbone, the source of its weights, for a file the digest of its content
    version: int = _VERSION

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read run.json; `StorageError` if it is damaged or of another version."""
        stored = read_json(path, "the benchmark record")
        version = stored.get("version", _VERSION) if isinstance(stored, dict) else _VERSION
        if version != _VERSION:
            raise StorageError(
                f"{path} has version {version}, but this lookalike reads version {_VERSION}; choose another `out`.",
                argument="out",
            )
        try:
            return read_record(cls, stored)
        except ValueError as error:
            raise StorageError(
                f"{path} is not the record of a benchmark ({error}); choose another `out` or remove it.", argument="out"
            ) from error


def recorded_backbones(out: Path | None) -> tuple[str, ...]:
    """Return the backbones of the benchmark in a folder; empty where there is none."""
    path = out / _RECORD if out is not None else None
    return tuple(RunRecord.read(path).weights) if path is not None and path.is_file() else ()


def require_benchmark_folder(out: Path) -> None:
    """Raise `StorageError` unless `out` is new, empty or a benchmark's, and can be written."""
    require_writable(out, "out")
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; choose another `out`.", argument="out")
    if not out.is_dir() or (out / _RECORD).is_file():
        return
    with storage_errors(out, "out"):  # a killed run may leave a temporary file of the record
        foreign = any(not path.name.startswith(f".{_RECORD}.") for path in out.iterdir())
    if foreign:
        raise StorageError(f"{out} is not empty and not a benchmark folder; choose another `out`.", argument="out")


def write_or_check_record(spec: BenchmarkSpec) -> None:
    """Record that the output folder belongs to this benchmark, or check it; backbones may be added."""
    path, data = spec.out / _RECORD, spec.data
    record = RunRecord(
        training_data=data.fingerprint,
        validation_images=digest(*(i.id for i in data.validation)),
        test_data=digest(*(f"{i.id}\t{i.label}\t{i.split}" for i in data.test)),
        options=spec.options.to_dict(),
        weights={b: weights_identity(b, w) for b, w in spec.weights.items()},
    )
    if path.is_file():
        earlier = RunRecord.read(path)
        names = ("training_data", "validation_images", "test_data", "options")
        require_same_run(spec.out, "benchmark", record, earlier, {name: name.replace("_", " ") for name in names})
        record = replace(earlier, weights={**earlier.weights, **record.weights})
        if record == earlier:
            return
    else:
        require_benchmark_folder(spec.out)
    write_json(path, asdict(record))


def require_same_run(out: Path, kind: str, record: Any, earlier: Any, fields: Mapping[str, str]) -> None:
    """Raise `StorageError` if fields of two records, or `weights` of a backbone, differ.

    `fields` holds the fields' names in the message.
    """
    differences = [text for name, text in fields.items() if getattr(record, name) != getattr(earlier, name)]
    differences += [f"weights of {b}" for b, w in record.weights.items() if earlier.weights.get(b, w) != w]
    if differences:
        raise StorageError(
            f"{out} holds a {kind} with different {' and '.join(differences)}; choose another `out` or remove it.",
            argument="out",
        )
