"""`lookalike evaluate` and `submit`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from lookalike.cli.command import Command
from lookalike.cli.options import (
    data_argument,
    json_option,
    model_option,
    model_weights,
    out_option,
    runtime_options,
    weights_option,
)
from lookalike.cli.output import print_json
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import counted, display_path


@click.command(cls=Command, short_help="Measure a model on DATA's query and gallery.")
@data_argument
@model_option
@weights_option
@runtime_options("auto is full precision.")
@click.option(
    "-k",
    type=int,
    multiple=True,
    help="Show precision@k, hit@k and recall@k for this k; repeat it.  [default: 1, 3, 10, if the gallery is as large]",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    help="A further measure, such as ndcg@10 or points@1,5,10; repeat it.",
)
@json_option
def evaluate(
    data: Path,
    model: str,
    weights: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> None:
    """Measure a model on DATA's query and gallery, with 95 % intervals.

    precision@k, the share of relevant pictures among the first k, is what the report that this project implements calls
    top-k accuracy. hit@k, whether any of the first k is relevant, is what most people mean by it. Both are shown.

    \b
    Example:
      lookalike evaluate photos --model runs/first/best -k 1 -k 3 --json
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.api.evaluate import evaluate as run_evaluate

    with closing(Terminal()) as terminal:
        found, skipped = run_evaluate(data, model, weights=chosen, progress=terminal, **values)
    list_skipped(terminal, skipped)
    if found.note():
        terminal.info(found.note())
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(str(found))


@click.command(cls=Command, short_help="Write the k nearest gallery names of every query to a file.")
@data_argument
@model_option
@weights_option
@runtime_options("auto is full precision.")
@click.option("-k", "top_k", type=int, default=10, show_default=True, help="Gallery names for each query.")
@click.option("--group", default="lookalike", show_default=True, help="The group's name in the file.")
@out_option("The file to write, .json or .csv; must not exist yet.")
def submit(data: Path, model: str, weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Write a submission: for every query of DATA the names of its k nearest gallery images, validated.

    \b
    Example:
      lookalike submit photos --model runs/first/best -k 10 --out submission.json
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.api.evaluate import submit as run_submit

    with closing(Terminal()) as terminal:
        submission, skipped = run_submit(data, model, out=out, weights=chosen, progress=terminal, **values)
    list_skipped(terminal, skipped)
    terminal.info(f"{len(submission.images)} queries, {counted(values['top_k'], 'gallery image')} each")
    click.echo(display_path(out))
