"""From what a user calls a model (a bundle, a folder that holds one, a backbone's name) to an encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.data.dataset import sample_evenly
from lookalike.errors import ModelError
from lookalike.progress import SILENT, Progress

if TYPE_CHECKING:
    from lookalike.data.dataset import Dataset
    from lookalike.data.layouts import Skip
    from lookalike.models.encoder import Encoder
    from lookalike.models.stream import Source

Weights = str | Path | Mapping[str, str | Path]

_TRIAL_PICTURES = 48

FIT_IMAGES = 2000
"""A head is learnt from at most so many images; more change its principal components little."""


def resolve_model(
    model: Encoder | Path | str,
    *,
    fit_on: Sequence[Source] | None = None,
    weights: Weights = "pretrained",
    seed: int = 0,
    skip: Skip | None = None,
    progress: Progress = SILENT,
) -> Encoder:
    """Return the encoder that a user means.

    Args:
        model: an encoder, a bundle, a folder of embeddings or an index, or a backbone's name; several names are joined
            by `+`.
        fit_on: for a name, the images whose principal components become the head, at most `FIT_IMAGES` of them, evenly
            spaced; no label is looked at. Without at least two the head is a random projection.
        weights: for a name, as in `build_trainable`; a mapping gives them by backbone, where it lacks one "pretrained".
        seed: decides which images are taken, and random weights and projections.
        skip: is told of the images that cannot be read.
        progress: is told what happens.

    Raises:
        ModelError: neither a bundle nor a backbone, or one that cannot be used.
        WeightsUnavailable: pretrained weights cannot be had here.
        DataError: fewer than two of the images can be read.

    """
    if not isinstance(model, str | Path):
        return model
    from lookalike.models.encoder import Encoder
    from lookalike.models.facts import bundle_at
    from lookalike.runtimes.bundle import load_bundle

    place = bundle_at(model)
    if place is not None:
        return load_bundle(place)
    from lookalike.embeddings.fit import fitted_encoder
    from lookalike.models.pretrained import build_trainable

    names = _backbone_names(str(model))
    members = [build_trainable(name, weights_of(weights, name), seed=seed) for name in names]
    sample = sample_evenly(fit_on or (), FIT_IMAGES, seed=seed)
    if len(sample) > 1:
        progress.info(f"{model}: its head is learnt from {len(sample)} of {len(fit_on or ())} images, without labels")
        return fitted_encoder(members, sample, seed=seed, skip=skip, progress=progress)
    joined = ", their embeddings joined end to end" if len(names) > 1 else ""  # an average needs images to align by
    progress.info(f"{model}: without images to learn a head from, a random projection is taken{joined}")
    return Encoder(members, how="concat")


def on_runtime(
    encoder: Encoder,
    images: Sequence[Source],
    way: tuple[str, str],
    progress: Progress = SILENT,
    *,
    exact: bool = False,
) -> Encoder:
    """Return the same model on the runtime and in the precision that are asked for, for these images.

    Args:
        encoder: the model.
        images: that it will be shown.
        way: runtime and precision.
        progress: is told what was chosen.
        exact: whether a precision of auto is that of the model, and not the fastest.

    """
    from lookalike.runtimes.choice import accelerated

    runtime, precision = way
    if exact and precision == "auto":
        precision = encoder.precision
    pictures = [source.path for source in sample_evenly(images, _TRIAL_PICTURES, seed=0)]
    return accelerated(encoder, pictures, count=len(images), runtime=runtime, precision=precision, progress=progress)


def load_as_trained(data: Path | str, model: Encoder | Path | str) -> Dataset:
    """Load a data folder, class folders split as for the training of this bundle.

    They are split anew each time they are loaded: by another seed a model would meet its training images.
    """
    from lookalike.data.layouts import load_dataset
    from lookalike.models.facts import bundle_at, read_facts

    place = bundle_at(model) if isinstance(model, str | Path) else None
    options = (read_facts(place).get("options") if place is not None else None) or {}
    return load_dataset(
        data, seed=int(options.get("seed", 0)), class_disjoint=bool(options.get("class_disjoint", False))
    )


def weights_of(weights: Weights, name: str) -> str | Path:
    """Return what `weights` says of one backbone."""
    return weights.get(name, "pretrained") if isinstance(weights, Mapping) else weights


def _backbone_names(text: str) -> list[str]:
    """Split names and check each before any weights are loaded; what looks like a path gets an error of its own."""
    from lookalike.models.registry import find_row

    separators = (os.sep, os.altsep or os.sep)
    path = Path(text)
    if text.startswith(("~", ".")) or any(s in text for s in separators):
        state = "is not a bundle: it has no bundle.json" if path.exists() else "does not exist"
        raise ModelError(f"{text} {state}, and no backbone has such a name; give a bundle made by 'lookalike train'.")
    names = text.split("+")
    try:
        for name in names:
            find_row(name)
    except ModelError as error:
        if len(names) == 1 or path.exists():  # it may be the misspelt name of a folder
            raise ModelError(f"{text} is neither a bundle nor a backbone's name: {error}") from error
        raise
    return names
