"""Write files and folders in one step, so that an interrupted write never damages an older one; read and hash them."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from lookalike.errors import StorageError

_RESERVED = 24  # bytes of a name that temporary names next to a result need: `.NAME.embedding.0123abcd`
_MAX_PATH = 4096
_MAX_JSON_BYTES = 100_000_000  # of a record; lists of ids, which grow with the data, are read in other ways
HASHED_BYTES = 32_000_000  # vectors up to this size are compared with their digest whenever they are opened: 30 ms
_KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


class RefusedFileError(ValueError):
    """A file that is not read: not a regular file, whose reading could never end, or larger than allowed."""


def require_regular(path: Path | str, max_bytes: int | None = None) -> int:
    """Return the bytes of a regular file; raise `RefusedFileError` for anything else, or for more than allowed."""
    try:
        status = Path(path).stat()
    except ValueError as error:
        raise RefusedFileError("its name holds a null byte") from error
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    kind = next((name for is_kind, name in _KINDS.items() if is_kind(status.st_mode)), None)
    if kind is not None:
        raise RefusedFileError(f"it is {kind}, not a file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise RefusedFileError(f"it has {status.st_size:,} bytes, more than {max_bytes:,}")
    return status.st_size


def open_regular(path: Path | str, max_bytes: int | None = None) -> BufferedReader:
    """Open a file to read its bytes, within the limits of `require_regular`."""
    require_regular(path, max_bytes)
    return Path(path).open("rb")


def require_uncompressed(file: BinaryIO) -> None:
    """Raise `RefusedFileError` for a zip archive that expands to more bytes than it has, then rewind it.

    torch and numpy store tensors and arrays without compression; a compressed one can fill the memory.
    """
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                expanded = sum(entry.file_size for entry in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise RefusedFileError(f"it is a damaged archive ({error})") from error
        size = file.seek(0, os.SEEK_END)
        if expanded > size:
            raise RefusedFileError(f"it is compressed: its {size:,} bytes expand to {expanded:,}")
    file.seek(0)


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
    path = follow_link(path)
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
    """Write a CSV file with a header in one step; quotes keep a space at the start of a cell."""
    buffer, rows = io.StringIO(), list(rows)
    needs_quotes = any(str(cell).startswith(" ") for row in rows for cell in row)
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if needs_quotes else csv.QUOTE_MINIMAL)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def spreadsheet_text(text: str) -> str:
    """Return text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def read_json(path: Path, what: str, argument: str | None = None) -> Any:
    """Read JSON, or raise a `StorageError` that names the file by `what`; `argument` is where its path came from."""
    with reading_errors(path, what, argument), open_regular(path, _MAX_JSON_BYTES) as file:
        return json.loads(file.read().decode("utf-8"))


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
    path = follow_link(path)
    if not replace:
        require_free(path, argument)
    require_writable(path, argument)
    with storage_errors(path, argument), temporary_folder(path) as temporary:
        yield temporary
        if path.exists():
            _exchange(temporary, path)
        else:
            temporary.replace(path)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`, on the same disk; it is removed after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Move `new` to `path`; if that fails, `path` is unchanged."""
    aside = path.with_name(f"{_temporary_path(path).name}.old")  # `locked` removes temporary names
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


def follow_link(path: Path | str) -> Path:
    """Return where a result is written: a link is followed, and `.` gets its name."""
    path = Path(path)
    # not the methods of Path, which raise for a name that is too long and for a link to itself
    follow = os.path.islink(path) or path.name in ("", "..")  # noqa: PTH114
    return Path(os.path.realpath(path)) if follow else path


def require_writable(path: Path, argument: str | None = None) -> None:
    """Raise `StorageError` if `path` is too long, or would be inside a file or a read-only folder.

    `argument` is where it came from.
    """
    path = follow_link(path)
    nearest = next((p for p in path.parents if os.path.lexists(p)), None)
    if nearest is None:
        return
    cause = "it is a link to itself" if os.path.islink(path) else _too_long(path, nearest)  # noqa: PTH114 - as above
    if not nearest.is_dir():
        cause = f"{nearest} is not a folder"
    elif not os.access(nearest, os.W_OK):
        cause = f"the folder {nearest} is read-only"
    if cause is not None:
        raise StorageError(
            f"{path} cannot be written: {cause}; choose another {_as_word(argument)}.", argument=argument
        )


def _too_long(path: Path, nearest: Path) -> str | None:
    """Return why the file system in which `nearest` is cannot hold `path` and the names next to it."""
    limit = 255
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
        limit = os.pathconf(nearest, "PC_NAME_MAX")
    limit -= _RESERVED
    new = path.relative_to(nearest).parts
    longest = max(len(os.fsencode(name)) for name in new)
    if longest > limit:
        return f"a name of {longest} bytes is too long, the limit is {limit}"
    length = len(os.fsencode(os.path.abspath(path)))  # noqa: PTH100 - resolve() fails for a path that is too long
    return f"a path of {length} bytes is too long" if length > _MAX_PATH - limit else None


def require_free(path: Path, argument: str = "out", *, file: bool = False, replaceable: bool = False) -> None:
    """Raise `StorageError` if `path` exists or cannot be written; an empty folder may be replaced, unless by a file.

    The message names the option `replace` where the caller has it and would replace this folder.
    """
    path = Path(path)
    require_writable(path, argument)
    with storage_errors(path, argument):
        empty = path.is_dir() and not any(path.iterdir())
        in_use = empty and (os.path.ismount(path) or path.samefile(Path.cwd()))
    if in_use:
        raise StorageError(
            f"{path} is the working directory or a mounted disk, which cannot be replaced; choose a name inside it.",
            argument=argument,
        )
    if (file or not empty) and path.exists():
        remedy = "pass `replace`" if replaceable else "remove it"
        raise StorageError(f"{path} already exists; choose another `{argument}` or {remedy}.", argument=argument)


def digest(*parts: bytes | str) -> str:
    """Return the BLAKE2b digest of the parts, 32 hexadecimal digits; the boundaries between the parts count."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what all paths of one file or folder share, links included; None if it cannot be examined."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a null byte
        return None
    return status.st_dev, status.st_ino


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes, 32 hexadecimal digits."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True)
class FileRecord:
    """The facts by which a change of a file is noticed."""

    bytes: int  # its size
    digest: str  # its `file_digest`

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe a file."""
        return cls(require_regular(path), file_digest(path))

    def require(self, path: Path, *, digest_up_to: int | None = None) -> None:
        """Raise `RefusedFileError` if the file differs; beyond `digest_up_to` bytes only the sizes are compared."""
        size = require_regular(path)
        if size != self.bytes:
            raise RefusedFileError(f"it has {size:,} bytes, {self.bytes:,} were written")
        if (digest_up_to is None or size <= digest_up_to) and file_digest(path) != self.digest:
            raise RefusedFileError("it was changed after it was written")


def require_unchanged(folder: Path, files: Mapping[str, FileRecord], *, vectors: str, verify: bool) -> None:
    """Raise `RefusedFileError` if a file was changed; a file `vectors` above 32 MB is hashed only if `verify`."""
    for name, record in files.items():
        try:
            record.require(folder / name, digest_up_to=None if verify or name != vectors else HASHED_BYTES)
        except FileNotFoundError as error:
            raise RefusedFileError(f"{name} is missing") from error
        except (OSError, RefusedFileError) as error:
            raise RefusedFileError(f"{name}: {error}") from error


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record for JSON with the digest of its content, by which `checked_record` notices a change."""
    return {**record, "digest": _record_digest(record)}


def checked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `with_digest`; raise `ValueError` if the record was changed."""
    content = {name: value for name, value in record.items() if name != "digest"}
    if record.get("digest") != _record_digest(content):
        raise ValueError("it was changed after it was written")
    return content


def _record_digest(record: Mapping[str, Any]) -> str:
    return digest(json.dumps(json.loads(json.dumps(record)), sort_keys=True))  # keys become text first
