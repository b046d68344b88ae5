"""`lookalike check`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from lookalike.cli.command import Command
from lookalike.cli.options import PATH, data_argument, json_option
from lookalike.cli.output import print_json, print_table
from lookalike.cli.terminal import Terminal
from lookalike.cli.wording import counted, display_path, typed_path


@click.command(cls=Command, short_help="Find corrupt, duplicate, leaked and mislabelled images.")
@data_argument
@json_option
@click.option("--out", type=PATH, help="Also write the findings as JSON to this file; must not exist yet.")
@click.option(
    "--clean-manifest",
    type=PATH,
    metavar="FILE",
    help="Write a manifest.csv without the images that must not stay; must not exist yet.",
)
@click.option("--no-near", is_flag=True, help="Look for exact duplicates only.")
def check(data: Path, as_json: bool, out: Path | None, clean_manifest: Path | None, no_near: bool) -> int:
    """Check a data folder before any time is spent on it.

    Finds unreadable files, exact and near duplicates inside and across training, query and gallery, identical images
    with contradictory labels, classes with one image, queries without a relevant gallery image, and classes that
    training lacks. Exits 1 on errors, 0 on warnings.

    \b
    Examples:
      lookalike check photos
      lookalike check photos --clean-manifest photos-clean/manifest.csv
    """  # noqa: D301
    from lookalike.data.check import check as run_check
    from lookalike.data.findings import clean_manifest_at

    manifest = None if clean_manifest is None else clean_manifest_at(clean_manifest)
    with closing(Terminal()) as terminal:
        report = run_check(data, out=out, clean_manifest=manifest, near=not no_near, progress=terminal)
    if out is not None:
        terminal.info(f"findings: {display_path(out)}")
    if manifest is not None:
        kept = len(report.clean_items())
        terminal.info(f"clean manifest: {display_path(manifest)} ({kept} of {report.images} images)")
    if as_json:
        print_json(report.to_dict())
    elif report.findings:
        rows = [[severity, code, str(count), example] for severity, code, count, example in report.table_rows()]
        print_table(["severity", "finding", "count", "example"], rows, right=["count"])
        if len(report.findings) > len(rows):
            terminal.info(f"one example of each kind is shown; --json lists all {len(report.findings)}")
    terminal.info(
        f"{report.readable} of {report.images} images readable, {counted(len(report.errors), 'error')}, "
        f"{counted(len(report.warnings), 'warning')}"
    )
    if report.dropped and clean_manifest is None:
        terminal.info(
            f"next: lookalike check {typed_path(data)} --clean-manifest CLEAN/manifest.csv "
            f"leaves {counted(len(report.dropped), 'image')} out"
        )
    return report.exit_code
