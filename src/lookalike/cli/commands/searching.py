"""`lookalike embed`, `index` and `search`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lookalike.cli.options import PATH, json_option, model_option, out_option, parse_weights, weights_option
from lookalike.cli.terminal import Terminal, display_path, list_skipped, print_table


@click.command()
@click.argument("images", type=PATH)
@model_option
@weights_option
@out_option
def embed(images: Path, model: str, weights: tuple[str, ...], out: Path) -> None:
    """Embed every image in a folder; a run that was killed goes on where it was.

    The result holds the vectors, their ids, the model's fingerprint, and the model itself.

    \b
    Example:
      lookalike embed photos --model runs/first/best --out photos.emb
    """  # noqa: D301
    from lookalike.retrieval import embed as run_embed

    terminal = Terminal()
    try:
        embeddings = run_embed(
            images, model, out=out, weights=parse_weights(weights, tuple(model.split("+"))), progress=terminal
        )
    finally:
        terminal.close()
    list_skipped(terminal, embeddings.skipped)
    terminal.say(f"{len(embeddings)} images, {embeddings.dim} dimensions")
    click.echo(display_path(out))


@click.command()
@click.argument("images", type=PATH)
@click.option("--model", metavar="BUNDLE|NAME", help="As in 'embed'; not needed for a folder that 'embed' made.")
@weights_option
@click.option(
    "--min-recall",
    type=float,
    default=1.0,
    show_default=True,
    help="Index recall to reach; the index is exact, so any is.",
)
@out_option
def index(images: Path, model: str | None, weights: tuple[str, ...], min_recall: float, out: Path) -> None:
    """Make a search index of a folder of images, or of a folder that 'embed' made.

    \b
    Example:
      lookalike index photos --model efficientnet_lite0 --out photos.index
    """  # noqa: D301
    from lookalike.retrieval import index as run_index

    terminal = Terminal()
    names = tuple((model or "").split("+"))
    try:
        made = run_index(
            images, model, out=out, weights=parse_weights(weights, names), min_recall=min_recall, progress=terminal
        )
    finally:
        terminal.close()
    list_skipped(terminal, made.skipped)
    terminal.say(f"{len(made.index)} images indexed; next: lookalike search {display_path(out)} PICTURE")
    click.echo(display_path(out))


@click.command()
@click.argument("index", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("-k", "top_k", type=int, default=10, show_default=True, help="How many hits for each picture.")
@click.option("--html", type=PATH, metavar="FILE", help="Also write a page with the pictures.")
@json_option
def search(index: Path, images: tuple[Path, ...], top_k: int, html: Path | None, as_json: bool) -> None:
    """Find the pictures in INDEX that look most like each of IMAGES.

    Scores are cosine similarities: 1 is the same direction, higher is more alike.

    \b
    Examples:
      lookalike search photos.index picture.jpg
      lookalike search photos.index *.jpg -k 20 --html found.html
    """  # noqa: D301
    from lookalike.retrieval import search as run_search
    from lookalike.retrieval.page import write_search_page

    terminal = Terminal()
    try:
        found = run_search(index, images, top_k=top_k, progress=terminal)
    finally:
        terminal.close()
    list_skipped(terminal, found.skipped)
    if html is not None:
        write_search_page(html, found.hits, found.query_paths, found.item_paths)
        terminal.say(f"page: {display_path(html)}")
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    for query, hits in found.hits.rows():
        print_table(
            ["rank", "score", "path"],
            [[str(n), f"{score:.4f}", str(found.item_paths[item])] for n, (item, score) in enumerate(hits, start=1)],
            right_from=9,
            title=str(found.query_paths[query]),
        )
        click.echo()
