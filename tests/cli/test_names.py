"""File names as people have them: blanks, other alphabets, and bytes that are no text at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest


def test_blanks_and_other_alphabets(world, lookalike):
    Path("фото и видео").mkdir()
    for n in range(3):
        shutil.copy(f"photos/test/gallery/cat{n}.jpg", f"фото и видео/кошка {n}.jpg")
    found = lookalike("index 'фото и видео' --model model --out 'указатель 1'")
    assert (found.code, found.out) == (0, "указатель 1\n")
    assert found.err.splitlines()[-1] == "next: lookalike search 'указатель 1' PICTURE"
    found = lookalike("search 'указатель 1' 'фото и видео/кошка 0.jpg' --json")
    assert found.json["queries"][0]["query"] == "фото и видео/кошка 0.jpg"
    assert "кошка 1.jpg" in found.out  # not escaped
    found = lookalike("search 'указатель 1' 'фото и видео/кошка 0.jpg' -k 1 --html 'найдено 1.html'")
    assert found.code == 0
    assert Path("найдено 1.html").is_file()


def test_a_name_that_is_not_valid_unicode(world, capfdbinary):
    from lookalike.cli.main import run

    name = b"photos/training/cat/c\xffat.jpg"
    try:
        shutil.copy(b"photos/training/cat/cat0.jpg", name)
    except OSError:
        pytest.skip("this file system takes valid Unicode only")
    typed = os.fsdecode(name)

    def bytes_of(*argv: str) -> tuple[int, bytes, bytes]:
        code = run(list(argv))
        return code, *capfdbinary.readouterr()

    code, out, _ = bytes_of("check", "photos", "--no-near", "--json", "--out", "f.json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("f.json").read_text())
    code, out, err = bytes_of("check", "photos", "--no-near", "--clean-manifest", "clean")
    assert code == 0
    assert b"clean manifest" in err  # of two copies the name that text can hold is kept
    Path("photos/training/cat/cat0.jpg").unlink()
    code, out, err = bytes_of("check", "photos", "--no-near", "--clean-manifest", "clean2")
    assert (code, out) == (2, b"")
    assert err.splitlines()[-1] == (
        rb"error: training/cat/c\xffat.jpg is no valid Unicode, so no manifest can name it; rename the file."
    )
    train = "train photos --backbone test_efficientnet --weights small.safetensors --frozen --out new"
    assert bytes_of(*train.split())[0] == 0
    assert bytes_of("index", "photos/training", "--model", "new", "--out", "new.index")[0] == 0
    code, out, _ = bytes_of("search", "new.index", typed, "-k", "1")
    assert (code, out.splitlines()[0]) == (0, name)
    code, out, _ = bytes_of("search", "new.index", typed, "-k", "1", "--json", "--html", "found.html")
    assert (code, json.loads(out)["queries"][0]["query"]) == (0, typed)
    assert Path("found.html").is_file()
