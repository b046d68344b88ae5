"""`lookalike benchmark` and `demo`."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.app import RESUMES, Command
from lookalike.cli.console import (
    display_path,
    make_progress,
    print_json,
    print_prose,
    print_table,
    report_skipped,
    shell_path,
)
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
from lookalike.errors import OptionError
from lookalike.progress import Progress

if TYPE_CHECKING:
    from lookalike.benchmark.benchmark import Benchmark

_MAX_ROWS = 14
# columns that a narrow terminal hides, in this order; the files have all of them
_OPTIONAL_COLUMNS = (
    "memory MB", "ms p95", "ms decode", "ms model", "hit@1", "map@r", "dimensions", "ms batched", "type",
    "95% interval", "hit@3", "vs winner",
)  # fmt: skip


@click.command(
    cls=Command, interrupted=RESUMES, trains=True, short_help="Measure backbones and ensembles, and pick one."
)
@data_argument
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME",
    help="A backbone to measure, frozen and fine-tuned; A+B for only the ensembles of two; onnx:FILE and hf:FOLDER are "
    "measured frozen; 'auto' picks some by the weights at hand and the time. Can be repeated.",
)
@click.option(
    "--bundle", "bundles", multiple=True, type=PATH, metavar="DIR", help="A bundle to measure. Can be repeated."
)
@weights_option
@click.option("--no-finetune", is_flag=True, help="Skip fine-tuning; benchmark the pretrained backbones only.")
@click.option(
    "--finetune", multiple=True, metavar="NAME", help="Fine-tune only this backbone. Can be repeated.  [default: all]"
)
@click.option("--budget-ms", type=float, help="Upper limit for the time per image, in milliseconds.")
@click.option(
    "--measure",
    metavar="MEASURE",
    help="Accuracy measure of the selection.  [default: precision@3, or map@r where validation has too few images per "
    "class for it or all candidates are close to 1]",
)
@click.option(
    "--prefer",
    type=click.Choice(["efficiency", "accuracy"]),
    default="efficiency",
    show_default=True,
    help="The cheapest candidate that is not significantly less accurate than the most accurate one, or that one.",
)
@click.option(
    "--no-transductive",
    "transductive",
    flag_value=False,
    default=True,
    type=bool,
    help="Choose no re-ranking that uses other queries or changes the gallery.",
)
@runtime_option
@training_options
@track_option
@out_option("Folder of all results; run again with the same folder to resume or to add candidates.")
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
    """Measure backbones, frozen and fine-tuned, and all their pairs; pick one and explain why.

    The winner is the cheapest candidate on the Pareto front of accuracy and time that is not significantly less
    accurate than the most accurate one. Validation images, cut from training, decide; query and gallery images are
    only for the report. Writes leaderboard.json, .csv, .md, .tex, report.html, and the winner as a bundle in best/.

    \b
    Examples:
      lookalike benchmark photos --backbone resnet50 --backbone vit_b_16 \\
                                 --budget-ms 50 --out runs/first
      lookalike benchmark photos --bundle model --bundle other --out runs/second
    """  # noqa: D301
    names = tuple(dict.fromkeys(name for b in backbones for name in b.split("+")))
    weights_by_name = parse_weights(weights, names)
    finetune = values["finetune"]
    if finetune and values["no_finetune"]:
        raise OptionError(f"--finetune {finetune[0]} and --no-finetune exclude each other; remove one of them.")
    options = make_training_options(values)
    from lookalike.benchmark.spec import require_request

    require_request(backbones, bundles, out, values["budget_ms"])  # before torch is imported, which takes seconds
    from lookalike.benchmark.benchmark import benchmark as run_benchmark

    with closing(make_progress()) as progress:
        result = run_benchmark(
            data,
            backbones,
            out=out,
            bundles=bundles,
            weights=weights_by_name,
            finetune=finetune or not values["no_finetune"],
            options=options,
            budget_ms=values["budget_ms"],
            measure=values["measure"],
            prefer=values["prefer"],
            runtime=values["runtime"],
            transductive=values["transductive"],
            track=values["track"],
            progress=progress,
        )
    report_skipped(progress, result.skipped)
    if as_json:
        print_json(json.loads((result.out / "leaderboard.json").read_text(encoding="utf-8")))
    else:
        _print_result(result)
    best = shell_path(result.out / "best")
    progress.info("next: write the nearest gallery images of every query to a file")
    progress.info(f"  lookalike submit {shell_path(data)} --model {best} --group NAME --out submission.json")
    _suggest_search(progress, result.out, "or: index images")


@click.command(
    cls=Command, interrupted=RESUMES, trains=True, short_help="Run the whole job, offline, on built-in images."
)
@click.option(
    "--out", type=PATH, default=Path("lookalike-demo"), show_default=True, metavar="PATH", help="Folder of all results."
)
@click.option("--data", type=PATH, metavar="DIR", help="Use your own data folder instead.")
def demo(out: Path, data: Path | None) -> None:
    """Run the whole job, offline, on images from an installed package: train, measure, pick, report.

    Benchmarks EfficientNet-Lite0 and -Lite2 with their ImageNet weights: frozen, fine-tuned, and as ensembles. Takes a
    few minutes on two cores.

    \b
    Examples:
      lookalike demo
      lookalike demo --data photos --out photos-demo
    """  # noqa: D301
    from lookalike.benchmark.benchmark import demo as run_demo

    with closing(make_progress()) as progress:
        result = run_demo(out, data=data, progress=progress)
    report_skipped(progress, result.skipped)
    _print_result(result)
    _suggest_search(progress, result.out, "next: index your own images")


def _print_result(result: Benchmark) -> None:
    board = result.leaderboard
    rows = board.short_rows(_MAX_ROWS)
    optional = [name for name in _OPTIONAL_COLUMNS if name != board.measure]
    hidden = print_table(board.header, rows, right=board.header[2:], optional=optional)
    click.echo()
    table = display_path(result.out / "leaderboard.md")
    if len(board.rows) > len(rows):
        print_prose(f"{len(rows)} of {len(board.rows)} candidates; all of them: {table}")
    if hidden:
        print_prose(f"Columns hidden to fit the terminal: {', '.join(hidden)}; all of them: {table}")
    print_prose(board.caption)
    click.echo()
    print_prose(result.selection.reason)
    click.echo()
    click.echo(f"report: {display_path(result.out / 'report.html')}")
    click.echo(f"model:  {display_path(result.out / 'best')}")


def _suggest_search(progress: Progress, out: Path, first_step: str) -> None:
    progress.info(f"{first_step} with the winner and search them")
    progress.info(f"  lookalike index IMAGES --model {shell_path(out / 'best')} --out IMAGES.index")
    progress.info("  lookalike search IMAGES.index query.jpg --html hits.html")
