"""`lookalike evaluate` and `submit`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lookalike.cli.options import PATH, data_argument, json_option, model_option, parse_weights, weights_option
from lookalike.cli.terminal import Terminal, display_path, list_skipped, print_table


@click.command()
@data_argument
@model_option
@weights_option
@click.option(
    "-k",
    "ks",
    type=int,
    multiple=True,
    help="Show precision@k, hit@k and recall@k for this k; repeat it. Default: 1, 3, 10.",
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
    data: Path, model: str, weights: tuple[str, ...], ks: tuple[int, ...], measures: tuple[str, ...], as_json: bool
) -> None:
    """Measure a model on DATA's query and gallery, with 95 % intervals.

    precision@k, the share of relevant pictures among the first k, is what the report that this project implements calls
    top-k accuracy. hit@k, whether any of the first k is relevant, is what most people mean by it. Both are shown.

    \b
    Example:
      lookalike evaluate photos --model runs/first/best -k 1 -k 3 --json
    """  # noqa: D301
    from lookalike.retrieval import evaluate as run_evaluate
    from lookalike.retrieval import measures_for

    terminal = Terminal()
    wanted = measures_for(ks or (1, 3, 10), measures)
    try:
        found, skipped = run_evaluate(
            data, model, measures=wanted, weights=parse_weights(weights, tuple(model.split("+"))), progress=terminal
        )
    finally:
        terminal.close()
    list_skipped(terminal, skipped)
    if found.note():
        terminal.say(found.note())
    result = found.to_dict()
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    rows = [[name, f"{m['mean']:.4f}", f"{m['low']:.4f} to {m['high']:.4f}"] for name, m in result["measures"].items()]
    print_table(["measure", "mean", "95 % interval"], rows)
    click.echo(f"\n{result['queries']} queries, {result['left_out']} left out, {result['gallery']} gallery images")


@click.command()
@data_argument
@model_option
@weights_option
@click.option("-k", "top_k", type=int, default=10, show_default=True, help="Gallery names for each query.")
@click.option("--group", "groupname", default="lookalike", show_default=True, help="The group's name in the file.")
@click.option("--out", type=PATH, required=True, help="The file to write: .json or .csv.")
def submit(data: Path, model: str, weights: tuple[str, ...], top_k: int, groupname: str, out: Path) -> None:
    """Write a submission: for every query of DATA the names of its k nearest gallery images, validated.

    \b
    Example:
      lookalike submit photos --model runs/first/best -k 10 --out submission.json
    """  # noqa: D301
    from lookalike.retrieval import submit as run_submit

    terminal = Terminal()
    try:
        submission = run_submit(
            data,
            model,
            top_k=top_k,
            groupname=groupname,
            out=out,
            weights=parse_weights(weights, tuple(model.split("+"))),
            progress=terminal,
        )
    finally:
        terminal.close()
    terminal.say(f"{len(submission['images'])} queries, {top_k} gallery images each")
    click.echo(display_path(out))
