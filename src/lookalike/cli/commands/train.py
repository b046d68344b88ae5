"""`lookalike train`, `refit`, `backbones` and `recipes`."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.app import RESUMES_WITH_FLAG, Command
from lookalike.cli.console import make_progress, print_json, print_path, print_table, report_skipped, shell_path
from lookalike.cli.options import (
    PATH,
    choice_option,
    data_argument,
    json_option,
    make_training_options,
    out_option,
    parse_weights,
    resume_option,
    track_option,
    training_options,
    weights_option,
)
from lookalike.progress import SILENT, Progress

if TYPE_CHECKING:
    from lookalike.data.dataset import Dataset

_BACKBONE_FIELDS = (
    "name", "timm_name", "parameters", "dim", "input_size", "licence", "weights_source", "size_mb", "available",
)  # fmt: skip


@click.command(
    cls=Command,
    interrupted=RESUMES_WITH_FLAG,
    trains=True,
    short_help="Fine-tune a backbone and save it as a bundle.",
)
@data_argument
@click.option(
    "--backbone",
    default="efficientnet_lite0",
    show_default=True,
    metavar="NAME",
    help="The name of a backbone, or several joined by +.",
)
@weights_option
@choice_option(
    "--combination", ("aligned", "average", "concat"), "How several backbones are combined into an ensemble."
)
@click.option("--frozen", is_flag=True, help="Train only the head, on cached features of the frozen backbone.")
@training_options
@track_option
@resume_option
@out_option("The folder of the bundle; must not exist yet.")
def train(
    data: Path, backbone: str, weights: tuple[str, ...], combination: str, resume: bool, out: Path, **values: Any
) -> None:
    """Fine-tune a backbone on the training split of DATA and save it as a bundle.

    A validation split is cut from training. Stages: (1) closed-form head; (2) head and classifier, backbone frozen;
    (3) full fine-tuning, with a checkpoint per epoch; (4) closed-form head refitted on the fine-tuned features.
    Validation decides which weights are saved; they can be an interpolation of pretrained and fine-tuned weights.

    \b
    Examples:
      lookalike train photos --out model
      lookalike train photos --backbone resnet50 --weights resnet50.safetensors \\
                             --max-minutes 10 --out model
      lookalike train photos --resume --out model          after an interruption
    """  # noqa: D301
    weights_by_name = parse_weights(weights, tuple(backbone.split("+")))
    from lookalike.models.bundle import load_data_as_trained
    from lookalike.training.train import train as run_train

    options = make_training_options(values)
    dataset = load_data_as_trained(data, options.to_dict())
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate started
    with closing(make_progress()) as terminal:
        progress = terminal if is_main else SILENT
        progress.info(str(dataset))
        run_train(
            dataset,
            backbone,
            weights=weights_by_name,
            out=out,
            options=options,
            combination=combination,
            resume=resume,
            track=values["track"],
            progress=progress,
        )
        if not is_main:
            return
        _report_training(progress, out, dataset)
        if dataset.test_is_labelled:
            progress.info(f"next: lookalike evaluate {shell_path(data)} --model {shell_path(out)}")
        else:
            progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)


@click.command(
    cls=Command,
    interrupted=RESUMES_WITH_FLAG,
    trains=True,
    short_help="Train a model again on training and validation images.",
)
@data_argument
@click.option("--model", required=True, type=PATH, metavar="BUNDLE", help="A bundle that 'train' or 'benchmark' wrote.")
@weights_option
@track_option
@resume_option
@out_option("The folder of the new bundle; must not exist yet.")
def refit(data: Path, model: Path, weights: tuple[str, ...], resume: bool, track: tuple[str, ...], out: Path) -> None:
    """Train a model again on all labelled training images of DATA, the validation images included.

    The number of epochs and the share of fine-tuned weights are taken from the first training.
    Nothing is measured: the validation accuracy is that of the first training. Pass the same --weights as in it.

    \b
    Example:
      lookalike refit photos --model runs/first/best --out final
    """  # noqa: D301
    from lookalike.models.bundle import load_data_as_trained, read_bundle_info
    from lookalike.training.refit import refit as run_refit

    info = read_bundle_info(model)
    weights_by_name = parse_weights(weights, tuple(member.backbone.name for member in info.members))
    dataset = load_data_as_trained(data, info.options)
    with closing(make_progress()) as progress:
        run_refit(dataset, model, out=out, weights=weights_by_name, resume=resume, track=track, progress=progress)
        _report_training(progress, out, dataset)
        progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)


def _report_training(progress: Progress, bundle: Path, data: Dataset) -> None:
    """Report the skipped files and the validation measures of a finished bundle."""
    from lookalike.models.bundle import read_bundle_info

    info = read_bundle_info(bundle)
    reports = [report for report in info.training if report is not None]
    files = dict.fromkeys(file for report in reports for file in report.skipped)
    report_skipped(progress, [*map(str, data.skipped), *files])
    for report in reports:
        if report.measures is not None:
            origin = " of the first training" if info.refit_of is not None else ""
            progress.info(f"{report.backbone}: validation {report.options['stop_on']}{origin}: {report.measures}")


@click.command(cls=Command, short_help="List the backbones that have a short name.")
@json_option
def backbones(as_json: bool) -> None:
    """List the backbones that have a short name, with their size, licence and weights.

    Every other timm name is accepted as a backbone too. 'available' says whether the weights are on this machine; the
    others are downloaded from the model hub when they are first used.

    \b
    Examples:
      lookalike backbones
      lookalike train photos --backbone resnet50 --out model
    """  # noqa: D301
    from lookalike.models.registry import backbones as list_backbones

    rows = list_backbones()
    if as_json:
        print_json({"backbones": [{field: getattr(row, field) for field in _BACKBONE_FIELDS} for row in rows]})
        return
    header = ["name", "parameters", "dimensions", "input", "size", "licence", "weights", "available"]
    cells = [
        [
            row.name,
            f"{row.parameters / 1e6:.1f} M",
            str(row.dim),
            f"{row.input_size} px",
            f"{row.size_mb:.0f} MB",
            row.licence,
            row.weights_source,
            "yes" if row.available else "no",
        ]
        for row in rows
    ]
    print_table(header, cells, right=["parameters", "dimensions", "input", "size"], optional=["licence", "input"])


@click.command(cls=Command, short_help="List the training recipes, their fields, and the losses.")
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes of 'train' and 'benchmark': the meaning and values of their fields, and the losses.

    'auto' picks the recipe of the kind of backbone, and trains more gently if the test classes are not in training.
    Change single fields with --set FIELD=VALUE.

    \b
    Examples:
      lookalike recipes
      lookalike train photos --recipe cnn --set pooling=gem --out model
    """  # noqa: D301
    from lookalike.training.config import FIELDS, RECIPE_DESCRIPTIONS, UNSEEN_CLASSES
    from lookalike.training.config import recipes as all_recipes
    from lookalike.training.losses import LOSSES

    values = {name: recipe.to_dict() for name, recipe in all_recipes().items()}
    if as_json:
        fields = {name: field.metadata["help"] for name, field in FIELDS.items()}
        losses = {loss.name: loss.description for loss in LOSSES.values()}
        print_json({"recipes": values, "unseen": UNSEEN_CLASSES, "fields": fields, "losses": losses})
        return
    for name, text in RECIPE_DESCRIPTIONS.items():
        click.echo(f"{name}: {text}")
    click.echo("auto: the one of these for the kind of backbone\n")
    for name, field in FIELDS.items():
        texts = {recipe: _value_text(fields[name]) for recipe, fields in values.items()}
        default = max(set(texts.values()), key=list(texts.values()).count)
        others = [f"{recipe} {text}" for recipe, text in texts.items() if text != default]
        choices = ", ".join(field.metadata.get("choices", ()))
        click.echo(f"{name} = {', '.join([default, *others])}")
        click.echo(f"    {field.metadata['help']}{f' ({choices})' if choices else ''}")
    changes = ", ".join(f"{name} = {_value_text(value)}" for name, value in UNSEEN_CLASSES.items())
    click.echo(f"\nauto, if the test classes are not in training: {changes}")
    click.echo("\nlosses")
    for loss in LOSSES.values():
        click.echo(f"  {loss.name}: {loss.description}")


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
