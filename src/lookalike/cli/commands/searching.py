"""`lookalike embed`, `index` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from lookalike.cli.command import GOES_ON, Command
from lookalike.cli.options import PATH, json_option, model_weights, out_option, runtime_options, weights_option
from lookalike.cli.output import print_json, print_table
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import counted, display_path, typed_path
from lookalike.types import Skipped


@click.command(cls=Command, interrupted=GOES_ON, short_help="Embed every image in a folder.")
@click.argument("images", type=PATH)
@click.option(
    "--model",
    metavar="BUNDLE|NAME",
    help="A bundle made by 'train' or 'benchmark', or a backbone's name (several joined by +); not needed where OUT "
    "has one from an earlier run.",
)
@weights_option
@runtime_options("auto takes the fastest of the runtime.")
@out_option("The folder of embeddings; one that an earlier run made is brought up to date with IMAGES.")
def embed(images: Path, model: str | None, weights: tuple[str, ...], out: Path, **way: str) -> None:
    """Embed every image in a folder; a run that was killed goes on where it was.

    The result holds the vectors, their ids, the model's fingerprint, and the model itself.

    \b
    Examples:
      lookalike embed photos --model runs/first/best --out photos.emb
      lookalike embed photos --out photos.emb
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.api.embed import embed as run_embed

    with closing(Terminal()) as terminal:
        made = run_embed(images, model, out=out, weights=chosen, **way, progress=terminal)
    done = f"{counted(len(made), 'image')} embedded, {made.dim} dimensions"
    following = f"index {typed_path(out)} --out {typed_path(out.with_suffix('.index'))}"
    _say_made(terminal, out, made.skipped, done, following)


@click.command(cls=Command, interrupted=GOES_ON, short_help="Make a search index of a folder of images.")
@click.argument("images", type=PATH)
@click.option("--model", metavar="BUNDLE|NAME", help="As in 'embed'; not needed for a folder that 'embed' made.")
@weights_option
@runtime_options("auto takes the fastest of the runtime.")
@click.option(
    "--min-recall",
    type=float,
    default=1.0,
    show_default=True,
    help="Index recall@10: the share of the exact 10 nearest to find on average; 1 is exact.",
)
@click.option("--max-memory", metavar="SIZE", help="Memory that the vectors may take, such as 500MB.")
@click.option("--max-ms", type=float, help="Milliseconds that a query may take, the median.")
@out_option("The index's folder; must not exist yet.")
def index(images: Path, model: str | None, weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Make a search index of a folder of images, or of a folder that 'embed' made.

    \b
    Examples:
      lookalike index photos --model efficientnet_lite0 --out photos.index
      lookalike index photos.emb --out photos.index
    """  # noqa: D301
    chosen = model_weights(weights, model)
    from lookalike.api.embed import index as run_index

    with closing(Terminal()) as terminal:
        made = run_index(images, model, out=out, weights=chosen, progress=terminal, **values)
    done = f"{counted(len(made.index), 'image')} indexed"
    _say_made(terminal, out, made.skipped, done, f"search {typed_path(out)} PICTURE")


def _say_made(terminal: Terminal, out: Path, skipped: Sequence[Skipped], done: str, following: str) -> None:
    """Say what was left out, what was done and which command comes next, and print where the result is."""
    list_skipped(terminal, skipped)
    terminal.info(done)
    terminal.info(f"next: lookalike {following}")
    click.echo(display_path(out))


@click.command(cls=Command, short_help="Find the pictures that look most like given ones.")
@click.argument("index", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option(
    "-k",
    "top_k",
    type=int,
    help="How many hits for each picture.  [default: 10, or all there are if fewer]",
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
    from lookalike.api.search import search as run_search

    with closing(Terminal()) as terminal:
        found = run_search(index, images, top_k=top_k, html=html, progress=terminal)
    list_skipped(terminal, found.skipped)
    if html is not None:
        terminal.info(f"page: {display_path(html)}")
    if as_json:
        print_json(found.to_dict())
        return
    for number, hits in enumerate(found.hits):
        if number:
            click.echo()
        rows = [[str(n), f"{hit.score:.4f}", display_path(found.item_paths[hit.id])] for n, hit in enumerate(hits, 1)]
        print_table(
            ["rank", "score", "path"], rows, right=["rank", "score"], title=str(found.query_paths[hits.query_id])
        )
