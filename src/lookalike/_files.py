"""Writing files so that a good one is never replaced by half of another."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an operating system error under `path` into a `StorageError` of one sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({(error.strerror or str(error)).lower()}); "
            "free some space or choose another place."
        ) from error


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Raises:
        StorageError: when the folder or the disk does not take it; an older `path` is left as it was.

    """
    path = Path(path)
    require_writable(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step; a file name in it that is not valid Unicode is written as the bytes it has."""

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    write_file(path, fill)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with stable formatting in one step."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Return readable JSON; escaped where it holds a file name that is not valid Unicode, so that the text is."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def write_ascii_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON with all but ASCII escaped, in one step; holds file names that are not valid Unicode, too."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file with a header in one step."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_json(path: Path, what: str) -> Any:
    """Read JSON; `what` names the file's role in the error's sentence."""
    with reading_errors(path, what):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def reading_errors(path: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong when `path` is read, or does not hold what it should, into a `StorageError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{what} {path} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{what} {path} cannot be read: {error}; it must be made again.") from error


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well.

    Raises:
        StorageError: when `path` already holds something and `replace` is not set, or cannot be written.

    """
    path = Path(path)
    if not replace:
        require_free(path)
    require_writable(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
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
    """Put `new` in the place of `path`, or leave `path` as it was."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        path.replace(aside / "old")
        try:
            new.replace(path)
        except BaseException:
            (aside / "old").replace(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Raise `StorageError` when nothing can be made at `path`, as it would lie in a file or in a read-only folder."""
    nearest = next((p for p in Path(path).parents if os.path.lexists(p)), None)
    if nearest is None:
        return
    if not nearest.is_dir():
        raise StorageError(f"{path} cannot be written, as {nearest} is not a folder; choose another place.")
    if not os.access(nearest, os.W_OK):
        raise StorageError(f"{path} cannot be written, as the folder {nearest} is read-only; choose another place.")


def require_free(path: Path) -> None:
    """Raise `StorageError` when `path` is a file or a folder that is not empty, or nothing can be made there."""
    with storage_errors(path):
        if path.is_dir() and not any(path.iterdir()):
            return
    require_writable(path)
    if path.exists():
        raise StorageError(f"{path} already exists and is left as it is; choose another place or remove it first.")


def digest(*parts: bytes | str) -> str:
    """Return a short stable fingerprint (32 hexadecimal digits of BLAKE2b) of the parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return the BLAKE2b fingerprint of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
