"""Exact and near duplicates: the hash, the search by bands, and the confirmation by thumbnails."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance

from lookalike.data import duplicates
from lookalike.data.dataset import Item, Split
from lookalike.data.duplicates import Scan, connected, exact_groups, near_links, perceptual_hashes, scan

Photos = dict[str, Image.Image]


def saved(folder: Path, **images: Image.Image | bytes) -> list[Item]:
    """Write images (as PNG) or bytes and return items of those names."""
    items = []
    for name, image in images.items():
        path = folder / f"{name}.png"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
        items.append(Item(name, path, None, Split.GALLERY))
    return items


def pairs(found: Scan) -> set[tuple[str, str]]:
    links = near_links(found, range(len(found.ids)))
    return {(found.ids[first], found.ids[second]) for first, second in links}


def test_scan_keeps_what_can_be_read_and_says_why_of_the_rest(photos: Photos, tmp_path: Path) -> None:
    items = saved(tmp_path, cat=photos["cat"], empty=b"", rocket=photos["rocket"], text=b"x")
    steps: list[tuple[int, int]] = []
    found = scan(items, progress=lambda done, total: steps.append((done, total)))
    assert found.ids == ("cat", "rocket")
    assert {name: skipped.cause for name, skipped in found.skipped.items()} == {
        "empty": "the file is empty",
        "text": "not an image that Pillow can read",
    }
    assert found.skipped["empty"].path == tmp_path / "empty.png"
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.grey.shape == (2, 1024)
    assert found.colour.shape == (2, 192)
    assert found.hashes.shape == (2,)


def test_scan_of_nothing(tmp_path: Path) -> None:
    found = scan(saved(tmp_path, empty=b""))
    assert found.ids == ()
    assert exact_groups(found) == []
    assert near_links(found, []).shape == (0, 2)


def test_exact_is_the_same_pixels_whatever_the_bytes(photos: Photos, tmp_path: Path) -> None:
    cat = photos["cat"]
    other_bytes, bmp = io.BytesIO(), tmp_path / "bmp.bmp"
    cat.save(other_bytes, "PNG", compress_level=0)
    cat.save(bmp)
    changed = cat.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    items = saved(tmp_path, cat=cat, changed=changed, again=cat, stored=other_bytes.getvalue(), coffee=photos["coffee"])
    found = scan([*items, Item("bmp", bmp, None, Split.GALLERY)])
    assert [[found.ids[row] for row in group] for group in exact_groups(found)] == [["cat", "again", "stored", "bmp"]]
    files = dict(zip(found.ids, found.files, strict=True))
    assert files["cat"] == files["again"]
    assert len({files["cat"], files["stored"], files["bmp"]}) == 3
    assert pairs(found) == {("cat", "changed"), ("changed", "again"), ("changed", "stored"), ("changed", "bmp")}


def test_the_same_bytes_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    flat = Image.new("RGB", (6, 4), "red")
    found = scan(saved(tmp_path, wide=flat, tall=flat.resize((4, 6))))
    assert exact_groups(found) == []


def test_hash_agrees_with_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    grey = np.random.default_rng(0).integers(0, 256, (20, 32, 32), np.uint8)
    low = fft.dctn(grey.astype(float), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(20, 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    expected = [int("".join("1" if bit else "0" for bit in row), 2) for row in bits]
    assert perceptual_hashes(grey.reshape(20, 1024)).tolist() == expected


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "recompressed": jpeg,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "square": lambda image: image.resize((100, 100)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "one pixel off": lambda image: image.crop((1, 1, image.width, image.height)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_is_the_same_picture_changed_a_little(photos: Photos, tmp_path: Path, change: str) -> None:
    changed = {f"{name}-changed": CHANGES[change](image) for name, image in photos.items()}
    found = scan(saved(tmp_path, **photos, **changed))
    assert exact_groups(found) == []
    assert pairs(found) == {(name, f"{name}-changed") for name in photos}


def test_another_colour_is_another_thing(tmp_path: Path) -> None:
    """A red and a blue bottle of the same shade on one board have one hash; the colour thumbnails tell them apart."""

    def bottle(colour: tuple[int, int, int]) -> Image.Image:
        image = Image.new("RGB", (96, 96), "white")
        image.paste(colour, (20, 8, 70, 90))
        return image

    red, blue, nearly_red = bottle((200, 0, 0)), bottle((0, 62, 205)), bottle((203, 2, 0))
    found = scan(saved(tmp_path, red=red, blue=blue, nearly=nearly_red))
    assert found.hashes[0] == found.hashes[1]
    assert pairs(found) == {("red", "nearly")}


def test_blank_images_are_never_near(tmp_path: Path) -> None:
    found = scan(saved(tmp_path, white=Image.new("RGB", (9, 9), "white"), paper=Image.new("RGB", (8, 8), "#fefefe")))
    assert pairs(found) == set()


def test_only_the_rows_asked_for_are_compared(photos: Photos, tmp_path: Path) -> None:
    cat = photos["cat"]
    found = scan(saved(tmp_path, a=cat, b=cat.resize((80, 60)), c=cat.resize((90, 60))))
    assert near_links(found, [2, 0]).tolist() == [[0, 2]]
    assert near_links(found, [0, 1, 2]).tolist() == [[0, 1], [0, 2], [1, 2]]


def scattered(n: int) -> npt.NDArray[np.uint64]:
    """Hashes in clouds: flips of a few bits around some centres, so that distances of 0 to 14 are common."""
    chance = np.random.default_rng(1)
    hashes = chance.integers(0, 2**64, 12, np.uint64)[chance.integers(0, 12, n)]
    for _ in range(7):
        hashes = hashes ^ (np.uint64(1) << chance.integers(0, 64, n, np.uint64)) * chance.integers(0, 2, n, np.uint64)
    return hashes


@pytest.mark.parametrize("at_once", [1, 64, 1 << 21], ids=["one row a step", "some rows a step", "all"])
def test_search_by_bands_finds_what_comparing_all_pairs_finds(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    hashes = scattered(160)
    every = {
        (a, b)
        for a, b in combinations(range(160), 2)
        if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= duplicates.MAX_DISTANCE
    }
    rows = np.arange(160)
    got = {(int(a), int(b)) for found in duplicates._candidates(hashes, rows) for a, b in found}
    assert got == every
    assert 500 < len(every) < 160 * 159 // 2


def test_connected() -> None:
    links = np.array([[5, 9], [1, 2], [2, 7], [9, 3], [7, 1]])
    assert connected(links) == [[1, 2, 7], [3, 5, 9]]
    assert connected(np.empty((0, 2), np.int64)) == []
