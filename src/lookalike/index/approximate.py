"""An approximate index as a store of an index folder: FAISS's file, and which row stands at each of its places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._files import storage_errors
from lookalike.errors import StorageError
from lookalike.index.choose import Choice
from lookalike.index.faiss_index import FaissIndex, faiss_version
from lookalike.index.flat_file import FAISS_FILE, Rows
from lookalike.types import Vectors

_PLACES = "rows.npy"


class ApproximateIndex:
    """Unit-length vectors by row number, most of the nearest found quickly.

    Attributes:
        choice: what it was chosen by, as it stands in the folder's description.

    """

    def __init__(self, index: FaissIndex, rows: Rows, choice: Mapping[str, Any]) -> None:
        self._index = index
        self._rows = rows
        self.choice: Mapping[str, Any] = choice

    @classmethod
    def of(cls, made: Choice) -> ApproximateIndex:
        """Take what was chosen."""
        facts = {
            "why": made.why,
            "parameters": made.point.parameters,
            "measured": made.point.to_dict(),
            "tried": [point.to_dict() for point in made.tried],
            "passed_over": [point.to_dict() for point in made.passed_over],
        }
        return cls(made.index, made.rows, facts)

    @property
    def key(self) -> str:
        """FAISS's factory string."""
        return self._index.key

    def __len__(self) -> int:
        return len(self._index)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._index.dim

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products, as exact as the vectors are kept, and rows `(n_query, count)`, best first."""
        scores, places = self._index.nearest(queries, count)
        return scores, self._rows[places]

    @property
    def facts(self) -> dict[str, Any]:
        """What the index's description says of it besides the key."""
        return {"choice": dict(self.choice)}

    def versions(self) -> dict[str, str]:
        """Return what its file was made with."""
        return {"faiss": faiss_version()}

    def write(self, folder: Path) -> None:
        """Write the index into a folder.

        Raises:
            StorageError: when the disk does not take all of it.

        """
        self._index.write(folder / FAISS_FILE)
        with storage_errors(folder):
            np.save(folder / _PLACES, self._rows)

    @classmethod
    def read(cls, folder: Path, key: str, choice: Mapping[str, Any]) -> ApproximateIndex:
        """Open an index in a folder; its vectors stay on disk until they are looked at.

        Raises:
            StorageError: missing, damaged, or of another kind.

        """
        try:
            mapped = np.load(folder / _PLACES, mmap_mode="r", allow_pickle=False)
            rows = np.asarray(mapped)  # plain: quicker to look into
            index = FaissIndex.read(folder / FAISS_FILE, key, dict(choice["parameters"]))
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"the index in {folder} is missing or damaged; make the index again.") from error
        if len(rows) != len(index) or not (rows.min() >= 0 and rows.max() < len(index)):
            raise StorageError(f"the rows of the index in {folder} do not fit its vectors; make the index again.")
        return cls(index, rows, choice)
