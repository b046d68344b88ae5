"""The file that a retrieval competition asks for: for each query image, the names of its k best gallery images."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lookalike._files import write_csv, write_json
from lookalike.errors import DataError, OptionError, StorageError
from lookalike.types import Hits, Skipped

_Offender = TypeVar("_Offender")

Submission = dict[str, Any]
"""`{"groupname": str, "images": {query name: [gallery name, ...]}}`, names without folders."""


def submission_format(path: Path) -> str:
    """Return the ending of a submission's file name, `.json` or `.csv`; another raises `OptionError`."""
    kind = path.suffix.lower()
    if kind not in (".json", ".csv"):
        raise OptionError(f"a submission is a .json or .csv file, got {path.name!r}; choose one of the two endings.")
    return kind


def build_submission(hits: Hits, groupname: str) -> Submission:
    """Turn hits into a submission; the names are the last parts of the item ids.

    Raises:
        OptionError: for an empty group name.
        DataError: when there is no query, or two queries or two gallery items have one name.

    """
    if not groupname.strip():
        raise OptionError("a submission needs a group name, got an empty one; give the name of your group.")
    if not len(hits):
        raise DataError("a submission needs at least one query, got none; check that the query folder holds images.")
    queries = base_names(hits.query_ids, "query")
    gallery = base_names(sorted({str(i) for i in hits.ids.ravel()}), "gallery")
    images = {queries[query.query_id]: [gallery[hit.id] for hit in query] for query in hits}
    return {"groupname": groupname, "images": images}


def base_names(ids: Iterable[str], part: str) -> dict[str, str]:
    """Return the file name of each item id.

    Raises:
        DataError: when two ids of the part have one file name, which a submission cannot tell apart.

    """
    names: dict[str, str] = {}
    owner: dict[str, str] = {}
    for item in ids:
        name = PurePosixPath(item).name
        if name in owner:
            raise DataError(
                f"the {part} items {owner[name]!r} and {item!r} have the same file name {name!r}, which a submission "
                "cannot tell apart; give each image a unique name."
            )
        owner[name] = item
        names[item] = name
    return names


def validate_submission(
    submission: Mapping[str, Any],
    query_names: Iterable[str],
    gallery_names: Iterable[str],
    top_k: int,
    *,
    skipped: Sequence[Skipped] = (),
) -> None:
    """Check that a submission answers every query with exactly k different images of the gallery.

    Args:
        submission: what `build_submission` or `read_submission` returned.
        query_names: names or item ids of all query images.
        gallery_names: names or item ids of all gallery images.
        top_k: how many gallery images each query must have.
        skipped: query files that could not be read, so that the error can say why a query is missing.

    Raises:
        OptionError: when k is below 1 or larger than the gallery.
        DataError: on the first rule that is broken, with the first offender and the number of offenders.

    """
    queries = set(base_names(query_names, "query").values())
    gallery = set(base_names(gallery_names, "gallery").values())
    if not 1 <= top_k <= len(gallery):
        raise OptionError(f"a submission's k must lie between 1 and the {len(gallery)} gallery images, got {top_k}.")
    images = _images(submission)
    _require_all(queries, images, skipped)
    _first(
        (q for q in images if q not in queries),
        lambda q, n: f"the submission has {n} unknown {_queries(n)}, the first is {q!r}; keep the task's queries only.",
    )
    _first(
        (q for q, names in images.items() if len(names) != top_k),
        lambda q, n: (
            f"the submission has {n} {_queries(n)} with other than {top_k} gallery images, the first is {q!r} with "
            f"{len(images[q])}; search again with k = {top_k}."
        ),
    )
    _first(
        ((q, name) for q, names in images.items() for name in names if name not in gallery),
        lambda pair, n: (
            f"the submission names an image that is not in the gallery {_times(n)}, the first is {pair[1]!r} for the "
            f"query {pair[0]!r}; search the task's gallery only."
        ),
    )
    _first(
        ((q, name) for q, names in images.items() for name, times in Counter(names).items() if times > 1),
        lambda pair, n: (
            f"the submission repeats a gallery image in one list {_times(n)}, the first is {pair[1]!r} for the query "
            f"{pair[0]!r}; name each image once."
        ),
    )


def write_submission(submission: Mapping[str, Any], path: Path | str) -> None:
    """Write a submission in one step: `.json` as it is, `.csv` as query, rank1 ... rankk (without the group name).

    Raises:
        OptionError: for another ending.
        DataError: when it is not a submission, or its lists differ in length, which a table cannot hold.
        StorageError: when the file cannot be written.

    """
    path = Path(path)
    images = _images(submission)
    if submission_format(path) == ".json":
        write_json(path, {"groupname": submission["groupname"], "images": images})
        return
    k = len(next(iter(images.values()), []))
    _first(
        (q for q, names in images.items() if len(names) != k),
        lambda q, n: (
            f"a CSV submission needs lists of one length, here {k}, but has {n} {_queries(n)} with another, the first "
            f"is {q!r} with {len(images[q])}; search again with one k for all."
        ),
    )
    write_csv(path, ["query", *_rank_columns(k)], [[query, *names] for query, names in images.items()])


def read_submission(path: Path | str) -> Submission:
    """Read a submission from `.json` or `.csv`; a CSV file has no group name, so that it is empty then.

    Raises:
        OptionError: for another ending.
        StorageError: when the file does not exist or cannot be read.
        DataError: when it is not a submission, or names a query twice.

    """
    path = Path(path)
    read = {".json": _read_json, ".csv": _read_csv}[submission_format(path)]
    try:
        submission = read(path)
    except FileNotFoundError as error:
        raise StorageError(f"the submission {path} does not exist; check the path.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise StorageError(f"the submission {path} cannot be read ({error}); write it again.") from error
    return {"groupname": submission["groupname"], "images": _images(submission)}


def _read_json(path: Path) -> Submission:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # json keeps the last of two equal keys without a word, which would hide a query that stands twice
        _require_once([key for key, _ in pairs], path)
        return dict(pairs)

    submission: Submission = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    _images(submission)
    return submission


def _read_csv(path: Path) -> Submission:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        header, *rows = [row for row in csv.reader(handle) if row] or [[]]
    expected = ["query", *_rank_columns(len(header) - 1)]
    if header != expected:
        got = ", ".join(header) or "(none)"
        raise DataError(f"{path} has the columns {got}, but needs query, rank1, rank2 and so on.")
    _first(
        (row for row in rows if len(row) != len(header)),
        lambda row, n: (
            f"{path} has {n} {_queries(n)} with other than the header's {len(header)} fields, the first is {row[0]!r} "
            f"with {len(row)}; write one image for each rank."
        ),
    )
    _require_once([row[0] for row in rows], path)
    return {"groupname": "", "images": {row[0]: row[1:] for row in rows}}


def _images(submission: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the lists of a submission after a look at its form."""
    images = submission.get("images") if isinstance(submission, Mapping) else None
    if not isinstance(images, Mapping) or not isinstance(submission.get("groupname"), str):
        raise DataError('a submission must be of the form {"groupname": text, "images": {query: [gallery, ...]}}.')
    _first(
        (q for q, names in images.items() if not isinstance(names, list) or not all(isinstance(n, str) for n in names)),
        lambda q, n: f"the submission has {n} {_queries(n)} without a list of names, the first is {q!r}; give one.",
    )
    return dict(images)


def _require_all(queries: set[str], images: Mapping[str, Any], skipped: Sequence[Skipped]) -> None:
    causes = {s.path.name: s.cause for s in skipped}

    def sentence(query: str, count: int) -> str:
        cause = f", which could not be read ({causes[query]})" if query in causes else ""
        repair = "repair the file" if query in causes else "search for all of them"
        return f"the submission lacks {count} of {len(queries)} queries, the first is {query!r}{cause}; {repair}."

    # an unreadable file is the likelier cause, so it is named first
    _first(sorted(queries - images.keys(), key=lambda q: (q not in causes, q)), sentence)


def _require_once(names: Sequence[str], path: Path) -> None:
    _first(
        (name for name, times in Counter(names).items() if times > 1),
        lambda name, n: f"{path} has {n} {_queries(n)} more than once, the first is {name!r}; keep one list for each.",
    )


def _queries(count: int) -> str:
    return "query" if count == 1 else "queries"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _first(offenders: Iterable[_Offender], sentence: Callable[[_Offender, int], str]) -> None:
    """Raise `DataError` about the first offender and the number of them, if there is one."""
    found = list(offenders)
    if found:
        raise DataError(sentence(found[0], len(found)))


def _rank_columns(k: int) -> list[str]:
    return [f"rank{rank}" for rank in range(1, k + 1)]
