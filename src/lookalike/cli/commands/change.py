"""`lookalike add`, `remove`, `update` and `sync`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.app import RESUMES, Command
from lookalike.cli.console import make_progress, print_json, report_skipped
from lookalike.cli.options import PATH, json_option
from lookalike.errors import OptionError
from lookalike.progress import Progress, count_noun

if TYPE_CHECKING:
    from lookalike.api.change import Changed
    from lookalike.index.store import ItemMetadata

index_argument = click.argument("index", type=PATH)
label_option = click.option("--label", help="The label of the items.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a value of the metadata. Can be repeated."
)


@click.command(cls=Command, short_help="Add images to an index.")
@index_argument
@click.argument("images", type=PATH, nargs=-1, required=True)
@label_option
@set_option
@click.option("--replace", is_flag=True, help="Replace images that are in INDEX already.")
@json_option
def add(index: Path, images: tuple[Path, ...], settings: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Add IMAGES to INDEX, in place. The next search finds them, also in other processes.

    The id of an image is its path, relative to the folder that INDEX was made of where it is below it.

    \b
    Examples:
      lookalike add photos.index new/*.jpg --label hat --set year=2024
    """  # noqa: D301
    from lookalike.api.change import add as run_add

    with closing(make_progress()) as progress:
        changed = run_add(index, images, metadata=_metadata(settings), progress=progress, **values)
    _report(changed, progress, as_json=as_json)


@click.command(cls=Command, short_help="Remove items from an index.")
@index_argument
@click.argument("ids", nargs=-1, required=True)
@json_option
def remove(index: Path, ids: tuple[str, ...], as_json: bool) -> None:
    """Remove the items with these IDS from INDEX, in place: all or none of them.

    \b
    Examples:
      lookalike remove photos.index new/1.jpg new/2.jpg
    """  # noqa: D301
    from lookalike.api.change import remove as run_remove

    with closing(make_progress()) as progress:
        changed = run_remove(index, ids)
    _report(changed, progress, as_json=as_json)


@click.command(cls=Command, short_help="Change label, metadata or image of items of an index.")
@index_argument
@click.argument("ids", nargs=-1, required=True)
@label_option
@click.option("--no-label", is_flag=True, help="Remove the label of the items.")
@set_option
@click.option("--unset", multiple=True, metavar="NAME", help="Remove NAME from the metadata. Can be repeated.")
@click.option("--image", type=PATH, metavar="FILE", help="The new image of the item.")
@json_option
def update(index: Path, ids: tuple[str, ...], as_json: bool, image: Path | None, **values: Any) -> None:
    """Change the items with these IDS in INDEX, in place.

    \b
    Examples:
      lookalike update photos.index new/1.jpg --label cap --set year=2025 --unset sold
      lookalike update photos.index new/1.jpg --image better.jpg
    """  # noqa: D301
    from lookalike.api.change import update as run_update
    from lookalike.index.store import UNCHANGED

    label, no_label = values["label"], values["no_label"]
    if no_label and label is not None:
        raise OptionError("`no_label` and `label` exclude each other; remove one of the two.", argument="no_label")
    metadata = {**_metadata(values["settings"]), **dict.fromkeys(values["unset"])}
    new_label = None if no_label else UNCHANGED if label is None else label
    with closing(make_progress()) as progress:
        changed = run_update(index, ids, label=new_label, metadata=metadata, image=image, progress=progress)
    _report(changed, progress, as_json=as_json)


@click.command(cls=Command, interrupted=RESUMES, short_help="Let an index follow the images in a folder.")
@index_argument
@click.argument("folder", type=PATH, required=False)
@click.option("--allow-removals", is_flag=True, help="Remove items even if most images of the folder are gone.")
@json_option
def sync(index: Path, folder: Path | None, as_json: bool, **values: Any) -> None:
    """Let INDEX hold exactly the images that are in FOLDER now. Only new and changed files are embedded.

    FOLDER is by default the one that INDEX was made of. Items of other folders stay. An interrupted run resumes where
    it stopped.

    \b
    Examples:
      lookalike sync photos.index
      lookalike sync photos.index more
    """  # noqa: D301
    from lookalike.api.change import sync as run_sync

    with closing(make_progress()) as progress:
        changed = run_sync(index, folder, progress=progress, **values)
    _report(changed, progress, as_json=as_json)


def _metadata(settings: Sequence[str]) -> ItemMetadata:
    """Return metadata from NAME=VALUE; a value that is written as a number, true or false is one."""
    from lookalike.index.filters import read_number

    metadata: dict[str, str | int | float | bool | None] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise OptionError(f"--set takes NAME=VALUE, got {text!r}.")
        number = read_number(value)
        metadata[name] = {"true": True, "false": False}.get(value, value if number is None else number)
    return metadata


def _report(changed: Changed, progress: Progress, *, as_json: bool) -> None:
    report_skipped(progress, changed.skipped)
    if as_json:
        print_json(changed.to_dict())
        return
    counts = [(changed.added, "added"), (changed.replaced, "replaced"), (changed.removed, "removed")]
    parts = [f"{count_noun(len(ids), 'item')} {what}" for ids, what in counts if ids]
    if changed.unchanged:
        parts.append(f"{changed.unchanged} unchanged")
    click.echo(", ".join(parts) or "nothing changed")
