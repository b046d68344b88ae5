"""Exact and near duplicates: the hash, the search by bands, the confirmation by thumbnails; leaks."""

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
from lookalike.data.duplicates import (
    Scan,
    connected_groups,
    exact_groups,
    find_leaks,
    near_pairs,
    perceptual_hashes,
    require_no_leaks,
    scan,
)
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError
from lookalike.progress import SILENT

Images = dict[str, Image.Image]


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


def named_pairs(scanned: Scan) -> set[tuple[str, str]]:
    pairs = near_pairs(scanned, range(len(scanned.ids)))
    return {(scanned.ids[first], scanned.ids[second]) for first, second in pairs}


def test_scan_reports_unreadable_files(sample_images: Images, tmp_path: Path, recording_progress) -> None:
    items = saved(tmp_path, cat=sample_images["cat"], empty=b"", rocket=sample_images["rocket"], text=b"x")
    progress = recording_progress()
    scanned = scan(items, progress)
    assert scanned.ids == ("cat", "rocket")
    assert {name: skipped.cause for name, skipped in scanned.skipped.items()} == {
        "empty": "the file is empty",
        "text": "not an image that Pillow can read",
    }
    assert scanned.skipped["empty"].path == tmp_path / "empty.png"
    assert progress.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert scanned.grey.shape == (2, 1024)
    assert scanned.colour.shape == (2, 192)
    assert scanned.hashes.shape == (2,)


def test_scan_of_nothing(tmp_path: Path) -> None:
    scanned = scan(saved(tmp_path, empty=b""), SILENT)
    assert scanned.ids == ()
    assert exact_groups(scanned) == []
    assert near_pairs(scanned, []).shape == (0, 2)


@pytest.mark.parametrize("pixels", [100, duplicates._HASHED_PIXELS])  # less than a row, all at once
def test_exact_is_the_same_pixels_whatever_the_bytes(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    monkeypatch.setattr(duplicates, "_HASHED_PIXELS", pixels)
    cat = sample_images["cat"]
    other_bytes, bmp = io.BytesIO(), tmp_path / "bmp.bmp"
    cat.save(other_bytes, "PNG", compress_level=0)
    cat.save(bmp)
    changed = cat.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    items = saved(
        tmp_path, cat=cat, changed=changed, again=cat, stored=other_bytes.getvalue(), coffee=sample_images["coffee"]
    )
    scanned = scan([*items, Item("bmp", bmp, None, Split.GALLERY)], SILENT)
    assert [[scanned.ids[row] for row in group] for group in exact_groups(scanned)] == [
        ["cat", "again", "stored", "bmp"]
    ]
    assert named_pairs(scanned) == {("cat", "changed"), ("changed", "again"), ("changed", "stored"), ("changed", "bmp")}


def test_the_same_bytes_in_another_shape_are_another_image(tmp_path: Path) -> None:
    flat = Image.new("RGB", (6, 4), "red")
    scanned = scan(saved(tmp_path, wide=flat, tall=flat.resize((4, 6))), SILENT)
    assert exact_groups(scanned) == []


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
def test_a_slightly_changed_image_is_near(sample_images: Images, tmp_path: Path, change: str) -> None:
    changed = {f"{name}-changed": CHANGES[change](image) for name, image in sample_images.items()}
    scanned = scan(saved(tmp_path, **sample_images, **changed), SILENT)
    assert exact_groups(scanned) == []
    assert named_pairs(scanned) == {(name, f"{name}-changed") for name in sample_images}


def test_another_colour_is_not_near(tmp_path: Path) -> None:
    """A red and a blue bottle of the same shade on one board have one hash; the colour thumbnails differ."""

    def bottle(colour: tuple[int, int, int]) -> Image.Image:
        image = Image.new("RGB", (96, 96), "white")
        image.paste(colour, (20, 8, 70, 90))
        return image

    red, blue, nearly_red = bottle((200, 0, 0)), bottle((0, 62, 205)), bottle((203, 2, 0))
    scanned = scan(saved(tmp_path, red=red, blue=blue, nearly=nearly_red), SILENT)
    assert scanned.hashes[0] == scanned.hashes[1]
    assert named_pairs(scanned) == {("red", "nearly")}


def test_blank_images_are_never_near(tmp_path: Path) -> None:
    scanned = scan(
        saved(tmp_path, white=Image.new("RGB", (9, 9), "white"), paper=Image.new("RGB", (8, 8), "#fefefe")), SILENT
    )
    assert named_pairs(scanned) == set()


def test_only_the_requested_rows_are_compared(sample_images: Images, tmp_path: Path) -> None:
    cat = sample_images["cat"]
    scanned = scan(saved(tmp_path, a=cat, b=cat.resize((80, 60)), c=cat.resize((90, 60))), SILENT)
    assert near_pairs(scanned, [2, 0]).tolist() == [[0, 2]]
    assert near_pairs(scanned, [0, 1, 2]).tolist() == [[0, 1], [0, 2], [1, 2]]


def scattered(n: int) -> npt.NDArray[np.uint64]:
    """Hashes with a few flipped bits around some centres, so that distances of 0 to 14 are common."""
    chance = np.random.default_rng(1)
    hashes = chance.integers(0, 2**64, 12, np.uint64)[chance.integers(0, 12, n)]
    for _ in range(7):
        hashes = hashes ^ (np.uint64(1) << chance.integers(0, 64, n, np.uint64)) * chance.integers(0, 2, n, np.uint64)
    return hashes


@pytest.mark.parametrize("limit", [1, 64, 1 << 21], ids=["one row per step", "some rows per step", "all"])
def test_the_search_by_bands_finds_all_pairs(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(duplicates, "_PAIRS", limit)
    hashes = scattered(160)
    expected = {
        (a, b)
        for a, b in combinations(range(160), 2)
        if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= duplicates.MAX_DISTANCE
    }
    rows = np.arange(160)
    pairs = {(int(a), int(b)) for block in duplicates._candidates(hashes, rows) for a, b in block}
    assert pairs == expected
    assert 500 < len(expected) < 160 * 159 // 2


def test_connected_groups() -> None:
    pairs = np.array([[5, 9], [1, 2], [2, 7], [9, 3], [7, 1]])
    assert connected_groups(pairs) == [[1, 2, 7], [3, 5, 9]]
    assert connected_groups(np.empty((0, 2), np.int64)) == []


@pytest.fixture
def folder(sample_images, tmp_path):
    """Two classes of two training crops, and other crops in query and gallery."""
    root = tmp_path / "photos"
    for label in ("cat", "coffee"):
        for split, number in (("training", 0), ("training", 1), ("test/query", 2), ("test/gallery", 3)):
            path = root / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sample_images[label].crop((20 * number, 10, 20 * number + 64, 58)).save(path)
    return root


def leaked_ids(root):
    return [tuple(i.id for i in group) for group in find_leaks(load_dataset(root), SILENT)]


def test_different_images_of_the_same_size_do_not_leak(folder):
    assert leaked_ids(folder) == []
    require_no_leaks(load_dataset(folder), allowed=False, progress=SILENT)


def test_copies_inside_training_do_not_leak(folder):
    (folder / "training/cat/copy.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    assert leaked_ids(folder) == []


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_the_same_pixels_in_another_file_and_class_are_a_leak(suffix, folder):
    with Image.open(folder / "training/cat/1.png") as image:
        image.save(folder / f"test/gallery/coffee/again{suffix}")
    assert leaked_ids(folder) == [("training/cat/1.png", f"test/gallery/coffee/again{suffix}")]


def test_a_leak_with_another_exif_orientation(folder):
    with Image.open(folder / "training/cat/1.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 8  # rotated by 90 degrees when shown
        image.transpose(Image.Transpose.ROTATE_270).save(folder / "test/query/cat/turned.png", exif=exif)
    assert leaked_ids(folder) == [("training/cat/1.png", "test/query/cat/turned.png")]


def test_unreadable_files_are_skipped(folder):
    (folder / "training/cat/broken.png").write_bytes(b"not an image")
    whole = (folder / "training/cat/0.png").read_bytes()
    (folder / "test/query/cat/cut.png").write_bytes(whole[: len(whole) // 2])
    assert leaked_ids(folder) == []


def test_leaks_are_refused_by_name(folder):
    for number in (0, 1):
        whole = (folder / f"training/cat/{number}.png").read_bytes()
        (folder / f"test/gallery/cat/same{number}.png").write_bytes(whole)
    with pytest.raises(DataError) as raised:
        require_no_leaks(load_dataset(folder), allowed=False, progress=SILENT)
    assert raised.value.argument == "allow_leaks"
    assert "2 training images" in str(raised.value)
    for number in (0, 1):
        assert f"training/cat/{number}.png = test/gallery/cat/same{number}.png" in str(raised.value)


def test_the_clean_manifest_has_no_leaks(folder, tmp_path):
    from lookalike.data.check import check

    (folder / "test/gallery/cat/same.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    check(folder, clean_manifest=tmp_path / "clean" / "manifest.csv")
    require_no_leaks(load_dataset(tmp_path / "clean"), allowed=False, progress=SILENT)


def test_allowed_leaks_are_reported(folder, recording_progress):
    (folder / "test/gallery/cat/same.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    progress = recording_progress()
    require_no_leaks(load_dataset(folder), allowed=True, progress=progress)
    (text,) = progress.messages
    assert "1 training image " in text
    assert "training/cat/0.png = test/gallery/cat/same.png" in text
