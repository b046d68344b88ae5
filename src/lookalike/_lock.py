"""Let one run at a time write a result, and remove what killed runs have left next to it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lookalike._files import follow_link
from lookalike.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path, argument: str = "out") -> Iterator[None]:
    """Hold the lock of a result while the block runs; `StorageError` if another run holds it.

    It is a lock of the operating system on a file next to `path`, so it ends with the process, however that ends. What
    killed runs have left of their temporary files is removed. Where the file system has no locks, nothing is locked.
    """
    path = follow_link(path)
    file = path.with_name(f".{path.name}.lock")
    new_parents = [folder for folder in path.parents if not os.path.lexists(folder)]
    handle = _acquire(file, path, argument)
    try:
        if handle is not None:
            _remove_temporary(path)
        yield
    finally:
        if handle is not None:
            file.unlink(missing_ok=True)
            os.close(handle)
        with contextlib.suppress(OSError):  # a run that failed leaves no empty folders
            for folder in new_parents:
                folder.rmdir()


def _acquire(file: Path, path: Path, argument: str) -> int | None:
    """Lock a file and write the number of this process into it; None if that is not possible here."""
    if fcntl is None:
        return None
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            process = os.read(handle, 20).decode("ascii", "replace").strip()
            os.close(handle)
            raise StorageError(
                f"another run{f' (process {process})' if process else ''} is writing {path}; wait until it ends, or "
                f"choose another `{argument}`.",
                argument=argument,
            ) from error
        except OSError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):  # the run that held the lock may have removed the file meanwhile
            if os.path.samestat(file.stat(), os.fstat(handle)):
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)


def _remove_temporary(path: Path) -> None:
    """Remove the temporary files and folders next to `path`, which no run uses while its lock is held."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in [entry for entry in entries if pattern.fullmatch(entry.name)]:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
