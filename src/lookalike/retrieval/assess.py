"""`evaluate` and `submit`: a model on a data folder's query and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lookalike.backbones import Encoder
from lookalike.data import Dataset, Item
from lookalike.errors import DataError, OptionError
from lookalike.evaluation import (
    DEFAULT,
    Evaluation,
    Measure,
    Submission,
    build_submission,
    evaluate_embeddings,
    parse_measures,
    validate_submission,
    write_submission,
)
from lookalike.files import require_free
from lookalike.indexing import Index
from lookalike.progress import SILENT, Progress
from lookalike.retrieval.model import load_as_trained, resolve_model
from lookalike.types import Embeddings, Skipped

Weights = str | Path | Mapping[str, str | Path]


def measures_for(ks: Sequence[int], further: Sequence[str] = ()) -> tuple[str, ...]:
    """Return precision, hit and recall at each k, then map@r and mrr, then further ones; each once."""
    wrong = next((k for k in ks if k < 1), None)
    if wrong is not None:
        raise OptionError(f"k must be at least 1, got {wrong}.")
    names = [f"{kind}@{k}" for kind in ("precision", "hit", "recall") for k in ks]
    return tuple(dict.fromkeys(str(m) for m in parse_measures([*names, "map@r", "mrr", *further])))


def evaluate(
    data: Dataset | Path | str,
    model: Encoder | Path | str,
    *,
    measures: Sequence[str | Measure] = DEFAULT,
    weights: Weights = "pretrained",
    progress: Progress = SILENT,
) -> tuple[Evaluation, tuple[Skipped, ...]]:
    """Measure a model on query and gallery.

    Args:
        data: a data folder whose test part is labelled.
        model: an encoder, a bundle, or a backbone's name; a name's head is fitted on the training part, without labels.
        measures: names such as `precision@3`.
        weights: for a name, as in `train`.
        progress: is told what happens.

    Returns:
        The evaluation, and the files that could not be read.

    Raises:
        DataError: without labels in query and gallery.

    """
    data = data if isinstance(data, Dataset) else load_as_trained(data, model)
    parse_measures(list(measures))
    _require_test(data)
    if not data.test_is_labelled:
        raise DataError(
            f"{data.root} has no labels for query and gallery; add labels.csv (path,label) or use 'lookalike submit'."
        )
    queries, gallery = _embed_test(data, model, weights, progress)
    found = evaluate_embeddings(queries, gallery, _labels(data.query), _labels(data.gallery), list(measures))
    return found, (*queries.skipped, *gallery.skipped)


def submit(
    data: Dataset | Path | str,
    model: Encoder | Path | str,
    *,
    top_k: int = 10,
    groupname: str = "lookalike",
    out: Path | str,
    weights: Weights = "pretrained",
    progress: Progress = SILENT,
) -> Submission:
    """Write the submission of a model for a data folder's queries, checked before it is written.

    Args:
        data: a data folder with query and gallery; labels are not looked at.
        model: as in `evaluate`.
        top_k: gallery names for each query.
        groupname: stands in the file.
        out: a `.json` or `.csv` file that does not exist yet.
        weights: for a name, as in `train`.
        progress: is told what happens.

    Returns:
        The submission.

    Raises:
        DataError: a query that cannot be read, or names that are not unique.
        OptionError: `top_k` larger than the gallery.
        StorageError: `out` exists or cannot be written.

    """
    out = Path(out)
    require_submission_name(out)
    require_free(out)
    data = data if isinstance(data, Dataset) else load_as_trained(data, model)
    _require_test(data)
    queries, gallery = _embed_test(data, model, weights, progress)
    submission = build_submission(Index.build(gallery).search(queries, top_k), groupname)
    validate_submission(
        submission, [i.id for i in data.query], [i.id for i in data.gallery], top_k, skipped=queries.skipped
    )
    write_submission(submission, out)
    return submission


def require_submission_name(out: Path) -> None:
    """Raise `DataError` for a file name that says no known format."""
    if out.suffix not in (".json", ".csv"):
        raise DataError(f"a submission is a .json or .csv file, got {out}; choose such a name.")


def _require_test(data: Dataset) -> None:
    for part in ("query", "gallery"):
        if not data.part(part):
            raise DataError(
                f"{data.root} has no {part} images; they are expected in test/{part}, or in a manifest's split column."
            )


def _labels(items: Sequence[Item]) -> dict[str, str]:
    return {i.id: i.label for i in items if i.label is not None}


def _embed_test(
    data: Dataset, model: Encoder | Path | str, weights: Weights, progress: Progress
) -> tuple[Embeddings, Embeddings]:
    encoder = resolve_model(model, fit_on=data.training or data.gallery, weights=weights, progress=progress)
    queries = encoder.embed(data.query, progress=progress, task="queries")
    gallery = encoder.embed(data.gallery, progress=progress, task="gallery")
    for part, found in (("query", queries), ("gallery", gallery)):
        if not len(found):
            raise DataError(
                f"none of the {len(found.skipped)} {part} images can be read, the first is {found.skipped[0]}."
            )
    return queries, gallery
