"""The audit log: lines at the end of a file that may be moved away, and of which none is lost unnoticed."""

from __future__ import annotations

import json
import logging
import os
import stat

import pytest

from lookalike.errors import StorageError
from lookalike.server.access import Token
from lookalike.server.audit import AuditLog

WRITER = Token("write", "0" * 64, "importer")


def items(file):
    return [json.loads(line)["item"] for line in file.read_text().splitlines()]


def test_lines_are_added_at_the_end_also_of_a_file_that_was_moved_away(tmp_path):
    file = tmp_path / "audit.jsonl"
    audit = AuditLog(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for item in ("a", "b\nc", "\udce9"):
        audit.write(WRITER, "add", "small", item)
    assert items(file) == ["a", "b\nc", "\udce9"]
    file.rename(tmp_path / "audit.1")
    AuditLog(file).write(None, "remove", "small", "a")
    audit.write(WRITER, "add", "small", "d")
    assert items(file) == ["a", "d"]
    assert json.loads(file.read_text().splitlines()[0])["token"] is None


def test_a_line_that_cannot_be_written_is_in_the_log_of_the_service(tmp_path, caplog):
    audit = AuditLog(tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    with caplog.at_level(logging.ERROR, logger="lookalike.server"):
        audit.write(WRITER, "add", "small", "a")
    assert "importer" in caplog.text


@pytest.mark.parametrize("name", ["missing/audit.jsonl", ".", "a pipe that nothing reads"])
def test_a_file_that_cannot_be_written_is_found_at_the_start(tmp_path, name):
    os.mkfifo(tmp_path / "a pipe that nothing reads")
    with pytest.raises(StorageError) as caught:
        AuditLog(tmp_path / name)
    assert caught.value.argument == "audit_log"
