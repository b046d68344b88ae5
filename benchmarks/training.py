"""Train every way beside each other: frozen, head only, the whole recipe, each loss, and another library's trainer.

    python benchmarks/training.py --runs runs/training --weights resnet50=resnet50_imagenet.safetensors
    python docs/make_training.py

Reads the data folders `clothing`, `trashnet` and `caltech` from $LOOKALIKE_SHARED/data (default ../shared/data). Every
figure is added to docs/training.json as it is found; what stands there is not run again (`--again` does). Takes many
hours as a whole on two cores, so say what you want: --only SET, --backbone NAME, --way WAY, --seed N, each repeatable.

Ways:
  frozen      the pretrained backbone with principal components as head
  head        `lookalike train --frozen`
  full        `lookalike train`
  full-LOSS   `lookalike train --loss LOSS`, for another loss than the default
  refit       `lookalike refit` of `full`, on the validation images too
  refit-LOSS  `lookalike refit` of `full-LOSS`
  LOSS        a short recipe (input side 5/7, 3 epochs) with that loss: only for comparison with each other
  their-trainer  pytorch-metric-learning's own trainer on the same images, for as many minutes as `head` and `full`
              took together
  ensemble    of the `full` models of a seed, or `head` where there is no other, aligned
Figures are on query and gallery. Pictures are embedded in bfloat16 where the machine has it.
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
from lookalike.embeddings.fit import fitted_encoder
from lookalike.models.alignment import fit_alignment
from lookalike.models.facts import is_bundle, read_facts
from lookalike.models.pretrained import build_trainable
from lookalike.models.torch_bundle import load_bundle

from lookalike._files import write_json
from lookalike.benchmark.timing import machine
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.models.encoder import Encoder
from lookalike.models.records import read_reports
from lookalike.training.config import Recipe, TrainingOptions
from lookalike.training.context import class_indices, has_unseen_classes
from lookalike.training.losses import LOSSES
from lookalike.training.refit import refit
from lookalike.training.state import autocast
from lookalike.training.train import train
from lookalike.training.train_backbone import fresh_encoder
from rival_trainer import train_with_its_trainer

SETS = ("clothing", "trashnet", "caltech")
BACKBONES = ("efficientnet_lite0", "resnet50")
SHORT = {"epochs": 3, "side": 5 / 7, "resolution": 0.8}
MEASURES = ["precision@3", "hit@1", "map@r"]
RESULTS = Path(__file__).parent.parent / "docs" / "training.json"


@dataclass(frozen=True)
class Case:
    """One run: a set, a backbone with its weights, a way, a seed, and the folder for bundles."""

    name: str
    data: Dataset
    backbone: str
    weights: str | Path
    way: str
    seed: int
    runs: Path

    def bundle(self, way: str) -> Path:
        """Return where the bundle of a way is kept."""
        return self.runs / f"{self.name}-{self.backbone}-{way}-{self.seed}"


class Talk:
    """Prints what is said, and no steps."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def info(self, text: str) -> None:
        """Print a line."""
        print(f"  {text}", flush=True)


def frozen(case: Case) -> tuple[Encoder, dict[str, Any]]:
    member = build_trainable(case.backbone, case.weights, seed=case.seed)
    images = [i for i in case.data.training if i.label is not None]
    with autocast(member.device, "auto"):
        return fitted_encoder([member], images, seed=case.seed), {}


def trained(case: Case, **changes: Any) -> tuple[Encoder, dict[str, Any]]:
    out = case.bundle(case.way)
    options = {"seed": case.seed, "allow_leaks": True, **changes}
    cache = case.runs / "cache"
    encoder = train(
        case.data, case.backbone, weights=case.weights, out=out, resume=True, cache=cache, progress=Talk(), **options
    )
    (report,) = read_reports(read_facts(out))
    assert report is not None and report.measures is not None
    facts = {
        "minutes": report.seconds / 60,  # over all sessions
        "share": report.fine_tuned_share,
        "crop_mode": report.crop_mode,
        "posthoc_head": asdict(report.posthoc_head) if report.posthoc_head else None,
        "validation": asdict(report.measures),
        "training_minutes": sum(epoch.seconds for epoch in report.epochs) / 60,
    }
    if case.way in LOSSES:  # a bundle a loss would fill the disk
        shutil.rmtree(out)
    return encoder, facts


def refitted(case: Case) -> tuple[Encoder, dict[str, Any]]:
    out = case.bundle(case.way)
    given = {"weights": case.weights, "cache": case.runs / "cache", "progress": Talk()}
    encoder = refit(case.data, case.bundle(case.way.replace("refit", "full", 1)), out=out, resume=True, **given)
    return encoder, {"minutes": sum(report.seconds for report in read_reports(read_facts(out)) if report) / 60}


def theirs(case: Case) -> tuple[Encoder, dict[str, Any]]:
    ours = [stored().get(key(case, way)) for way in ("head", "full")]
    if None in ours:
        raise SystemExit("their-trainer gets as many minutes as head and full took: run these first.")
    minutes = sum(row["minutes"] for row in ours if row is not None)
    parts = with_validation(case.data, seed=case.seed)
    items = tuple(i for i in parts.training if i.label is not None)
    options = TrainingOptions(seed=case.seed)
    _, recipe = fresh_encoder(case.backbone, case.weights, options, unseen=has_unseen_classes(parts))
    encoder = train_with_its_trainer(
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


WAYS: dict[str, Callable[[Case], tuple[Encoder, dict[str, Any]]]] = {
    "frozen": frozen,
    "head": lambda case: trained(case, frozen=True),
    "full": trained,
    "refit": refitted,
    "their-trainer": theirs,
    **{f"full-{loss}": lambda case, loss=loss: trained(case, loss=loss) for loss in LOSSES if loss != Recipe().loss},
    **{f"refit-{loss}": refitted for loss in LOSSES if loss != Recipe().loss},
    **{loss: lambda case, loss=loss: trained(case, loss=loss, **SHORT) for loss in LOSSES},
}


def measured(encoder: Encoder, data: Dataset) -> dict[str, float]:
    """Take the measures on query and gallery."""
    with autocast(encoder.members[0].device, "auto"):
        query, gallery = (encoder.embed(part) for part in (data.query, data.gallery))
    labels = [{i.id: i.label for i in part if i.label is not None} for part in (data.query, data.gallery)]
    found = evaluate_embeddings(query, gallery, *labels, MEASURES)
    return {name: found.mean(name) for name in MEASURES}


def key(case: Case, way: str) -> str:
    return "/".join((case.name, case.backbone, way, str(case.seed)))


def stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def keep(name: str, row: Mapping[str, Any]) -> None:
    write_json(RESULTS, {**stored(), name: row})
    shown = " / ".join(f"{row['measures'][m]:.3f}" for m in MEASURES)
    print(f"{name}: {shown}, {row['minutes']:.1f} minutes", flush=True)


def run(case: Case) -> None:
    clock = time.perf_counter()
    encoder, facts = WAYS[case.way](case)
    minutes = (time.perf_counter() - clock) / 60
    row = {"measures": measured(encoder, case.data), "minutes": minutes}
    keep(key(case, case.way), {**row, **facts, "machine": machine()})


def ensembles(cases: list[Case]) -> None:
    """Join the models of a set and a seed, `full` where there is one and else `head`, and measure them together."""
    for (name, seed), group in itertools.groupby(cases, lambda c: (c.name, c.seed)):
        ways: dict[str, str] = {}
        bundles: list[Path] = []
        for case in group:
            way = next((w for w in ("full", "head") if is_bundle(case.bundle(w))), None)
            if way is not None and case.backbone not in ways:
                ways[case.backbone] = way
                bundles.append(case.bundle(way))
        if len(bundles) < 2:
            continue
        data = next(c.data for c in cases if c.name == name)
        members = [load_bundle(b).members[0] for b in bundles]
        images = [i for i in with_validation(data, seed=seed).training if i.label is not None]
        with autocast(members[0].device, "auto"):
            parts = [Encoder([m]).embed(images) for m in members]
        alignments = [None, *(fit_alignment(p.vectors, parts[0].vectors) for p in parts[1:])]
        found = measured(Encoder(members, "aligned", alignments), data)
        keep(
            f"{name}/{'+'.join(m.backbone for m in members)}/ensemble/{seed}",
            {"measures": found, "minutes": 0.0, "of": ways},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs/training"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--way", action="append", choices=[*WAYS, "ensemble"])
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    weights = dict(text.split("=", 1) for text in given.weights)
    ways = given.way or [*WAYS, "ensemble"]
    for seed in given.seed or (0, 1, 2):
        for name in given.only or SETS:
            data = load_dataset(shared / "data" / name)
            cases = [
                Case(name, data, backbone, weights.get(backbone, "pretrained"), way, seed, given.runs)
                for backbone in given.backbone or BACKBONES
                for way in ways
            ]
            for case in cases:
                if case.way != "ensemble" and (given.again or key(case, case.way) not in stored()):
                    if given.again:
                        old = case.bundle(case.way)
                        for folder in (old, old.with_name(f"{old.name}.training")):
                            shutil.rmtree(folder, ignore_errors=True)
                    run(case)
            if "ensemble" in ways:
                ensembles(cases)


if __name__ == "__main__":
    main()
