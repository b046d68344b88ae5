"""Reading the rows of CSV and Parquet files that users write: manifests and labels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookalike._files import RefusedFileError, open_regular
from lookalike.errors import DataError, import_extra

_MAX_BYTES = 1 << 30
_MAX_ROWS = 10_000_000
_MAX_LINE = 1 << 20  # characters; more are read as several lines
# A Parquet file of a few kilobytes can hold gigabytes of text: a row group is read at once, each distinct text once.
_MAX_GROUP = 1 << 28  # bytes of a row group when decompressed
_MAX_GROUP_CELLS = 1 << 25
_MAX_CELL = 1 << 16  # characters
_MAX_TEXT = 1 << 30  # characters of all cells
_MAX_FIXED = 32  # bytes of a value of fixed size, such as a decimal number


def read_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells by column of each row of a CSV or Parquet file, or raise `DataError`."""
    table = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    header = next(table)
    if any(name not in header for name in required):
        raise _table_error(
            f"{path} has the columns {', '.join(map(repr, header)) or '(none)'}, but needs {', '.join(required)}, "
            "separated by commas; rename the file if it is not meant for this."
        )
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise _table_error(f"{path} has {header.count(repeated[0])} columns called {repeated[0]!r}; keep one of them.")
    for line, values in enumerate(table, start=2):
        if line > _MAX_ROWS + 1:
            raise _table_error(f"{path} has more than {_MAX_ROWS:,} rows; split the data.")
        if not values:
            continue
        if len(values) != len(header):
            raise _table_error(f"{path} line {line} has {len(values)} fields, the header has {len(header)}.")
        yield line, dict(zip(header, values, strict=True))


def _csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with open_regular(path, _MAX_BYTES) as file:
            lines = io.TextIOWrapper(file, newline="", encoding="utf-8-sig")
            reader = csv.reader(iter(lambda: lines.readline(_MAX_LINE), ""), skipinitialspace=True)
            yield [name.strip().lower() for name in next(reader, [])]
            yield from reader
    except (OSError, RefusedFileError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, "UTF-8 CSV", error) from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    parquet = import_extra("pyarrow.parquet", "parquet", f"reading {path.name}", "pyarrow")
    try:
        with open_regular(path, _MAX_BYTES) as handle:
            metadata = parquet.read_metadata(handle)
            columns = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
            with parquet.ParquetFile(handle, metadata=metadata, read_dictionary=columns) as file:
                _require_moderate(file)
                yield [str(name).strip().lower() for name in file.schema_arrow.names]
                count = 0
                for group in range(metadata.num_row_groups):
                    table = file.read_row_group(group, use_threads=False)
                    for cells in zip(*map(_texts, table.columns), strict=True):
                        count += sum(map(len, cells))
                        if count > _MAX_TEXT:
                            raise RefusedFileError(f"it has more than {_MAX_TEXT:,} characters")
                        yield list(cells)
    except (OSError, ValueError, ArithmeticError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _require_moderate(file: Any) -> None:
    """Raise `RefusedFileError` if reading a Parquet file would take too much memory."""
    metadata = file.metadata
    if metadata.num_rows > _MAX_ROWS:
        raise RefusedFileError(f"it has {metadata.num_rows:,} rows, more than {_MAX_ROWS:,}")
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        nested = column.max_repetition_level or column.path != column.name
        is_shared = hasattr(file.schema_arrow.types[number], "index_type")  # cells of the same text share it when read
        if nested or column.length > _MAX_FIXED or (column.physical_type == "BYTE_ARRAY" and not is_shared):
            raise RefusedFileError(f"its column {column.path} holds neither text nor numbers; remove it")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if group.total_byte_size > _MAX_GROUP or group.num_rows * group.num_columns > _MAX_GROUP_CELLS:
            raise RefusedFileError(
                f"it has a row group of {group.num_rows:,} rows that expands to {group.total_byte_size:,} bytes, more "
                f"than {_MAX_GROUP:,} or than {_MAX_GROUP_CELLS:,} cells; write smaller row groups"
            )


def _texts(column: Any) -> Iterator[str]:
    """Yield the cells of a column as text; cells with the same text share it."""
    for chunk in column.chunks:
        if not hasattr(chunk, "dictionary"):
            yield from map(_cell_text, chunk.to_pylist())
            continue
        _require_short(chunk.dictionary)
        texts = [_cell_text(value) for value in chunk.dictionary.to_pylist()]
        yield from ("" if number is None else texts[number] for number in chunk.indices.to_pylist())


def _require_short(texts: Any) -> None:
    """Raise `RefusedFileError` for a text that is too long, before it is copied."""
    from pyarrow import compute

    if str(texts.type) in ("string", "large_string", "binary", "large_binary"):
        longest = compute.max(compute.binary_length(texts)).as_py() or 0
        if longest > 4 * _MAX_CELL:  # UTF-8 has at most 4 bytes per character
            raise RefusedFileError(f"a cell has {longest:,} bytes, more than {4 * _MAX_CELL:,}")


def _cell_text(value: object) -> str:
    """Return a cell as text, empty where there is none."""
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
    if len(text) > _MAX_CELL:
        raise RefusedFileError(f"a cell has {len(text):,} characters, more than {_MAX_CELL:,}")
    return text


def _unreadable(path: Path, form: str, error: Exception) -> DataError:
    cause = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    if path.is_symlink() and not path.exists():
        cause = "it is a link to nothing"
    return _table_error(f"{path} cannot be read as {form}: {cause}; replace or remove it.")


def _table_error(message: str) -> DataError:
    return DataError(message, argument="data")
