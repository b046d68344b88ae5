"""What an index asks of a store, the place that keeps its items, and the changes that a store makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lookalike._top_k import Floats
from lookalike.errors import DataError, OptionError
from lookalike.index.filters import Filter, Value
from lookalike.progress import Progress
from lookalike.types import Vectors

ItemMetadata = Mapping[str, Value | None]  # metadata of one item
Ids = npt.NDArray[np.object_]
CHANGED_FILE = "items.sqlite"  # in the folder of an index that was changed


class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED  # default of an argument whose None has a meaning


@dataclass(frozen=True, slots=True)
class FileState:
    """By what a change of an item's file is noticed.

    Attributes:
        size: its bytes.
        mtime_ns: its time of change.
        digest: its `file_digest`; None if it was not read.

    """

    size: int
    mtime_ns: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """An item of an index.

    Attributes:
        id: its id.
        label: its label, or None.
        metadata: text, numbers and booleans by name.
        path: its file, or None.
        file: the state of its file when it was embedded; None if unknown.

    """

    id: str
    label: str | None = None
    metadata: ItemMetadata = field(default_factory=dict)
    path: Path | None = None
    file: FileState | None = None


@dataclass(frozen=True)
class Add:
    """Add items with their vectors `(n, dim)`, in this order; `replace` allows items that exist."""

    items: Sequence[IndexedItem]
    vectors: Vectors
    replace: bool = False


@dataclass(frozen=True)
class Remove:
    """Remove the items with these ids."""

    ids: Sequence[str]


@dataclass(frozen=True)
class Update:
    """Change one item: what is not `UNCHANGED`; metadata is merged, and a value of None removes a name."""

    id: str
    label: str | Unchanged | None = UNCHANGED
    metadata: ItemMetadata = field(default_factory=dict)
    vector: Vectors | None = None  # (dim,)
    path: Path | Unchanged | None = UNCHANGED
    file: FileState | Unchanged | None = UNCHANGED


Change = Add | Remove | Update


class Store(Protocol):
    """Keeps the items of an index, and makes changes, each in full or not at all; the next search sees it.

    Paths of items are relative to the root of the index, or absolute.
    """

    def __len__(self) -> int: ...

    def __contains__(self, item: object) -> bool: ...

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all items, sorted."""

    @property
    def other_paths(self) -> Mapping[str, Path | None]:
        """The files of the items whose file is not their id relative to the root, by id."""

    @property
    def key(self) -> str:
        """How vectors are searched: a FAISS factory string, Flat for exact search."""

    @property
    def pending(self) -> int:
        """Items that were added or removed since the store was compacted, each of which makes searches slower."""

    def search(
        self, queries: Vectors, query_ids: Sequence[str], top_k: int, where: Filter | None = None
    ) -> tuple[Ids, Floats]:
        """Return ids and cosines `(n_query, top_k)` of the items that fit a filter, best first.

        Filled up with None and nan; a query is never its own hit.
        """

    def get(self, ids: Sequence[str]) -> list[IndexedItem | None]:
        """Return items by id, None for an id that has no item."""

    def items(self, after: str | None, limit: int) -> list[IndexedItem]:
        """Return the first items in the order of their ids, after an id."""

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """Return the vectors `(n, dim)` of items; `OptionError` for an id that has no item."""

    def refresh(self) -> bool:
        """See what other processes have changed; return whether they have."""

    def close(self) -> None:
        """Release files."""

    def apply(self, change: Change) -> int:
        """Make a change durable and visible, and return how many items were replaced.

        `DataError` if an item to add exists; `OptionError` if one to remove or update does not.
        """

    def compact(self, min_recall: float | None, progress: Progress) -> bool:
        """Rebuild what makes searches fast; return False if another process does."""

    def copy_into(self, folder: Path) -> None:
        """Copy the files of the store into another folder, as of now."""


def unknown_ids(ids: Sequence[str]) -> OptionError:
    """Return the error for ids that have no item."""
    more = f", nor {len(ids) - 1} others" if len(ids) > 1 else ""
    return OptionError(f"the index has no item {ids[0]!r}{more}; nothing was changed.", argument="ids")


def existing_ids(ids: Collection[str], count: int) -> DataError:
    """Return the error for ids among `count` to add that have an item."""
    return DataError(
        f"{len(ids)} of {count} items are in the index already (first: {min(ids)!r}); nothing was added. Pass "
        "`replace` to replace them.",
        argument="replace",
    )


def located(path: Path | None, root: Path | None) -> Path | None:
    """Return where an item's file is; None for a relative path without a root."""
    if path is None or path.is_absolute():
        return path
    return None if root is None else root / path
