"""`train`: from a data folder to a fine-tuned encoder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.backbones import Encoder, build_member, fit_alignment, load_bundle, save_bundle
from lookalike.backbones.bundle import is_bundle, read_facts
from lookalike.backbones.weights import NONE, PRETRAINED
from lookalike.data import Dataset, load_dataset, with_validation
from lookalike.errors import OptionError, StorageError
from lookalike.files import require_free
from lookalike.progress import SILENT, Progress
from lookalike.training.one_backbone import Outcome, run_key, train_member, validation_fingerprint
from lookalike.training.options import TrainingOptions
from lookalike.types import Vectors

Weights = str | Path


def train(  # noqa: PLR0913 - the one door to training; all but two have defaults that fit
    data: Dataset | Path | str,
    backbone: str = "efficientnet_lite0",
    *,
    weights: Weights | Mapping[str, Weights] = PRETRAINED,
    out: Path | str | None = None,
    options: TrainingOptions | None = None,
    resume: bool = False,
    replace: bool = False,
    cache: Path | None = None,
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
        resume: go on with the unfinished run that stands beside `out`; a run that is finished is loaded as it is.
        replace: let the new bundle take the place of an older one.
        cache: a folder that keeps the features of the frozen backbone for other runs on the same images.
        progress: is told what happens.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: too little labelled training data.
        ModelError: unknown backbone or unfit weights.
        OptionError: weights for a backbone that is not trained, or one file for several.
        StorageError: `out` is taken, or holds an unfinished run and `resume` is not set.

    """
    options = options or TrainingOptions()
    chosen = _weights_by_position(backbone.split("+"), weights)
    target = Path(out) if out is not None else None
    work = prepare_work(target, resume=resume, replace=replace)
    data = with_validation(
        data if isinstance(data, Dataset) else load_dataset(data, seed=options.seed),
        seed=options.seed,
        class_disjoint=options.class_disjoint,
    )
    if target is None or work is None:
        made = [train_member(data, name, given, options, None, progress, cache=cache) for name, given in chosen]
        return _joined(made, progress)
    if resume and is_bundle(target):
        if _is_finished(target, data, chosen, options):
            progress.say(f"{target} is the finished bundle of this run, there is nothing to go on with")
            shutil.rmtree(work, ignore_errors=True)
            return load_bundle(target)
        if not replace:
            require_free(target)
    outcomes = [
        train_member(data, name, given, options, work / str(n), progress, cache=cache)
        for n, (name, given) in enumerate(chosen)
    ]
    encoder = _joined(outcomes, progress)
    save_bundle(encoder, target, facts=bundle_facts(data, options, [o.report for o in outcomes]), replace=replace)
    shutil.rmtree(work, ignore_errors=True)
    return encoder


def _weights_by_position(names: list[str], weights: Weights | Mapping[str, Weights]) -> list[tuple[str, Weights]]:
    """Pair every backbone with its weights."""
    if not isinstance(weights, Mapping):
        if len(names) > 1 and str(weights) not in (PRETRAINED, NONE):
            raise OptionError(
                f"weights for {' and '.join(names)} must be a mapping by name, got the single file {weights}; "
                "a file fits one backbone."
            )
        return [(name, weights) for name in names]
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise OptionError(
            f"weights are given for {unknown[0]!r}, which is not among {', '.join(names)}; correct the name."
        )
    return [(name, weights.get(name, PRETRAINED)) for name in names]


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


def prepare_work(target: Path | None, *, resume: bool, replace: bool) -> Path | None:
    """Check that the result can be written and return the folder for checkpoints beside it."""
    if target is None:
        return None
    if target.name in ("", ".."):
        raise OptionError(f"out must be a folder with a name of its own, got {target}; write a name after it.")
    work = target.with_name(f"{target.name}.training")
    if not replace and not (resume and is_bundle(target)):
        require_free(target)
    if work.exists() and not resume:
        raise StorageError(f"{work} holds an unfinished run; go on with --resume, or remove it to start anew.")
    return work


def _is_finished(target: Path, data: Dataset, chosen: Sequence[tuple[str, Weights]], options: TrainingOptions) -> bool:
    """Whether the bundle at `target` came out of a run with these data, weights and options."""
    found = [report.get("run") for report in read_facts(target).get("training", [])]
    if len(found) != len(chosen):
        return False
    return found == [run_key(build_member(name, given, seed=options.seed), data, options) for name, given in chosen]


def _joined(outcomes: list[Outcome], progress: Progress) -> Encoder:
    """One encoder of all members, each rotated onto the first by their embeddings of the training images."""
    if len(outcomes) == 1:
        return Encoder([outcomes[0].member])
    embedded = [
        Encoder([o.member]).embed(o.items, progress=progress, task=f"{o.member.backbone}: alignment") for o in outcomes
    ]
    first = embedded[0]
    alignments: list[Vectors | None] = [None]
    for other in embedded[1:]:
        kept = set(other.ids)
        shared = [i for i in first.ids if i in kept]
        alignments.append(fit_alignment(other.take(shared).vectors, first.take(shared).vectors))
    return Encoder([o.member for o in outcomes], "aligned", alignments)


__all__ = ["bundle_facts", "train", "train_member", "validation_fingerprint"]
