"""Reading the rows of CSV and Parquet files that users write: manifests and labels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from lookalike._files import RefusedFileError, open_regular
from lookalike.errors import DataError, MissingExtra

_MAX_BYTES = 1 << 30
_MAX_ROWS = 10_000_000
_MAX_LINE = 1 << 20  # characters; more are read as several lines
_PARQUET_BATCH = 1024  # rows in memory at once: a file of a few bytes can hold a long text in each


def read_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells by column of each row of a CSV or Parquet file.

    Raises:
        DataError: the file cannot be read, is too large, lacks one of the `required` columns, or has one twice.

    """
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
        raise _table_error(f"{path} cannot be read as UTF-8 CSV: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", f"reading {path.name}") from error
    try:
        with open_regular(path, _MAX_BYTES) as handle, parquet.ParquetFile(handle) as file:
            rows = file.metadata.num_rows
            if rows > _MAX_ROWS:
                raise RefusedFileError(f"it has {rows:,} rows, more than {_MAX_ROWS:,}")
            yield [str(name).strip().lower() for name in file.schema_arrow.names]
            for batch in file.iter_batches(_PARQUET_BATCH):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    yield [
                        "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
                        for value in values
                    ]
    except (OSError, ValueError, ArithmeticError) as error:
        raise _table_error(f"{path} cannot be read as Parquet: {error}.") from error


def _table_error(message: str) -> DataError:
    return DataError(message, argument="data")
