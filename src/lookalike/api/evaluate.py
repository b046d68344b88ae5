"""`evaluate` and `submit`: a model on the query and gallery images of a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import follow_link, require_free
from lookalike._lock import locked
from lookalike.api.post import SCORE_FIELD, require_postable
from lookalike.api.post import post as post_file
from lookalike.api.search import drop_hits
from lookalike.data.dataset import Dataset, Item, Split, sample_evenly
from lookalike.data.folders import skipped_suffix
from lookalike.data.layouts import load_data_as_trained
from lookalike.errors import DataError, OptionError, renamed_argument, require_integer
from lookalike.evaluation.calibration import judge_first_hits, measure_reliability
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings
from lookalike.evaluation.measures import Measure, parse_measures
from lookalike.evaluation.reliability import Reliability
from lookalike.evaluation.submission import GROUP_FIELD, IMAGES_FIELD, Submission, require_fields, submission_format
from lookalike.index.index import Index
from lookalike.models.bundle import find_bundle, read_bundle_info, read_reranker
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder
from lookalike.models.preprocessing import Crop
from lookalike.models.registry import PRETRAINED
from lookalike.progress import Progress, resolve_progress
from lookalike.reranking.reranker import Reranker
from lookalike.runtimes.fit import FIT_IMAGES, FittedEncoder, fit_pretrained
from lookalike.runtimes.load import WeightsOption, load_encoder, pair_weights
from lookalike.runtimes.select import AUTO, require_runtime, with_runtime
from lookalike.types import Embeddings, Hits, Skipped

_DEFAULT_K = (1, 3, 10)
_AT_EACH_K = ("precision@k", "hit@k", "recall@k")


@checked_arguments()
def evaluate(  # noqa: PLR0913 - all but two by name, with defaults that fit
    data: Dataset | Path | str,
    model: AnyEncoder | Path | str,
    *,
    against: AnyEncoder | Path | str | None = None,
    k: int | Sequence[int] = (),
    measures: Sequence[str | Measure] = (),
    weights: WeightsOption = PRETRAINED,
    runtime: str = AUTO,
    precision: str = AUTO,
    rerank: bool = True,
    functions: Sequence[AnyEncoder | Crop] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on query and gallery: precision, hit and recall at each k, `map@r`, `mrr`, and further measures.

    Args:
        data: a data folder whose test split is labelled.
        model: an encoder, a bundle, or the name of a backbone, whose head is fitted on the training split without
            labels.
        against: another such model to compare with on the same queries; see `Evaluation.against`.
        k: number of hits, or several; by default 1, 3 and 10, without those that exceed the size of the gallery.
        measures: further measures, such as `ndcg@10`.
        weights: of the backbones by name, as in `load_encoder`; of both models if there are two.
        runtime: as in `embed`.
        precision: as in `embed`, but auto is float32, for comparable figures.
        rerank: apply the re-ranking that is stored in a bundle, if it has one.
        functions: as in `load_encoder`.
        progress: as in `embed`.

    Returns:
        The evaluation; `.skipped` lists the files that could not be read.

    Raises:
        DataError: no labels in query and gallery.
        OptionError: an unknown measure, or one that needs more hits than the gallery has; or the training of
            `against` used another split of the same class folders.
    """
    require_runtime(runtime, precision)
    data = _load_test_data(data, model, against)
    k = (k,) if isinstance(k, int) else k
    requested = _measures(k, measures)
    for measure in requested:
        if measure.min_gallery > data.max_hits:
            argument = "k" if measure.k in k and measure.pattern in _AT_EACH_K else "measures"
            advice = "choose a smaller `k`" if argument == "k" else "remove it from `measures`"
            raise OptionError(
                f"{measure} needs {measure.min_gallery} hits, but {data.root} has only {data.max_hits} gallery "
                f"images{_besides(data)}; {advice}.",
                argument=argument,
            )
    if not data.test_is_labelled:
        raise DataError(
            f"{data.root} has no labels for query and gallery; add labels.csv (path,label) or use 'lookalike submit'.",
            argument="data",
        )
    weights, weights_against = _split_weights(model, against, weights)
    if isinstance(against, str | Path):
        with renamed_argument("against", "model"):
            load_encoder(against, weights=weights_against, functions=functions)  # its errors come before the work
    progress = resolve_progress(progress)
    reranker = _load_reranker(model, progress) if rerank else None
    options: dict[str, Any] = {"functions": functions, "progress": progress}
    queries, gallery, skipped, _ = _embed_test_split(data, model, weights, runtime, precision, **options)
    _report_leave_one_out(data, progress)
    default_k = [n for n in _DEFAULT_K if n == 1 or n <= min(len(gallery), data.max_hits)]
    selected = requested if k else _measures(default_k, measures)
    labels = data.labels("query"), data.labels("gallery")
    same = data.same_file_ids
    evaluation = evaluate_embeddings(queries, gallery, *labels, selected, same_file_ids=same, reranker=reranker)
    evaluation = replace(
        evaluation,
        skipped=(*skipped, *evaluation.skipped),
        reliability=_measure_reliability(model, queries, gallery, *labels, same),
    )
    if against is None:
        return evaluation
    with renamed_argument("against", "model", "other"):
        queries, gallery, skipped, encoder = _embed_test_split(
            data, against, weights_against, runtime, precision, **options
        )
        reranker = _load_reranker(against, progress) if rerank else None
        other = evaluate_embeddings(queries, gallery, *labels, selected, same_file_ids=same, reranker=reranker)
        return replace(
            evaluation,
            skipped=tuple(dict.fromkeys((*evaluation.skipped, *skipped, *other.skipped))),
            against={name: evaluation.compare(other, name) for name in evaluation.values},
            against_model=f"{against if isinstance(against, str | Path) else encoder.name} ({encoder.state})",
        )


def _measure_reliability(
    model: AnyEncoder | Path | str,
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    same_file_ids: Mapping[str, Collection[str]],
) -> Reliability | None:
    """Compare the probabilities of a bundle's calibration, if it has one, with the labels."""
    bundle = find_bundle(model) if isinstance(model, str | Path) else None
    calibration = None if bundle is None else read_bundle_info(bundle).calibration
    if calibration is None:
        return None
    hits = judge_first_hits(queries, gallery, query_labels, gallery_labels, same_file_ids=same_file_ids)
    return measure_reliability(calibration.probabilities(hits.scores), hits)


def _split_weights(
    model: AnyEncoder | Path | str, against: AnyEncoder | Path | str | None, weights: WeightsOption
) -> tuple[WeightsOption, WeightsOption]:
    """Return the weights of either model; raise `OptionError` for a backbone that neither names."""
    if against is None or not isinstance(weights, Mapping):
        return weights, weights
    names = [
        str(one).split("+") if isinstance(one, str | Path) and find_bundle(one) is None else []
        for one in (model, against)
    ]
    pairs = pair_weights([*names[0], *names[1]], weights)
    first, second = ({name: source for name, source in pairs if name in part} for part in names)
    return first, second


def _measures(k: Sequence[int], further: Sequence[str | Measure]) -> tuple[Measure, ...]:
    k = [require_integer(value, "k") for value in k]
    invalid = next((value for value in k if value < 1), None)
    if invalid is not None:
        raise OptionError(f"`k` must be at least 1, got {invalid}.", argument="k")
    return parse_measures(
        [*(Measure(pattern, value) for pattern in _AT_EACH_K for value in k), "map@r", "mrr", *further]
    )


@checked_arguments()
def submit(  # noqa: PLR0913 - all but two by name, with defaults that fit
    data: Dataset | Path | str,
    model: AnyEncoder | Path | str,
    *,
    top_k: int = 10,
    group: str = "lookalike",
    out: Path | str,
    group_field: str = GROUP_FIELD,
    images_field: str = IMAGES_FIELD,
    post: str | None = None,
    score_field: str = SCORE_FIELD,
    again: bool = False,
    dry_run: bool = False,
    weights: WeightsOption = PRETRAINED,
    runtime: str = AUTO,
    precision: str = AUTO,
    rerank: bool = True,
    functions: Sequence[AnyEncoder | Crop] = (),
    progress: Progress | None = None,
) -> Submission:
    """Write the submission of a model for the queries of a data set, and post it if `post` is a URL.

    It is checked before it is written, and complete on disk before it is posted.

    Args:
        data: a data folder with query and gallery; labels are not used.
        model: as in `evaluate`.
        top_k: gallery images per query.
        group: the group's name in the file.
        out: a `.json` or `.csv` file that does not exist yet.
        group_field: name of the field of the group in JSON.
        images_field: name of the field of the images in JSON.
        post: the URL that a `.json` submission is posted to, as by `post`; `.posted` has the score.
        score_field: as in `post`.
        again: as in `post`.
        dry_run: write the file and post nothing; `.posted.request` is what would be sent.
        weights: of a backbone by name, as in `load_encoder`.
        runtime: as in `embed`.
        precision: as in `evaluate`.
        rerank: as in `evaluate`.
        functions: as in `load_encoder`.
        progress: as in `embed`.

    Raises:
        PostError: as in `post`; the file is complete.
        DataError: a query that cannot be read, a query folder that cannot be listed, or names that are not unique.
        OptionError: `top_k` larger than the gallery, or a file of another format.
        StorageError: `out` exists or cannot be written.
    """
    is_csv = submission_format(Path(out)) == ".csv"
    out = follow_link(out)
    require_runtime(runtime, precision)
    require_free(out, file=True)
    require_fields(group_field, images_field)
    if is_csv and (group_field, images_field) != (GROUP_FIELD, IMAGES_FIELD):
        raise OptionError("a .csv submission has no `group_field` and `images_field`; write .json.", argument="out")
    _require_postable(out, post, score_field, needed_by={"again": again, "dry_run": dry_run})
    data = _load_test_data(data, model)
    query_folder = data.root / "test" / Split.QUERY
    unlisted = next((s for s in data.skipped if s.path.is_relative_to(query_folder)), None)
    if unlisted is not None:
        raise DataError(f"a submission needs every query, but {unlisted}; make it readable.", argument="data")
    top_k = require_integer(top_k, "top_k")
    _require_hits(data, top_k)
    progress = resolve_progress(progress)
    reranker = _load_reranker(model, progress) if rerank else None
    with locked(out):
        queries, gallery, skipped, encoder = _embed_test_split(
            data, model, weights, runtime, precision, functions=functions, progress=progress
        )
        _report_leave_one_out(data, progress)
        readable = {*queries.ids, *gallery.ids}
        _require_hits(data.replace_items(item for item in data.test if item.id in readable), top_k)
        if reranker is None:
            hits = _search_others(queries, gallery, data.same_file_ids, top_k)
        else:
            hits = reranker.search(queries, gallery, top_k, same_file_ids=data.same_file_ids)
        submission = Submission.from_hits(hits, group, (*skipped, *gallery.skipped))
        submission = replace(submission, group_field=group_field, images_field=images_field)
        submission.check([i.id for i in data.query], [i.id for i in data.gallery], top_k)
        submission.write(out)
    if post is None:
        return submission
    progress.info(f"wrote {out}")
    options: dict[str, Any] = {"score_field": score_field, "again": again, "dry_run": dry_run}
    with renamed_argument("post", "url"), renamed_argument("out", "submission"):
        return replace(submission, posted=post_file(out, post, model=encoder, progress=progress, **options))


def _require_postable(out: Path, url: str | None, score_field: str, needed_by: Mapping[str, bool]) -> None:
    """Raise the errors of `post` before the work, and for its options without a URL."""
    if url is not None:
        with renamed_argument("post", "url"), renamed_argument("out", "submission"):
            require_postable(out, url, score_field)
        return
    option = next((name for name, value in needed_by.items() if value), None)
    if option is not None:
        raise OptionError(f"`{option}` needs the URL to post to; pass it as `post`.", argument=option)


def _besides(data: Dataset) -> str:
    return " besides the query itself" if data.max_hits < len(data.gallery) else ""


def _require_hits(data: Dataset, top_k: int) -> None:
    if not 1 <= top_k <= data.max_hits:
        raise OptionError(
            f"`top_k` must be from 1 to {data.max_hits}, the number of gallery images{_besides(data)}, got {top_k}.",
            argument="top_k",
        )


def _search_others(
    queries: Embeddings, gallery: Embeddings, same_file_ids: Mapping[str, Collection[str]], top_k: int
) -> Hits:
    """Search the gallery without the items that have the query's file."""
    same = [set(gallery.ids).intersection(same_file_ids.get(query, ())) for query in queries.ids]
    hits = Index.build(gallery).search(queries, top_k + max(map(len, same)))
    dropped = np.array([[item in excluded for item in ids] for excluded, ids in zip(same, hits.ids, strict=True)])
    return drop_hits(hits, dropped, top_k)


def _load_reranker(model: AnyEncoder | Path | str, progress: Progress) -> Reranker | None:
    """Read the re-ranking of a bundle, if it has one."""
    bundle = find_bundle(model) if isinstance(model, str | Path) else None
    reranker = None if bundle is None else read_reranker(bundle)
    if reranker is not None:
        progress.info(f"re-ranking: {reranker}{' (transductive)' if reranker.transductive else ''}")
    return reranker


def _report_leave_one_out(data: Dataset, progress: Progress) -> None:
    for note in data.leave_one_out_notes:
        progress.info(note)


def _load_test_data(
    data: Dataset | Path | str, model: AnyEncoder | Path | str, against: AnyEncoder | Path | str | None = None
) -> Dataset:
    """Load the data as the models were trained on it; refuse data without query or gallery images."""
    options = _training_options(model)
    with renamed_argument("against", "model"):
        others = _training_options(against)
    source, data = data, load_data_as_trained(data, options or others)
    is_split_here = data.layout.startswith("class folders")
    if options and others and is_split_here and load_data_as_trained(source, others).test != data.test:
        raise OptionError(
            f"`against` was trained on another split of {data.root} than `model`, so it may have been trained on "
            "these test images; compare models that were trained with the same seed.",
            argument="against",
        )
    for split in ("query", "gallery"):
        if not data.split(split):
            advice = f"put them in test/{split}, or list them in a manifest"
            if data.layout.startswith("class folders"):
                advice = "none of its classes has the 3 images that a split into training, query and gallery needs"
            raise DataError(
                f"{data.root} has no {split} images{skipped_suffix(data.skipped)}; {advice}.", argument="data"
            )
    return data


def _training_options(model: AnyEncoder | Path | str | None) -> Mapping[str, Any]:
    """Return the training options of a bundle; empty for other models."""
    bundle = find_bundle(model) if isinstance(model, str | Path) else None
    return {} if bundle is None else read_bundle_info(bundle).options


def _embed_test_split(
    data: Dataset,
    model: AnyEncoder | Path | str,
    weights: WeightsOption,
    runtime: str,
    precision: str,
    *,
    functions: Sequence[AnyEncoder | Crop],
    progress: Progress,
) -> tuple[Embeddings, Embeddings, tuple[Skipped, ...], AnyEncoder]:
    """Return the embeddings of query and gallery, skipped folders and images to fit on, and the encoder."""
    tested = data.test
    skipped = list(data.skipped)
    fitted = None
    if isinstance(model, str | Path) and find_bundle(model) is None:
        fitted = fit_pretrained(
            str(model),
            weights,
            tested,
            data.training or data.gallery,
            count=len(tested) + min(len(data.training), FIT_IMAGES),
            runtime=runtime,
            precision="float32" if precision == AUTO else precision,
            progress=progress,
        )
        encoder = fitted.encoder
        skipped += fitted.skipped
    else:
        encoder = load_encoder(model, functions=functions) if isinstance(model, str | Path) else model
        if precision == AUTO and all(member.precision in (AUTO, "float32") for member in encoder.members):
            precision = "float32"
        sample = sample_evenly(tested, SAMPLE_SIZE)
        encoder = with_runtime(encoder, runtime, precision).prepare(sample, len(tested), progress)
    progress.info(f"model: {encoder.name}, {encoder.state}")
    gallery = _embed_gallery(data.gallery, encoder, fitted, progress)
    same = data.query == data.gallery
    queries = gallery if same else encoder.embed(data.query, progress=progress, task="queries")
    for split, embeddings in (("query", queries), ("gallery", gallery)):
        if not len(embeddings):
            raise DataError(
                f"none of the {len(embeddings.skipped)} {split} images can be read, "
                f"the first is {embeddings.skipped[0]}.",
                argument="data",
            )
    paths = {item.path for item in tested}
    return queries, gallery, tuple(file for file in skipped if file.path not in paths), encoder


def _embed_gallery(
    items: Sequence[Item], encoder: AnyEncoder, fitted: FittedEncoder | None, progress: Progress
) -> Embeddings:
    """Embed the gallery; the images that the head was fitted on are not computed again."""
    computed = {} if fitted is None else fitted.rows
    gallery = encoder.embed([item for item in items if item.id not in computed], progress=progress, task="gallery")
    ids = [item.id for item in items if item.id in computed]
    if fitted is None or not ids:
        return gallery
    rows = [computed[item_id] for item_id in ids]
    vectors = np.concatenate([gallery.vectors, encoder.combine([features[rows] for features in fitted.features])])
    joined = replace(gallery, ids=(*gallery.ids, *ids), vectors=vectors)
    return replace(joined.take(item.id for item in items if item.id in set(joined.ids)), skipped=gallery.skipped)
