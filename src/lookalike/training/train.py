"""`train`: from a data folder to a fine-tuned encoder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.backbones import Encoder, Member, build_member, fit_alignment, save_bundle
from lookalike.backbones.weights import PRETRAINED
from lookalike.data import Dataset, Item, load_dataset, with_validation
from lookalike.errors import DataError, StorageError
from lookalike.evaluation import Measure, evaluate_embeddings
from lookalike.files import digest, require_free
from lookalike.progress import SILENT, Progress
from lookalike.training.checkpoint import load_checkpoint, save_checkpoint
from lookalike.training.finetune import Run, Trainee, finetune, plan
from lookalike.training.fit_head import Classifier, Features, compute_features, fit_projection, train_head
from lookalike.training.interpolate import best_mix
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast
from lookalike.types import Embeddings


def train(
    data: Dataset | Path | str,
    backbone: str = "efficientnet_lite0",
    *,
    weights: str | Path | Mapping[str, str | Path] = PRETRAINED,
    out: Path | str | None = None,
    options: TrainingOptions | None = None,
    resume: bool = False,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Encoder:
    """Fine-tune a backbone on the training part as a classifier and keep the weights that retrieve best on validation.

    Stages: principal components as head; head and classifier on cached features, backbone frozen; everything together,
    with a checkpoint each epoch; last, the interpolation between frozen and fine-tuned weights that measures best.

    Args:
        data: a data folder or a loaded data set; a validation part is cut from its training part.
        backbone: a name; several joined by `+` are trained one by one and become an aligned ensemble.
        weights: as in `build_member`; for several backbones a mapping by name.
        out: the bundle to write; without it nothing is written and nothing can be resumed.
        options: all that can be turned.
        resume: go on with the unfinished run that stands beside `out`.
        replace: let the new bundle take the place of an older one.
        progress: is told what happens.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: too little labelled training data.
        ModelError: unknown backbone or unfit weights.
        StorageError: `out` is taken, or holds an unfinished run and `resume` is not set.

    """
    options = options or TrainingOptions()
    names = backbone.split("+")
    target = Path(out) if out is not None else None
    work = prepare_work(target, resume=resume, replace=replace)
    data = with_validation(
        data if isinstance(data, Dataset) else load_dataset(data, seed=options.seed),
        seed=options.seed,
        class_disjoint=options.class_disjoint,
    )
    Measure.parse(options.measure)
    outcomes = []
    for n, name in enumerate(names):
        given = weights.get(name, PRETRAINED) if isinstance(weights, Mapping) else weights
        place = work / str(n) if work is not None else None
        outcomes.append(train_member(data, name, given, options, place, progress))
    encoder = _joined(outcomes)
    if target is not None and work is not None:
        facts = bundle_facts(data, options, [o.report for o in outcomes])
        save_bundle(encoder, target, facts=facts, replace=replace)
        shutil.rmtree(work, ignore_errors=True)
    return encoder


def bundle_facts(data: Dataset, options: TrainingOptions, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a bundle remembers of its training."""
    return {
        "classes": list(data.classes),
        "training_data": {
            "fingerprint": data.fingerprint,
            "images": len(data.training),
            "validation_images": len(data.validation),
            "validation": validation_fingerprint(data),
        },
        "options": options.to_dict(),
        "training": reports,
    }


def validation_fingerprint(data: Dataset) -> str:
    """Fingerprint of which images are held out."""
    return digest(*sorted(i.id for i in data.validation))


def prepare_work(target: Path | None, *, resume: bool, replace: bool) -> Path | None:
    """Check that the result can be written and return the folder for checkpoints beside it."""
    if target is None:
        return None
    work = target.with_name(target.name + ".training")
    if not replace:
        require_free(target)
    if work.exists() and not resume:
        raise StorageError(f"{work} holds an unfinished run; go on with --resume, or remove it to start anew.")
    return work


@dataclass
class Outcome:
    """A trained member, its embeddings of the training images (for alignment), and what happened."""

    member: Member
    training: Embeddings
    report: dict[str, Any] = field(default_factory=dict)


def train_member(
    data: Dataset, backbone: str, weights: str | Path, options: TrainingOptions, work: Path | None, progress: Progress
) -> Outcome:
    """Train one backbone; see `train`."""
    clock = time.perf_counter()
    member = build_member(backbone, weights, seed=options.seed)
    training = tuple(i for i in data.training if i.label is not None)
    if len({i.label for i in training}) < 2:
        raise DataError(f"{data.root} has {len(data.classes)} training classes; fine-tuning needs at least 2.")
    key = digest(
        member.fingerprint, data.fingerprint, validation_fingerprint(data), repr(sorted(options.to_dict().items()))
    )
    stored = load_checkpoint(work, key) if work is not None else None
    if stored is not None:
        start = Start.restore(stored["start"], member, training)
        progress.say(f"{backbone}: going on after epoch {stored['run']['epoch']}")
    else:
        start = _start(member, data, training, options, progress)
    report = {
        "backbone": backbone,
        "validation": {"frozen": start.frozen, "head": start.with_head},
        "skipped": start.skipped,
    }
    if options.frozen:
        member.origin.update(trained="fine-tuned", head="cross-entropy, backbone frozen")
        member.changed()
        return _finish(member, start.items, report, clock, progress)
    run = _full_stage(member, start, data, options, work, key, stored, clock, progress)
    report["history"] = run.history
    report["validation"]["fine-tuned"] = run.best_measure
    _choose_weights(member, start, run, data, options, report, progress)
    return _finish(member, start.items, report, clock, progress)


@dataclass
class Start:
    """What the stage with the frozen backbone leaves: measures, the head before it, a classifier, readable items."""

    items: tuple[Item, ...]
    targets: np.ndarray
    classifier: Classifier
    pca_state: dict[str, Any]
    frozen: float
    with_head: float
    skipped: list[str]

    def dump(self, member: Member) -> dict[str, Any]:
        """Return the state for a checkpoint; the backbone itself is not in it, it comes from its weights."""
        return {
            "ids": [i.id for i in self.items],
            "classifier": self.classifier.state_dict(),
            "pca": {k: v for k, v in self.pca_state.items() if k.startswith("head.")},
            "frozen": self.frozen,
            "with_head": self.with_head,
            "skipped": self.skipped,
        }

    @classmethod
    def restore(cls, stored: dict[str, Any], member: Member, items: tuple[Item, ...]) -> Start:
        """Undo `dump` on a member fresh from its weights."""
        kept = set(stored["ids"])
        items = tuple(i for i in items if i.id in kept)
        targets = class_rows(items)
        member.load_state({**member.state(), **stored["pca"]})
        classes = len(set(targets.tolist()))
        classifier = Classifier(np.zeros((classes, member.dim), np.float32), np.arange(classes), classes)
        classifier.load_state_dict(stored["classifier"])
        return cls(items, targets, classifier, member.state(), stored["frozen"], stored["with_head"], stored["skipped"])


def class_rows(items: tuple[Item, ...]) -> np.ndarray:
    """Return each item's class as a row number `(n,)` int64, classes sorted by name."""
    names = sorted({str(i.label) for i in items})
    rows = {name: row for row, name in enumerate(names)}
    return np.array([rows[str(i.label)] for i in items], dtype=np.int64)


def _start(
    member: Member, data: Dataset, training: tuple[Item, ...], options: TrainingOptions, progress: Progress
) -> Start:
    """Fit the PCA head, then train head and classifier on cached features."""
    name = member.backbone
    features = compute_features(member, training, progress=progress, task=f"{name}: features")
    held_out = compute_features(member, data.validation, progress=progress, task=f"{name}: validation")
    fit_projection(member, features, seed=options.seed)
    readable = set(features.ids)
    items = tuple(i for i in training if i.id in readable)
    targets = class_rows(items)
    embeddings = member.project(features.rows)
    classifier = Classifier(embeddings, targets, int(targets.max()) + 1)
    pca_state = member.state()

    def measure() -> float:
        return _measure(Embeddings(held_out.ids, member.project(held_out.rows), ""), data, options.measure)

    frozen = measure()
    with_head = train_head(
        member, classifier, features, targets, measure, label_smoothing=options.label_smoothing, seed=options.seed
    )
    progress.say(f"{name}: validation {options.measure} {frozen:.4f} as it came, {with_head:.4f} with a trained head")
    skipped = [str(s) for s in (*features.skipped, *held_out.skipped)]
    return Start(items, targets, classifier, pca_state, frozen, with_head, skipped)


def _measure(embeddings: Embeddings, data: Dataset, measure: str) -> float:
    """Leave-one-out retrieval measure within the validation part."""
    labels = {i.id: i.label for i in data.validation if i.label is not None}
    return evaluate_embeddings(embeddings, embeddings, labels, labels, [measure]).mean(measure)


def _full_stage(
    member: Member,
    start: Start,
    data: Dataset,
    options: TrainingOptions,
    work: Path | None,
    key: str,
    stored: dict[str, Any] | None,
    clock: float,
    progress: Progress,
) -> Run:
    trainee = Trainee(member, start.classifier, options)

    def measure() -> float:
        return _validate(member, data, options)

    def after_epoch(run: Run) -> None:
        if work is not None:
            content = {
                "key": key,
                "start": frozen_start,
                "state": trainee.state(),
                "optimizer": trainee.optimizer.state_dict(),
                "run": {**asdict_shallow(run)},
            }
            save_checkpoint(work, content)

    frozen_start = start.dump(member)
    if stored is not None:
        run = Run(**stored["run"])
        trainee.load(stored["state"])
        trainee.optimizer.load_state_dict(stored["optimizer"])
    else:
        timed = time.perf_counter()
        left, overhead = None, 0.0
        if options.max_minutes is not None:
            measure()
            overhead = time.perf_counter() - timed
            # the interpolations and the last pass cost about five more validations
            left = options.max_minutes * 60 - (time.perf_counter() - clock) - 5 * overhead
        run = plan(trainee, start.items, start.targets, left, overhead)
    finetune(trainee, run, start.items, start.targets, measure, after_epoch, progress)
    return run


def asdict_shallow(run: Run) -> dict[str, Any]:
    """Return the fields of a run without copying its tensors."""
    return {name: getattr(run, name) for name in Run.__dataclass_fields__}


def _validate(member: Member, data: Dataset, options: TrainingOptions) -> float:
    with autocast(member.device, options.precision):
        embeddings = Encoder([member]).embed(data.validation)
    return _measure(embeddings, data, options.measure)


def _choose_weights(
    member: Member,
    start: Start,
    run: Run,
    data: Dataset,
    options: TrainingOptions,
    report: dict[str, Any],
    progress: Progress,
) -> None:
    """Set the member to the best epoch, or to its best interpolation with where it came from."""
    assert run.best is not None
    end = run.best["member"]
    if member.trained == "untrained":  # random weights are nothing to go back to
        member.load_state(end)
        share, shares = 1.0, {}
    else:
        share, shares = best_mix(
            member, start.pca_state, end, start.frozen, run.best_measure, lambda: _validate(member, data, options)
        )
    report["interpolation"] = {"share": share, "measures": shares}
    member.origin.update(trained="fine-tuned", head="cross-entropy", fine_tuned_share=share)
    member.changed()
    progress.say(
        f"{member.backbone}: keeps {share:.0%} of the fine-tuned weights, the rest of the frozen ones {shares}"
    )


def _finish(
    member: Member, items: tuple[Item, ...], report: dict[str, Any], clock: float, progress: Progress
) -> Outcome:
    """Embed the training images once more with the final weights."""
    embeddings = Encoder([member]).embed(items, progress=progress, task=f"{member.backbone}: embedding")
    report["seconds"] = round(time.perf_counter() - clock, 1)
    return Outcome(member, embeddings, report)


def _joined(outcomes: list[Outcome]) -> Encoder:
    """One encoder of all members, each rotated onto the first."""
    if len(outcomes) == 1:
        return Encoder([outcomes[0].member])
    first = outcomes[0].training
    alignments = [None]
    for other in outcomes[1:]:
        kept = set(other.training.ids)
        shared = [i for i in first.ids if i in kept]
        alignments.append(fit_alignment(other.training.take(shared).vectors, first.take(shared).vectors))  # type: ignore[arg-type]
    return Encoder([o.member for o in outcomes], "aligned", alignments)


__all__ = ["bundle_facts", "train", "train_member", "validation_fingerprint"]
