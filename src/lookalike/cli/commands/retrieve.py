"""`lookalike embed`, `index`, `search`, `evaluate`, `submit` and `post`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli.app import POSTS_ONCE, RESUMES, Command
from lookalike.cli.console import (
    display_path,
    make_progress,
    print_json,
    print_path,
    print_table,
    print_title,
    report_skipped,
    shell_path,
)
from lookalike.cli.options import (
    PATH,
    allow_removals_option,
    data_argument,
    json_option,
    model_option,
    out_option,
    post_options,
    precision_option,
    rerank_option,
    runtime_option,
    weights_for_model,
    weights_option,
)
from lookalike.progress import count_noun

if TYPE_CHECKING:
    from lookalike.evaluation.posting import Posted


@click.command(cls=Command, interrupted=RESUMES, short_help="Embed every image in a folder.")
@click.argument("images", type=PATH)
@click.option(
    "--model",
    metavar="BUNDLE|NAME",
    help="A bundle that 'train' or 'benchmark' wrote, or the name of a backbone (several joined by +). Not needed if "
    "OUT has a model from an earlier run.",
)
@weights_option
@runtime_option
@precision_option("the fastest one of the runtime")
@allow_removals_option
@out_option("The folder of embeddings; an existing one is updated to match IMAGES.")
def embed(images: Path, model: str | None, weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Embed every image in a folder. An interrupted run resumes where it stopped.

    If the folder has a manifest, the images are those that it lists.

    The result holds the embeddings, their ids, the fingerprint of the model, and the model itself.

    \b
    Examples:
      lookalike embed photos --model runs/first/best --out photos.emb
      lookalike embed photos --out photos.emb
    """  # noqa: D301
    weights_by_name = weights_for_model(weights, model)
    from lookalike.api.embed import embed as run_embed

    with closing(make_progress()) as progress:
        embeddings = run_embed(images, model, out=out, weights=weights_by_name, **values, progress=progress)
    report_skipped(progress, embeddings.skipped)
    progress.info(f"{count_noun(len(embeddings), 'image')} embedded, {embeddings.dim} dimensions")
    index_path = (out if out.name else out.resolve()).with_suffix(".index")
    progress.info(f"next: lookalike index {shell_path(out)} --out {shell_path(index_path)}")
    print_path(out)


@click.command(cls=Command, interrupted=RESUMES, short_help="Build a search index of a folder of images.")
@click.argument("images", type=PATH)
@click.option("--model", metavar="BUNDLE|NAME", help="As for 'embed'; not needed if IMAGES is a folder of embeddings.")
@weights_option
@runtime_option
@precision_option("the fastest one of the runtime")
@click.option(
    "--min-recall",
    type=float,
    default=1.0,
    show_default=True,
    help="Lowest index recall@10: the mean share of the exact 10 nearest items that are found. 1 is exact search.",
)
@click.option("--max-memory", metavar="SIZE", help="Memory limit for the embeddings, such as 500MB.")
@click.option("--max-ms", type=float, help="Limit for the median time per query, in milliseconds.")
@allow_removals_option
@click.option("--replace", is_flag=True, help="Replace an older index, when the new one is complete.")
@out_option("The folder of the index; must not exist yet without --replace.")
def index(images: Path, model: str | None, weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Build a search index of a folder of images, or of a folder of embeddings.

    Of a data set, or a folder with a manifest, only the gallery is indexed.
    An interrupted run resumes where it stopped.

    \b
    Examples:
      lookalike index photos --model efficientnet_lite0 --out photos.index
      lookalike index photos.emb --out photos.index
    """  # noqa: D301
    weights_by_name = weights_for_model(weights, model)
    from lookalike.api.index import index as run_index

    with closing(make_progress()) as progress:
        result = run_index(images, model, out=out, weights=weights_by_name, progress=progress, **values)
    report_skipped(progress, result.skipped)
    progress.info(f"{count_noun(len(result.index), 'image')} indexed")
    progress.info(f"next: lookalike search {shell_path(out)} IMAGE")
    print_path(out)


@click.command(cls=Command, short_help="Find the images that are most similar to given ones.")
@click.argument("index", type=PATH)
@click.argument("images", type=PATH, nargs=-1)
@click.option("-k", "top_k", type=int, help="Number of hits per query.  [default: 10, or all if there are fewer]")
@click.option(
    "--where",
    metavar="EXPR",
    help="Only items that fit a filter on id, label and metadata, such as \"label == 'hat' and year >= 2020\".",
)
@click.option(
    "--min-probability",
    type=float,
    default=0.0,
    show_default=True,
    metavar="P",
    help="Drop hits whose probability of a match is below P; needs a model with a calibration.",
)
@click.option(
    "--crop",
    metavar="X,Y,WIDTH,HEIGHT",
    help="Search for a part of each image: its left top corner and size in pixels of the upright image, or in %.",
)
@click.option("--mean", is_flag=True, help="Search for the mean of all images, as one query.")
@click.option("--id", multiple=True, metavar="ID", help="Search for an item of INDEX. Can be repeated.")
@click.option(
    "--vector",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Search for an embedding: an .npy file or a JSON list of numbers. Can be repeated.",
)
@click.option(
    "--positive",
    multiple=True,
    metavar="IMAGE|ID",
    help="A further example of what each query looks for. Can be repeated.",
)
@click.option(
    "--negative",
    multiple=True,
    metavar="IMAGE|ID",
    help="An example of what no query looks for. Can be repeated.",
)
@click.option("--root", type=PATH, metavar="DIR", help="The folder of the images in INDEX, if they were moved.")
@click.option("--html", type=PATH, metavar="FILE", help="Also write a page with the images; replaces an .html file.")
@click.option("--verify", is_flag=True, help="Also look for changes in more than 32 MB of vectors, at about 1 GB/s.")
@json_option
def search(index: Path, images: tuple[Path, ...], html: Path | None, as_json: bool, **values: Any) -> None:
    """Find the images in INDEX that are most similar to each of IMAGES.

    Scores are cosine similarities, at most 1; higher is more similar. A model that was trained or selected on enough
    labelled images also gives each hit the probability that it matches. An image that is in INDEX is not among its
    own hits, nor is an example.

    \b
    Examples:
      lookalike search photos.index query.jpg
      lookalike search photos.index *.jpg -k 20 --html hits.html
      lookalike search photos.index query.jpg --min-probability 0.8
      lookalike search photos.index query.jpg --where "label == 'hat'"
      lookalike search photos.index --id hats/3.jpg --negative hats/7.jpg
    """  # noqa: D301
    from lookalike.api.queries import make_queries, read_vector
    from lookalike.api.search import search as run_search

    queries = make_queries(
        images,
        ids=values.pop("id"),
        vectors=[read_vector(file) for file in values.pop("vector")],
        **{name: values.pop(name) for name in ("crop", "mean", "positive", "negative")},
    )
    with closing(make_progress()) as progress:
        result = run_search(index, queries, html=html, progress=progress, **values)
    report_skipped(progress, result.skipped)
    if html is not None:
        progress.info(f"page: {display_path(html)}")
    if as_json:
        print_json(result.to_dict())
        return
    for number, hits in enumerate(result.hits):
        if number:
            click.echo()
        title = str(result.query_paths[hits.query_id])
        if not hits:
            print_title(title)
            click.echo("no match")
            continue
        header = ["rank", "score", "path"]
        rows = [[str(n), f"{hit.score:.4f}", display_path(result.item_paths[hit.id])] for n, hit in enumerate(hits, 1)]
        if result.hits.probabilities is not None:
            header.insert(1, "probability")
            for row, hit in zip(rows, hits, strict=True):
                row.insert(1, f"{hit.probability:.2f}")
        print_table(header, rows, right=["rank", "probability", "score"], title=title)


@click.command(cls=Command, short_help="Measure a model on the query and gallery images of DATA.")
@data_argument
@model_option
@weights_option
@runtime_option
@precision_option("float32")
@rerank_option
@click.option(
    "-k",
    type=int,
    multiple=True,
    help="Report precision@k, hit@k and recall@k for this k. Can be repeated.  [default: 1, 3 and 10, as far as the "
    "gallery allows]",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    help="Another measure to report, such as ndcg@10 or points@1,5,10. Can be repeated.",
)
@click.option(
    "--against",
    metavar="BUNDLE|NAME",
    help="Compare with this model: adds the difference of each measure on the same queries, with its 95 % interval.",
)
@json_option
def evaluate(
    data: Path, model: str, against: str | None, weights: tuple[str, ...], as_json: bool, **values: Any
) -> None:
    """Measure a model on the query and gallery images of DATA, with 95 % intervals.

    precision@k is the share of relevant images among the first k hits; tables call it top-k accuracy. hit@k is whether
    any of the first k hits is relevant; papers on CUB and SOP print it as Recall@k. recall@k is the share of all
    relevant images that are among the first k hits.

    \b
    Examples:
      lookalike evaluate photos --model runs/first/best -k 1 -k 3 --json
      lookalike evaluate photos --model runs/first/best --against efficientnet_lite0
    """  # noqa: D301
    weights_by_name = weights_for_model(weights, model, against)
    from lookalike.api.evaluate import evaluate as run_evaluate

    with closing(make_progress()) as progress:
        evaluation = run_evaluate(data, model, against=against, weights=weights_by_name, progress=progress, **values)
    report_skipped(progress, evaluation.skipped)
    if evaluation.note():
        progress.info(evaluation.note())
    if as_json:
        print_json(evaluation.to_dict())
    else:
        click.echo(str(evaluation))


@click.command(cls=Command, short_help="Write the nearest gallery images of every query to a file.")
@data_argument
@model_option
@weights_option
@runtime_option
@precision_option("float32")
@rerank_option
@click.option("-k", "top_k", type=int, default=10, show_default=True, help="Number of gallery images per query.")
@click.option("--group", default="lookalike", show_default=True, help="The group's name in the file.")
@out_option("The file to write, .json or .csv; must not exist yet.")
@click.option(
    "--group-field", default="groupname", show_default=True, metavar="NAME", help="Field of the group in JSON."
)
@click.option(
    "--images-field", default="images", show_default=True, metavar="NAME", help="Field of the images in JSON."
)
@click.option("--post", metavar="URL", help="Also post the .json file to this URL and print the score, as 'post' does.")
@post_options
def submit(data: Path, model: str, weights: tuple[str, ...], out: Path, **values: Any) -> None:
    """Write a validated submission: for every query of DATA, the names of its k nearest gallery images.

    With --post it is also sent to a server. Nothing is sent otherwise.

    \b
    Examples:
      lookalike submit photos --model runs/first/best -k 10 --out submission.json
      lookalike submit photos --model runs/first/best --out submission.json --post https://host/submit
    """  # noqa: D301
    weights_by_name = weights_for_model(weights, model)
    from lookalike.api.evaluate import submit as run_submit

    with closing(make_progress()) as progress:
        submission = run_submit(data, model, out=out, weights=weights_by_name, progress=progress, **values)
    report_skipped(progress, submission.skipped)
    progress.info(f"{len(submission.images)} queries, {count_noun(values['top_k'], 'gallery image')} each")
    print_path(out)
    if submission.posted is not None:
        _print_posted(submission.posted)


@click.command(cls=Command, interrupted=POSTS_ONCE, short_help="Post a submission file and print its score.")
@click.argument("submission", type=PATH)
@click.argument("url")
@click.option("--model", type=PATH, metavar="BUNDLE", help="The bundle that made the submission, for the record.")
@post_options
def post(submission: Path, url: str, model: Path | None, **values: Any) -> None:
    """Post a submission file that 'submit' wrote to URL, unchanged, and print the score in the answer.

    Every request is recorded in submissions.csv next to the file. It is sent a second time only if it certainly did not
    count: no connection was established, or the server named a time to try again. After a timeout it is not.

    \b
    Examples:
      lookalike post submission.json https://host/submit --dry-run
      lookalike post submission.json https://host/submit --score-field score
    """  # noqa: D301
    from lookalike.api.post import post as run_post

    with closing(make_progress()) as progress:
        posted = run_post(submission, url, model=model, progress=progress, **values)
    _print_posted(posted)


def _print_posted(posted: Posted) -> None:
    """Print the score, or the request that a dry run did not send."""
    from lookalike.evaluation.posting import score_text

    click.echo(posted.request if posted.score is None else score_text(posted.score))
