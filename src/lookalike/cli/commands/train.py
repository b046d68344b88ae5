"""`lookalike train`, `refit` and `export`: the commands that write a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike._files import follow_link
from lookalike.cli.app import RESUMES_WITH_FLAG, Command
from lookalike.cli.console import make_progress, print_path, report_skipped, shell_path
from lookalike.cli.options import (
    PATH,
    choice_option,
    data_argument,
    make_training_options,
    out_option,
    parse_weights,
    resume_option,
    track_option,
    training_options,
    weights_option,
)
from lookalike.errors import OptionError
from lookalike.progress import SILENT, Progress

if TYPE_CHECKING:
    from lookalike.data.dataset import Dataset


@click.command(
    cls=Command, interrupted=RESUMES_WITH_FLAG, trains=True, short_help="Fine-tune a backbone and save it as a bundle."
)
@data_argument
@click.option(
    "--backbone",
    default="efficientnet_lite0",
    show_default=True,
    metavar="NAME",
    help="The name of a backbone, or several joined by +; 'auto' picks some by the weights at hand and the time; "
    "onnx:FILE and hf:FOLDER with --frozen.",
)
@weights_option
@choice_option(
    "--combination", ("aligned", "average", "concat"), "How several backbones are combined into an ensemble."
)
@click.option("--frozen", is_flag=True, help="Train only the head, on cached features of the frozen backbone.")
@training_options
@track_option
@resume_option
@out_option("The folder of the bundle; must not exist yet.")
def train(
    data: Path, backbone: str, weights: tuple[str, ...], combination: str, resume: bool, out: Path, **values: Any
) -> None:
    """Fine-tune a backbone on the training split of DATA and save it as a bundle.

    A validation split is cut from training. Stages: (1) closed-form head; (2) head and classifier, backbone frozen;
    (3) full fine-tuning, with a checkpoint per epoch; (4) closed-form head refitted on the fine-tuned features.
    Validation decides which weights are saved; they can be an interpolation of pretrained and fine-tuned weights.

    \b
    Examples:
      lookalike train photos --out model
      lookalike train photos --backbone resnet50 --weights resnet50.safetensors \\
                             --max-minutes 10 --out model
      lookalike train photos --backbone auto --max-minutes 20 --out model
      lookalike train photos --resume --out model          after an interruption
    """  # noqa: D301
    weights_by_name = parse_weights(weights, tuple(backbone.split("+")))
    options = make_training_options(values)
    from lookalike.data.layouts import load_data_as_trained
    from lookalike.training.run_folder import prepare_run_folder

    prepare_run_folder(follow_link(out), resume=resume, replace=False)  # before torch is imported, which takes seconds
    dataset = load_data_as_trained(data, options.to_dict())
    from lookalike.training.train import train as run_train

    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun or accelerate started
    with closing(make_progress()) as terminal:
        progress = terminal if is_main else SILENT
        progress.info(str(dataset))
        run_train(
            dataset,
            backbone,
            weights=weights_by_name,
            out=out,
            options=options,
            combination=combination,
            resume=resume,
            track=values["track"],
            progress=progress,
        )
        if not is_main:
            return
        _report_training(progress, out, dataset)
        if dataset.test_is_labelled:
            progress.info(f"next: lookalike evaluate {shell_path(data)} --model {shell_path(out)}")
        else:
            progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)


@click.command(
    cls=Command,
    interrupted=RESUMES_WITH_FLAG,
    trains=True,
    short_help="Train a model again on training and validation images.",
)
@data_argument
@click.option("--model", required=True, type=PATH, metavar="BUNDLE", help="A bundle that 'train' or 'benchmark' wrote.")
@weights_option
@track_option
@resume_option
@out_option("The folder of the new bundle; must not exist yet.")
def refit(data: Path, model: Path, weights: tuple[str, ...], resume: bool, track: tuple[str, ...], out: Path) -> None:
    """Train a model again on all labelled training images of DATA, the validation images included.

    The number of epochs and the share of fine-tuned weights are taken from the first training.
    Nothing is measured: the validation accuracy is that of the first training. Pass the same --weights as in it.

    \b
    Example:
      lookalike refit photos --model runs/first/best --out final
    """  # noqa: D301
    from lookalike.data.layouts import load_data_as_trained
    from lookalike.models.bundle import read_bundle_info
    from lookalike.training.run_folder import prepare_run_folder

    info = read_bundle_info(model)
    prepare_run_folder(follow_link(out), resume=resume, replace=False)  # before torch is imported, which takes seconds
    weights_by_name = parse_weights(weights, tuple(member.backbone.name for member in info.members))
    dataset = load_data_as_trained(data, info.options)
    from lookalike.training.refit import refit as run_refit

    with closing(make_progress()) as progress:
        run_refit(dataset, model, out=out, weights=weights_by_name, resume=resume, track=track, progress=progress)
        _report_training(progress, out, dataset)
        progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)


def _report_training(progress: Progress, bundle: Path, data: Dataset) -> None:
    """Report the skipped files and the validation measures of a finished bundle."""
    from lookalike.models.bundle import read_bundle_info

    info = read_bundle_info(bundle)
    reports = [report for report in info.training if report is not None]
    files = dict.fromkeys(file for report in reports for file in report.skipped)
    report_skipped(progress, [*map(str, data.skipped), *files])
    for report in reports:
        if report.measures is not None:
            origin = " of the first training" if info.refit_of is not None else ""
            progress.info(f"{report.backbone}: validation {report.options['stop_on']}{origin}: {report.measures}")


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
        exported = run_export(bundle, out=out, progress=progress, **values)
        report_skipped(progress, exported.skipped)
        progress.info(f"next: lookalike index IMAGES --model {shell_path(out)} --out IMAGES.index")
    print_path(out)
