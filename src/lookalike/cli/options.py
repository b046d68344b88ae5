"""Options that several commands share, and the values that they make of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lookalike.errors import OptionError

if TYPE_CHECKING:
    from lookalike.runtimes.load import WeightsOption
    from lookalike.training.config import TrainingOptions

F = TypeVar("F", bound=Callable[..., Any])

# The fields of a recipe that have a flag of their own; all others are changed by --set.
RECIPE_FLAGS = (
    "loss", "epochs", "batch_size", "resolution", "optimizer", "lr", "head_lr", "label_smoothing", "precision",
)  # fmt: skip
_TYPES = {"int": int, "float": float, "str": str}


class _Path(click.Path):
    """A path that is not empty: a shell makes an empty one of an unset variable, and it is the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
data_argument = click.argument("data", type=PATH)


def choice_option(flag: str, choices: Sequence[str], text: str) -> Callable[[F], F]:
    """Return an option with its help text; the first of the choices is the default."""
    return click.option(flag, type=click.Choice(choices), default=choices[0], show_default=True, help=text)


def out_option(text: str) -> Callable[[F], F]:
    """Return the required `--out` with its help text."""
    return click.option("--out", type=PATH, required=True, metavar="PATH", help=text)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of a table."
)
model_option = click.option(
    "--model",
    required=True,
    metavar="BUNDLE|NAME",
    help="A bundle that 'train' or 'benchmark' wrote, or the name of a backbone (several joined by +), which may be "
    "onnx:FILE or hf:FOLDER.",
)
weights_option = click.option(
    "--weights",
    multiple=True,
    metavar="[NAME=]PATH|none",
    help="Weights of a backbone given by name: a safetensors or torch file, or 'none' for random weights. With several "
    "backbones, name one: resnet50=FILE.  [default: pretrained]",
)
runtime_option = choice_option(
    "--runtime",
    ("auto", "torch", "openvino", "onnxruntime"),
    "Inference runtime. 'auto' picks the fastest one on this machine; exported models always use their own.",
)
allow_removals_option = click.option(
    "--allow-removals",
    is_flag=True,
    help="Remove embeddings that an earlier run made even if most images are gone, or all images of a folder.",
)
rerank_option = click.option(
    "--no-rerank", "rerank", flag_value=False, default=True, type=bool, help="Ignore the re-ranking of the bundle."
)
resume_option = click.option("--resume", is_flag=True, help="Resume the unfinished run next to --out.")


def _known_trackers(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if values:
        from lookalike.training.tracking import parse_targets

        parse_targets(values)
    return values


track_option = click.option(
    "--track",
    multiple=True,
    callback=_known_trackers,
    metavar="NAME[=PATH|URI|PROJECT]",
    help="Report the run to a tracker: tensorboard, mlflow or wandb, optionally with a folder, a URI or a project "
    "(mlflow=http://host:5000, wandb=team/project). Can be repeated.",
)


def post_options(command: F) -> F:
    """Add the options of posting a submission."""
    options = [
        click.option(
            "--score-field",
            default="accuracy",
            show_default=True,
            metavar="NAME",
            help="Field of the server's answer, a JSON object, that holds the score.",
        ),
        click.option("--again", is_flag=True, help="Post a file that was posted to this URL before."),
        click.option("--dry-run", is_flag=True, help="Print what would be posted, and post nothing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def precision_option(auto: str) -> Callable[[F], F]:
    """Return `--precision` of inference; `auto` is the help text of its default."""
    return choice_option("--precision", ("auto", "float32", "bfloat16"), f"Precision of inference. 'auto' is {auto}.")


def weights_for_model(values: Sequence[str], model: str | None, against: str | None = None) -> WeightsOption:
    """Return the weights of the backbones that `--model` and `--against` name: a bundle has its own."""
    from lookalike.models.bundle import find_bundle

    if values and model is None:
        raise OptionError(f"--weights {values[0]} needs the name of a backbone; pass it as --model.")
    names = [name for name in (model, against) if name is not None and find_bundle(name) is None]
    if values and not names:
        raise OptionError(
            f"--weights {values[0]} needs the name of a backbone, but {model} is a bundle with its own weights; "
            "remove --weights."
        )
    return parse_weights(values, tuple(dict.fromkeys("+".join(names).split("+"))))


def _weights_value(text: str) -> str | Path:
    return text if text in ("none", "pretrained") else Path(text)


def parse_weights(values: Sequence[str], backbones: Sequence[str]) -> WeightsOption:
    """Return the values of `--weights` as one for all backbones, or as a mapping by name."""
    by_name: dict[str, str | Path] = {}
    unnamed: list[str] = []
    for text in values:
        name, separator, value = text.partition("=")
        # which backbones `auto` will pick is not known yet
        if separator and (name in backbones or ("auto" in backbones and not Path(text).exists())):
            by_name[name] = _weights_value(value)
        elif separator and not Path(text).exists():
            raise OptionError(
                f"--weights {text} names the backbone {name!r}, which is not among {', '.join(backbones)}."
            )
        else:
            unnamed.append(text)
    if not unnamed:
        return by_name or "pretrained"
    if len(unnamed) > 1 or (len(backbones) > 1 and unnamed[0] not in ("none", "pretrained")):
        raise OptionError(f"--weights {unnamed[-1]} does not name its backbone; write NAME={unnamed[-1]}.")
    default = _weights_value(unnamed[0])
    defaults = {name: default for name in backbones if name != "auto"}
    return defaults | by_name if by_name else default


def training_options(command: F) -> F:
    """Add the options of training to a command."""
    from lookalike.training.config import FIELDS

    options = [
        click.option(
            "--recipe",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="Training recipe. 'auto' picks the one for the kind of backbone; 'lookalike recipes' lists all.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Change one field of the recipe, such as pooling=gem. Can be repeated.",
        ),
        *(_recipe_option(name, FIELDS[name]) for name in RECIPE_FLAGS),
        click.option(
            "--max-minutes",
            type=float,
            help="Time budget for the training of each backbone; the number of epochs is planned to fit, and a run "
            "that resumes has what is left. Embedding and timing are not included.",
        ),
        click.option(
            "--patience",
            type=int,
            default=3,
            show_default=True,
            help="Stop after this many epochs without improvement.",
        ),
        click.option(
            "--stop-on",
            default="map@r",
            show_default=True,
            metavar="MEASURE",
            help="Validation measure for early stopping and the choice of weights.",
        ),
        click.option(
            "--class-disjoint/--stratified",
            default=None,
            help="How validation is cut from training, and class folders into splits.  "
            "[default: class-disjoint if the test classes are not in training]",
        ),
        click.option(
            "--allow-leaks", is_flag=True, help="Train although training images are also in query or gallery."
        ),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Seed of splits, order, augmentation and weights."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _recipe_option(name: str, field: Any) -> Callable[[F], F]:
    """Return the flag of a field of the recipe; without a default, because that depends on the recipe."""
    text, choices = field.metadata["help"], field.metadata.get("choices", ())
    if text.split()[0].rstrip(",:") not in choices:  # the name of a choice keeps its case
        text = f"{text[:1].upper()}{text[1:]}"
    return click.option(
        f"--{name.replace('_', '-')}", type=click.Choice(choices) if choices else _TYPES[field.type], help=f"{text}."
    )


def make_training_options(values: dict[str, Any]) -> TrainingOptions:
    """Return the training options of a command; the recipe decides the rest."""
    from lookalike.training.config import OPTION_NAMES, TrainingOptions

    options = {name: values[name] for name in OPTION_NAMES if values.get(name) is not None}
    for text in values.get("settings", ()):
        name, value = _parse_setting(text)
        if name in options:
            raise OptionError(f"`{name}` is passed twice; remove one of the two.", argument=name)
        options[name] = value
    return TrainingOptions(**options)


def _parse_setting(text: str) -> tuple[str, Any]:
    """Parse `FIELD=VALUE` by the type of the field; a value of another type stays a text, which is refused later."""
    from lookalike.training.config import FIELDS

    name, separator, value = text.partition("=")
    name, value = name.strip().replace("-", "_"), value.strip()
    if not separator or name not in FIELDS:
        raise OptionError(f"--set takes FIELD=VALUE with a field of a recipe, got {text!r}; see 'lookalike recipes'.")
    kind = FIELDS[name].type
    if kind == "bool":
        return name, {"true": True, "false": False}.get(value.lower(), value)
    if kind in ("int", "float"):
        with contextlib.suppress(ValueError):
            return name, int(value) if kind == "int" else float(value)
    return name, value
