"""`lookalike compete`: the best submission before a deadline."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from lookalike.cli.app import RESUMES, Command
from lookalike.cli.console import make_progress, print_path, shell_path
from lookalike.cli.options import data_argument, out_option, parse_weights, weights_option


@click.command(cls=Command, interrupted=RESUMES, trains=True, short_help="Make the best submission before a deadline.")
@data_argument
@click.option(
    "--deadline",
    default="2h",
    show_default=True,
    metavar="TIME",
    help="When it must end: a duration from the first start, such as 2h or 90min, or a time of day, such as 14:30.",
)
@click.option("--group", required=True, metavar="NAME", help="The group's name in the submission.")
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="NAME",
    help="A backbone. Can be repeated; 'auto' picks up to three by the available weights and the time.",
)
@weights_option
@click.option("-k", "top_k", type=int, default=10, show_default=True, help="Number of gallery images per query.")
@click.option(
    "--measure",
    metavar="MEASURE",
    help="What is compared on validation.  [default: points@1,5,10, or hit@1 if validation is too small for it]",
)
@click.option(
    "--transductive/--no-transductive",
    default=True,
    show_default=True,
    help="Whether a re-ranking may use other queries and change the gallery, which some rules do not allow.",
)
@click.option(
    "--class-disjoint/--stratified",
    default=None,
    help="How validation is cut from training. Pass --class-disjoint if the test classes are not in training and the "
    "test labels are unknown.  [default: class-disjoint if the test labels show it]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits, order, augmentation and weights.")
@out_option("The folder of the submission, the log, the report and the models.")
def compete(data: Path, backbones: tuple[str, ...], weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Make the best submission for the queries of DATA before a deadline.

    From the first minutes on, submission.json is valid; it is replaced only by one that measures better on validation,
    or by the same models trained on all labelled images.
    The steps: a pretrained backbone; frozen backbones with their best heads; fine-tuning of the most promising ones;
    training on all labelled images; ensembles; re-ranking. log.jsonl and report.html say why each step was kept or
    dropped. An interrupted run resumes; its clock does not stop.

    \b
    Examples:
      lookalike compete photos --deadline 2h --group us --out competition
      lookalike compete photos --deadline 14:30 --group us --out competition \\
                               --backbone resnet50 --backbone dinov2_s_reg
    """  # noqa: D301
    weights_by_name = parse_weights(weights, backbones)
    from lookalike.competition.clock import parse_deadline

    if not out.exists():  # one that resumes keeps its deadline, which may be over
        parse_deadline(values["deadline"], datetime.now().astimezone())  # before torch is imported
    from lookalike.competition.compete import compete as run_compete

    with closing(make_progress()) as progress:
        result = run_compete(data, out=out, backbones=backbones, weights=weights_by_name, progress=progress, **values)
        progress.info(str(result))
        progress.info(f"report: {shell_path(out / 'report.html')}")
    print_path(result.submission)
