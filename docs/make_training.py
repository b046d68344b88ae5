"""Make docs/training-results.md from docs/training.json, which benchmarks/training.py writes.

python docs/make_training.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.training.recipe import Recipe

HERE = Path(__file__).parent
MEASURES = ("precision@3", "hit@1", "map@r")
WAYS = {
    "frozen": "frozen, as it came",
    "head": "head only (`--frozen`)",
    "full": "whole recipe (`train`)",
    "refit": "the same, then `refit`",
    "their-trainer": "pytorch-metric-learning's trainer, minutes of both",
    "ensemble": "ensemble, aligned",
}

_WHOLE = "full-"

_INTRODUCTION = """# Ways of training beside each other

Made by `docs/make_training.py` from `docs/training.json`, which `benchmarks/training.py` writes; not edited by hand.

Figures are on query and gallery: mean over the seeds, and in brackets the largest distance of a seed from it. A seed
decides the validation part, the order, the views and the head. The picture that `trashnet` has twice stays in
training (`--allow-leaks`). Minutes are wall-clock on two cores that did other work too, so that they say an order of
magnitude; those of the whole recipe are without the pass over the training images that *head only* had made before
it. The other trainer had the minutes of *head only* and the whole recipe together; it works in float32, on the same
85 % of the labelled images. Nothing here was trained on all of them but where `refit` stands. What is missing was not
run. What `auto` chose of view and head stands in the JSON. The same seed gives the same figures again on the same
machine; another processor rounds otherwise, and its figures lie as far away as another seed's.
"""

_SHORT = """### Losses in the short form

Three epochs on pictures of 5/7 of the side (160 px), views of 4/5 of that; all else as the recipe has it. Only to be
compared with each other. It is short for losses that compare images: at full length some of them do well (at the end
of this page). Losses with figures equal to the last digit kept none of their fine-tuning: validation preferred the
backbone as it came, with the head that was fitted to it.
"""

_LOSSES = """## Which loss wins where

precision@3 / map@r of every loss, means over the seeds that the tables above name; in bold the best map@r of a column.
With †, validation kept none of the fine-tuning: the figures are those of the backbone as it came, with its best head.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page for what `benchmarks/training.py` kept, by set, backbone, way and seed."""
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for name, row in results.items():
        data, backbone, way, _seed = name.split("/")
        found.setdefault(data, {}).setdefault(backbone, {}).setdefault(way, []).append(row)
    sections = [line for data, own in found.items() for line in _section(data, own)]
    return "\n".join([_INTRODUCTION, *sections, *_losses(found)])


def _section(data: str, backbones: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[str]:
    yield f"## {data}\n"
    every = [
        (backbone, way, alike)
        for backbone, ways in backbones.items()
        for way, rows in ways.items()
        for alike in _alike(rows)
    ]
    long = [row for row in every if row[1] in WAYS or row[1].startswith(_WHOLE)]
    order = [*WAYS, _WHOLE]
    long.sort(key=lambda row: (list(backbones).index(row[0]), order.index(row[1] if row[1] in WAYS else _WHOLE)))
    yield from _table((backbone, _words(way, rows), rows) for backbone, way, rows in long)
    short = [row for row in every if row not in long]
    if short:
        yield _SHORT
        best = sorted(short, key=lambda row: (row[0], -_means(row[2])["map@r"]))
        yield from _table(iter(best))


def _losses(found: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]) -> Iterator[str]:
    columns: dict[str, dict[tuple[str, str], dict[str, Sequence[Any]]]] = {}  # by backbone, set and form, loss
    for data, backbones in found.items():
        for backbone, ways in backbones.items():
            for way, rows in ways.items():
                form, loss = _form_and_loss(way)
                if form:
                    columns.setdefault(backbone, {}).setdefault((data, form), {})[loss] = rows
    columns = {backbone: own for backbone, own in columns.items() if any(len(column) > 1 for column in own.values())}
    if columns:
        yield _LOSSES
    for backbone, own in columns.items():
        sets = [data for data, _ in own]
        order = sorted(own, key=lambda column: (sets.index(column[0]), column[1]))
        yield f"| {_escaped(backbone)} | {' | '.join(f'{data}, {form}' for data, form in order)} |"
        yield f"|:--|{'--:|' * len(order)}"
        for loss in dict.fromkeys(loss for column in order for loss in own[column]):
            yield f"| {loss} | {' | '.join(_cell(loss, own[column]) for column in order)} |"
        yield ""


def _escaped(name: str) -> str:
    return name.replace("_", r"\_")


def _form_and_loss(way: str) -> tuple[str, str]:
    if way == "full" or way.startswith(_WHOLE):
        return "whole recipe", way.removeprefix(_WHOLE) if way != "full" else Recipe().loss
    return ("", "") if way in WAYS else ("short form", way)


def _cell(loss: str, column: Mapping[str, Sequence[Any]]) -> str:
    if loss not in column:
        return "–"
    found = _means(column[loss])
    text = f"{found['precision@3']:.3f} / {found['map@r']:.3f}"
    text += " †" if all(row.get("share") == 0 for row in column[loss]) else ""
    best = max(_means(rows)["map@r"] for rows in column.values())
    return f"**{text}**" if len(column) > 1 and found["map@r"] == best else text


def _alike(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Part ensembles whose members were trained in other ways: they are no seeds of one thing."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get("of", {}).values()), []).append(row)
    yield from groups.values()


def _words(way: str, rows: Sequence[Any]) -> str:
    words = WAYS.get(way, f"whole recipe with `--loss {way.removeprefix(_WHOLE)}`")
    of = rows[0].get("of")
    return f"{words} ({' + '.join(of.values())})" if of else words


def _table(rows: Iterator[tuple[str, str, Sequence[Any]]]) -> Iterator[str]:
    yield f"| backbone | way | {' | '.join(MEASURES)} | minutes | seeds |"
    yield "|:--|:--|--:|--:|--:|--:|--:|"
    for backbone, words, runs in rows:
        means = _means(runs)
        cells = [_with_spread(means[m], [r["measures"][m] for r in runs]) for m in MEASURES]
        minutes = statistics.median(r["minutes"] for r in runs)
        time = f"{minutes:.1f}" if minutes else "–"
        yield f"| {' | '.join([_escaped(backbone), words, *cells, time, str(len(runs))])} |"
    yield ""


def _means(runs: Sequence[Any]) -> dict[str, float]:
    return {m: statistics.fmean(r["measures"][m] for r in runs) for m in MEASURES}


def _with_spread(mean: float, values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} (±{max(abs(v - mean) for v in values):.3f})"


def main() -> None:
    """Write the page."""
    results = json.loads((HERE / "training.json").read_text(encoding="utf-8"))
    (HERE / "training-results.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
