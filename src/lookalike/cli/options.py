"""Options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from lookalike.cli.command import TypedError
from lookalike.errors import OptionError

if TYPE_CHECKING:
    from lookalike.training.recipe import RecipeChanges

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    """A path; an empty one, which a shell makes of an unset variable, would mean the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
data_argument = click.argument("data", type=PATH)


def out_option(text: str) -> Callable[[F], F]:
    """Return the required `--out`; `text` is its help."""
    return click.option("--out", type=PATH, required=True, metavar="PATH", help=text)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of a table."
)
model_option = click.option(
    "--model",
    required=True,
    metavar="BUNDLE|NAME",
    help="A bundle made by 'train' or 'benchmark', or a backbone's name (several joined by +).",
)
weights_option = click.option(
    "--weights",
    multiple=True,
    metavar="[NAME=]PATH|none",
    help="Weights for a backbone given by name: a safetensors file, or 'none' for random ones. "
    "With several backbones say which: resnet50=FILE.  [default: pretrained]",
)


runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What computes embeddings; auto takes what was found to be fastest here. An exported model has its own.",
)


def runtime_options(text: str) -> Callable[[F], F]:
    """Return the options that say what computes; `text` is the second one's help."""
    second = click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help=text,
    )
    return lambda command: runtime_option(second(command))


seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides splits, order and augmentation."
)


def model_weights(given: tuple[str, ...], model: str | None) -> str | Path | dict[str, str | Path]:
    """Turn the `--weights` values that go with `--model` into what the library takes.

    Raises:
        OptionError: weights without a name for them: there is no model, or it is a bundle and has its own.

    """
    if given and model is None:
        raise OptionError(f"--weights {given[0]} goes with a backbone's name; give that as --model.")
    own = ("bundle.json", "model/bundle.json")  # a bundle, or a folder of embeddings or an index with one inside
    if given and any((Path(str(model)) / name).exists() for name in own):
        raise OptionError(
            f"--weights {given[0]} goes with a backbone's name, but {model} is a bundle, which has its own weights; "
            "leave out --weights."
        )
    return parse_weights(given, tuple((model or "").split("+")))


def parse_weights(given: tuple[str, ...], backbones: tuple[str, ...]) -> str | Path | dict[str, str | Path]:
    """Turn `--weights` values into one value for all backbones, or a mapping by name.

    Raises:
        OptionError: for a name that is not among the backbones, or a single file for several backbones.

    """
    named: dict[str, str | Path] = {}
    plain: list[str] = []
    for text in given:
        name, separator, value = text.partition("=")
        if separator and name in backbones:
            named[name] = _value(value)
        elif separator and not Path(text).exists():
            raise OptionError(
                f"--weights {text} names the backbone {name!r}, which is not among {', '.join(backbones)}."
            )
        else:
            plain.append(text)
    if not plain:
        return named or "pretrained"
    if len(plain) > 1 or (len(backbones) > 1 and plain[0] not in ("none", "pretrained")):
        raise OptionError(f"--weights {plain[-1]} does not say for which backbone; write NAME={plain[-1]}.")
    if not named:
        return _value(plain[0])
    return {b: named.get(b, _value(plain[0])) for b in backbones}


def _value(text: str) -> str | Path:
    return text if text in ("none", "pretrained") else Path(text)


def training_options(command: F) -> F:
    """Add the options of fine-tuning to a command; those of a recipe have no default of their own."""
    for option in reversed(
        [
            click.option(
                "--recipe",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="How the network is trained; auto goes by the kind of network. 'lookalike recipes' lists them.",
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="FIELD=VALUE",
                help="Change one field of the recipe, such as pooling=gem; may be repeated.",
            ),
            click.option("--loss", metavar="LOSS", help="One loss or a weighted sum: cross-entropy+0.5*triplet."),
            click.option("--epochs", type=int, help="Epochs of the full stage, at most."),
            click.option(
                "--max-minutes", type=float, help="Wall-clock budget for each backbone; epochs are planned to fit."
            ),
            click.option("--batch-size", type=int, help="Images a step."),
            click.option(
                "--resolution",
                type=float,
                help="Side of the pictures in training, as a share of their side at test time; less is faster. "
                "Networks of a fixed input size keep theirs.",
            ),
            click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="sgd is with Nesterov momentum 0.9."),
            click.option("--lr", type=float, help="Peak learning rate of the backbone."),
            click.option("--head-lr", type=float, help="The same of head and classifier."),
            click.option("--label-smoothing", type=float, help="Of the loss cross-entropy and the frozen stage."),
            click.option(
                "--precision",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                help="auto takes bfloat16 where the device computes in it.",
            ),
            click.option(
                "--patience",
                type=int,
                default=3,
                show_default=True,
                help="Epochs without a better measure before stopping.",
            ),
            click.option(
                "--stop-on",
                default="map@r",
                show_default=True,
                metavar="MEASURE",
                help="Validation measure for early stopping.",
            ),
            click.option(
                "--class-disjoint/--stratified",
                default=None,
                help="How validation is cut from training, and plain class folders into parts.  "
                "[default: class-disjoint when the test classes are unseen]",
            ),
            click.option(
                "--allow-leaks", is_flag=True, help="Train although training images are in query or gallery too."
            ),
            seed_option,
        ]
    ):
        command = option(command)
    return command


def track_option(command: F) -> F:
    """Add the option that names trackers."""
    return click.option(
        "--track",
        multiple=True,
        metavar="NAME[=PLACE]",
        help="Tell a tracker of the run: tensorboard, mlflow, or with a folder or URI, mlflow=http://host:5000; may be "
        "repeated.",
    )(command)


def make_training_options(values: dict[str, Any]) -> Any:
    """Build `TrainingOptions` from a command's values; what was not given is left to the recipe.

    Raises:
        OptionError: a `--set` that is no FIELD=VALUE, or names what has an option of its own and was given there too.

    """
    from lookalike.training.options import TrainingOptions, option_names

    given = {name: values[name] for name in option_names() if values.get(name) is not None}
    for text in values.get("settings", ()):
        name, value = _setting(text)
        if name in given:
            raise OptionError(f"{name} is given twice; leave one of them out.")
        given[name] = value
    return TrainingOptions(**given)


def _setting(text: str) -> tuple[str, Any]:
    """Read `FIELD=VALUE` as the field's type."""
    from lookalike.training.options import check_each
    from lookalike.training.recipe import FIELDS

    name, separator, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not separator or name not in FIELDS:
        raise OptionError(f"--set takes FIELD=VALUE with a field of a recipe, got {text!r}; see 'lookalike recipes'.")
    value, kind = value.strip(), FIELDS[name].type
    read: Any = value
    if kind == "bool":
        read = {"true": True, "false": False}.get(value.lower(), value)
    elif kind in ("int", "float"):
        with contextlib.suppress(ValueError):
            read = int(value) if kind == "int" else float(value)
    try:
        check_each(cast("RecipeChanges", {name: read}))
    except OptionError as error:
        raise TypedError(f"--set {text}: {error}") from error
    return name, read
