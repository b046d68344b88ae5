"""The commands, one file a group."""

from __future__ import annotations

import click

from lookalike.cli.command import Commands, InOrder

_HOMES = {
    "demo": "benchmarking",
    "check": "checking",
    "train": "training",
    "benchmark": "benchmarking",
    "refit": "training",
    "embed": "searching",
    "index": "searching",
    "search": "searching",
    "evaluate": "evaluating",
    "submit": "evaluating",
    "export": "exporting",
    "recipes": "recipes",
    "completion": "completion",
}


@click.group(
    cls=InOrder,
    commands=Commands(__name__, _HOMES),
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
