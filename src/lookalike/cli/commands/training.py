"""`lookalike train` and `lookalike refit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.command import RESUMES, Command
from lookalike.cli.options import (
    PATH,
    data_argument,
    make_training_options,
    out_option,
    parse_weights,
    track_option,
    training_options,
    weights_option,
)
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import display_path, typed_path

if TYPE_CHECKING:
    from lookalike.data.dataset import Dataset


@click.command(cls=Command, interrupted=RESUMES, short_help="Fine-tune a backbone and save it as a bundle.")
@data_argument
@click.option(
    "--backbone",
    default="efficientnet_lite0",
    show_default=True,
    metavar="NAME",
    help="A backbone's name, or several joined by +.",
)
@weights_option
@click.option(
    "--combine",
    type=click.Choice(["aligned", "average", "concat"]),
    default="aligned",
    show_default=True,
    help="How several backbones become one model.",
)
@click.option("--frozen", is_flag=True, help="Train the head only, on cached features: a few passes over the images.")
@training_options
@track_option
@click.option(
    "--resume", is_flag=True, help="Go on with the unfinished run beside --out; --lr and --head-lr may be others."
)
@out_option("The bundle's folder; must not exist yet.")
def train(
    data: Path, backbone: str, weights: tuple[str, ...], combine: str, resume: bool, out: Path, **values: Any
) -> None:
    """Fine-tune a backbone on DATA's training part and save it as a bundle.

    A validation part is cut from training. Stages: a head in closed form; head and classifier with the backbone frozen;
    everything together, a checkpoint each epoch; a head fitted to what the backbone sees then. What is kept is what
    retrieves best on validation, which may be a mixture of the fine-tuned and the original weights.

    \b
    Examples:
      lookalike train photos --out model
      lookalike train photos --backbone resnet50 --weights resnet50.safetensors \\
                             --max-minutes 10 --out model
      lookalike train photos --resume --out model          after an interruption
    """  # noqa: D301
    chosen = parse_weights(weights, tuple(backbone.split("+")))
    from lookalike.training.train import load_as
    from lookalike.training.train import train as run_train

    options = make_training_options(values)
    dataset = load_as(data, options)
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started, one talks
    terminal = Terminal()
    if leads:
        terminal.info(str(dataset))
    try:
        run_train(
            dataset,
            backbone,
            weights=chosen,
            out=out,
            options=options,
            combine=combine,
            resume=resume,
            track=values["track"],
            progress=terminal,
        )
    finally:
        terminal.close()
    if not leads:
        return
    _show(terminal, out, dataset)
    if dataset.test_is_labelled:
        terminal.info(f"next: lookalike evaluate {typed_path(data)} --model {typed_path(out)}")
    else:
        terminal.info(f"next: lookalike index PICTURES --model {typed_path(out)} --out PICTURES.index")
    click.echo(display_path(out))


@click.command(cls=Command, interrupted=RESUMES, short_help="Train a model once more, on validation images too.")
@data_argument
@click.option("--model", required=True, type=PATH, metavar="BUNDLE", help="A bundle made by 'train' or 'benchmark'.")
@weights_option
@track_option
@click.option("--resume", is_flag=True, help="Go on with the unfinished run beside --out.")
@out_option("The new bundle's folder; must not exist yet.")
def refit(data: Path, model: Path, weights: tuple[str, ...], resume: bool, track: tuple[str, ...], out: Path) -> None:
    """Train a model once more on all of DATA's training part, the validation images included.

    For each backbone the first training has found out how many epochs are best and how much of the fine-tuned weights
    to keep; this follows it, without measuring anything: the validation accuracy to choose by is that of BUNDLE.
    --weights must be those of the first time.

    \b
    Example:
      lookalike refit photos --model runs/first/best --out final
    """  # noqa: D301
    from lookalike.models.facts import read_facts

    names = tuple(member["backbone"] for member in read_facts(model)["members"])
    chosen = parse_weights(weights, names)
    from lookalike.api.load_model import load_as_trained
    from lookalike.training.refit import refit as run_refit

    terminal = Terminal()
    dataset = load_as_trained(data, model)
    try:
        run_refit(dataset, model, out=out, weights=chosen, resume=resume, track=track, progress=terminal)
    finally:
        terminal.close()
    _show(terminal, out, dataset)
    terminal.info(f"next: lookalike index PICTURES --model {typed_path(out)} --out PICTURES.index")
    click.echo(display_path(out))


def _show(terminal: Terminal, bundle: Path, data: Dataset) -> None:
    """Say what could not be read, and what validation measured."""
    from lookalike.models.facts import read_facts

    facts = read_facts(bundle)
    files = dict.fromkeys(s for r in facts["training"] for s in r["skipped"])
    list_skipped(terminal, [*map(str, data.skipped), *files])
    for report in facts["training"]:
        if "validation" in report:
            measures = ", ".join(f"{stage} {value:.4f}" for stage, value in report["validation"].items())
            when = "of the first training, " if "refit_of" in facts else ""
            measure = report.get("options", facts["options"])["stop_on"]
            terminal.info(f"{report['backbone']}: {when}validation {measure}: {measures}")
