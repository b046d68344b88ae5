"""`lookalike check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lookalike.cli.options import PATH, data_argument, json_option
from lookalike.cli.terminal import Terminal, display_path, print_table


@click.command()
@data_argument
@json_option
@click.option("--out", type=PATH, help="Also write the findings as JSON to this file.")
@click.option(
    "--clean-manifest", type=PATH, metavar="FILE", help="Write a manifest.csv without the images that must not stay."
)
@click.option("--no-near", is_flag=True, help="Look for exact duplicates only.")
def check(data: Path, as_json: bool, out: Path | None, clean_manifest: Path | None, no_near: bool) -> int:
    """Check a data folder before any time is spent on it.

    Finds unreadable files, exact and near duplicates inside and across training, query and gallery, identical images
    with contradictory labels, classes with one image, queries without a relevant gallery image, and classes that
    training lacks. Exits 1 on errors, 0 on warnings.

    \b
    Example:
      lookalike check photos --clean-manifest photos-clean/manifest.csv
    """  # noqa: D301
    from lookalike.data import load_dataset
    from lookalike.data.check import check as run_check
    from lookalike.files import write_json
    from lookalike.progress import counter

    terminal = Terminal()
    dataset = load_dataset(data)
    terminal.say(str(dataset))
    report = run_check(dataset, near=not no_near, progress=counter(terminal, "checking"))
    terminal.close()
    if out is not None:
        write_json(out, report.to_dict())
        terminal.say(f"findings: {display_path(out)}")
    if clean_manifest is not None:
        written = report.write_clean_manifest(clean_manifest)
        terminal.say(f"clean manifest: {display_path(written)} ({len(report.clean_items())} of {report.images} images)")
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    elif report.errors or report.warnings:
        print_table(
            ["severity", "finding", "count", "example"],
            [[str(c) for c in row] for row in report.table_rows()],
            right_from=9,
        )
    terminal.say(
        f"{report.readable} of {report.images} images readable, {len(report.errors)} errors, {len(report.warnings)} warnings"
    )
    return report.exit_code
