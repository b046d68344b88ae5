"""One run at a time writes a result; the lock ends with its process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike import _lock as lock_module
from lookalike._lock import locked
from lookalike.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_and_names_the_first(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with locked(out):
        with pytest.raises(StorageError, match=rf"process {os.getpid()}\)") as caught, locked(out, "path"):
            pytest.fail("the block must not run")
        assert caught.value.argument == "path"
        with locked(tmp_path / "new" / "other"):
            pass
    with locked(out):
        pass
    assert names(tmp_path) == []
    out.parent.mkdir()
    with locked(out):
        pass
    assert names(tmp_path) == ["new"]


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, pathlib, signal, sys\n"
        "from lookalike._files import temporary_folder\n"
        "from lookalike._lock import locked\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "with locked(out), temporary_folder(out): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, out], check=False).returncode < 0
    assert len(names(tmp_path)) == 2
    (tmp_path / ".out.notes").touch()
    with locked(out):
        assert names(tmp_path) == [".out.lock", ".out.notes"]
    assert names(tmp_path) == [".out.notes"]


def test_a_link_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(StorageError, match="another run"), locked(tmp_path / "link"):
        pass


def test_without_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        pass
