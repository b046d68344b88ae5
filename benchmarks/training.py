"""Compare training methods: frozen, head only, the whole recipe, each loss, and the trainer of another library.

    python benchmarks/training.py --runs runs/training --weights resnet50=resnet50_imagenet.safetensors
    python docs/make_training.py

Reads the data folders `clothing`, `trashnet` and `caltech` from $LOOKALIKE_SHARED/data (default ../shared/data). Each
result is added to docs/results/training.json at once; a run whose result is there is skipped, except with `--again`.
All of them take many hours on two cores; select some with --only SET, --backbone NAME, --method METHOD and --seed N,
which can be repeated. The methods:

  frozen      the pretrained backbone with principal components as head
  head        `lookalike train --frozen`
  full        `lookalike train`
  full-LOSS   `lookalike train --loss LOSS`, for another loss than the default
  refit       `lookalike refit` of `full`, on the validation images too
  refit-LOSS  `lookalike refit` of `full-LOSS`
  LOSS        a short recipe (input side 5/7, 3 epochs) with that loss: only for comparison with each other
  their-trainer  the trainer of pytorch-metric-learning on the same images, for as many minutes as `head` and `full`
              took together
  ensemble    aligned, of the `full` models of a seed, or of `head` if there is no other
The measures are taken on query and gallery, on the fastest runtime.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from contest import add_out_option, shared_folder
from lookalike._files import write_json
from lookalike.benchmark.timing import machine
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.models.bundle import is_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder
from lookalike.progress import SILENT
from lookalike.runtimes.fit import align, fit_encoder
from lookalike.runtimes.load import load_encoder, load_pretrained
from lookalike.training.config import Recipe, TrainingOptions
from lookalike.training.context import class_indices, labelled
from lookalike.training.losses import LOSSES
from lookalike.training.refit import refit
from lookalike.training.train import train
from lookalike.training.train_backbone import fresh_encoder

SETS = ("clothing", "trashnet", "caltech")
BACKBONES = ("efficientnet_lite0", "resnet50")
SHORT_RECIPE = {"epochs": 3, "side": 5 / 7, "resolution": 0.8}
MEASURES = ["precision@3", "hit@1", "map@r"]
RESULTS = Path(__file__).parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: of the data set.
        data: the data set.
        backbone: its name.
        weights: as in `train`.
        method: one of `METHODS`, or `ensemble`.
        seed: of the run.
        runs: the folder for bundles.
        results: the file for results.
        options: of each training.

    """

    name: str
    data: Dataset
    backbone: str
    weights: str | Path
    method: str
    seed: int
    runs: Path
    results: Path
    options: Mapping[str, Any]

    def bundle(self, method: str) -> Path:
        """Return the folder for the bundle of a method."""
        return self.runs / f"{self.name}-{self.backbone}-{method}-{self.seed}"

    def key(self, method: str) -> str:
        """Return the key of the result of a method."""
        return "/".join((self.name, self.backbone, method, str(self.seed)))


class InfoOnly:
    """Prints messages, but not each step."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def info(self, text: str) -> None:
        """Print a line."""
        print(f"  {text}", flush=True)


Trained = tuple[AnyEncoder, dict[str, Any]]  # and what the result records of the training


def frozen(case: Case) -> Trained:
    images = labelled(case.data.training)
    backbones = [
        (backbone.prepare(images, len(images), SILENT), state)
        for backbone, state in load_pretrained(case.backbone, case.weights, seed=case.seed)
    ]
    return fit_encoder(backbones, images, seed=case.seed, progress=SILENT).encoder, {}


def train_with(case: Case, **overrides: Any) -> Trained:
    out = case.bundle(case.method)
    encoder = train(
        case.data,
        case.backbone,
        weights=case.weights,
        out=out,
        resume=True,
        cache=case.runs / "cache",
        progress=InfoOnly(),
        **{"seed": case.seed, "allow_leaks": True, **case.options, **overrides},
    )
    (report,) = read_bundle_info(out).training
    assert report is not None and report.measures is not None
    facts = {
        "minutes": report.seconds / 60,  # over all sessions
        "share": report.fine_tuned_share,
        "crop_mode": report.crop_mode,
        "posthoc_head": asdict(report.posthoc_head) if report.posthoc_head else None,
        "validation": asdict(report.measures),
        "training_minutes": sum(epoch.seconds for epoch in report.epochs) / 60,
    }
    if case.method in LOSSES:  # one bundle per loss would fill the disk
        encoder.embed([case.data.gallery[0]], progress=SILENT)  # reads the weights before they are deleted
        shutil.rmtree(out)
    return encoder, facts


def refit_bundle(case: Case) -> Trained:
    out = case.bundle(case.method)
    first = case.bundle(case.method.replace("refit", "full", 1))
    options: dict[str, Any] = {"weights": case.weights, "cache": case.runs / "cache", "progress": InfoOnly()}
    encoder = refit(case.data, first, out=out, resume=True, **options)
    return encoder, {"minutes": sum(report.seconds for report in read_bundle_info(out).training if report) / 60}


def train_with_other_trainer(case: Case) -> Trained:
    from rival_trainer import train_with_metric_learning

    results = read_results(case.results)
    rows = [results.get(case.key(method)) for method in ("head", "full")]
    if None in rows:
        raise SystemExit("their-trainer takes as many minutes as head and full; run these first.")
    minutes = sum(row["minutes"] for row in rows if row is not None)
    split = with_validation(case.data, seed=case.seed)
    items = labelled(split.training)
    options = TrainingOptions(seed=case.seed)
    _, recipe = fresh_encoder(case.backbone, case.weights, options, unseen=split.validation_classes_unseen)
    encoder = train_with_metric_learning(
        items,
        class_indices(items),
        case.backbone,
        case.weights,
        lr=recipe.lr,
        head_lr=recipe.head_lr,
        seconds=60 * minutes,
        seed=case.seed,
    )
    return encoder, {}


OTHER_LOSSES = [loss for loss in LOSSES if loss != Recipe().loss]
METHODS: dict[str, Callable[[Case], Trained]] = {
    "frozen": frozen,
    "head": lambda case: train_with(case, frozen=True),
    "full": train_with,
    "refit": refit_bundle,
    "their-trainer": train_with_other_trainer,
    **{f"full-{loss}": lambda case, loss=loss: train_with(case, loss=loss) for loss in OTHER_LOSSES},
    **{f"refit-{loss}": refit_bundle for loss in OTHER_LOSSES},
    **{loss: lambda case, loss=loss: train_with(case, loss=loss, **SHORT_RECIPE) for loss in LOSSES},
}


def measure(encoder: AnyEncoder, data: Dataset) -> dict[str, float]:
    """Return the measures on query and gallery."""
    query, gallery = (encoder.embed(split, progress=SILENT) for split in (data.query, data.gallery))
    evaluation = evaluate_embeddings(query, gallery, data.labels("query"), data.labels("gallery"), MEASURES)
    return {name: evaluation.mean(name) for name in MEASURES}


def read_results(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def add_result(file: Path, name: str, row: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**read_results(file), name: row})
    measures = " / ".join(f"{row['measures'][m]:.3f}" for m in MEASURES)
    print(f"{name}: {measures}, {row['minutes']:.1f} minutes", flush=True)


def run(case: Case) -> None:
    clock = time.perf_counter()
    encoder, facts = METHODS[case.method](case)
    minutes = (time.perf_counter() - clock) / 60
    row = {"measures": measure(encoder, case.data), "minutes": minutes}
    add_result(case.results, case.key(case.method), {**row, **facts, "machine": machine()})


def measure_ensembles(cases: list[Case]) -> None:
    """Combine the `full` models of a set and a seed, or `head` if there is no other, and measure them."""
    for (name, seed), group in itertools.groupby(cases, lambda case: (case.name, case.seed)):
        methods: dict[str, str] = {}
        bundles: list[Path] = []
        for case in group:
            method = next((m for m in ("full", "head") if is_bundle(case.bundle(m))), None)
            if method is not None and case.backbone not in methods:
                methods[case.backbone] = method
                bundles.append(case.bundle(method))
        if len(bundles) < 2:
            continue
        data = next(case.data for case in cases if case.name == name)
        members = [member for bundle in bundles for member in load_encoder(bundle).members]
        images = labelled(with_validation(data, seed=seed).training)
        embeddings = [member.embed(images, progress=SILENT).vectors for member in members]
        measures = measure(align(members, embeddings), data)
        key = f"{name}/{'+'.join(member.name for member in members)}/ensemble/{seed}"
        add_result(cases[0].results, key, {"measures": measures, "minutes": 0.0, "of": methods})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs/training"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--method", action="append", choices=[*METHODS, "ensemble"])
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--max-minutes", type=float, help="limit for each fine-tuning")
    parser.add_argument("--again", action="store_true")
    add_out_option(parser, "docs/results")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    weights = dict(text.split("=", 1) for text in args.weights)
    methods = args.method or [*METHODS, "ensemble"]
    results = (args.out or RESULTS) / "training.json"
    options = {} if args.max_minutes is None else {"max_minutes": args.max_minutes}
    for seed in args.seed or (0, 1, 2):
        for name in args.only or SETS:
            data = load_dataset(shared_folder() / "data" / name)
            cases = [
                Case(
                    name, data, backbone, weights.get(backbone, "pretrained"), method, seed, args.runs, results, options
                )
                for backbone in args.backbone or BACKBONES
                for method in methods
            ]
            for case in cases:
                if case.method != "ensemble" and (args.again or case.key(case.method) not in read_results(results)):
                    if args.again:
                        bundle = case.bundle(case.method)
                        for folder in (bundle, bundle.with_name(f"{bundle.name}.training")):
                            shutil.rmtree(folder, ignore_errors=True)
                    run(case)
            if "ensemble" in methods:
                measure_ensembles(cases)


if __name__ == "__main__":
    main()
