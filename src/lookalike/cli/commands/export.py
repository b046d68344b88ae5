"""`lookalike export`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from lookalike.cli.app import Command
from lookalike.cli.console import make_progress, print_path, shell_path
from lookalike.cli.options import PATH, choice_option, out_option
from lookalike.errors import OptionError


def _one_precision(_: click.Context, __: click.Parameter, values: Sequence[str]) -> str:
    if len(set(values)) > 1:
        raise OptionError(f"--precision is passed as {' and '.join(values)}; pass one of them.")
    return values[0] if values else "auto"


@click.command(cls=Command, short_help="Convert a model for OpenVINO or ONNX Runtime.")
@click.argument("bundle", type=PATH)
@choice_option("--format", ("openvino", "onnx"), "Format of the exported model.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
    multiple=True,
    callback=_one_precision,
    help="Precision of the exported model; int8 needs --data. 'auto', the default, is bfloat16 for openvino if the "
    "processor supports it, else float32.",
)
@click.option(
    "--int8",
    "precision",
    flag_value="int8",
    multiple=True,
    callback=_one_precision,
    help="The same as --precision int8.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="DATA",
    help="The data that BUNDLE was trained on: its training images calibrate int8, and its validation images measure "
    "the loss of accuracy.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.5,
    show_default=True,
    help="Largest loss of validation precision@3, in percentage points; a model that loses more is not written.",
)
@out_option("The folder of the exported bundle; must not exist yet. Use it as --model like any bundle.")
def export(bundle: Path, out: Path, **values: Any) -> None:
    """Convert a model into a bundle for OpenVINO, ONNX Runtime or other programs.

    BUNDLE can also be an index or a folder of embeddings: its model is exported. The exported graph takes uint8 pixels
    and returns unit-length embeddings: normalisation, pooling and head are part of it. Before it is saved, its
    embeddings are compared with those of BUNDLE, for single images and for batches.

    \b
    Examples:
      lookalike export runs/first/best --out fast
      lookalike export runs/first/best --int8 --data photos --out fast8
    """  # noqa: D301
    from lookalike.api.export import export as run_export

    with closing(make_progress()) as progress:
        run_export(bundle, out=out, progress=progress, **values)
        progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)
