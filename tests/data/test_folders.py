"""Finding image files: sorted, without the hidden ones, and with what cannot be listed told."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lookalike.data.folders import find_images
from lookalike.errors import DataError
from lookalike.types import Skipped


def test_find_images_sorted_and_without_the_hidden(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", ".hidden.jpg", ".trash/d.jpg", "notes.txt", "sub/labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "sub/c.webp"]
    assert find_images(tmp_path, recursive=False) == [tmp_path / "a.png", tmp_path / "b.JPG"]


def test_find_images_wants_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_images(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'} is not a folder; give a folder of images."


def test_a_closed_folder_is_an_error_to_who_does_not_ask(tmp_path: Path, close_folder: Callable[[Path], None]) -> None:
    (tmp_path / "inside").mkdir()
    close_folder(tmp_path / "inside")
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    place = tmp_path / "inside"
    wanted = f"{place}: the folder cannot be listed (permission denied); change that, or give another folder."
    assert str(caught.value) == wanted
    assert find_images(tmp_path, recursive=False) == []


def test_a_closed_folder_is_told_and_the_others_are_listed(
    tmp_path: Path, close_folder: Callable[[Path], None]
) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg", "c/d/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("b", "c/d"):
        close_folder(tmp_path / name)
    skipped: list[Skipped] = []
    assert find_images(tmp_path, skip=skipped.append) == [tmp_path / "a/1.jpg", tmp_path / "c/3.jpg"]
    cause = "the folder cannot be listed (permission denied)"
    assert sorted(map(str, skipped)) == [f"{tmp_path / name}: {cause}" for name in ("b", "c/d")]


def test_a_folder_that_fails_half_way_keeps_what_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    skipped: list[Skipped] = []
    assert len(find_images(tmp_path, skip=skipped.append)) == 1
    assert skipped == [Skipped(tmp_path, "the folder cannot be listed (input/output error)")]


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1.jpg").touch()
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    skipped: list[Skipped] = []
    assert find_images(tmp_path, skip=skipped.append) == [tmp_path / "deep/1.jpg"]
    cause = f"the folder cannot be listed ({os.strerror(errno.ELOOP).lower()})"
    assert skipped == [Skipped(tmp_path / "itself", cause)]  # behind the other there is nothing but what was found


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.jpg").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link").symlink_to(tmp_path / "other")
    assert find_images(tmp_path / "pictures") == [tmp_path / "pictures/link/1.jpg"]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    wanted = f"the permissions of {tmp_path} do not allow reading it; change them, or give another folder."
    assert str(caught.value) == wanted
