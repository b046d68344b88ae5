"""Make docs/results.md from docs/results.json, which benchmarks/real_sets.py writes.

python docs/make_results.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lookalike.benchmark.leaderboard import Leaderboard, Row
from lookalike.benchmark.markdown import escape, table, table_line
from lookalike.benchmark.trial import counted, interval_text, measure_label, ms_text, signed_text

HERE = Path(__file__).parent
_ABSENT = "–"

_INTRODUCTION = """# Results

Made by `docs/make_results.py` from `docs/results.json`, which `benchmarks/real_sets.py` writes; not edited by hand.

Backbones as they came (*frozen*, with principal components as their head) and fine-tuned, and every pair of these. The
choice is made on a validation part cut from training; the tables show query and gallery, which no model was chosen by.
The training recipe was picked with those of `clothing` in sight ([log.md](log.md)), so that they flatter it there.
These runs are of an earlier recipe; the present one is better, most of all on unseen classes:
[training-results.md](training-results.md).
Every mean stands with its 95 % bootstrap interval over queries. Milliseconds are of one image, from file to embedding:
one at a time (median, the medians of decoding and of the model apart, and 95th percentile), and in batches; memory is
the largest that the measuring process had. Trials of the same architectures share one measurement of time.
Rows in italics are the yardstick: what the plainest code reached with the same backbone on the same data.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page for what `real_sets.py` kept, by data set."""
    introduction = "\n".join([_INTRODUCTION, *summary(results), ""])
    sections = [introduction, *("\n".join(_section(name, found)) for name, found in results.items())]
    return "\n".join(sections)


def summary(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of what was chosen on each set that something was fine-tuned on."""
    rows = [
        "| data | chosen | top-3 accuracy | hit@1 | map@r | ms an image | best frozen single model |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for name, found in results.items():
        if not found["training"]:
            continue
        winner = next(r for r in found["rows"] if r["winner"])
        frozen = max(r["accuracy"] for r in found["rows"] if r["kind"] == "single" and r["trained"] == "frozen")
        cells = [name, escape(winner["model"]), *(f"{winner[key]:.3f}" for key in ("accuracy", "hit_1", "map_r"))]
        rows.append(f"| {' | '.join([*cells, ms_text(winner['p50_ms']), f'{frozen:.3f}'])} |")
    return rows


def _section(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield "```"
    if found["command"]:
        yield f"$ {found['command']}"
    yield found["context"]["data"]
    yield "```"
    yield ""
    yield f"**Chosen: {escape(found['choice']['winner'])}.** {escape(found['choice']['reason'])}"
    yield ""
    board = _board(found)
    first = {r["model"] for r in found["rows"] if r["kind"] == "single" or r["combine"] == "aligned"}
    yield from _table(board, [r for r in board.rows if r.model in first], found["yardstick"])
    yield ""
    yield escape(found["caption"])
    yield ""
    yield _machine(found)
    yield ""
    yield from _significance(found)
    yield from _training(found["training"])
    if found["refit"]:
        yield _refit(found["refit"])
        yield ""
    others = [r for r in board.rows if r.model not in first]
    if others:
        count = counted(len(others), "ensemble", "ensembles")
        yield f"<details><summary>{count} without alignment: plain average, and end to end</summary>"
        yield ""
        yield from _table(board, others, {})
        yield ""
        yield "</details>"
        yield ""


def _board(found: Mapping[str, Any]) -> Leaderboard:
    names = [field.name for field in fields(Row)]
    rows = tuple(Row(**{name: row[name] for name in names}) for row in found["rows"])
    return Leaderboard(found["part"], found["measure"], found["caption"], rows)


def _table(board: Leaderboard, rows: Sequence[Row], yardstick: Mapping[str, Sequence[float]]) -> Iterator[str]:
    accuracy = measure_label(board.measure)
    without = ("type", f"validation {accuracy}", "dimensions")
    lines = table(board, rows, without=without)
    yield next(lines)
    yield next(lines)
    for row, line in zip(rows, lines, strict=True):
        yield line
        if row.model in yardstick:
            known = dict(zip((accuracy, "hit@1", "map@r"), yardstick[row.model], strict=True))
            shown = [name for name in board.file_header[1:] if name not in without]
            figures = [f"*{known[name]:.3f}*" if name in known else _ABSENT for name in shown]
            yield table_line([f"*yardstick for {escape(row.model)}*", *figures])


def _machine(found: Mapping[str, Any]) -> str:
    machine, timing = found["context"]["machine"], found["timing"]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm"))
    return (
        f"Machine: {escape(str(machine['processor']))}, {machine['cores']} cores; {timing['threads']} threads on "
        f"{timing['device']}, {timing['images']} images one at a time, batches of {timing['batch_size']}; {packages}."
    )


def _significance(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what is significant: fine-tuned ensembles against their members, and the chosen one against frozen ones."""
    rows = {row["model"]: row for row in found["rows"]}
    measure, comparisons = found["measure"], found["comparisons"]
    tuned = [c for c in comparisons if all(m.endswith(" fine-tuned") for m in c["members"])]
    for sentences in (_ensemble(tuned, rows, measure), _against_frozen(found, rows)):
        yield " ".join(sentences)
        yield ""
    if not comparisons:
        return
    better = sum(c["significant"] and c["difference"] > 0 for c in comparisons)
    worse = sum(c["significant"] and c["difference"] < 0 for c in comparisons)
    yield (
        f"Paired bootstrap on the queries, {measure} of an aligned ensemble less that of the better of its members: of "
        f"all {len(comparisons)}, {better} significantly better, {worse} significantly worse. Of two fine-tuned models:"
    )
    yield ""
    for one in tuned:
        yield f"- {escape(one['ensemble'])}: {_verdict(one)} {escape(one['better_member'])}, {_evidence(one)}."
    if not tuned:
        yield "- there is none."
    yield ""


def _ensemble(tuned: Sequence[Mapping[str, Any]], rows: Mapping[str, Any], measure: str) -> Iterator[str]:
    """Say whether the aligned ensemble of fine-tuned models beats the better of its members."""
    if not tuned:
        yield "No two backbones were fine-tuned, so that there is no fine-tuned ensemble to compare with its members."
        return
    one = max(tuned, key=lambda c: rows[c["ensemble"]]["validation"])
    best = ", the best on validation" if len(tuned) > 1 else ""
    beats = f"{'beats' if one['difference'] > 0 else 'does not beat'} the better of its members, and the difference is "
    beats += "significant" if one["significant"] else "not significant"
    yield (
        f"The aligned ensemble of fine-tuned models{best}, {escape(one['ensemble'])}, {beats}: {measure} "
        f"{rows[one['ensemble']]['accuracy']:.3f} against {rows[one['better_member']]['accuracy']:.3f} of "
        f"{escape(one['better_member'])}, {_evidence(one)}."
    )
    kept = [escape(m) for m in one["members"] if rows[m]["trained"] == "frozen"]
    if kept:
        yield f"Validation kept the original weights of {' and '.join(kept)}."


def _against_frozen(found: Mapping[str, Any], rows: Mapping[str, Any]) -> Iterator[str]:
    """Say how the chosen model compares with the best frozen single one, and with its own frozen form."""
    winner, compared = rows[found["choice"]["winner"]], found["against_frozen"]
    name, measure = escape(winner["model"]), found["measure"]
    where = "query and gallery" if found["part"] == "test" else "validation"
    yield f"The chosen {name} has a {measure} of {winner['accuracy']:.3f} on {where}."
    singles = [c for c in compared if rows[c["frozen"]]["kind"] == "single"]
    best = max(singles, key=lambda c: rows[c["frozen"]]["accuracy"], default=None)
    own = next((c for c in compared if c["own_form"]), None)
    frozen_single = winner["kind"] == "single" and winner["trained"] == "frozen"
    if frozen_single and (best is None or rows[best["frozen"]]["accuracy"] <= winner["accuracy"]):
        yield "It is the best of the frozen single models itself."
    elif best is not None:
        which = "the best frozen single model on these queries" + (", its own frozen form" if best is own else "")
        yield _against(best, rows, which)
    if own is not None and own is not best:
        yield _against(own, rows, "its own frozen form")
    elif own is None and winner["trained"] == "frozen" and not frozen_single:
        yield "None of its members is fine-tuned."


def _against(one: Mapping[str, Any], rows: Mapping[str, Any], which: str) -> str:
    accuracy = rows[one["frozen"]]["accuracy"]
    return f"It is {_verdict(one)} {which}, {escape(one['frozen'])} with {accuracy:.3f}: {_evidence(one)}."


def _verdict(found: Mapping[str, Any]) -> str:
    if not found["significant"]:
        return "not significantly different from"
    return f"significantly {'better' if found['difference'] > 0 else 'worse'} than"


def _evidence(found: Mapping[str, Any]) -> str:
    low, high = signed_text(found["low"]), signed_text(found["high"])
    queries = counted(found["queries"], "query", "queries")
    return f"{signed_text(found['difference'])} (95% interval of the paired bootstrap {low} to {high}, {queries})"


def _training(reports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what fine-tuning did to each backbone, and how long it took."""
    if not reports:
        return
    yield "What fine-tuning did, by the validation measure that it is stopped by:"
    yield ""
    measure = reports[0]["measure"]
    header = ("backbone", "fine-tuned weights kept", "epochs", "seconds")
    header += (f"{measure} as it came", "with a trained head", "fine-tuned")
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join([':--', *['--:'] * (len(header) - 1)])}|"
    for report in reports:
        share = "head only" if report["share"] is None else f"{report['share']:.0%}"
        found = (report["validation"].get(stage) for stage in ("frozen", "head", "fine-tuned"))
        measures = [_ABSENT if value is None else f"{value:.3f}" for value in found]
        cells = [escape(report["backbone"]), share, str(report["epochs"]), f"{report['seconds']:.0f}", *measures]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _refit(refit: Mapping[str, Any]) -> str:
    measures = ", ".join(f"{name} {interval_text(found)}" for name, found in refit["measures"].items())
    return (
        f"{escape(refit['model'])}, trained again by `lookalike refit` on all {refit['images']:,} labelled images, "
        f"the validation part included ({refit['seconds']:.0f} s): {measures}. It has no validation accuracy, so "
        "that it takes no part in the choice."
    )


def main() -> None:
    """Write docs/results.md."""
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    (HERE / "results.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
