"""Write files and folders in one step, so that an interrupted write never damages an older one; read and hash them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: Path, argument: str | None = None) -> Iterator[None]:
    """Turn an error of the operating system while `path` is written into `StorageError`; `argument` is its origin."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({(error.strerror or str(error)).lower()}); "
            f"free some space or choose another {_as_word(argument)}.",
            argument=argument,
        ) from error


def _as_word(argument: str | None) -> str:
    return f"`{argument}`" if argument else "path"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then move it there in one step; an error keeps the old file."""
    path = Path(path)
    require_writable(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_path(path)
        try:
            temporary.touch(exist_ok=False)
            write(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _temporary_path(path: Path) -> Path:
    """Return a new name next to `path`. Unlike `tempfile`, what is made there gets the user's permissions (umask)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step; file names in it that are not valid Unicode are written as their bytes."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with stable formatting in one step."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Return readable JSON, escaped if it contains a file name that is not valid Unicode."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file with a header in one step; all cells are quoted if one begins with a blank, to keep it."""
    buffer, rows = io.StringIO(), list(rows)
    blank = any(str(cell).startswith(" ") for row in rows for cell in row)
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if blank else csv.QUOTE_MINIMAL)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_json(path: Path, what: str, argument: str | None = None) -> Any:
    """Read JSON, or raise a `StorageError` that names the file by `what`; `argument` is where its path came from."""
    with reading_errors(path, what, argument):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def reading_errors(path: Path, what: str, argument: str | None = None) -> Iterator[None]:
    """Turn an error while `path` is read or parsed into a `StorageError` that names it by `what`."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{what} {path} does not exist.", argument=argument) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{what} {path} cannot be read ({error}); create it again.", argument=argument) from error


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False, argument: str = "out") -> Iterator[Path]:
    """Yield a temporary folder next to `path`, which is moved to `path` if the block raises nothing.

    `replace` allows an older file or folder at `path`; without it only an empty folder is replaced. `argument` is where
    `path` came from, for errors.
    """
    path = Path(path)
    if not replace:
        require_free(path, argument)
    require_writable(path, argument)
    with storage_errors(path, argument):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_path(path)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _exchange(new: Path, path: Path) -> None:
    """Move `new` to `path`; if that fails, `path` is unchanged."""
    aside = _temporary_path(path)
    aside.mkdir()
    try:
        path.replace(aside / "old")
        try:
            new.replace(path)
        except BaseException:
            (aside / "old").replace(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_writable(path: Path, argument: str | None = None) -> None:
    """Raise `StorageError` if `path` would be inside a file or a read-only folder; `argument` is where it came from."""
    nearest = next((p for p in Path(path).parents if os.path.lexists(p)), None)
    if nearest is None:
        return
    cause = None
    if not nearest.is_dir():
        cause = f"{nearest} is not a folder"
    elif not os.access(nearest, os.W_OK):
        cause = f"the folder {nearest} is read-only"
    if cause is not None:
        raise StorageError(
            f"{path} cannot be written: {cause}; choose another {_as_word(argument)}.", argument=argument
        )


def require_free(path: Path, argument: str = "out") -> None:
    """Raise `StorageError` if `path` exists, unless it is an empty folder, or cannot be written."""
    with storage_errors(path, argument):
        if path.is_dir() and not any(path.iterdir()):
            return
    require_writable(path, argument)
    if path.exists():
        raise StorageError(f"{path} already exists; choose another `{argument}` or remove it.", argument=argument)


def digest(*parts: bytes | str) -> str:
    """Return the BLAKE2b digest of the parts, 32 hexadecimal digits; the boundaries between the parts count."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes, 32 hexadecimal digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
