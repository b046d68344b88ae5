"""The file that a retrieval competition asks for: the names of the k best gallery images of every query image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lookalike._files import write_csv, write_json
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.posting import Posted
from lookalike.types import Hits, Skipped

FORMATS = (".json", ".csv")
GROUP_FIELD, IMAGES_FIELD = "groupname", "images"


@dataclass(frozen=True)
class Submission:
    """The names of the k best gallery images of every query image, best first.

    Attributes:
        group: the group's name.
        images: k distinct gallery names by query name; names are file names without folders.
        skipped: files that could not be read.
        group_field: name of the field of the group in JSON.
        images_field: name of the field of the images in JSON.
        posted: what `submit` posted, if anything.

    Raises:
        OptionError: an empty group name, or the same or an empty name for both fields.
        DataError: no query, lists of different lengths, or a name twice in one list.
    """

    group: str
    images: Mapping[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...] = ()
    group_field: str = GROUP_FIELD
    images_field: str = IMAGES_FIELD
    posted: Posted | None = None

    def __post_init__(self) -> None:
        if not self.group.strip():
            raise OptionError("`group` must not be empty; pass the name of your group.", argument="group")
        require_fields(self.group_field, self.images_field)
        if not self.images:
            raise DataError(
                "a submission needs at least one query; check that the query folder contains images.", argument="images"
            )
        for query, names in self.images.items():
            if len(names) != self.top_k:
                raise DataError(
                    f"a submission needs the same number of gallery images for every query, "
                    f"got {self.top_k} and {len(names)} (for {query!r}).",
                    argument="images",
                )
            if len(set(names)) < len(names):
                raise DataError(
                    f"the submission has duplicate gallery images for the query {query!r}.", argument="images"
                )

    def __repr__(self) -> str:
        return f"<Submission: group {self.group!r}, {len(self.images)} queries, {self.top_k} gallery images each>"

    @property
    def top_k(self) -> int:
        """Number of gallery images per query."""
        return len(next(iter(self.images.values())))

    @classmethod
    def from_hits(cls, hits: Hits, group: str, skipped: tuple[Skipped, ...] = ()) -> Submission:
        """Make a submission of hits; an item's name is the last part of its id, which must be unique in its split."""
        queries = file_names(hits.query_ids, "query")
        gallery = file_names(sorted({hit.id for query in hits for hit in query}), "gallery")
        images = {queries[query.query_id]: tuple(gallery[hit.id] for hit in query) for query in hits}
        return cls(group, images, skipped)

    @classmethod
    def from_json(cls, text: bytes) -> Submission:
        """Read JSON as `to_dict` writes it, with any names of the fields; further fields are allowed.

        Raises:
            ValueError: not JSON.
            DataError: another object.
        """
        value = json.loads(text)
        fields = value.items() if isinstance(value, dict) else ()
        groups = [(name, part) for name, part in fields if isinstance(part, str)]
        images = [(name, part) for name, part in fields if isinstance(part, dict)]
        if not groups or len(images) != 1 or not all(map(_is_list_of_names, images[0][1].values())):
            raise DataError(
                "the file is not a submission: expected a JSON object with the group's name and one object that lists "
                "the gallery images of every query.",
                argument="submission",
            )
        lists = {query: tuple(names) for query, names in images[0][1].items()}
        return cls(groups[0][1], lists, group_field=groups[0][0], images_field=images[0][0])

    def check(self, query_ids: Iterable[str], gallery_ids: Iterable[str], top_k: int) -> None:
        """Check that every query has exactly `top_k` images of the gallery; ids are those of all images.

        Raises:
            OptionError: `top_k` is below 1 or larger than the gallery.
            DataError: naming the first offender.
        """
        queries = set(file_names(query_ids, "query").values())
        gallery = set(file_names(gallery_ids, "gallery").values())
        if not 1 <= top_k <= len(gallery):
            raise OptionError(
                f"`top_k` must be between 1 and the {len(gallery)} gallery images, got {top_k}.", argument="top_k"
            )
        missing = sorted(queries - self.images.keys())
        if missing:
            causes = {file.path.name: file.cause for file in self.skipped}
            first = next((name for name in missing if name in causes), missing[0])
            cause = f", which could not be read ({causes[first]}); repair the file" if first in causes else ""
            raise DataError(
                f"{len(missing)} of {len(queries)} queries are missing from the submission, such as {first!r}{cause}.",
                argument="data",
            )
        if self.top_k != top_k:
            raise DataError(
                f"the submission has {self.top_k} gallery images per query instead of {top_k}.", argument="top_k"
            )
        named = {name for names in self.images.values() for name in names}
        for kind, unknown in (("queries", self.images.keys() - queries), ("gallery images", named - gallery)):
            if unknown:
                raise DataError(
                    f"the submission has {len(unknown)} unknown {kind}, such as {min(unknown)!r}.", argument="data"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return `{"groupname": ..., "images": {query: [gallery, ...]}}` for JSON."""
        images = {query: list(names) for query, names in self.images.items()}
        return {self.group_field: self.group, self.images_field: images}

    def write(self, path: Path | str) -> None:
        """Write the submission: `.json` as `to_dict`, `.csv` as query, rank1 ... rankk without the group name."""
        path = Path(path)
        if submission_format(path) == ".json":
            write_json(path, self.to_dict())
        else:
            header = ["query", *(f"rank{rank}" for rank in range(1, self.top_k + 1))]
            write_csv(path, header, [[query, *names] for query, names in self.images.items()])


def require_fields(group_field: str, images_field: str) -> None:
    """Raise `OptionError` unless the two are different names."""
    for argument, name in (("group_field", group_field), ("images_field", images_field)):
        if not isinstance(name, str) or not name:
            raise OptionError(f"`{argument}` must be the name of a field, got {name!r}.", argument=argument)
    if group_field == images_field:
        raise OptionError(
            f"`group_field` and `images_field` must differ, both are {group_field!r}.", argument="images_field"
        )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def submission_format(path: Path) -> str:
    """Return the format of a submission, `.json` or `.csv`; raise `OptionError` for another."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise OptionError(f"`out` must be a {' or '.join(FORMATS)} file, got {str(path)!r}.", argument="out")
    return suffix


def file_names(ids: Iterable[str], split: str) -> dict[str, str]:
    """Return the file name of each item id; raise `DataError` if two items have the same."""
    ids_by_name: dict[str, str] = {}
    for item in ids:
        other = ids_by_name.setdefault(PurePosixPath(item).name, item)
        if other != item:
            raise DataError(
                f"the {split} items {other!r} and {item!r} have the same file name, so a submission cannot distinguish "
                "them; rename one.",
                argument="data",
            )
    return {item: name for name, item in ids_by_name.items()}
