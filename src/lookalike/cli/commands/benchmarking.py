"""`lookalike benchmark` and `lookalike demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lookalike.cli.options import (
    PATH,
    data_argument,
    json_option,
    make_training_options,
    parse_weights,
    training_options,
    weights_option,
)
from lookalike.cli.terminal import Terminal, display_path, list_skipped, print_table

_ROWS = 14


@click.command()
@data_argument
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME",
    help="A backbone to measure, frozen and fine-tuned; repeat it.",
)
@click.option(
    "--bundle", "bundles", multiple=True, type=PATH, metavar="DIR", help="A bundle to measure as well; repeat it."
)
@weights_option
@click.option("--no-finetune", is_flag=True, help="Measure the backbones as they come only.")
@click.option("--budget-ms", type=float, help="The most milliseconds that an image may cost.")
@click.option("--measure", default="precision@3", show_default=True, help="The accuracy to choose by.")
@training_options
@click.option("--out", type=PATH, required=True, help="Where everything goes; a run that was killed goes on here.")
@json_option
def benchmark(
    data: Path,
    backbones: tuple[str, ...],
    bundles: tuple[Path, ...],
    weights: tuple[str, ...],
    no_finetune: bool,
    budget_ms: float | None,
    measure: str,
    out: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure backbones, frozen and fine-tuned, and all their pairs; pick one and say why.

    The winner is the cheapest candidate on the Pareto front of accuracy and time that is not significantly less
    accurate than the most accurate one, judged on a validation part cut from training. Query and gallery are for the
    report only. Writes leaderboard.json, .csv, .md, .tex, report.html and the winning bundle in best/.

    \b
    Example:
      lookalike benchmark photos --backbone resnet50 --backbone vit_b_16 --budget-ms 50 --out runs/first
    """  # noqa: D301
    from lookalike.bench import benchmark as run_benchmark

    terminal = Terminal()
    try:
        found = run_benchmark(
            data,
            backbones,
            out=out,
            bundles=bundles,
            weights=parse_weights(weights, backbones),
            finetune=not no_finetune,
            options=make_training_options(values),
            budget_ms=budget_ms,
            measure=measure,
            progress=terminal,
        )
    finally:
        terminal.close()
    _show(terminal, found, as_json)


@click.command()
@click.option("--out", type=PATH, default=Path("lookalike-demo"), show_default=True, help="Where everything goes.")
@click.option(
    "--data", type=str, metavar="DIR|NAME", help="Do the same job on your folder, or on a torchvision data set by name."
)
def demo(out: Path, data: str | None) -> None:
    """Do the whole job, offline, on photographs that a package ships: train, measure, pick, search, report.

    EfficientNet-Lite0 and -Lite2 with their ImageNet weights, as they come, fine-tuned, and as ensembles. Takes a few
    minutes on two cores. An interrupted demo goes on where it was.
    """
    from lookalike.bench.demo import demo as run_demo

    terminal = Terminal()
    try:
        found = run_demo(out, data=data, progress=terminal)
    finally:
        terminal.close()
    _show(terminal, found, as_json=False)
    best = display_path(found.out / "best")
    terminal.say("next: index a folder of your own pictures and search it")
    terminal.say(f"  lookalike index PHOTOS --model {best} --out photos.index")
    terminal.say("  lookalike search photos.index picture.jpg --html found.html")


def _show(terminal: Terminal, found: Any, as_json: bool) -> None:
    """Print the table, the reason and where the report is."""
    list_skipped(terminal, found.skipped)
    if as_json:
        click.echo((found.out / "leaderboard.json").read_text(encoding="utf-8"), nl=False)
        return
    board = found.leaderboard
    rows = board.short_rows(_ROWS)
    print_table(board.header, rows, right_from=2)
    click.echo()
    if len(board.rows) > len(rows):
        click.echo(f"{len(rows)} of {len(board.rows)} candidates; all in {display_path(found.out / 'leaderboard.md')}")
    click.echo(board.caption)
    click.echo()
    click.echo(found.choice.reason)
    click.echo()
    click.echo(f"report: {display_path(found.out / 'report.html')}")
    click.echo(f"model:  {display_path(found.out / 'best')}")
