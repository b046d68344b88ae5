"""Everything that can be set in a training: the recipe, the options of a run, and the recipe of each kind of network.

The command line's options, `lookalike recipes` and the record in a bundle are made from these fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lookalike.errors import OptionError
from lookalike.training.losses import CROSS_ENTROPY, parse_loss

if TYPE_CHECKING:
    from lookalike.models.preprocessing import Crop

AUTO = "auto"


def _field(default: Any, text: str, **limits: Any) -> Any:
    """Make a field with its help text and its limits: low, high (inclusive), above, below (exclusive) or choices."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Recipe:
    """Training hyper-parameters of one network; the metadata of each field explains it.

    Raises:
        OptionError: for a value outside its limits, or values that exclude each other.
    """

    # optimisation
    epochs: int = _field(8, "maximum number of fine-tuning epochs", low=1)
    batch_size: int = _field(32, "images per step, over all processes together", low=2)
    accumulate: int = _field(1, "number of steps whose gradients are averaged before the weights are updated", low=1)
    optimizer: str = _field("adamw", "adamw, or sgd with Nesterov momentum 0.9", choices=("adamw", "sgd"))
    lr: float = _field(1e-4, "peak learning rate of the backbone", above=0, high=10)
    head_lr: float = _field(1e-3, "peak learning rate of the head and the classifier", above=0, high=10)
    layer_decay: float = _field(
        1.0, "learning rate of a layer divided by that of the next layer (Clark et al. 2020)", above=0, high=1
    )
    weight_decay: float = _field(0.02, "weight decay; biases and normalisation have none", low=0, below=1)
    warmup: float = _field(
        0.1, "share of all steps in which the learning rate rises; a cosine decay to zero follows", low=0, below=1
    )
    clip: float = _field(5.0, "maximum L2 norm of the gradient; 0 disables clipping", low=0)
    precision: str = _field(
        AUTO,
        "auto uses bfloat16 where the device supports it natively; float16 scales the loss",
        choices=(AUTO, "float32", "bfloat16", "float16"),
    )
    # loss
    loss: str = _field(
        CROSS_ENTROPY,
        "one loss, or a weighted sum such as cross-entropy+0.5*multi-similarity; `lookalike recipes` lists them",
    )
    label_smoothing: float = _field(
        0.1, "label smoothing of cross-entropy, in fine-tuning and in the frozen stage", low=0, below=1
    )
    sampler: str = _field(
        AUTO,
        "how batches are made: shuffled; pk, a few images of each of several classes; auto uses pk for losses that "
        "compare images",
        choices=(AUTO, "shuffled", "pk"),
    )
    per_class: int = _field(4, "images per class in a batch of the pk sampler", low=2)
    # images
    crop_mode: str = _field(
        AUTO,
        "how an image becomes the network's input: pretrained, the crop of the pretrained weights; center, the largest "
        "central square; squash, the whole image resized to a square; border, the whole image with borders. auto uses "
        "squash; for a frozen backbone and for unseen classes it uses what is best on validation",
        choices=(AUTO, "pretrained", "center", "squash", "border"),
    )
    crop_scale: float = _field(0.5, "minimum area of a random resized crop, as a share of the image", above=0, high=1)
    jitter: float = _field(0.25, "maximum random change of brightness, contrast and colour", low=0, below=1)
    side: float = _field(
        1.0,
        "input side at inference time, relative to the backbone's, which `lookalike backbones` lists",
        low=0.25,
        high=4,
    )
    resolution: float = _field(
        6 / 7,
        "input side in training, relative to the side at inference time; smaller is faster and offsets that crops "
        "magnify (Touvron et al. 2019). Networks with a fixed input size ignore it",
        low=0.25,
        high=1,
    )
    # network
    pooling: str = _field(
        "pretrained",
        "from feature map or tokens to features: pretrained, that of the backbone; gem has a learnable exponent "
        "(Radenović et al. 2019); token is the class token of a transformer, token+avg joins the mean of its patches",
        choices=("pretrained", "avg", "max", "avgmax", "gem", "token", "token+avg"),
    )
    head: str = _field(
        AUTO,
        "initial head: pca, principal components; whitened, with the covariance within classes normalised. auto uses "
        "pca; for a frozen backbone and for unseen classes it uses what is best on validation",
        choices=(AUTO, "pca", "whitened"),
    )
    posthoc_head: str = _field(
        AUTO,
        "head after fine-tuning: trained, the trained one; whitened, a new one fitted to the fine-tuned backbone; "
        "auto uses what is best on validation",
        choices=(AUTO, "trained", "whitened"),
    )
    frozen_statistics: bool = _field(True, "keep the batch statistics of a pretrained network fixed")
    drop_path: float = _field(
        0.0,
        "stochastic depth of the last block (Huang et al. 2016). Networks without residual blocks ignore it",
        low=0,
        below=1,
    )
    checkpointing: bool = _field(False, "recompute activations in the backward pass to save memory")
    channels_last: bool = _field(True, "store images with the channels last in memory")
    compile: bool = _field(False, "compile the network first; takes minutes, which long runs on a GPU amortise")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check_field(name, value)
        classes = self.batch_size // self.per_class
        if self.resolved_sampler == "pk" and classes < 2:
            raise OptionError(
                f"the pk sampler needs at least two classes per batch, but a `batch_size` of {self.batch_size} holds "
                f"{classes} of {self.per_class} images per class; raise `batch_size` or lower `per_class`.",
                argument="batch_size",
            )

    @property
    def resolved_sampler(self) -> str:
        """The sampler; `auto` is pk where a loss compares the images of a batch."""
        if self.sampler != AUTO:
            return self.sampler
        return "pk" if any(loss.compares for _, loss in parse_loss(self.loss)) else "shuffled"


FIELDS: dict[str, Field[Any]] = {f.name: f for f in fields(Recipe)}

RECIPES: dict[str, dict[str, Any]] = {
    "cnn": {},
    "mobile-cnn": {"lr": 5e-4},
    "transformer": {"layer_decay": 0.75, "weight_decay": 0.05, "drop_path": 0.1, "clip": 1.0},
    "hybrid": {"layer_decay": 0.85, "weight_decay": 0.05, "drop_path": 0.1, "clip": 1.0},
}

RECIPE_DESCRIPTIONS = {
    "cnn": "ResNets and similar networks",
    "mobile-cnn": "networks with depthwise convolutions and batch norm, such as EfficientNets",
    "transformer": "networks with attention whose only convolution is the first layer",
    "hybrid": "networks with attention and convolutions",
}

# what `auto` changes where the test classes are unseen: shorter and gentler, to keep features that serve any class
UNSEEN_CLASSES: dict[str, Any] = {"epochs": 3, "lr": 1e-4}

# peak learning rates where the optimizer is changed to sgd and no rate is given
_SGD_RATES = {"lr": 1e-2, "head_lr": 3e-2}
_SGD_RATES_UNSEEN = {"lr": 2e-3, "head_lr": 3e-2}


def make_recipe(name: str, family: str, *, unseen: bool = False, **overrides: Any) -> Recipe:
    """Return a recipe by name with single fields overridden; `auto` uses that of the network's `family`.

    `unseen`: whether the test classes do not occur in training.
    """
    if name != AUTO and name not in RECIPES:
        raise OptionError(f"`recipe` must be one of {', '.join((AUTO, *RECIPES))}, got {name!r}.", argument="recipe")
    gentle = name == AUTO and unseen
    base = {**RECIPES[family if name == AUTO else name], **(UNSEEN_CLASSES if gentle else {})}
    if overrides.get("optimizer") == "sgd":
        base |= _SGD_RATES_UNSEEN if gentle else _SGD_RATES
    return Recipe(**{**base, **overrides})


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name."""
    return {name: make_recipe(name, name) for name in RECIPES}


@dataclass(frozen=True, init=False)
class TrainingOptions:
    """Options of a training run, and overrides of its recipe; validated at construction.

    Attributes:
        recipe: name of the recipe; `auto` uses the recipe of the network's family.
        overrides: recipe fields that replace those of the recipe, passed as keyword arguments.
        frozen: train the head only, with the backbone frozen; reads the images a few times.
        max_minutes: wall-clock budget per backbone; the number of epochs is planned to fit, and a run that resumes has
            what is left.
        patience: epochs without improvement before training stops.
        stop_on: validation measure for early stopping and for the selection of weights.
        class_disjoint: whether validation has classes of its own; None decides by the data.
        allow_leaks: train although query or gallery contain training images.
        crop: what cuts out the part of each image that counts, a `Crop`, of which only the name is stored; by default
            images are whole.
        seed: of the split, the order, the augmentation and the initial weights.

    Raises:
        OptionError: a value outside its limits, or an unknown name.
    """

    recipe: str
    overrides: Mapping[str, Any]
    frozen: bool
    max_minutes: float | None
    patience: int
    stop_on: str
    class_disjoint: bool | None
    allow_leaks: bool
    crop: str
    seed: int

    def __init__(  # noqa: PLR0913 - the fields, all by name
        self,
        *,
        recipe: str = AUTO,
        frozen: bool = False,
        max_minutes: float | None = None,
        patience: int = 3,
        stop_on: str = "map@r",
        class_disjoint: bool | None = None,
        allow_leaks: bool = False,
        crop: str = "",
        seed: int = 0,
        **overrides: Any,
    ) -> None:
        for name, value in overrides.items():
            _check_field(name, value)
        make_recipe(recipe, "cnn", **overrides)  # overrides that exclude each other do so in every recipe
        _check_value("patience", patience, "int", low=1)
        _check_value("seed", seed, "int", low=0)
        _check_value("frozen", frozen, "bool")
        _check_value("allow_leaks", allow_leaks, "bool")
        if not isinstance(crop, str):
            raise OptionError(f"`crop` must be a Crop of a name and a function, got {crop!r}.", argument="crop")
        if class_disjoint is not None:
            _check_value("class_disjoint", class_disjoint, "bool")
        if max_minutes is not None:
            _check_value("max_minutes", max_minutes, "float", above=0)
        from lookalike.evaluation.measures import Measure  # imports numpy, which a command's help does not need

        Measure.parse(stop_on, argument="stop_on")
        values = (recipe, overrides, frozen, max_minutes, patience, stop_on, class_disjoint, allow_leaks, crop, seed)
        vars(self).update(zip((f.name for f in fields(self)), values, strict=True))

    @property
    def crops(self) -> tuple[Crop, ...]:
        """The crop, if there is one with its function: a bundle that was made with it needs it to embed images."""
        from lookalike.models.preprocessing import Crop  # imports numpy, which a command's help does not need

        return (self.crop,) if isinstance(self.crop, Crop) else ()

    def recipe_for(self, family: str, *, unseen: bool = False) -> Recipe:
        """Return the recipe for a network of a family; see `make_recipe`."""
        return make_recipe(self.recipe, family, unseen=unseen, **self.overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON; `TrainingOptions(**value)` makes the same options."""
        values = {name: getattr(self, name) for name in RUN_OPTIONS} | dict(self.overrides)
        return values if self.crop else {name: value for name, value in values.items() if name != "crop"}

    def without_rates(self) -> dict[str, Any]:
        """Return the options that identify a run, sorted by name: a run may be resumed with other learning rates."""
        return {name: value for name, value in sorted(self.to_dict().items()) if name not in RATES}


RUN_OPTIONS = tuple(f.name for f in fields(TrainingOptions) if f.name != "overrides")
OPTION_NAMES = (*RUN_OPTIONS, *FIELDS)

# learning rates, which a resumed run may change
RATES = ("lr", "head_lr")


def override_options(options: TrainingOptions | None, overrides: Mapping[str, Any]) -> TrainingOptions:
    """Return the options, or the defaults, with single ones replaced by name."""
    return TrainingOptions(**{**(options or TrainingOptions()).to_dict(), **overrides})


def _check_field(name: str, value: Any) -> None:
    """Raise `OptionError` for an unknown recipe field, or a value outside its limits."""
    if name not in FIELDS:
        raise OptionError(
            f"unknown training option `{name}`; 'lookalike recipes' lists the fields of a recipe.", argument=name
        )
    limits, kind = FIELDS[name].metadata, FIELDS[name].type
    if kind in _KINDS:
        _check_value(name, value, str(kind), **limits)
    elif name == "loss":
        parse_loss(value)
    elif value not in limits["choices"]:
        raise OptionError(f"`{name}` must be one of {', '.join(limits['choices'])}, got {value!r}.", argument=name)


_KINDS: dict[str, tuple[Any, str]] = {
    "bool": (bool, "true or false"),
    "int": (int, "an integer"),
    "float": (int | float, "a number"),
}


def _check_value(name: str, value: Any, kind: str, **limits: Any) -> None:
    """Raise `OptionError` for a value of another kind, or outside the limits of a number (see `_field`)."""
    types, text = _KINDS[kind]
    if not isinstance(value, types) or (kind != "bool" and isinstance(value, bool)):
        raise OptionError(f"`{name}` must be {text}, got {value!r}.", argument=name)
    inside = (
        math.isfinite(value)
        and value >= limits.get("low", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("high", math.inf)
        and value < limits.get("below", math.inf)
    )
    if not inside:
        words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
        bounds = [f"{text} {limits[key]:g}" for key, text in words.items() if key in limits]
        raise OptionError(f"`{name}` must be {' and '.join(bounds)}, got {value}.", argument=name)
