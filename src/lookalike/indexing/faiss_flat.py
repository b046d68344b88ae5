"""FAISS's exact inner product index: all vectors, compared one by one (Douze et al. 2024, "The Faiss library")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import StorageError
from lookalike.types import Vectors

Rows = npt.NDArray[np.int64]

FAISS_FILE = "index.faiss"
_BLOCK = 65_536  # vectors copied at once
_FLOAT_BYTES = 4


class FlatIndex:
    """Unit-length vectors by row number.

    Attributes:
        key: FAISS's own name for the kind.
        choice: there was none.

    """

    key = "Flat"
    choice: Mapping[str, Any] | None = None

    def __init__(self, faiss_index: Any) -> None:
        self._index = faiss_index

    @classmethod
    def of(cls, vectors: Vectors, order: Rows) -> FlatIndex:
        """Take the vectors `(n, dim)` float32 in this order, block by block, as they may be mapped from disk."""
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(order), _BLOCK):
            index.add(np.ascontiguousarray(vectors[order[start : start + _BLOCK]]))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._index.d)

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products and rows `(n_query, count)`, best first; `count` is at most the size."""
        scores, rows = self._index.search(np.ascontiguousarray(queries), count)
        return scores, rows

    def vectors(self, rows: Rows) -> Vectors:
        """Return the vectors `(n, dim)` of these rows."""
        found: Vectors = self._index.reconstruct_batch(rows)
        return found

    def write(self, folder: Path) -> None:
        """Write the index into a folder.

        Raises:
            StorageError: when the disk does not take all of it.

        """
        import faiss

        path = folder / FAISS_FILE
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise StorageError(f"{path} cannot be written; free some space or choose another place.") from error
        # on a full disk the last part can get lost when the file is closed, which FAISS does not report
        if path.stat().st_size < len(self) * self.dim * _FLOAT_BYTES:
            raise StorageError(f"{path} cannot be written in full; free some space or choose another place.")

    @classmethod
    def read(cls, folder: Path) -> FlatIndex:
        """Read an index from a folder.

        Raises:
            StorageError: missing, damaged, or of another kind.

        """
        import faiss

        path = folder / FAISS_FILE
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError, TypeError) as error:
            raise StorageError(f"{path} is missing or damaged; make the index again.") from error
        if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise StorageError(f"{path} holds a {type(index).__name__}, not a flat index; make the index again.")
        return cls(index)


def faiss_version() -> str:
    """Version of the library."""
    import faiss

    return str(faiss.__version__)
