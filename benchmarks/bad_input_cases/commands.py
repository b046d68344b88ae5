"""Options outside their limits, smaller faults, and what users met in their first hours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bad_input_cases.case import Kind, black_png, classes, image, write

OPTIONS = Kind("Options")
SMALL = Kind("Output, and folders that exist")
FIRST = Kind("First hours")

INDEXED = ["photos", "photos.index"]
SEARCH = "lookalike search photos.index photos/cat/0.jpg"
INDEX = "lookalike index photos.emb --out x.index"
TRAIN = "lookalike train data --out x"
BENCHMARK = "lookalike benchmark data --out x"
EVALUATE = "lookalike evaluate data --model onnx"
SUBMIT = "lookalike submit data --model onnx -k 3 --out "
GREP = " && grep -il '{}' x/leaderboard.{}"

# id, command, facts, what the command uses
REFUSED = (
    ("no-command", "lookalike serch x y", ["search"], []),
    ("an-unknown-option", SEARCH + " --top 3", ["--top"], INDEXED),
    ("no-query", "lookalike search photos.index", ["images"], INDEXED),
    ("a-k-of-zero", SEARCH + " -k 0", ["-k"], INDEXED),
    ("a-negative-k", SEARCH + " -k -3", ["-k"], INDEXED),
    ("a-huge-k", SEARCH + " -k 1000000000000", ["-k", "7"], INDEXED),
    ("a-k-of-text", SEARCH + " -k three", ["-k"], INDEXED),
    ("a-page-without-html", SEARCH + " --html photos/cat/0.jpg", ["--html"], INDEXED),
    ("a-recall-above-1", INDEX + " --min-recall 1.5", ["--min-recall"], ["photos.emb"]),
    ("a-recall-of-nan", INDEX + " --min-recall nan", ["--min-recall"], ["photos.emb"]),
    ("a-memory-of-text", INDEX + " --max-memory much", ["--max-memory"], ["photos.emb"]),
    ("a-memory-of-zero", INDEX + " --max-memory 0", ["--max-memory"], ["photos.emb"]),
    ("a-negative-memory", INDEX + " --max-memory -5MB", ["--max-memory"], ["photos.emb"]),
    ("a-time-of-zero", INDEX + " --max-ms 0", ["--max-ms"], ["photos.emb"]),
    ("an-infinite-time", INDEX + " --max-ms inf", ["--max-ms"], ["photos.emb"]),
    ("no-model", "lookalike index photos --out x.index", ["--model"], ["photos"]),
    ("an-existing-index", "lookalike index photos.emb --out photos.index", ["exists"], ["photos.emb", "photos.index"]),
    ("an-unknown-measure", EVALUATE + " --measure accuracy@x", ["accuracy@x"], ["data", "onnx"]),
    ("a-measure-of-zero", EVALUATE + " -k 0", ["-k"], ["data", "onnx"]),
    ("an-unknown-runtime", EVALUATE + " --runtime tensorrt", ["--runtime", "openvino"], ["data", "onnx"]),
    ("another-runtime-for-an-export", EVALUATE + " --precision bfloat16", ["precision"], ["data", "onnx"]),
    ("an-unknown-field", TRAIN + " --set poling=gem", ["poling"], ["data"]),
    ("a-field-of-another-type", TRAIN + " --set lr=fast", ["lr"], ["data"]),
    ("a-setting-without-a-value", TRAIN + " --set pooling", ["FIELD=VALUE"], ["data"]),
    ("an-unknown-loss", TRAIN + " --loss tripple", ["loss"], ["data"]),
    ("an-unknown-recipe", TRAIN + " --recipe best", ["recipe"], ["data"]),
    ("no-epochs", TRAIN + " --epochs 0", ["--epochs"], ["data"]),
    ("a-negative-learning-rate", TRAIN + " --lr -1", ["--lr"], ["data"]),
    ("a-learning-rate-of-nan", TRAIN + " --lr nan", ["--lr"], ["data"]),
    ("no-minutes", TRAIN + " --max-minutes 0", ["--max-minutes"], ["data"]),
    ("an-unknown-tracker", TRAIN + " --track excel", ["--track"], ["data"]),
    ("no-candidates", BENCHMARK, ["--backbone"], ["data"]),
    ("a-budget-of-zero", BENCHMARK + " --bundle onnx --budget-ms 0", ["--budget-ms"], ["data", "onnx"]),
    ("int8-without-data", "lookalike export model --int8 --out x", ["--data"], ["model"]),
    ("an-export-of-an-export", "lookalike export onnx --out x", ["onnx"], ["onnx"]),
    ("a-deadline-of-text", "lookalike compete data --group us --deadline soon --out x", ["--deadline"], ["data"]),
    ("a-deadline-of-a-second", "lookalike compete data --group us --deadline 1s --out x", ["deadline"], ["data"]),
    ("no-group", "lookalike compete data --out x", ["--group"], ["data"]),
    ("a-submission-of-another-kind", SUBMIT + "s.xlsx", ["--out", "json"], ["data", "onnx"]),
    ("a-post-of-csv", SUBMIT + "s.csv --post https://host.invalid/", ["json"], ["data", "onnx"]),
    ("a-bundle-that-is-an-image", BENCHMARK + " --bundle data/labels.csv", ["labels.csv"], ["data"]),
    ("a-shell-that-does-not-exist", "lookalike completion tcsh", ["bash"], []),
)  # fmt: skip
for name, line, facts, uses in REFUSED:
    OPTIONS.add(name, "As in the command.", line, uses=uses, says=facts, silent=["embedding:"], max_mb=1_000)

# ---------------------------------------------------------------- output, folders that exist


@SMALL.case(
    "lookalike submit data --model onnx -k 3 --out s.csv && grep -c '^=' s.csv",
    uses=["onnx"],
    exit=0,
    says=["^1$"],
)
def a_query_like_a_formula() -> None:
    """A query called `=1+1.jpg` in a submission as CSV, which must hold names as they are."""
    classes("data/test/gallery", {"cat": 3})
    image("data/test/query/=1+1.jpg", 4)
    image("data/test/query/2.jpg", 5)


@SMALL.case("lookalike check data", exit=1, says=["unreadable", "6 of 7"])
def a_png_with_a_hundredth_of_its_rows() -> None:
    """A PNG with a hundredth of its rows among readable images."""
    classes("data", {"cat": 3, "coffee": 3})
    black_png("data/cat/x.png", 1000, 1000, rows=10)


@SMALL.case(
    "lookalike embed photos --model onnx --out photos.index",
    uses=["photos", "onnx", "photos.index"],
    says=["--out"],
    files=["photos.index/index.json"],
)
def embed_onto_an_index() -> None:
    """`embed` with the `--out` of an index."""


@SMALL.case("lookalike embed photos --model model --out photos.emb", uses=["photos", "photos.emb"], says=["photos.emb"])
def embed_onto_embeddings_of_another_model() -> None:
    """`embed` with the embeddings of another model."""
    shutil.copytree(Path(os.environ["BAD_INPUT_BASE"]) / "other", "model")


@SMALL.case("lookalike check photos --clean-manifest photos", uses=["photos"], says=["exists"])
def a_clean_manifest_onto_a_manifest() -> None:
    """`--clean-manifest` with a folder that has a manifest."""
    write("photos/manifest.csv", "path,label,split\ncat/0.jpg,cat,gallery\n")


@SMALL.case("lookalike check data --json | python -m json.tool", exit=0, says=["unreadable"])
def findings_as_json() -> None:
    """A damaged image and a name with quotes and control characters, for `check --json`."""
    classes("data", {"cat": 3, "coffee": 3})
    write('data/cat/a"b\x9b\x1b.jpg', "text")


SMALL.add(
    "a-page-onto-a-page",
    "`search --html` twice with the same file.",
    SEARCH + " --html x.html",
    SEARCH + " --html x.html",
    uses=INDEXED,
    exit=0,
    files=["x.html"],
)
SMALL.add(
    "the-demo-onto-a-folder",
    "`demo --out` with a folder of images.",
    "lookalike demo --out photos",
    uses=["photos"],
    says=["photos"],
    files=["photos/cat/0.jpg"],
)
SMALL.add(
    "a-benchmark-onto-a-folder",
    "`benchmark --out` with a folder of images.",
    "lookalike benchmark data --bundle onnx --out photos",
    uses=["photos", "data", "onnx"],
    says=["--out"],
    files=["photos/cat/0.jpg"],
)
SMALL.skip(
    "Escaping in LaTeX and Markdown tables",
    "needs a benchmark per name; covered by tests/benchmark/test_leaderboard.py",
)

# ---------------------------------------------------------------- first hours

FIRST.add(
    "a-frozen-training-and-its-leaderboard",
    "A head trained on a frozen backbone, in a benchmark: its name says so; tables compare with the winner.",
    "lookalike train data --frozen --out trained",
    BENCHMARK + " --bundle trained --bundle model" + GREP.format("vs winner", "md") + GREP.format("hit@1", "tex"),
    uses=["data", "model"],
    exit=0,
    says=[r"trained \(frozen", r"leaderboard\.md", r"leaderboard\.tex"],
    files=["x/report.html", "x/best/bundle.json"],
    max_mb=3_000,
)  # fmt: skip
FIRST.add(
    "a-validation-that-is-too-small",
    "A benchmark whose validation has too few images per class for a precision@3 of 1.",
    "lookalike benchmark data --bundle onnx --bundle model --out x",
    uses=["data", "onnx", "model"],
    exit=0,
    says=["map@r"],
    max_mb=3_000,
)
FIRST.add(
    "replace-an-index",
    "`index --replace` after an image was added.",
    "cp photos/cat/0.jpg photos/new.jpg; lookalike index photos --model onnx --replace --out photos.index",
    uses=["photos", "onnx", "photos.index"],
    exit=0,
    says=["9 images indexed"],
)
FIRST.add(
    "python-in-a-terminal",
    "`la.embed` from Python in a terminal: it shows its progress.",
    "script -qec \"python -c \\\"import lookalike as la; la.embed('photos', 'onnx', out='x.emb')\\\"\" /dev/null",
    uses=["photos", "onnx"],
    exit=0,
    says=["embedding"],
)
FIRST.add(
    "weights-that-are-missing",
    "`train` with a backbone whose weights are not here: refused before any work, with the flag.",
    "HF_HUB_OFFLINE=1 " + TRAIN + " --backbone resnet50",
    uses=["data"],
    says=["--weights resnet50=FILE"],
    silent=["embedding:", "epoch"],
)
FIRST.add(
    "an-ensemble-alone",
    "`benchmark --backbone A+B` with missing weights of B.",
    "HF_HUB_OFFLINE=1 " + BENCHMARK + " --backbone efficientnet_lite0+resnet50",
    uses=["data"],
    says=["--weights resnet50=FILE"],
    silent=["embedding:"],
)
FIRST.add(
    "the-words-of-measures",
    "`evaluate --help` explains precision@k, hit@k and recall@k.",
    "lookalike evaluate --help",
    exit=0,
    says=["precision@k is", "hit@k is", "recall@k is"],
)
FIRST.add(
    "the-way-to-a-submission",
    "`benchmark` says how to submit.",
    "lookalike benchmark data --bundle onnx --out x",
    uses=["data", "onnx"],
    exit=0,
    says=["lookalike submit"],
    max_mb=3_000,
)
FIRST.add(
    "no-arguments", "`lookalike` alone shows the help.", "lookalike || test $? = 2", exit=0, says=["Usage", "submit"]
)
FIRST.add(
    "a-probability-without-a-calibration",
    "A score that says whether a match is real, of a model without enough validation images for it.",
    SEARCH + " --min-probability 0.5",
    uses=INDEXED,
    says=["--min-probability", "calibration", "20 validation images"],
)
FIRST.add(
    "adding-and-removing-items",
    "An item is removed from an index and added again.",
    "lookalike remove photos.index cat/0.jpg && lookalike add photos.index photos/cat/0.jpg && " + SEARCH + " -k 3",
    uses=INDEXED,
    exit=0,
    says=[r"cat/0\.jpg"],
)
FIRST.skip(
    "Timing of runtimes with a countdown, once per architecture",
    "needs 400 images; measured by benchmarks/embedding.py",
)
FIRST.skip("Numbers of the README, its length, the looks of pages", "texts, which no command shows")
