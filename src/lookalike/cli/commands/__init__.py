"""The commands, one file a group."""

from __future__ import annotations

import click

from lookalike.cli.command import InOrder
from lookalike.cli.commands.benchmarking import benchmark, demo
from lookalike.cli.commands.checking import check
from lookalike.cli.commands.completion import completion
from lookalike.cli.commands.evaluating import evaluate, submit
from lookalike.cli.commands.exporting import export
from lookalike.cli.commands.recipes import recipes
from lookalike.cli.commands.searching import embed, index, search
from lookalike.cli.commands.training import refit, train


@click.group(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Results go to stdout, everything else to stderr. Exit codes: 0 fine, 1 'check' found errors, 2 bad input, "
    "3 a defect in lookalike, 130 interrupted. Add --debug to any command for a traceback.",
)
@click.version_option(package_name="lookalike")
def cli() -> None:
    """Find the pictures that look like this one.

    \b
    Give it a folder of labelled training photographs, queries and a gallery:
      lookalike check DATA                            is the data sound?
      lookalike benchmark DATA --backbone resnet50 --backbone vit_b_16 --out runs/first
                                                      which model finds best, and how fast is it?
      lookalike index PHOTOS --model runs/first/best --out photos.index
      lookalike search photos.index picture.jpg       the pictures that look like this one

    'lookalike demo' does the whole job on built-in photographs.
    """  # noqa: D301


for command in (
    demo,
    check,
    train,
    benchmark,
    refit,
    embed,
    index,
    search,
    evaluate,
    submit,
    export,
    recipes,
    completion,
):
    cli.add_command(command)
