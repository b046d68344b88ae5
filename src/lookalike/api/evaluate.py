"""`evaluate` and `submit`: a model on a data folder's query and gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lookalike._files import require_free
from lookalike.api.load_model import Weights, load_as_trained, on_runtime, resolve_model
from lookalike.data.dataset import Dataset, Split
from lookalike.data.layouts import skipped_suffix
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings
from lookalike.evaluation.measures import Measure, parse_measures
from lookalike.evaluation.submission import Submission, submission_format
from lookalike.index.index import Index
from lookalike.models.encoder import Encoder
from lookalike.progress import SILENT, Progress
from lookalike.runtimes.choice import require_runtime
from lookalike.types import Embeddings, Skipped

_USUAL_K = (1, 3, 10)


def evaluate(
    data: Dataset | Path | str,
    model: Encoder | Path | str,
    *,
    k: Sequence[int] = (),
    measures: Sequence[str | Measure] = (),
    weights: Weights = "pretrained",
    runtime: str = "auto",
    precision: str = "auto",
    progress: Progress = SILENT,
) -> tuple[Evaluation, tuple[Skipped, ...]]:
    """Measure a model on query and gallery: precision, hit and recall at each k, `map@r`, `mrr`, and further measures.

    Args:
        data: a data folder whose test part is labelled.
        model: an encoder, a bundle, or a backbone's name; a name's head is fitted on the training part, without labels.
        k: numbers of hits to look at; by default 1, 3 and 10, as far as the gallery is as large.
        measures: further ones, such as `ndcg@10`.
        weights: for a name, as in `train`.
        runtime: as in `embed`.
        precision: as in `embed`, but auto is full precision.
        progress: is told what happens.

    Returns:
        The evaluation, and the files that could not be read.

    Raises:
        DataError: without labels in query and gallery.
        OptionError: for an unknown measure, or one that looks deeper than the gallery is.

    """
    require_runtime(runtime, precision)
    data = data if isinstance(data, Dataset) else load_as_trained(data, model)
    _measures(k, measures)  # a wrong one is told before the work
    _require_test(data)
    if not data.test_is_labelled:
        raise DataError(
            f"{data.root} has no labels for query and gallery; add labels.csv (path,label) or use 'lookalike submit'."
        )
    queries, gallery, skipped = _embed_test(data, model, weights, (runtime, precision), progress)
    chosen = _measures(k or [n for n in _USUAL_K if n == 1 or n <= len(gallery)], measures)
    found = evaluate_embeddings(queries, gallery, data.labels("query"), data.labels("gallery"), chosen)
    return found, (*skipped, *queries.skipped, *gallery.skipped)


def _measures(k: Sequence[int], further: Sequence[str | Measure]) -> tuple[Measure, ...]:
    wrong = next((one for one in k if one < 1), None)
    if wrong is not None:
        raise OptionError(f"k must be at least 1, got {wrong}.")
    names = [f"{kind}@{one}" for kind in ("precision", "hit", "recall") for one in k]
    return parse_measures([*names, "map@r", "mrr", *further])


def submit(  # noqa: PLR0913 - all but two by name, with defaults that fit
    data: Dataset | Path | str,
    model: Encoder | Path | str,
    *,
    top_k: int = 10,
    group: str = "lookalike",
    out: Path | str,
    weights: Weights = "pretrained",
    runtime: str = "auto",
    precision: str = "auto",
    progress: Progress = SILENT,
) -> tuple[Submission, tuple[Skipped, ...]]:
    """Write the submission of a model for a data folder's queries, checked before it is written.

    Args:
        data: a data folder with query and gallery; labels are not looked at.
        model: as in `evaluate`.
        top_k: gallery names for each query.
        group: its name stands in the file.
        out: a `.json` or `.csv` file that does not exist yet.
        weights: for a name, as in `train`.
        runtime: as in `embed`.
        precision: as in `evaluate`.
        progress: is told what happens.

    Returns:
        The submission, and the files that could not be read.

    Raises:
        DataError: a query that cannot be read, a query folder that cannot be listed, or names that are not unique.
        OptionError: `top_k` larger than the gallery, or a file of another kind.
        StorageError: `out` exists or cannot be written.

    """
    out = Path(out)
    submission_format(out)
    require_runtime(runtime, precision)
    require_free(out)
    data = data if isinstance(data, Dataset) else load_as_trained(data, model)
    _require_all_queries(data)
    _require_test(data)
    queries, gallery, skipped = _embed_test(data, model, weights, (runtime, precision), progress)
    skipped = (*skipped, *queries.skipped, *gallery.skipped)
    submission = Submission.from_hits(Index.build(gallery).search(queries, top_k), group, skipped)
    submission.check([i.id for i in data.query], [i.id for i in data.gallery], top_k)
    submission.write(out)
    return submission, submission.skipped


def _require_all_queries(data: Dataset) -> None:
    folder = data.root / "test" / Split.QUERY
    missing = next((s for s in data.skipped if s.path.is_relative_to(folder)), None)
    if missing is not None:
        raise DataError(f"a submission needs every query, but {missing}; change that first.")


def _require_test(data: Dataset) -> None:
    for part in ("query", "gallery"):
        if not data.split(part):
            raise DataError(
                f"{data.root} has no {part} images{skipped_suffix(data.skipped)}; "
                f"put them in test/{part}, or list them in a manifest."
            )


def _embed_test(
    data: Dataset, model: Encoder | Path | str, weights: Weights, way: tuple[str, str], progress: Progress
) -> tuple[Embeddings, Embeddings, tuple[Skipped, ...]]:
    """Embed query and gallery; also return what was skipped besides: folders, and images to learn a head from."""
    skipped = list(data.skipped)
    encoder = resolve_model(
        model, fit_on=data.training or data.gallery, weights=weights, skip=skipped.append, progress=progress
    )
    encoder = on_runtime(encoder, (*data.query, *data.gallery), way, progress, exact=True)
    queries = encoder.embed(data.query, progress=progress, task="queries")
    gallery = encoder.embed(data.gallery, progress=progress, task="gallery")
    for part, found in (("query", queries), ("gallery", gallery)):
        if not len(found):
            raise DataError(
                f"none of the {len(found.skipped)} {part} images can be read, the first is {found.skipped[0]}."
            )
    own = {item.path for item in (*data.query, *data.gallery)}
    return queries, gallery, tuple(one for one in skipped if one.path not in own)
