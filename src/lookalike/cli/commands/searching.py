"""`lookalike embed`, `index` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lookalike.cli.command import GOES_ON, Command
from lookalike.cli.options import PATH, json_option, model_option, model_weights, out_option, weights_option
from lookalike.cli.output import print_json, print_table
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import counted, display_path, typed_path
from lookalike.errors import OptionError

if TYPE_CHECKING:
    from lookalike.retrieval import LoadedIndex

_DEFAULT_K = 10
_PAGES = (".html", ".htm")


@click.command(cls=Command, interrupted=GOES_ON, short_help="Embed every image in a folder.")
@click.argument("images", type=PATH)
@model_option
@weights_option
@out_option("The folder of embeddings; one that an earlier run made is brought up to date.")
def embed(images: Path, model: str, weights: tuple[str, ...], out: Path) -> None:
    """Embed every image in a folder; a run that was killed goes on where it was.

    The result holds the vectors, their ids, the model's fingerprint, and the model itself.

    \b
    Example:
      lookalike embed photos --model runs/first/best --out photos.emb
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.retrieval import embed as run_embed

    terminal = Terminal()
    try:
        embeddings = run_embed(images, model, out=out, weights=chosen, progress=terminal)
    finally:
        terminal.close()
    list_skipped(terminal, embeddings.skipped)
    terminal.say(f"{counted(len(embeddings), 'image')} embedded, {embeddings.dim} dimensions")
    terminal.say(f"next: lookalike index {typed_path(out)} --out {typed_path(out.with_suffix('.index'))}")
    click.echo(display_path(out))


@click.command(cls=Command, interrupted=GOES_ON, short_help="Make a search index of a folder of images.")
@click.argument("images", type=PATH)
@click.option("--model", metavar="BUNDLE|NAME", help="As in 'embed'; not needed for a folder that 'embed' made.")
@weights_option
@click.option(
    "--min-recall",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of the exact hits to find at least; the index is exact and finds all.",
)
@out_option("The index's folder; must not exist yet.")
def index(images: Path, model: str | None, weights: tuple[str, ...], min_recall: float, out: Path) -> None:
    """Make a search index of a folder of images, or of a folder that 'embed' made.

    \b
    Examples:
      lookalike index photos --model efficientnet_lite0 --out photos.index
      lookalike index photos.emb --out photos.index
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.retrieval import index as run_index

    terminal = Terminal()
    try:
        made = run_index(images, model, out=out, weights=chosen, min_recall=min_recall, progress=terminal)
    finally:
        terminal.close()
    list_skipped(terminal, made.skipped)
    terminal.say(f"{counted(len(made.index), 'image')} indexed")
    terminal.say(f"next: lookalike search {typed_path(out)} PICTURE")
    click.echo(display_path(out))


@click.command(cls=Command, short_help="Find the pictures that look most like given ones.")
@click.argument("index", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option(
    "-k",
    "top_k",
    type=int,
    help=f"How many hits for each picture.  [default: {_DEFAULT_K}, or all there are if fewer]",
)
@click.option(
    "--html", type=PATH, metavar="FILE", help="Also write a page with the pictures; replaces an older .html file."
)
@json_option
def search(index: Path, images: tuple[Path, ...], top_k: int | None, html: Path | None, as_json: bool) -> None:
    """Find the pictures in INDEX that look most like each of IMAGES.

    Scores are cosine similarities: 1 is the same direction, higher is more alike. A picture that is in INDEX is not
    among its own hits.

    \b
    Examples:
      lookalike search photos.index picture.jpg
      lookalike search photos.index *.jpg -k 20 --html found.html
    """  # noqa: D301
    if html is not None and html.suffix.lower() not in _PAGES:
        raise OptionError(f"--html {html} must be named .html; write for example --html found.html.")
    from lookalike.retrieval import load_index
    from lookalike.retrieval import search as run_search
    from lookalike.retrieval.page import write_search_page

    terminal = Terminal()
    loaded = load_index(index)
    k = _default_k(loaded, images) if top_k is None else top_k
    try:
        found = run_search(loaded, images, top_k=k, progress=terminal)
    finally:
        terminal.close()
    list_skipped(terminal, found.skipped)
    if html is not None:
        write_search_page(html, found.hits, found.query_paths, found.item_paths)
        terminal.say(f"page: {display_path(html)}")
    if as_json:
        print_json(found.to_dict())
        return
    for number, (query, hits) in enumerate(found.hits.rows()):
        if number:
            click.echo()
        rows = [[str(n), f"{s:.4f}", display_path(found.item_paths[item])] for n, (item, s) in enumerate(hits, 1)]
        print_table(["rank", "score", "path"], rows, right=["rank", "score"], title=str(found.query_paths[query]))


def _default_k(loaded: LoadedIndex, images: Sequence[Path]) -> int:
    """Return ten, or as many hits as every picture can have."""
    from lookalike.retrieval.query import query_id

    index = loaded.index
    inside = any(query_id(image, index) in index for image in images)
    return max(1, min(_DEFAULT_K, len(index) - inside))
