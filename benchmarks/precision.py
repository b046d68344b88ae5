r"""Accuracy of bfloat16 and int8: measures of retrieval, and how far the embeddings differ from those in float32.

    python benchmarks/precision.py --backbone efficientnet_lite0 --data clothing --data trashnet
    python benchmarks/precision.py --backbone resnet50 --weights resnet50_imagenet.safetensors

For each data set ($LOOKALIKE_SHARED/data) a head is fitted to the frozen backbone on the training images, and the
bundle is exported for OpenVINO in float32, bfloat16 and int8, whatever is lost. The result records what the check of
`lookalike export` measured on the validation split, and whether it refuses the export by default. Queries are searched
in the gallery as `lookalike evaluate` does; cosines are to the float32 embedding of the same image, over all queries
and gallery images.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contest import add_out_option, save_fitted_bundle, save_result, shared_folder

MEASURES = ("precision@3", "hit@1")
PRECISIONS = ("float32", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", action="append", help="the name of a data set; may be repeated")
    parser.add_argument("--precision", action="append", choices=PRECISIONS[1:], help="may be repeated")
    add_out_option(parser)
    args = parser.parse_args()
    from lookalike.benchmark.timing import machine

    precisions = [p for p in PRECISIONS[1:] if p in (args.precision or PRECISIONS)]
    rows = [
        row
        for name in args.data or ("clothing", "trashnet")
        for row in measure(shared_folder() / "data" / name, args.backbone, args.weights, ["float32", *precisions])
    ]
    lost_points = {
        precision: {
            name: 100 * float(np.mean([row["lost"][name] for row in rows if row["precision"] == precision]))
            for name in MEASURES
        }
        for precision in precisions
    }
    for precision, points in lost_points.items():
        print(f"points lost in {precision}, mean of the sets: {', '.join(f'{k} {v:.2f}' for k, v in points.items())}")
    result = {"machine": machine(), "backbone": args.backbone, "rows": rows, "lost_points": lost_points}
    complete = not args.data and not args.precision
    save_result(f"precision-{args.backbone}", result, complete=complete, folder=args.out)


def measure(folder: Path, backbone: str, weights: str, precisions: list[str]) -> list[dict[str, Any]]:
    """Return a row per precision; the first one is float32."""
    from lookalike.api.export import TOLERANCE, export
    from lookalike.data.layouts import load_dataset
    from lookalike.evaluation.evaluation import evaluate_embeddings
    from lookalike.models.bundle import read_bundle_info
    from lookalike.progress import SILENT

    data = load_dataset(folder)
    labels = {item.id: item.label for item in (*data.query, *data.gallery) if item.label is not None}
    rows: list[dict[str, Any]] = []
    float32 = None
    with tempfile.TemporaryDirectory() as work:
        save_fitted_bundle(backbone, weights, data.training, Path(work) / "bundle")
        for precision in precisions:
            encoder = export(
                Path(work) / "bundle",
                out=Path(work) / precision,
                precision=precision,
                data=None if precision == "float32" else data,
                tolerance=math.inf,
                progress=SILENT,
            )
            queries, gallery = (encoder.embed(split, progress=SILENT) for split in (data.query, data.gallery))
            evaluation = evaluate_embeddings(queries, gallery, labels, labels, MEASURES)
            vectors = np.concatenate([queries.vectors, gallery.vectors])
            float32 = vectors if float32 is None else float32
            cosines = (vectors * float32).sum(1)
            means = {name: evaluation.mean(name) for name in MEASURES}
            row = {
                "data": folder.name,
                "precision": precision,
                "queries": len(queries),
                "images": len(vectors),
                **means,
            }
            row |= {"min_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
            loss = read_bundle_info(Path(work) / precision).parity.loss
            if loss is not None:
                row["export_check"] = {**asdict(loss), "passes": loss.difference <= TOLERANCE}
            row["lost"] = {name: (rows[0] if rows else row)[name] - means[name] for name in MEASURES}
            rows.append(row)
            print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
