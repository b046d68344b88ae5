"""The vocabulary check: which words it refuses, where, and in which contexts they are right."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def check_words(load_script):
    return load_script("docs/check_words.py")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("each picture\nis told", [(1, "picture"), (2, "told")]),
        ("the file is left\nout", [(1, "left out")]),
        ("300 images a second", [(1, "images a second")]),
        ("x is no bundle; there is no folder", [(1, "is no")]),
        ("lookalike check photos --out x; photos/a.jpg; my photos", [(1, "photos")]),
        ("by pytorch-metric-learning, a metric", [(1, "metric")]),
        ("an image is a candidate per class", []),
    ],
)
def test_text(text, words, check_words):
    assert [(line, word) for line, word, _ in check_words.check_text(text)] == words


def test_python(tmp_path, check_words):
    path = tmp_path / "a.py"
    path.write_text(
        '"""Doc.\n\n    a picture\n"""\n\n# so\n# many\ndef load_photo(): ...\n\n\nPhotoFolder = found = 1\n'
    )
    assert [(line, word) for line, word, _ in check_words.check_file(path)] == [
        (3, "picture"),
        (6, "so many"),
        (8, "photo"),
        (11, "Photo"),
    ]
    assert (11, "found", "what the value holds") in check_words.check_file(path, names=True)
