"""The audit log of a service: who has changed which item, and when."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from lookalike.errors import StorageError
from lookalike.server.access import Token

_log = logging.getLogger("lookalike.server")
_audit = logging.getLogger("lookalike.audit")


class AuditLog:
    """Writes each change as one line of JSON, to the logger `lookalike.audit` and to the end of a file.

    The file is opened for each line, so that it can be moved away at any time.

    Args:
        path: the file, readable by its owner only if it is created here; None for none.

    Raises:
        StorageError: the file cannot be written.

    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        if path is not None:
            try:
                os.close(_open(path))
            except OSError as error:
                raise StorageError(f"{path} cannot be written ({error.strerror}).", argument="audit_log") from error

    def write(self, token: Token | None, action: str, index: str, item: str) -> None:
        """Write a change that was made; if the file cannot be written, the log of the service says so."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        name = None if token is None else token.name
        line = json.dumps({"time": time, "token": name, "action": action, "index": index, "item": item})
        _audit.info("%s", line)
        if self._path is None:
            return
        try:
            file = _open(self._path)
            try:
                os.write(file, f"{line}\n".encode())  # in one call: lines of several threads do not mix
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            _log.error("the audit log %s cannot be written (%s): %s", self._path, error.strerror, line)


def _open(path: Path) -> int:
    no_wait = getattr(os, "O_NONBLOCK", 0)  # for a reader of a pipe
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | no_wait, 0o600)
