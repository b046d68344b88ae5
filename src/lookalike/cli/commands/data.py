"""`lookalike check`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from lookalike.cli.app import Command
from lookalike.cli.console import count_noun, display_path, make_progress, print_json, print_table, shell_path
from lookalike.cli.options import PATH, data_argument, json_option


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
        rows = [[severity, code, str(count), example] for severity, code, count, example in report.table_rows()]
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
