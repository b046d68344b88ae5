"""A recipe: everything that decides how a network is trained. Every field is explained here, and only here.

The command line's options, `lookalike recipes` and the bundle's record are made from these fields.
"""

from __future__ import annotations

import math
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, TypedDict, Unpack

from lookalike.errors import OptionError

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
POOLINGS = ("as it came", "avg", "max", "avgmax", "gem")
NECKS = ("none", "bnneck")
SAMPLERS = ("auto", "shuffled", "pk", "class-aware")
HEADS = ("auto", "pca", "whitened")
LAST_HEADS = ("auto", "trained", "whitened")
VIEWS = ("auto", "as it came", "center", "squash", "border")


def _field(default: Any, words: str, **limits: Any) -> Any:
    """Make a field: its default, its explanation, and what is allowed (low, high, below, above or choices)."""
    return field(default=default, metadata={"help": words, **limits})


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; checked when made. The metadata of each field says what it means.

    Raises:
        OptionError: for a value outside what is allowed.

    """

    # schedule
    epochs: int = _field(8, "epochs of the full stage, at most", low=1)
    batch_size: int = _field(32, "images a step, over all devices together", low=2)
    accumulate: int = _field(1, "steps whose gradients are averaged before the weights move", low=1)
    optimizer: str = _field("adamw", "adamw, or sgd with Nesterov momentum 0.9", choices=OPTIMIZERS)
    lr: float = _field(1e-4, "peak learning rate of the backbone", above=0, high=10)
    head_lr: float = _field(1e-3, "the same of head and classifier", above=0, high=10)
    layer_decay: float = _field(
        1.0, "each layer's rate over that of the layer after it (Clark et al. 2020)", above=0, high=1
    )
    weight_decay: float = _field(0.02, "on weights, not on biases or normalisation", low=0, below=1)
    warmup: float = _field(0.1, "share of all steps with a rising rate; a cosine to zero follows", low=0, below=1)
    clip: float = _field(5.0, "longest gradient, its L2 norm; 0 for no limit", low=0)
    ema: float = _field(
        0.0, "decay of the running mean of the weights that is kept in their place; 0 for none", low=0, below=1
    )
    precision: str = _field(
        "auto", "auto takes bfloat16 where the device computes in it; float16 scales the loss", choices=PRECISIONS
    )
    # loss
    loss: str = _field(
        "subcenter-arcface",
        "one loss, or a weighted sum as cross-entropy+0.5*multi-similarity; see `lookalike recipes`",
    )
    label_smoothing: float = _field(
        0.1,
        "of the loss cross-entropy, and of the head that is trained with the backbone frozen; 0 for none",
        low=0,
        below=1,
    )
    sampler: str = _field(
        "auto",
        "what a batch is made of: shuffled; pk: a few images each of several classes; class-aware: every class as "
        "often; auto takes pk for losses that compare images",
        choices=SAMPLERS,
    )
    per_class: int = _field(4, "images a class in a batch of the sampler pk", low=2)
    # views
    view: str = _field(
        "auto",
        "what is seen of a picture at test time: as it came with the weights; center, the largest square; squash, all "
        "of it, pressed into a square; border, all of it, with borders. auto takes squash, and where the backbone "
        "stays frozen or the classes are unseen what validation prefers",
        choices=VIEWS,
    )
    crop_scale: float = _field(0.5, "least area of a random resized crop, as a share of the picture", above=0, high=1)
    jitter: float = _field(0.25, "largest change of brightness, contrast and colour", low=0, below=1)
    rand_augment: float = _field(
        0.0, "strength, of 10, of two random changes a view (RandAugment; Cubuk et al. 2020)", low=0, high=10
    )
    erase: float = _field(0.0, "probability of noise over a random rectangle (Zhong et al. 2020)", low=0, high=1)
    mixup: float = _field(0.0, "alpha of mixing two images (Zhang et al. 2018); cross-entropy only", low=0, high=10)
    cutmix: float = _field(
        0.0, "alpha of pasting one image's rectangle on another (Yun et al. 2019); cross-entropy only", low=0, high=10
    )
    mix_probability: float = _field(0.5, "share of the batches that are mixed, if any are", low=0, high=1)
    side: float = _field(
        1.0, "side of the pictures at test time over what the weights were trained at", low=0.25, high=2
    )
    resolution: float = _field(
        6 / 7,
        "side of the training views over the side at test time; less is faster and evens out that crops show things "
        "larger (Touvron et al. 2019). Networks of a fixed input size keep theirs",
        low=0.25,
        high=1,
    )
    first_resolution: float = _field(
        0.0, "the same in the first epoch, rising evenly from there; 0 for no schedule", low=0, high=1
    )
    # network
    pooling: str = _field(
        "as it came", "from feature map to features; gem learns its exponent (Radenović et al. 2019)", choices=POOLINGS
    )
    last_stride: int = _field(
        2, "stride of the last stage that halves the feature map; 1 keeps its size", low=1, high=2
    )
    neck: str = _field("none", "bnneck: batch norm between embedding and classifier (Luo et al. 2019)", choices=NECKS)
    head: str = _field(
        "auto",
        "what the head starts from: pca, principal components; whitened within the classes; auto takes pca, and where "
        "the backbone stays frozen or the classes are unseen what validation prefers",
        choices=HEADS,
    )
    last_head: str = _field(
        "auto",
        "the head kept with a fine-tuned backbone: trained; whitened, fitted anew to what the backbone sees now; auto "
        "takes what validation prefers",
        choices=LAST_HEADS,
    )
    frozen_statistics: bool = _field(True, "keep a pretrained network's batch statistics as they are")
    unfreeze: float = _field(1.0, "share of the backbone's layers, from the last, that are trained", above=0, high=1)
    drop_path: float = _field(0.0, "stochastic depth of the last block (Huang et al. 2016)", low=0, below=1)
    checkpointing: bool = _field(False, "compute activations twice to save memory")
    channels_last: bool = _field(True, "memory layout of the pictures")
    compile: bool = _field(False, "compile the network first; minutes, which pay in long runs on a GPU")

    def __post_init__(self) -> None:
        for own in fields(self):
            _check(own, getattr(self, own.name))
        if self.first_resolution and not 0.25 <= self.first_resolution <= self.resolution:
            raise OptionError(
                f"first_resolution must be 0, or from 0.25 to the resolution of {self.resolution:g}, "
                f"got {self.first_resolution:g}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)


class RecipeChanges(TypedDict, total=False):
    """The fields of a recipe by name; those left out keep what they are."""

    epochs: int
    batch_size: int
    accumulate: int
    optimizer: str
    lr: float
    head_lr: float
    layer_decay: float
    weight_decay: float
    warmup: float
    clip: float
    ema: float
    precision: str
    loss: str
    label_smoothing: float
    sampler: str
    per_class: int
    view: str
    crop_scale: float
    jitter: float
    rand_augment: float
    erase: float
    mixup: float
    cutmix: float
    mix_probability: float
    side: float
    resolution: float
    first_resolution: float
    pooling: str
    last_stride: int
    neck: str
    head: str
    last_head: str
    frozen_statistics: bool
    unfreeze: float
    drop_path: float
    checkpointing: bool
    channels_last: bool
    compile: bool


FIELDS: dict[str, Field[Any]] = {own.name: own for own in fields(Recipe)}

AUTO = "auto"
SGD_RATES: RecipeChanges = {"lr": 1e-2, "head_lr": 3e-2}
"""Peak rates where the optimizer is changed to sgd and no rate is given."""

RECIPES: dict[str, RecipeChanges] = {
    # ResNets and the like
    "cnn": {},
    # depthwise convolutions and batch norm, as EfficientNets have: they bear a high rate
    "mobile-cnn": {"lr": 5e-4},
    "transformer": {"layer_decay": 0.75, "weight_decay": 0.05, "drop_path": 0.1, "clip": 1.0},
    # convolutions and attention
    "hybrid": {"layer_decay": 0.85, "weight_decay": 0.05, "drop_path": 0.1, "clip": 1.0},
}

RECIPE_WORDS = {
    "cnn": "ResNets and the like",
    "mobile-cnn": "depthwise convolutions with batch norm, as EfficientNets have",
    "transformer": "attention, no convolutions but the first",
    "hybrid": "attention and convolutions",
}

UNSEEN: RecipeChanges = {"epochs": 3, "lr": 1e-4}
"""What `auto` changes where the test classes are unseen, so that less is lost of what serves any class."""
UNSEEN_SGD_RATES: RecipeChanges = {"lr": 2e-3, "head_lr": 3e-2}
"""SGD_RATES there."""


def make_recipe(name: str, family: str, *, unseen: bool = False, **changes: Unpack[RecipeChanges]) -> Recipe:
    """Return a named recipe, single fields changed.

    Args:
        name: of RECIPES; `auto` takes the one of the network's family.
        family: the network's, from `family_of`.
        unseen: the classes to be found are not those of training.
        changes: fields by name, in place of what the recipe says.

    Raises:
        OptionError: an unknown name, or a value that is not allowed.

    """
    require_recipe(name)
    own = RECIPES[family if name == AUTO else name]
    gentle = name == AUTO and unseen
    if gentle:
        own = {**own, **UNSEEN}
    by_sgd = changes.get("optimizer") == "sgd" and own.get("optimizer") != "sgd"
    rates = RecipeChanges() if not by_sgd else UNSEEN_SGD_RATES if gentle else SGD_RATES
    merged: dict[str, Any] = {**own, **rates, **changes}
    return Recipe(**merged)


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name, whole."""
    return {name: make_recipe(name, name) for name in RECIPES}


def require_recipe(name: str) -> None:
    """Raise `OptionError` for a name that is no recipe's."""
    if name != AUTO and name not in RECIPES:
        raise OptionError(f"there is no recipe named {name!r}; allowed are {', '.join((AUTO, *RECIPES))}.")


def check_changes(changes: RecipeChanges) -> None:
    """Raise `OptionError` for a field that no recipe has, or a value that is never allowed."""
    for name, value in changes.items():
        if name not in FIELDS:
            raise OptionError(f"there is no option named {name!r}; 'lookalike recipes' lists what a recipe has.")
        _check(FIELDS[name], value)


def _check(own: Field[Any], value: Any) -> None:
    limits, name = own.metadata, own.name
    if own.type == "bool":
        if not isinstance(value, bool):
            raise OptionError(f"{name} must be true or false, got {value!r}.")
    elif own.type == "str":
        allowed = limits.get("choices")
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise OptionError(f"{name} must be one of {', '.join(allowed or ['a text'])}, got {value!r}.")
    elif own.type == "int":
        _check_whole(name, value, limits["low"], limits.get("high"))
    else:
        _check_number(name, value, limits)


def _check_whole(name: str, value: Any, low: int, high: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise OptionError(f"{name} must be a whole number {allowed}, got {value!r}.")


def _check_number(name: str, value: Any, limits: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise OptionError(f"{name} must be a number, got {value!r}.")
    inside = (
        math.isfinite(value)
        and value >= limits.get("low", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("high", math.inf)
        and value < limits.get("below", math.inf)
    )
    if inside:
        return
    if "low" in limits and "high" in limits:
        raise OptionError(f"{name} must be from {limits['low']:g} to {limits['high']:g}, got {value}.")
    bounds = [
        f"{words} {limits[key]:g}"
        for key, words in (("low", "at least"), ("above", "above"), ("high", "at most"), ("below", "below"))
        if key in limits
    ]
    raise OptionError(f"{name} must be {' and '.join(bounds)}, got {value}.")
