"""Places that cannot be written and files that are damaged: one sentence, and what was there before stays as it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

CAT = "photos/test/query/cat0.jpg"
TAKEN = "already exists and is left as it is; choose another place or remove it first."
INSIDE = "cannot be written, as photos/labels.csv is not a folder; choose another place."
FULL = "cannot be written (no space left on device); free some space or choose another place."
TRAIN = "train photos --backbone test_efficientnet --weights none --frozen"


def nothing() -> None:
    pass


def write(name: str, text: str):
    return lambda: Path(name).write_text(text)


def of_format(name: str, number: int):
    """Give a description a format number."""
    return lambda: Path(name).write_text(json.dumps({**json.loads(Path(name).read_text()), "format": number}))


def with_other_model() -> None:
    shutil.rmtree("photos.index/model")
    shutil.copytree("other", "photos.index/model")


def changed_weights() -> None:
    shutil.copy("other/model.safetensors", "model/model.safetensors")


CASES = {
    # a place that is taken
    "train onto a bundle": (nothing, f"{TRAIN} --out model", f"model {TAKEN}"),
    "index onto a bundle": (nothing, "index photos.emb --out model", f"model {TAKEN}"),
    "submit onto a file": (
        nothing,
        "submit photos --model model --out photos/labels.csv",
        f"photos/labels.csv {TAKEN}",
    ),
    "findings onto a file": (nothing, "check photos --out photos/labels.csv", f"photos/labels.csv {TAKEN}"),
    "a clean manifest onto one": (
        write("photos/manifest.csv", "path,label,split\n" + CAT.removeprefix("photos/") + ",cat,query\n"),
        "check photos --clean-manifest photos",
        f"photos/manifest.csv {TAKEN}",
    ),
    "a demo onto photographs": (nothing, "demo --out photos", f"photos {TAKEN}"),
    "embed onto a bundle": (
        nothing,
        "embed photos --model model --out other",
        "other already exists and is not an embeddings folder; choose another place.",
    ),
    "a benchmark onto photographs": (
        nothing,
        "benchmark photos --bundle model --out photos",
        "photos is not empty and holds no benchmark; choose another --out.",
    ),
    "embed onto another model's embeddings": (
        nothing,
        "embed photos --model other --out photos.emb",
        "photos.emb holds embeddings made by the model test_efficientnet (…), not by test_efficientnet (…); choose "
        "another place or remove it.",
    ),
    # a place that is none
    "train inside a file": (nothing, f"{TRAIN} --out photos/labels.csv/new", f"photos/labels.csv/new {INSIDE}"),
    "train nowhere": (
        nothing,
        f"{TRAIN} --out ..",
        "--out must be a folder with a name of its own, got ..; write a name after it.",
    ),
    "embed inside a file": (
        nothing,
        "embed photos --model model --out photos/labels.csv/new",
        f"photos/labels.csv/new {INSIDE}",
    ),
    "index inside a file": (nothing, "index photos.emb --out photos/labels.csv/new", f"photos/labels.csv/new {INSIDE}"),
    "submit inside a file": (
        nothing,
        "submit photos --model model --out photos/labels.csv/s.csv",
        f"photos/labels.csv/s.csv {INSIDE}",
    ),
    "a page inside a file": (
        nothing,
        f"search photos.index {CAT} --html photos/labels.csv/found.html",
        f"photos/labels.csv/found.html {INSIDE}",
    ),
    # a bundle that is damaged
    "a bundle of a newer format": (
        of_format("model/bundle.json", 2),
        "evaluate photos --model model",
        "model has bundle format 2, this version reads 1; update lookalike or make the bundle again.",
    ),
    "a bundle with half a description": (
        write("model/bundle.json", "{"),
        "evaluate photos --model model",
        "model/bundle.json is damaged or cannot be read; make the bundle again.",
    ),
    "a bundle without weights": (
        lambda: Path("model/model.safetensors").unlink(),
        "evaluate photos --model model",
        "the weights file model/model.safetensors does not exist; check the path.",
    ),
    "a bundle with half its weights": (
        write("model/model.safetensors", "half"),
        "evaluate photos --model model",
        "model/model.safetensors is corrupt or not a weights file (…); fetch it again.",
    ),
    "a bundle with the weights of another": (
        changed_weights,
        "evaluate photos --model model",
        "model was changed after it was saved (its fingerprint differs); make the bundle again.",
    ),
    # an index that is none
    "an index that is not there": (
        nothing,
        f"search no.index {CAT}",
        "no.index is not an index: it has no index.json; make one with 'lookalike index'.",
    ),
    "a folder that is no index": (
        nothing,
        f"search photos.emb {CAT}",
        "photos.emb is not an index: it has no index.json; make one with 'lookalike index'.",
    ),
    "an index of a newer format": (
        of_format("photos.index/index.json", 2),
        f"search photos.index {CAT}",
        "photos.index has index format 2, this version reads 1; make the index again.",
    ),
    "an index with half its vectors": (
        write("photos.index/index.faiss", "half"),
        f"search photos.index {CAT}",
        "photos.index/index.faiss is missing or damaged; make the index again.",
    ),
    "an index with half its ids": (
        write("photos.index/items.json", '{"ids": ['),
        f"search photos.index {CAT}",
        "the index's items photos.index/items.json cannot be read: …; it must be made again.",
    ),
    "an index without its model": (
        lambda: shutil.rmtree("photos.index/model"),
        f"search photos.index {CAT}",
        "photos.index has no model folder to embed queries with; make the index again.",
    ),
    "an index that another model made": (
        with_other_model,
        f"search photos.index {CAT}",
        "the model in photos.index/model has the fingerprint …, the index was made with the model …; embed both with "
        "one model.",
    ),
    "embeddings that another model made": (
        nothing,
        "index photos.emb --model other --out new",
        "photos.emb was made by the model test_efficientnet (…), not by other; leave out the model, or embed again "
        "with it.",
    ),
    "embeddings that are damaged": (
        write("photos.emb/vectors.npy", "half"),
        "index photos.emb --out new",
        "the embeddings in photos.emb are damaged (vectors.npy: …); remove the folder and embed again.",
    ),
}


@pytest.mark.parametrize(("arrange", "line", "sentence"), CASES.values(), ids=CASES)
def test_bad_storage(arrange, line, sentence, world, refused):
    arrange()
    refused(line, sentence)


WRITING = {
    "train": (f"{TRAIN} --out new", "new.training/cache/…"),
    "embed": ("embed photos --model model --out new", "new/…"),
    "index": ("index photos.emb --out new", "new"),
    "submit": ("submit photos --model model --out s.json", "s.json"),
    "check": ("check photos --out findings.json", "findings.json"),
    "search": (f"search photos.index {CAT} --html found.html", "found.html"),
    "benchmark": ("benchmark photos --bundle model --out new", "new/run.json"),
}


@pytest.mark.parametrize(("line", "place"), WRITING.values(), ids=WRITING)
def test_a_full_disk(line, place, world, refused, monkeypatch):
    def full(*args, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lookalike._files.tempfile.mkstemp", full)
    monkeypatch.setattr("lookalike._files.tempfile.mkdtemp", full)
    refused(line, f"{place} {FULL}")
    assert tempfile.mkdtemp is full


@pytest.mark.parametrize(("line", "place"), WRITING.values(), ids=WRITING)
def test_a_read_only_folder(line, place, world, refused, monkeypatch):
    monkeypatch.setattr(
        "lookalike._files.os.access", lambda path, _mode: Path(path) != Path()
    )  # root may write anywhere
    folder = place.removesuffix("/…").removesuffix(".training/cache")
    refused(line, f"{folder} cannot be written, as the folder . is read-only; choose another place.")


def test_stdout_that_is_full(world):
    import subprocess
    import sys

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "lookalike", "check", "photos", "--no-near", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the output cannot be written (no space left on device); free some space or choose another place."
    )
