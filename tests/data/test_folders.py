"""Listing folders: what is found, what is skipped, and what is never data."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lookalike.data.folders import ImageFinder
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError
from lookalike.types import Skipped

CLOSED = "the folder cannot be listed (permission denied)"
CloseFolder = Callable[[Path], None]


def find_images(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the images in a folder, sorted, and the folders that were skipped."""
    finder = ImageFinder()
    return sorted(finder.walk(folder)), finder.skipped


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", ".hidden.jpg", ".trash/d.jpg", "notes.txt", "sub/labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ([tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "sub/c.webp"], [])


def test_a_closed_folder_is_skipped(tmp_path: Path, close_folder: CloseFolder) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg", "c/d/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("b", "c/d"):
        close_folder(tmp_path / name)
    images, skipped = find_images(tmp_path)
    assert images == [tmp_path / "a/1.jpg", tmp_path / "c/3.jpg"]
    assert sorted(map(str, skipped)) == [f"{tmp_path / name}: {CLOSED}" for name in ("b", "c/d")]


def test_a_folder_whose_listing_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    scandir = os.scandir

    @contextlib.contextmanager
    def failing(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        def first_only() -> Iterator[os.DirEntry[str]]:
            with scandir(path) as entries:
                yield next(entries)
            raise OSError(5, "Input/output error", str(path))

        yield first_only()

    monkeypatch.setattr(os, "scandir", failing)
    images, skipped = find_images(tmp_path)
    assert len(images) == 1
    assert skipped == [Skipped(tmp_path, "the folder cannot be listed (input/output error)")]
    with pytest.raises(DataError, match=f"{tmp_path}: the folder cannot be listed .*; make it readable"):
        load_dataset(tmp_path)


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1.jpg").touch()
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    images, skipped = find_images(tmp_path)
    assert images == [tmp_path / "deep/1.jpg"]
    cause = f"the folder cannot be listed ({os.strerror(errno.ELOOP).lower()})"
    assert skipped == [Skipped(tmp_path / "itself", cause)]


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "other")
    assert find_images(tmp_path / "images") == ([tmp_path / "images/link/1.jpg"], [])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_ring_of_links_is_walked_once(tmp_path: Path) -> None:
    for number in range(4):
        touch(tmp_path, f"folders/{number}/{number}.jpg")
        (tmp_path / "folders" / str(number) / "next").symlink_to(tmp_path / "folders" / str((number + 1) % 4))
    images, skipped = find_images(tmp_path / "folders")
    assert sorted(image.name for image in images) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert skipped == []


def test_folders_that_are_never_data(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "@eaDir/thumb.jpg", "sub/$RECYCLE.BIN/b.jpg", "__MACOSX/c.jpg")
    touch(tmp_path, "model/bundle.json", "model/curves.png", "photos.index/index.json", "photos.index/items.json")
    touch(tmp_path, "photos.index/model/x.png", "scraped/index.json", "scraped/d.jpg")
    finder = ImageFinder()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in finder.walk(tmp_path)) == ["a.jpg", "scraped/d.jpg"]
    names = {path.name for path in finder.excluded}
    assert names == {"@eaDir", "$RECYCLE.BIN", "__MACOSX", "model", "photos.index"}
    assert "results of Lookalike are not used" in finder.notes()[0]


def test_images_of_other_formats_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.data.images.has_heif", lambda: False)
    monkeypatch.setattr("lookalike.data.folders.has_heif", lambda: False)
    touch(tmp_path, "1.HEIC", "2.heic", "sub/3.cr2", "4.jpg", "notes.txt", ".5.heic")
    finder = ImageFinder()
    assert [p.name for p in finder.walk(tmp_path)] == ["4.jpg"]
    (note,) = finder.notes()
    assert note.startswith("3 images of formats that are not read: 1 .cr2, 2 .heic; convert them to JPEG or PNG")
    assert "the extra heif" in note


def test_heic_is_an_image_where_it_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    touch(tmp_path, "1.HEIC", "2.hif", "3.cr2")
    finder = ImageFinder()
    assert sorted(p.name for p in finder.walk(tmp_path)) == ["1.HEIC", "2.hif"]
    assert finder.notes() == ("1 image of formats that are not read: 1 .cr2; convert them to JPEG or PNG",)


def test_images_whose_names_hide_them_are_noted(tmp_path: Path, image_files: list[Path]) -> None:
    content = image_files[0].read_bytes()
    for name in (
        "a.jpg",
        "noext",
        "b.jpg~",
        "c.jpeg_large",
        "d.jpg.1",
        "notes.txt",
        ".git/HEAD",
        ".cache/d.jpg",
        ".e.jpg",
        "._a.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README").write_text("no image")
    (tmp_path / "Makefile.jpg~").touch()
    os.mkfifo(tmp_path / "pipe")
    finder = ImageFinder()
    assert list(finder.walk(tmp_path)) == [tmp_path / "a.jpg"]
    assert sorted(path.name for path in finder.without_suffix) == ["b.jpg~", "c.jpeg_large", "d.jpg.1", "noext"]
    assert sorted(path.name for path in finder.hidden) == [".cache", ".e.jpg"]
    assert [note.split(",")[0] for note in finder.notes()] == [
        "4 images without the suffix of an image",
        "hidden images and folders are not used: " + finder.hidden[0].name,
    ]
