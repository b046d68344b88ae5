"""`lookalike benchmark` and `lookalike demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.command import GOES_ON, Command
from lookalike.cli.options import (
    PATH,
    data_argument,
    json_option,
    make_training_options,
    out_option,
    parse_weights,
    runtime_option,
    track_option,
    training_options,
    weights_option,
)
from lookalike.cli.output import print_prose, print_table
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import display_path, typed_path
from lookalike.errors import OptionError

if TYPE_CHECKING:
    from lookalike.benchmark.benchmark import Benchmark

_ROWS = 14
_SPARE = (
    "memory MB", "ms p95", "ms decode", "ms model", "hit@1", "map@r", "dimensions", "ms batched", "95% interval",
    "type",
)  # fmt: skip
"""Columns that a narrow terminal does without, the first one first; the files have them all."""


@click.command(cls=Command, interrupted=GOES_ON, short_help="Measure backbones and their pairs, and pick one.")
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
@click.option(
    "--finetune",
    "tuned",
    multiple=True,
    metavar="NAME",
    help="Fine-tune this backbone only; repeat it.  [default: all]",
)
@click.option("--budget-ms", type=float, help="The most milliseconds that an image may cost.")
@click.option(
    "--measure", default="precision@3", show_default=True, metavar="MEASURE", help="The accuracy to choose by."
)
@runtime_option
@training_options
@track_option
@out_option("Folder for everything; started again with the same one, the run goes on where it was.")
@json_option
def benchmark(
    data: Path,
    backbones: tuple[str, ...],
    bundles: tuple[Path, ...],
    weights: tuple[str, ...],
    out: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure backbones, frozen and fine-tuned, and all their pairs; pick one and say why.

    The winner is the cheapest candidate on the Pareto front of accuracy and time that is not significantly less
    accurate than the most accurate one, judged on a validation part cut from training. Query and gallery are for the
    report only. Writes leaderboard.json, .csv, .md, .tex, report.html and the winning bundle in best/.

    \b
    Examples:
      lookalike benchmark photos --backbone resnet50 --backbone vit_b_16 \\
                                 --budget-ms 50 --out runs/first
      lookalike benchmark photos --bundle model --bundle other --out runs/second
    """  # noqa: D301
    chosen = parse_weights(weights, backbones)
    from lookalike.benchmark.benchmark import benchmark as run_benchmark

    terminal = Terminal()
    try:
        found = run_benchmark(
            data,
            backbones,
            out=out,
            bundles=bundles,
            weights=chosen,
            finetune=_which_to_tune(values["tuned"], none=values["no_finetune"]),
            options=make_training_options(values),
            budget_ms=values["budget_ms"],
            measure=values["measure"],
            runtime=values["runtime"],
            track=values["track"],
            progress=terminal,
        )
    finally:
        terminal.close()
    list_skipped(terminal, found.skipped)
    if as_json:
        click.echo((found.out / "leaderboard.json").read_text(encoding="utf-8"), nl=False)
    else:
        _show(found)
    terminal.info("next: index a folder of pictures with the winner and search it")
    _say_how(terminal, found)


def _which_to_tune(tuned: tuple[str, ...], *, none: bool) -> bool | tuple[str, ...]:
    if tuned and none:
        raise OptionError(f"--finetune {tuned[0]} and --no-finetune exclude each other; leave one of them out.")
    return tuned or not none


@click.command(cls=Command, interrupted=GOES_ON, short_help="Do the whole job, offline, on built-in photographs.")
@click.option(
    "--out", type=PATH, default=Path("lookalike-demo"), show_default=True, metavar="PATH", help="Folder for everything."
)
@click.option(
    "--data", type=str, metavar="DIR|NAME", help="Do the same job on your folder, or on a torchvision data set by name."
)
def demo(out: Path, data: str | None) -> None:
    """Do the whole job, offline, on photographs that a package ships: train, measure, pick, search, report.

    EfficientNet-Lite0 and -Lite2 with their ImageNet weights, as they come, fine-tuned, and as ensembles. Takes a few
    minutes on two cores. An interrupted demo goes on where it was.

    \b
    Examples:
      lookalike demo
      lookalike demo --data photos --out photos-demo
      lookalike demo --data CIFAR10 --out cifar-demo
    """  # noqa: D301
    from lookalike.benchmark.demo import demo as run_demo

    terminal = Terminal()
    try:
        found = run_demo(out, data=data, progress=terminal)
    finally:
        terminal.close()
    list_skipped(terminal, found.skipped)
    _show(found)
    terminal.info("next: index a folder of your own pictures with the winner and search it")
    _say_how(terminal, found)


def _show(found: Benchmark) -> None:
    """Print the table, the reason and where the report is."""
    board = found.leaderboard
    rows = board.short_rows(_ROWS)
    spare = [name for name in _SPARE if name != board.measure]  # the accuracy may be one of them
    narrow = print_table(board.header, rows, right=board.header[2:], spare=spare)
    click.echo()
    everything = display_path(found.out / "leaderboard.md")
    if len(board.rows) > len(rows):
        print_prose(f"{len(rows)} of {len(board.rows)} candidates; all in {everything}")
    if narrow:
        print_prose(f"Not shown for want of room: {', '.join(narrow)}; all columns in {everything}")
    print_prose(board.caption)
    click.echo()
    print_prose(found.choice.reason)
    click.echo()
    click.echo(f"report: {display_path(found.out / 'report.html')}")
    click.echo(f"model:  {display_path(found.out / 'best')}")


def _say_how(terminal: Terminal, found: Benchmark) -> None:
    terminal.info(f"  lookalike index PICTURES --model {typed_path(found.out / 'best')} --out PICTURES.index")
    terminal.info("  lookalike search PICTURES.index picture.jpg --html found.html")
