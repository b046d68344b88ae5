"""FAISS's file of a flat inner product index, written block by block and mapped from disk, without FAISS.

As `faiss.write_index` lays it out (faiss/impl/index_write.cpp): a header, then all vectors one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike._files import storage_errors
from lookalike.errors import StorageError
from lookalike.types import Vectors

Rows = npt.NDArray[np.int64]

FAISS_FILE = "index.faiss"
_HEADER = struct.Struct("<4siqqq?iQ")
"""Kind, dimensions, vectors, two numbers without a meaning, whether it is trained, metric, numbers that follow."""
_KIND = b"IxFI"
_UNUSED = 1 << 20
_INNER_PRODUCT = 0


def write_flat(path: Path, blocks: Iterable[Vectors], count: int, dim: int) -> None:
    """Write vectors as a FAISS index.

    Args:
        path: of the file.
        blocks: the vectors, some at a time, each `(n, dim)` float32.
        count: number of all of them.
        dim: their dimensions.

    Raises:
        StorageError: when the disk does not take all of it.

    """
    with storage_errors(path), path.open("wb") as file:
        file.write(_HEADER.pack(_KIND, dim, count, _UNUSED, _UNUSED, True, _INNER_PRODUCT, count * dim))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


def map_flat(path: Path) -> Vectors:
    """Return the vectors `(n, dim)` of a FAISS index; they stay on disk until they are looked at.

    Raises:
        StorageError: missing, damaged, or of another kind.

    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        if len(head) >= len(_KIND) and not head.startswith(_KIND) and head.startswith((b"Ix", b"Iw", b"IH")):
            kind = head[: len(_KIND)].decode("ascii", "replace")
            raise StorageError(f"{path} holds a FAISS index of the kind {kind}, not a flat one; make the index again.")
        kind, dim, count, _, _, _, metric, numbers = _HEADER.unpack(head)
        if kind != _KIND or metric != _INNER_PRODUCT or numbers != count * dim:
            raise ValueError("the header is of another kind")
        if path.stat().st_size != _HEADER.size + 4 * numbers:
            raise ValueError("the file has another length")
        if not count:
            return np.zeros((0, dim), np.float32)
        return np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size, shape=(count, dim))
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise StorageError(f"{path} is missing or damaged; make the index again.") from error
