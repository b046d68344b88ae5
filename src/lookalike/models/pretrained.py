"""From a name to a member with a head that is random until data has been seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from timm.data.config import resolve_model_data_config
from torch import nn

from lookalike.models.adapt import Adaptation
from lookalike.models.heads import ProjectionHead
from lookalike.models.member import TrainableEncoder
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.projection import EMBEDDING_DIM, random_projection
from lookalike.models.registry import BackboneRow, find_row
from lookalike.models.weights import NONE, PRETRAINED, load_backbone, own_randomness


def build_trainable(
    name: str,
    weights: str | Path = PRETRAINED,
    *,
    seed: int = 0,
    adapt: Callable[[nn.Module], Adaptation] | None = None,
) -> TrainableEncoder:
    """Build one member by name, its head a seeded orthonormal projection until `fit_pca` or training replaces it.

    Args:
        name: one of ours or of timm's.
        weights: as in `load_backbone`.
        seed: of what is random.
        adapt: looks at the network and says what to change of it.

    Raises:
        ModelError: unknown name, or weights that do not fit.
        OptionError: the network cannot be changed so.
        WeightsUnavailable: pretrained weights cannot be had.

    """
    row = find_row(name)
    module, source = load_backbone(row, weights, seed=seed)
    width = int(module.num_features)  # type: ignore[arg-type]
    width = int(getattr(module, "head_hidden_size", None) or width)
    with own_randomness(seed):
        head = ProjectionHead(width, EMBEDDING_DIM)
    head.set(*random_projection(width, EMBEDDING_DIM, seed=seed))
    adaptation = adapt(module) if adapt is not None else Adaptation()
    preprocessing = adaptation.apply(module, preprocessing_of(row, module))
    trained = "untrained" if source == NONE else "frozen"
    origin = {"weights": source, "head": "random orthonormal", "trained": trained}
    return TrainableEncoder(row.name, row.timm_name, module, head, preprocessing, origin, adaptation=adaptation)


def preprocessing_of(row: BackboneRow, module: nn.Module) -> Preprocessing:
    """Take the preprocessing from timm's record of the weights, with the row's own mean and standard deviation."""
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    interpolation = config["interpolation"] if config["interpolation"] != "random" else "bicubic"
    return Preprocessing(
        height=int(height),
        width=int(width),
        crop_pct=float(config["crop_pct"]),
        interpolation=interpolation,
        mean=row.mean or _channels(config["mean"]),
        std=row.std or _channels(config["std"]),
        crop_mode=str(config["crop_mode"]),
    )


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
