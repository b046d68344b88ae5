"""FAISS's approximate indexes, by factory string (Douze et al. 2024, "The Faiss library")."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import StorageError
from lookalike.indexing.flat_file import Rows
from lookalike.types import Vectors


class FaissIndex:
    """Unit-length vectors by row number, searched approximately.

    Attributes:
        key: FAISS's factory string.
        parameters: how deep a search looks, by FAISS's names.

    """

    def __init__(self, faiss_index: Any, key: str, parameters: Mapping[str, int]) -> None:
        self.index = faiss_index
        self.key = key
        self.parameters: dict[str, int] = {}
        self.set(parameters)

    @classmethod
    def new(cls, key: str, dim: int) -> FaissIndex:
        """Return an empty one."""
        import faiss

        return cls(faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT), key, {})

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self.index.d)

    @property
    def size(self) -> int:
        """Bytes that it takes, in memory and in a file."""
        import faiss

        counted = faiss.VectorIOWriter()
        faiss.write_index(self.index, counted)
        return int(counted.data.size())

    def set(self, parameters: Mapping[str, int]) -> None:
        """Look as deep as this."""
        import faiss

        space = faiss.ParameterSpace()
        for name, value in parameters.items():
            space.set_index_parameter(self.index, name, value)
        self.parameters = dict(parameters)

    def nearest(self, queries: Vectors, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return float32 inner products, as exact as the vectors are kept, and rows `(n_query, count)`, best first.

        Where the lists that are looked at hold fewer, more are looked at.
        """
        scores, rows = self.index.search(np.ascontiguousarray(queries), count)
        short = (rows < 0).any(axis=1)
        if short.any():
            with self._deepest(count):
                scores[short], rows[short] = self.index.search(np.ascontiguousarray(queries[short]), count)
        return scores, rows

    @contextlib.contextmanager
    def _deepest(self, count: int) -> Any:
        """Look at everything."""
        import faiss

        before = self.parameters
        deepest = {"nprobe": lambda: int(faiss.extract_index_ivf(self.index).nlist), "efSearch": lambda: len(self)}
        self.set({name: deepest[name]() if name in deepest else max(value, count) for name, value in before.items()})
        try:
            yield
        finally:
            self.set(before)

    def write(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            StorageError: when the disk does not take all of it.

        """
        import faiss

        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise StorageError(f"{path} cannot be written; free some space or choose another place.") from error

    @classmethod
    def read(cls, path: Path, key: str, parameters: Mapping[str, int], *, changed: bool = False) -> FaissIndex:
        """Open an index file; its vectors stay on disk until they are looked at, unless it is to be `changed`.

        Raises:
            StorageError: missing, damaged, or of another kind.

        """
        import faiss

        try:
            flags = 0 if changed else faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
            index = faiss.read_index(str(path), flags)
            return cls(index, key, parameters)
        except (RuntimeError, MemoryError, TypeError) as error:
            raise StorageError(f"{path} is missing or damaged; make the index again.") from error


def faiss_version() -> str:
    """Version of the library."""
    import faiss

    return str(faiss.__version__)
