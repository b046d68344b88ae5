"""Files and folders are written in one step: an interrupted write never damages an older one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike import _files as files
from lookalike._files import (
    FileRecord,
    RefusedFileError,
    checked_record,
    digest,
    file_digest,
    follow_link,
    new_folder,
    open_regular,
    read_json,
    require_free,
    require_uncompressed,
    require_writable,
    with_digest,
    write_csv,
    write_file,
    write_json,
    write_text,
)
from lookalike.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(path: Path) -> None:
    path.write_text("half of the n")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "f.txt"
    write_text(path, "first\n")
    write_text(path, "zweite ü\n")
    assert path.read_bytes() == "zweite ü\n".encode()
    assert names(path.parent) == ["f.txt"]


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(StorageError, match=r"f\.txt cannot be written \(no space left on device\)"):
        write_file(path, disk_full)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f.txt"]


def test_full_disk_while_text_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: disk_full_now(self))
    with pytest.raises(StorageError):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert read_json(path, "the file") == {"old": 1}
    assert names(tmp_path) == ["f.json"]


def disk_full_now(path: Path) -> None:
    path.write_bytes(b"{")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_device(tmp_path: Path) -> None:
    def fill(temporary: Path) -> None:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100)

    with pytest.raises(StorageError, match="no space left on device"):
        write_file(tmp_path / "f.txt", fill)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(error):
        write_file(path, interrupted)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f.txt"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(StorageError, match=r"f/g\.txt cannot be written"):
        write_text(tmp_path / "f" / "g.txt", "y")


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_file_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "f.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f.txt").stat().st_mode) == 0o640


def test_csv_and_json(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("a", "b"), [(1, "x,y"), (2, 'say "no"')])
    assert (tmp_path / "t.csv").read_text() == 'a,b\n1,"x,y"\n2,"say ""no"""\n'
    write_json(tmp_path / "t.json", {"ü": [1, None]})
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == '{\n  "ü": [\n    1,\n    null\n  ]\n}\n'


def test_errors_of_read_json_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(StorageError, match=r"^bundle record .*t\.json does not exist"):
        read_json(path, "bundle record")
    path.write_text("{")
    with pytest.raises(StorageError, match=r"^bundle record .*t\.json cannot be read \(Expecting property name"):
        read_json(path, "bundle record")


def test_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with new_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"
    assert names(path.parent) == ["out"]


def test_new_folder_replaces_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_new_folder_refuses_to_replace_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(StorageError, match="already exists") as caught, new_folder(path, argument="path"):
        pytest.fail("the block must not run")
    assert caught.value.argument == "path"
    assert names(path) == ["old"]


def test_new_folder_replaces_a_folder_if_requested(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    with new_folder(path, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_new_folder_keeps_the_old_one_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(path, replace=True) as temporary:
        (temporary / "half").touch()
        raise error
    assert names(path) == ["old"]
    assert names(tmp_path) == ["out"]


def test_new_folder_restores_the_old_one_when_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    replace = Path.replace

    def refuse_new(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_new)
    with pytest.raises(StorageError, match="input/output error"), new_folder(path, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["out"]


def test_require_free(tmp_path: Path) -> None:
    require_free(tmp_path)
    require_free(tmp_path / "none")
    (tmp_path / "f").touch()
    for path in (tmp_path, tmp_path / "f"):
        with pytest.raises(StorageError, match="already exists; choose another `out`") as caught:
            require_free(path)
        assert caught.value.argument == "out"
    with pytest.raises(StorageError, match="choose another `out` or pass `replace`"):
        require_free(tmp_path, replaceable=True)


def test_a_folder_that_cannot_be_listed_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StorageError, match=r"cannot be written \(permission denied\)"):
        require_free(tmp_path)


@pytest.mark.parametrize(
    "attempt",
    [require_free, lambda path: write_text(path, "x"), lambda path: new_folder(path).__enter__()],
    ids=["require_free", "write_text", "new_folder"],
)
def test_a_path_inside_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").touch()
    with pytest.raises(StorageError, match=r"f/deep/new cannot be written: f is not a folder"):
        attempt(Path("f/deep/new"))
    assert names(tmp_path) == ["f"]


def test_a_path_inside_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.os, "access", lambda path, _mode: Path(path) != Path())  # root may write anywhere
    with pytest.raises(
        StorageError, match=r"g/new cannot be written: the folder \. is read-only; choose another `out`"
    ):
        require_free(Path("g/new"))
    with pytest.raises(StorageError, match="choose another `html`") as caught:
        require_writable(Path("g/new"), "html")
    assert caught.value.argument == "html"
    with pytest.raises(StorageError, match="choose another path") as caught:
        require_writable(Path("g/new"))
    assert caught.value.argument is None


def test_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    with new_folder(tmp_path / "link") as temporary:
        assert temporary.parent == tmp_path / "disk"  # on the disk of the result
        (temporary / "a").touch()
    (tmp_path / "page").symlink_to(tmp_path / "disk" / "f.txt")
    write_text(tmp_path / "page", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "page").is_symlink()
    assert names(tmp_path / "disk") == ["f.txt", "out"]
    assert names(tmp_path / "disk" / "out") == ["a"]
    monkeypatch.chdir(tmp_path / "disk")
    assert follow_link(".") == tmp_path / "disk"
    assert follow_link("a/b") == Path("a/b")
    Path("loop").symlink_to("loop")
    with pytest.raises(StorageError, match="link to itself"):
        require_free(Path("loop"))


def test_the_working_folder_and_a_mounted_disk_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for path in (Path(), tmp_path):
            with pytest.raises(StorageError, match="cannot be replaced") as caught:
                require_free(path)
            assert caught.value.argument == "out"
    monkeypatch.setattr(files.os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(StorageError, match="mounted disk"):
        require_free(tmp_path)


def test_an_empty_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="already exists"):
        require_free(tmp_path, file=True)


@pytest.mark.parametrize("path", ["x" * 255, f"new/{'ü' * 120}/out", "/".join(["deep"] * 1000)])
def test_names_and_paths_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    for attempt in (require_free, require_writable):
        with pytest.raises(StorageError, match=r"(255|240|\d{4}) bytes is too long"):
            attempt(Path(path))
    with new_folder(Path("x" * 220)):
        pass


def test_names_that_are_not_valid_unicode(tmp_path: Path) -> None:
    name = b"ro\xffcket \xc3\xbc.jpg".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "t", name)
    assert (tmp_path / "t").read_bytes() == b"ro\xffcket \xc3\xbc.jpg"
    write_json(tmp_path / "j", {"path": name})
    assert json.loads((tmp_path / "j").read_text(encoding="ascii")) == {"path": name}
    write_json(tmp_path / "k", {"path": "ü"})
    assert "ü" in (tmp_path / "k").read_text(encoding="utf-8")
    assert digest(name) == digest(b"ro\xffcket \xc3\xbc.jpg")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == hashlib.blake2b(b"abc", digest_size=16).hexdigest()
    expected = hashlib.blake2b((2).to_bytes(8, "little") + b"ab" + (1).to_bytes(8, "little") + b"c", digest_size=16)
    assert digest("ab", b"c") == expected.hexdigest()
    assert digest("ab", "c") != digest("a", "bc")
    assert len(files.digest()) == 32


@pytest.fixture(params=["a pipe", "a device", "a socket"])
def endless_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file whose reading would never end or cannot start, and what it is."""
    path = tmp_path / "x"
    if request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x")
    return path, request.param


@pytest.mark.skipif(os.name == "nt", reason="no such files")
def test_only_regular_files_are_opened(endless_file: tuple[Path, str]) -> None:
    path, kind = endless_file
    with pytest.raises(RefusedFileError, match=kind):
        open_regular(path)
    with pytest.raises(StorageError, match=kind):
        read_json(path, "the record")


def test_a_folder_or_a_large_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    (tmp_path / "x").write_bytes(b"12345")
    with open_regular(tmp_path / "x", 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(RefusedFileError, match="5 bytes, more than 4"):
        open_regular(tmp_path / "x", 4)
    with pytest.raises(RefusedFileError, match="null byte"):
        open_regular(tmp_path / "a\0b")


def test_a_sparse_record_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "bundle.json").open("wb") as file:
        file.truncate(3_000_000_000)
    with pytest.raises(StorageError, match="3,000,000,000 bytes"):
        read_json(tmp_path / "bundle.json", "the record")


def test_a_file_record_notices_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    record = FileRecord.of(path)
    record.require(path)
    path.write_bytes(b"12355")
    record.require(path, digest_up_to=4)  # the size is compared
    with pytest.raises(RefusedFileError, match="it was changed"):
        record.require(path, digest_up_to=5)
    path.write_bytes(b"1234")
    with pytest.raises(RefusedFileError, match="4 bytes, 5 were written"):
        record.require(path, digest_up_to=0)


def test_a_record_with_digest_notices_changes() -> None:
    content = {"count": 3, "names": ("a", "\udc80"), "share": 0.1, "by_key": {1: None}}
    record = json.loads(json.dumps(with_digest(content)))
    assert checked_record(record) == json.loads(json.dumps(content))
    with pytest.raises(ValueError, match="changed"):
        checked_record({**record, "count": 4})
    with pytest.raises(ValueError, match="changed"):
        checked_record(content)


def test_an_archive_that_expands_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", a=np.zeros(10_000))
    np.savez_compressed(tmp_path / "compressed.npz", a=np.zeros(10_000))
    (tmp_path / "text").write_text("no archive")
    for name in ("stored.npz", "text"):
        with open_regular(tmp_path / name) as file:
            require_uncompressed(file)
            assert len(file.read()) == (tmp_path / name).stat().st_size
    with open_regular(tmp_path / "compressed.npz") as file, pytest.raises(RefusedFileError, match="expand to 80,128"):
        require_uncompressed(file)


def test_an_archive_whose_entries_share_their_bytes_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", bytes(1000))
        archive.filelist *= 9
    with open_regular(tmp_path / "a.zip") as file, pytest.raises(RefusedFileError, match="expand to 9,000"):
        require_uncompressed(file)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data.replace(b"PK\1\2", b"PK\0\0"))
    with open_regular(tmp_path / "a.npz") as file, pytest.raises(RefusedFileError, match="damaged"):
        require_uncompressed(file)
