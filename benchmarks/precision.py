r"""What bfloat16 and int8 cost: the measures of retrieval, and how far embeddings move.

    python benchmarks/precision.py --backbone efficientnet_lite0 --data clothing --data trashnet
    python benchmarks/precision.py --backbone resnet50 --weights resnet50_imagenet.safetensors

For each data set ($LOOKALIKE_SHARED/data) a head is fitted to the frozen backbone on the training images, and the
bundle is exported for OpenVINO in float32, bfloat16 and int8, however many points that loses; whether the gate of
`lookalike export` would have refused it, as it stands by default, is kept with what it measured on the validation part.
Queries are searched for in the gallery, as `lookalike evaluate` does; cosines are to the float32 embedding of the same
picture, of all queries and gallery images.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from contest import keep, shared_folder

MEASURES = ("precision@3", "hit@1")
PRECISIONS = ("float32", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", action="append", help="of clothing and trashnet; may be repeated")
    given = parser.parse_args()
    from lookalike.benchmark.timing import machine

    rows = [
        row
        for name in given.data or ("clothing", "trashnet")
        for row in measured(shared_folder() / "data" / name, given.backbone, given.weights)
    ]
    lost = {
        precision: {
            name: 100 * float(np.mean([row["lost"][name] for row in rows if row["precision"] == precision]))
            for name in MEASURES
        }
        for precision in PRECISIONS[1:]
    }
    for precision, own in lost.items():
        print(f"{precision} loses, mean of the sets, in points: {', '.join(f'{k} {v:.2f}' for k, v in own.items())}")
    result = {"machine": machine(), "backbone": given.backbone, "rows": rows, "lost_points": lost}
    keep(f"precision-{given.backbone}", result, whole=not given.data)


def measured(folder: Path, backbone: str, weights: str) -> list[dict[str, Any]]:
    """Return a row for each precision."""
    from lookalike.embeddings.fit import fitted_encoder
    from lookalike.models.facts import read_facts
    from lookalike.models.pretrained import build_trainable
    from lookalike.models.torch_bundle import save_bundle

    from lookalike.api.export import TOLERANCE, export
    from lookalike.data.layouts import load_dataset
    from lookalike.evaluation.evaluation import evaluate_embeddings

    data = load_dataset(folder)
    labels = {item.id: item.label for item in (*data.query, *data.gallery)}
    rows: list[dict[str, Any]] = []
    exact = None
    with tempfile.TemporaryDirectory() as work:
        save_bundle(fitted_encoder([build_trainable(backbone, weights)], data.training), Path(work) / "bundle")
        for precision in PRECISIONS:
            encoder = export(
                Path(work) / "bundle",
                out=Path(work) / precision,
                precision=precision,
                data=None if precision == "float32" else data,
                tolerance=math.inf,
            )
            queries, gallery = encoder.embed(data.query), encoder.embed(data.gallery)
            found = evaluate_embeddings(queries, gallery, labels, labels, MEASURES)
            vectors = np.concatenate([queries.vectors, gallery.vectors])
            exact = vectors if exact is None else exact
            cosines = (vectors * exact).sum(1)
            means = {name: found.mean(name) for name in MEASURES}
            row = {
                "data": folder.name,
                "precision": precision,
                "queries": len(queries),
                "images": len(vectors),
                **means,
            }
            row |= {"min_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
            loss = read_facts(Path(work) / precision)["parity"]["loss"]
            if loss is not None:
                row["gate"] = {**loss, "passes": loss["difference"] <= TOLERANCE}
            row["lost"] = {name: (rows[0] if rows else row)[name] - means[name] for name in MEASURES}
            rows.append(row)
            print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
