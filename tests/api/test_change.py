"""Changing an index of images: `add`, `remove`, `update` and `sync`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.api.change import add, remove, sync, update
from lookalike.api.index import index
from lookalike.api.search import load_index, search
from lookalike.errors import DataError, OptionError
from lookalike.index.index import Index


def nearest(folder: Path, image: Path) -> str:
    return search(folder, [image], top_k=1)[0][0].id


def test_add_search_update_and_remove(index_folder, images, tmp_path):
    new = images / "new.jpg"
    Image.linear_gradient("L").convert("RGB").save(new)
    other = tmp_path / "copy.jpg"
    shutil.copy(new, other)
    changed = add(index_folder, [new], label="ramp", metadata={"year": 2024})
    assert changed.added == ("new.jpg",)
    assert nearest(index_folder, other) == "new.jpg"
    item = Index.load(index_folder).get("new.jpg")
    assert (item.label, item.metadata, item.path) == ("ramp", {"year": 2024}, images.resolve() / "new.jpg")
    assert item.file.size == new.stat().st_size
    with pytest.raises(DataError, match="already"):
        add(index_folder, [new])
    assert add(index_folder, [new], replace=True).replaced == ("new.jpg",)
    replacement = sorted(images.glob("*.jpg"))[0]
    update(index_folder, ["new.jpg"], label="scene", image=replacement)
    item = Index.load(index_folder).get("new.jpg")
    assert (item.label, item.path) == ("scene", replacement.resolve())
    assert remove(index_folder, ["new.jpg"]).removed == ("new.jpg",)
    assert Index.load(index_folder).get("new.jpg") is None


def test_images_in_memory_need_ids(index_folder):
    pixels = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(DataError, match="ids"):
        add(index_folder, [pixels])
    add(index_folder, [pixels], ids=["black"])
    assert Index.load(index_folder).get("black").path is None


def test_wrong_arguments_change_nothing(index_folder, images):
    for call in (
        lambda: add(index_folder, []),
        lambda: add(index_folder, [images / "x.jpg"], ids=["a", "b"]),
        lambda: update(index_folder, ["nothing.jpg"], label="hat"),
        lambda: update(index_folder, [Index.load(index_folder).ids[0]]),
        lambda: remove(index_folder, ["nothing.jpg"]),
    ):
        with pytest.raises(OptionError):
            call()
    assert len(Index.load(index_folder)) == 12


def test_an_image_outside_the_root_is_named_by_its_absolute_path(index_folder, images, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(next(images.glob("*.jpg")), tmp_path / "elsewhere" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    path = (tmp_path / "elsewhere" / "a.jpg").as_posix()
    assert add(index_folder, ["elsewhere/a.jpg"]).added == (path,)
    assert load_index(index_folder).index.path_of(path).is_file()


def test_an_unreadable_image_is_skipped(index_folder, images):
    (images / "broken.jpg").write_bytes(b"no image")
    changed = add(index_folder, [images / "broken.jpg"])
    assert changed.added == ()
    assert [file.path.name for file in changed.skipped] == ["broken.jpg"]


def test_sync_embeds_only_what_changed(index_folder, images, decoded):
    loaded = load_index(index_folder)
    decoded.clear()
    assert sync(loaded).unchanged == 12
    assert decoded == []
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.jpg"))
    touched, changed, gone = names[:3]
    Image.linear_gradient("L").convert("RGB").save(images / changed)
    Image.radial_gradient("L").convert("RGB").save(images / "new.jpg")
    (images / gone).unlink()
    loaded.index.update(changed, label="hat", metadata={"year": 3})
    add(loaded, [images / touched], replace=True)  # now the digest of the file is known
    os.utime(images / touched, ns=(1, 1))
    decoded.clear()
    result = sync(loaded)
    assert sorted(decoded) == sorted([changed, "new.jpg"])
    assert (result.added, result.replaced, result.removed) == (("new.jpg",), (changed,), (gone,))
    assert result.unchanged == 10
    item = load_index(index_folder).index.get(changed)
    assert (item.label, item.metadata) == ("hat", {"year": 3})
    assert sync(loaded).unchanged == 12


def test_sync_of_another_folder_keeps_the_items(index_folder, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(next(images.glob("*.jpg")), other / "a.jpg")
    assert sync(index_folder, other).added == ((other / "a.jpg").as_posix(),)
    assert len(Index.load(index_folder)) == 13


def test_sync_does_not_remove_most_images(index_folder, images):
    for path in list(images.rglob("*.jpg"))[2:]:
        path.unlink()
    with pytest.raises(DataError, match="allow_removals"):
        sync(index_folder)
    assert len(Index.load(index_folder)) == 12
    assert len(sync(index_folder, allow_removals=True).removed) == 10


def test_sync_follows_the_manifest(images, encoder, tmp_path):
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.jpg"))

    def write(label: str, year: int) -> None:
        lines = [f"{name},{label},gallery,{year}" for name in names]
        (images / "manifest.csv").write_text("\n".join(["path,label,split,year", *lines]))

    write("hat", 2000)
    index(images, encoder, out=tmp_path / "index")
    write("cap", 2001)
    assert len(sync(tmp_path / "index").replaced) == 12
    assert {(i.label, i.metadata["year"]) for i in Index.load(tmp_path / "index").iter_items()} == {("cap", 2001)}
