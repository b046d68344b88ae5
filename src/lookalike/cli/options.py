"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from lookalike.errors import OptionError

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
    """Add the options of fine-tuning to a command."""
    for option in reversed(
        [
            click.option("--epochs", type=int, default=6, show_default=True, help="Epochs of the full stage, at most."),
            click.option(
                "--max-minutes", type=float, help="Wall-clock budget for each backbone; epochs are planned to fit."
            ),
            click.option("--batch-size", type=int, default=32, show_default=True, help="Images a step."),
            click.option(
                "--resolution",
                type=float,
                default=1.0,
                show_default=True,
                help="Side of the pictures in training, as a share of their side at test time; less is faster. "
                "Networks of a fixed input size keep theirs.",
            ),
            click.option(
                "--optimizer",
                type=click.Choice(["adamw", "sgd"]),
                default="adamw",
                show_default=True,
                help="sgd is with Nesterov momentum 0.9.",
            ),
            click.option(
                "--lr", type=float, help="Peak learning rate of the backbone.  [default: by --optimizer and backbone]"
            ),
            click.option("--head-lr", type=float, help="The same of head and classifier.  [default: by --optimizer]"),
            click.option(
                "--label-smoothing",
                type=float,
                default=0.1,
                show_default=True,
                help="Of the cross-entropy, 0 for none.",
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
                "--precision",
                type=click.Choice(["auto", "float32", "bfloat16"]),
                default="auto",
                show_default=True,
                help="auto takes bfloat16 where the device computes in it.",
            ),
            seed_option,
        ]
    ):
        command = option(command)
    return command


def make_training_options(values: dict[str, Any]) -> Any:
    """Build `TrainingOptions` from a command's values; what the command has no option for keeps its default."""
    from lookalike.training import TrainingOptions

    return TrainingOptions(**{f.name: values[f.name] for f in fields(TrainingOptions) if f.name in values})
