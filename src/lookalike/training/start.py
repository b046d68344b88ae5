"""The stage with the backbone frozen: what the full stage starts from, and what the interpolation goes back to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lookalike.data.dataset import Dataset, Item
from lookalike.embeddings.fit import Features, compute_features, fit_projection
from lookalike.errors import DataError
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.models.member import TrainableEncoder
from lookalike.models.projection import Whitening
from lookalike.progress import Progress
from lookalike.training.fit_head import HEAD_EPOCHS, CosineClassifier, train_head
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast, is_lowered
from lookalike.training.recipe import AUTO, Recipe
from lookalike.training.view import AS_IT_CAME, TRIED, look
from lookalike.types import Embeddings

Rows = npt.NDArray[np.int64]
SHRINKAGES = (0.3, 0.5, 0.7, 0.9)
_FACTS = ("view", "fitted", "means", "head", "frozen", "with_head", "shrinkage", "head_epochs", "skipped")


@dataclass
class Start:
    """What the stage with the frozen backbone leaves.

    Attributes:
        items: the training items that can be read.
        targets: `(n,)` the class of each as a row number.
        view: what is seen of a picture.
        state: weights of the member with the best of its heads, backbone as it came.
        fitted: weights of its head before any training, which the full stage starts from.
        means: `(classes, dim)` float32, unit length: the mean embedding of each class with that head.
        head: what the origin says of that head.
        frozen, with_head: validation measure with the principal components as head, and with the best head.
        shrinkage: of the whitening within classes, where the fitted head is not the principal components.
        head_epochs: of training that made the best head; 0 when it did not better the fitted one.
        skipped: training and validation files that cannot be read, with their causes.

    """

    items: tuple[Item, ...]
    targets: Rows
    view: str
    state: dict[str, Any]
    fitted: dict[str, Any]
    means: torch.Tensor
    head: str
    frozen: float
    with_head: float
    shrinkage: float | None
    head_epochs: int
    skipped: list[str]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1

    @property
    def head_helped(self) -> bool:
        """Whether labels bettered the head, the backbone frozen."""
        return self.head_epochs > 0 or self.shrinkage is not None

    def dump(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the backbone is not in it, it comes from its weights once more."""
        return {
            "ids": [i.id for i in self.items],
            "weights": _only_head(self.state),
            **{name: getattr(self, name) for name in _FACTS},
        }

    @classmethod
    def restore(cls, stored: dict[str, Any], member: TrainableEncoder, items: tuple[Item, ...]) -> Start:
        """Undo `dump` on a member fresh from its weights; head and classifier come with the trainee's state."""
        kept = set(stored["ids"])
        items = tuple(i for i in items if i.id in kept)
        targets = class_rows(items)
        look(member, stored["view"])
        member.load_state({**member.state(), **stored["weights"]})
        facts = {name: stored[name] for name in _FACTS}
        return cls(items, targets, facts.pop("view"), member.state(), **facts)


@dataclass(frozen=True)
class Known:
    """What an earlier start found out, for one that measures nothing.

    Attributes:
        head_epochs: of training the head.
        shrinkage: of the whitening within classes; None for principal components.
        view: what is seen of a picture.

    """

    head_epochs: int = 0
    shrinkage: float | None = None
    view: str = AS_IT_CAME


NOTHING = Known()


def make_start(
    member: TrainableEncoder,
    data: Dataset,
    training: tuple[Item, ...],
    options: TrainingOptions,
    recipe: Recipe,
    *,
    cache: Path | None,
    progress: Progress,
) -> Start:
    """Settle what is seen of a picture, fit the head, then train head and classifier on cached features.

    The member is left with the best of these heads.

    Raises:
        DataError: when the readable training images are of one class, or validation cannot be measured.

    """
    name = member.backbone
    by_validation = options.frozen or are_unseen(data)
    views = (recipe.view,) if recipe.view != AUTO else TRIED if by_validation else ("squash",)

    def see(view: str, label: str) -> tuple[Features, Features]:
        look(member, view)
        parts = ((training, f"{label}: features"), (data.validation, f"{label}: validation"))
        found = [_features(member, items, recipe, cache, progress, task) for items, task in parts]
        return found[0], found[1]

    if len(views) == 1:
        best = views[0]
        features, held_out = see(best, name)
    else:
        best, features, held_out = _best_view(member, views, see, data, options, progress)

    def measure() -> float:
        return measured_head(member, held_out, data, options.stop_on)

    head = recipe.head if recipe.head != AUTO or by_validation else "pca"
    start = _start(member, data, features, training, options.seed, recipe, best, measure=measure, heads=head)
    start.skipped += [str(s) for s in held_out.skipped]
    progress.info(
        f"{name}: validation {options.stop_on} {start.frozen:.4f} frozen, {start.with_head:.4f} with its best head"
    )
    return start


def repeat_start(
    member: TrainableEncoder,
    data: Dataset,
    options: TrainingOptions,
    recipe: Recipe,
    known: Known,
    *,
    cache: Path | None,
    progress: Progress,
) -> Start:
    """Do the same with the validation part as training images too; nothing is measured, what is best is known.

    Raises:
        DataError: when the readable images are of one class.

    """
    name = member.backbone
    look(member, known.view)
    training, held_out = (tuple(i for i in part if i.label is not None) for part in (data.training, data.validation))
    parts = [
        _features(member, items, recipe, cache, progress, f"{name}: {part}")
        for part, items in (("features", training), ("validation", held_out))
    ]
    features = Features(
        tuple(i for p in parts for i in p.ids),
        np.concatenate([p.rows for p in parts]),
        tuple(s for p in parts for s in p.skipped),
    )
    return _start(member, data, features, (*training, *held_out), options.seed, recipe, known.view, known=known)


def _features(
    member: TrainableEncoder, items: tuple[Item, ...], recipe: Recipe, cache: Path | None, progress: Progress, task: str
) -> Features:
    """Take features in the precision that the recipe trains in, which is kept apart from others in the cache."""
    if cache is not None and is_lowered(member.device, recipe.precision):
        cache = cache / recipe.precision
    with autocast(member.device, recipe.precision):
        return compute_features(member, items, cache=cache, progress=progress, task=task)


def _best_view(
    member: TrainableEncoder,
    views: tuple[str, ...],
    see: Callable[[str, str], tuple[Features, Features]],
    data: Dataset,
    options: TrainingOptions,
    progress: Progress,
) -> tuple[str, Features, Features]:
    """Leave the member with the view whose principal components measure best; return it and what is seen so."""
    began, fresh, seen = time.perf_counter(), member.preprocessing, {}
    most = 0.7 if options.frozen else 0.25  # of the budget: what comes after is short where the backbone stays frozen
    for view in views:
        member.preprocessing = fresh
        features, held_out = see(view, f"{member.backbone}, {view}")
        fit_projection(member, features, seed=options.seed)
        seen[view] = (measured_head(member, held_out, data, options.stop_on), features, held_out)
        gone = (time.perf_counter() - began) / 60
        if options.max_minutes is not None and gone * (1 + 1 / len(seen)) > most * options.max_minutes:
            break  # another would leave too little of the budget for training
    best = max(seen, key=lambda view: seen[view][0])
    member.preprocessing = fresh
    look(member, best)
    told = ", ".join(f"{view} {found:.4f}" for view, (found, _, _) in seen.items())
    left = [view for view in views if view not in seen]
    told += f"; for lack of time without {' and '.join(left)}" if left else ""
    progress.info(f"{member.backbone}: validation {options.stop_on} by what is seen of a picture: {told}")
    return best, *seen[best][1:]


def are_unseen(data: Dataset) -> bool:
    """Whether validation is of classes that training does not have, as it is cut where the test classes are unseen."""
    trained, held_out = ({i.label for i in part if i.label is not None} for part in (data.training, data.validation))
    return bool(held_out) and trained.isdisjoint(held_out)


def _start(  # noqa: PLR0913, PLR0917 - what the two kinds of start have found out
    member: TrainableEncoder,
    data: Dataset,
    features: Features,
    images: tuple[Item, ...],
    seed: int,
    recipe: Recipe,
    view: str,
    *,
    measure: Callable[[], float] | None = None,
    known: Known | None = None,
    heads: str = "pca",
) -> Start:
    readable = set(features.ids)
    items = tuple(i for i in images if i.id in readable)
    require_classes(data, items, "readable ")
    fit_projection(member, features, seed=seed)
    targets = class_rows(items)
    frozen = measure() if measure else math.nan
    if known is not None:
        shrinkage = known.shrinkage
        if shrinkage is not None:
            _whiten(member, Whitening(features.rows, targets, member.dim, seed=seed), shrinkage, len(features.ids))
    else:
        assert measure is not None
        shrinkage = _best_shrinkage(member, measure, frozen, features, targets, heads, seed=seed)
    classes = int(targets.max()) + 1
    classifier = CosineClassifier(member.project(features.rows), targets, classes, recipe.label_smoothing)
    means = classifier.weight.detach().to("cpu", copy=True)
    fitted, head = _only_head(member.state()), str(member.origin["head"])
    with_head, head_epochs = train_head(
        member,
        classifier,
        features,
        targets,
        measure,
        label_smoothing=recipe.label_smoothing,
        seed=seed,
        epochs=HEAD_EPOCHS if known is None else known.head_epochs,
    )
    skipped = [str(s) for s in features.skipped]
    return Start(
        items, targets, view, member.state(), fitted, means, head, frozen, with_head, shrinkage, head_epochs, skipped
    )


def _best_shrinkage(
    member: TrainableEncoder,
    measure: Callable[[], float],
    frozen: float,
    features: Features,
    targets: Rows,
    heads: str,
    *,
    seed: int,
) -> float | None:
    """Leave the member with the fitted head that measures best, of those the recipe allows."""
    if heads == "pca":
        return None
    state, head = member.state(), str(member.origin["head"])
    found: dict[float | None, float] = {None: frozen} if heads == "auto" else {}
    whitening = Whitening(features.rows, targets, member.dim, seed=seed)
    for shrinkage in SHRINKAGES:
        _whiten(member, whitening, shrinkage, len(features.ids))
        found[shrinkage] = measure()
    best = max(found, key=lambda s: found[s])
    if best is None:
        member.load_state(state)
        member.origin["head"] = head
    else:
        _whiten(member, whitening, best, len(features.ids))
    return best


def _whiten(member: TrainableEncoder, whitening: Whitening, shrinkage: float, images: int) -> None:
    member.head.set(*whitening.fit(shrinkage))
    member.origin["head"] = f"whitened within the classes of {images} images, shrinkage {shrinkage:g}"
    member.changed()


def _only_head(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k.startswith("head.")}


def require_classes(data: Dataset, items: tuple[Item, ...], which: str = "") -> None:
    """Raise `DataError` when the items are of fewer than two classes."""
    found = len({i.label for i in items})
    if found < 2:
        raise DataError(
            f"{data.root} has {which}training images of {found} {'class' if found == 1 else 'classes'}; "
            "fine-tuning needs at least 2, so add a class folder."
        )


def class_rows(items: tuple[Item, ...]) -> Rows:
    """Return each item's class as a row number `(n,)` int64, classes sorted by name."""
    names = sorted({str(i.label) for i in items})
    rows = {name: row for row, name in enumerate(names)}
    return np.array([rows[str(i.label)] for i in items], dtype=np.int64)


def measured_head(member: TrainableEncoder, features: Features, data: Dataset, measure: str) -> float:
    """Take a leave-one-out measure within the validation part, from its features and the member's present head."""
    found = Embeddings(features.ids, member.project(features.rows), "")
    labels = data.labels("validation")
    return evaluate_embeddings(found, found, labels, labels, [measure]).mean(measure)
