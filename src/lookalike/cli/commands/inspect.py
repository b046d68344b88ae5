"""`lookalike check`, `backbones` and `recipes`: the commands that inspect."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from lookalike.cli.app import Command
from lookalike.cli.console import display_path, make_progress, print_json, print_table, shell_path
from lookalike.cli.options import PATH, data_argument, json_option
from lookalike.progress import count_noun

_BACKBONE_FIELDS = (
    "name", "timm_name", "kind", "family", "pooling", "projected", "parameters", "gmacs", "features", "input_size",
    "trained_size", "mean", "std", "interpolation", "licence", "gated", "weights_source", "size_mb", "available",
)  # fmt: skip


@click.command(cls=Command, short_help="Find corrupt, duplicate, leaked and mislabelled images.")
@data_argument
@json_option
@click.option("--out", type=PATH, help="Also write the findings to this JSON file; must not exist yet.")
@click.option(
    "--clean-manifest",
    type=PATH,
    metavar="FILE",
    help="Write a manifest.csv without the images to remove; must not exist yet.",
)
@click.option("--no-near", is_flag=True, help="Find exact duplicates only.")
def check(data: Path, as_json: bool, out: Path | None, clean_manifest: Path | None, no_near: bool) -> int:
    """Check a data folder before it is used.

    Finds unreadable files, exact and near duplicates within and across training, query and gallery, identical images
    with different labels, classes with one image, queries without a relevant gallery image, and test classes that
    training does not have. Exits with 1 on errors, with 0 on warnings.

    \b
    Examples:
      lookalike check photos
      lookalike check photos --clean-manifest photos-clean/manifest.csv
    """  # noqa: D301
    from lookalike.data.check import check as run_check
    from lookalike.data.check import clean_manifest_path

    manifest = None if clean_manifest is None else clean_manifest_path(clean_manifest)
    with closing(make_progress()) as progress:
        report = run_check(data, out=out, clean_manifest=manifest, near=not no_near, progress=progress)
    if out is not None:
        progress.info(f"findings: {display_path(out)}")
    if manifest is not None:
        progress.info(
            f"clean manifest: {display_path(manifest)} ({len(report.clean_items())} of {report.images} images)"
        )
    if as_json:
        print_json(report.to_dict())
    elif report.findings:
        rows = [[kind.severity, kind.code, str(kind.count), kind.example] for kind in report.kinds]
        print_table(["severity", "finding", "count", "example"], rows, right=["count"])
        if len(report.findings) > len(rows):
            progress.info(f"the table has one example per kind; --json lists all {len(report.findings)} findings")
    progress.info(
        f"{report.readable} of {report.images} images readable, {count_noun(len(report.errors), 'error')}, "
        f"{count_noun(len(report.warnings), 'warning')}"
    )
    if report.dropped and clean_manifest is None:
        progress.info(
            f"next: lookalike check {shell_path(data)} --clean-manifest CLEAN/manifest.csv "
            f"removes {count_noun(len(report.dropped), 'image')}"
        )
    return report.exit_code


@click.command(cls=Command, short_help="List the backbones that have a short name.")
@json_option
def backbones(as_json: bool) -> None:
    """List the backbones that have a short name, with their size, licence and weights.

    Every other timm name is accepted as a backbone too. 'kind' is what a backbone was pretrained on: labels
    (supervised), images alone (self-supervised) or images with captions (image-text). 'available' says whether the
    weights are on this machine; the others are downloaded from the model hub when they are first used.

    \b
    Examples:
      lookalike backbones
      lookalike train photos --backbone resnet50 --out model
    """  # noqa: D301
    from lookalike.models.registry import backbones as list_backbones

    rows = list_backbones()
    if as_json:
        print_json({"backbones": [{field: getattr(row, field) for field in _BACKBONE_FIELDS} for row in rows]})
        return
    header = ["name", "kind", "parameters", "features", "input", "size", "licence", "weights", "available"]
    cells = [
        [
            row.name,
            row.kind,
            f"{row.parameters / 1e6:.1f} M",
            str(row.features),
            f"{row.input_size} px",
            f"{row.size_mb:.0f} MB",
            row.licence,
            row.weights_source,
            "yes" if row.available else "no",
        ]
        for row in rows
    ]
    print_table(header, cells, right=["parameters", "features", "input", "size"], optional=["licence", "input"])


@click.command(cls=Command, short_help="List the training recipes, their fields, and the losses.")
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes of 'train' and 'benchmark': the meaning and values of their fields, and the losses.

    'auto' picks the recipe of the kind of backbone, and trains more gently if the test classes are not in training.
    Change single fields with --set FIELD=VALUE.

    \b
    Examples:
      lookalike recipes
      lookalike train photos --recipe cnn --set pooling=gem --out model
    """  # noqa: D301
    from lookalike.training.config import FIELDS, RECIPE_DESCRIPTIONS, UNSEEN_CLASSES
    from lookalike.training.config import recipes as all_recipes
    from lookalike.training.losses import LOSSES

    values = {name: asdict(recipe) for name, recipe in all_recipes().items()}
    if as_json:
        fields = {name: field.metadata["help"] for name, field in FIELDS.items()}
        losses = {loss.name: loss.description for loss in LOSSES.values()}
        print_json({"recipes": values, "unseen": UNSEEN_CLASSES, "fields": fields, "losses": losses})
        return
    for name, text in RECIPE_DESCRIPTIONS.items():
        click.echo(f"{name}: {text}")
    click.echo("auto: the one of these for the kind of backbone\n")
    for name, field in FIELDS.items():
        texts = {recipe: _value_text(fields[name]) for recipe, fields in values.items()}
        default = max(set(texts.values()), key=list(texts.values()).count)
        others = [f"{recipe} {text}" for recipe, text in texts.items() if text != default]
        choices = ", ".join(field.metadata.get("choices", ()))
        click.echo(f"{name} = {', '.join([default, *others])}")
        click.echo(f"    {field.metadata['help']}{f' ({choices})' if choices else ''}")
    changes = ", ".join(f"{name} = {_value_text(value)}" for name, value in UNSEEN_CLASSES.items())
    click.echo(f"\nauto, if the test classes are not in training: {changes}")
    click.echo("\nlosses")
    for loss in LOSSES.values():
        click.echo(f"  {loss.name}: {loss.description}")


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
