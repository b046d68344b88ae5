"""`lookalike export`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from lookalike.cli.command import Command
from lookalike.cli.options import PATH, out_option
from lookalike.cli.terminal import Terminal
from lookalike.cli.wording import display_path, typed_path
from lookalike.errors import OptionError


def _one(_: click.Context, __: click.Parameter, given: Sequence[str]) -> str:
    """Return the precision; two different ones contradict each other."""
    first, *others = given or ["auto"]
    if any(other != first for other in others):
        raise OptionError(f"--precision is given as {' and '.join(given)}; give one of them.")
    return first


@click.command(cls=Command, short_help="Write a model for OpenVINO or ONNX Runtime.")
@click.argument("bundle", type=PATH)
@click.option(
    "--format", type=click.Choice(["openvino", "onnx"]), default="openvino", show_default=True, help="What it runs on."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
    multiple=True,
    callback=_one,
    help="auto, the default, takes bfloat16 with openvino where the processor has it, else float32; int8 needs --data.",
)
@click.option(
    "--int8", "precision", flag_value="int8", multiple=True, callback=_one, help="The same as --precision int8."
)
@click.option(
    "--data",
    type=PATH,
    metavar="DATA",
    help="What BUNDLE was trained on: int8 is calibrated on its training images, and what is lost is measured on the "
    "validation part.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.5,
    show_default=True,
    help="Points of precision@3 on validation that may be lost; a model that loses more is not written.",
)
@out_option("The exported bundle's folder; must not exist yet. It is a --model like any other.")
def export(bundle: Path, out: Path, **values: Any) -> None:
    """Write a bundle for a runtime that is faster on a processor, or that other programs have.

    BUNDLE may also be an index, or what 'embed' made: its model is written. The graph takes uint8 pixels and gives
    unit-length embeddings: normalisation, pooling and head are inside. It is compared with the bundle, one picture at
    a time and in batches, before it is put in place.

    \b
    Examples:
      lookalike export runs/first/best --out fast
      lookalike export runs/first/best --int8 --data photos --out fast8
    """  # noqa: D301
    from lookalike.api.export import export as run_export

    with closing(Terminal()) as terminal:
        run_export(bundle, out=out, progress=terminal, **values)
        terminal.info(f"next: lookalike index PICTURES --model {typed_path(out)} --out PICTURES.index")
    click.echo(display_path(out))
