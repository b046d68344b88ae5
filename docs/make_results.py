"""Make docs/results.md from docs/results.json, which benchmarks/real_sets.py writes.

python docs/make_results.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.benchmark.leaderboard import Leaderboard, Row
from lookalike.benchmark.leaderboard_files import escape, table, table_line
from lookalike.benchmark.trial import Trial, counted, format_difference, format_estimate, format_ms, measure_label
from lookalike.evaluation.evaluation import Estimate

HERE = Path(__file__).parent
_MISSING = "–"

_INTRODUCTION = """# Results

Made by `docs/make_results.py` from `docs/results.json`, which `benchmarks/real_sets.py` writes; not edited by hand.

Frozen backbones (with a PCA head), fine-tuned ones, and all pairs of them. The winner is selected on a validation split
cut from training; the tables show query and gallery, which no selection used. The training recipe was chosen with
the numbers of `clothing` in view ([log.md](log.md)), so they are optimistic.
These runs use an earlier recipe; the current one is better, most of all on unseen classes:
[training-results.md](training-results.md).
Every mean has its 95 % bootstrap interval over queries. Milliseconds are per image, from file to embedding: one at a
time (median, the medians of decoding and of the model, and 95th percentile), and in batches; memory is the peak of the
measuring process. Trials of the same architectures share one timing.
Rows in italics are the yardstick: the result of the plainest code with the same backbone on the same data.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page for the results that `real_sets.py` stored, by data set."""
    introduction = "\n".join([_INTRODUCTION, *summary(results), ""])
    sections = [introduction, *("\n".join(_section(name, result)) for name, result in results.items())]
    return "\n".join(sections)


def summary(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of the winner on each set with a fine-tuned backbone."""
    lines = [
        "| data | winner | top-3 accuracy | hit@1 | map@r | ms per image | best frozen single model |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for name, result in results.items():
        if not result["training"]:
            continue
        board = leaderboard_of(result)
        winner = board.winner.trial
        trials = [row.trial for row in board.rows]
        frozen = max(_accuracy(board, t) for t in trials if t.kind == "single" and t.state == "frozen")
        means = [f"{board.scores(winner).mean(m):.3f}" for m in (board.measure, "hit@1", "map@r")]
        lines.append(table_line([name, escape(winner.name), *means, format_ms(winner.cost_ms), f"{frozen:.3f}"]))
    return lines


def leaderboard_of(result: Mapping[str, Any]) -> Leaderboard:
    """Return the leaderboard of a data set from its stored rows."""
    rows = []
    for stored in result["rows"]:
        trial = {key: value for key, value in stored.items() if key not in ("winner", "on_front")}
        rows.append(Row(Trial.from_dict(trial), stored["winner"], stored["on_front"]))
    return Leaderboard(result["measured_on"], result["measure"], tuple(rows))


def _accuracy(board: Leaderboard, trial: Trial) -> float:
    return board.scores(trial).mean(board.measure)


def _section(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield "```"
    if result["command"]:
        yield f"$ {result['command']}"
    yield result["description"]["data"]
    yield "```"
    yield ""
    yield f"**Winner: {escape(result['selection']['winner'])}.** {escape(result['selection']['reason'])}"
    yield ""
    board = leaderboard_of(result)
    first = [r for r in board.rows if r.trial.kind == "single" or r.trial.combination == "aligned"]
    yield from _table(board, first, result["yardstick"])
    yield ""
    yield escape(result["caption"])
    yield ""
    yield _machine(result["description"]["machine"], board)
    yield ""
    yield from _significance(result, board)
    yield from _training(result["training"])
    if result["refit"]:
        yield _refit(result["refit"])
        yield ""
    others = [r for r in board.rows if r not in first]
    if others:
        count = counted(len(others), "ensemble", "ensembles")
        yield f"<details><summary>{count} without alignment: average and concat</summary>"
        yield ""
        yield from _table(board, others, {})
        yield ""
        yield "</details>"
        yield ""


def _table(board: Leaderboard, rows: Sequence[Row], yardstick: Mapping[str, Sequence[float]]) -> Iterator[str]:
    accuracy = measure_label(board.measure)
    hidden = ("type", f"validation {accuracy}", "dimensions")
    lines = table(board, rows, hidden=hidden)
    yield next(lines)
    yield next(lines)
    for row, line in zip(rows, lines, strict=True):
        yield line
        if row.trial.name in yardstick:
            means = dict(zip((accuracy, "hit@1", "map@r"), yardstick[row.trial.name], strict=True))
            columns = [name for name in board.columns[1:] if name not in hidden]
            cells = [f"*{means[name]:.3f}*" if name in means else _MISSING for name in columns]
            yield table_line([f"*yardstick for {escape(row.trial.name)}*", *cells])


def _machine(machine: Mapping[str, Any], board: Leaderboard) -> str:
    timing = board.winner.trial.timing
    packages = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm"))
    times = ""
    if timing is not None:
        times = (
            f"{timing.threads} threads on {timing.device}, {timing.images} images one at a time, "
            f"batches of {timing.batch_size}; "
        )
    return f"Machine: {escape(str(machine['processor']))}, {machine['cores']} cores; {times}{packages}."


def _significance(result: Mapping[str, Any], board: Leaderboard) -> Iterator[str]:
    """Report what is significant: fine-tuned ensembles against their members, and the winner against frozen models."""
    trials = {row.trial.name: row.trial for row in board.rows}
    comparisons = result["comparisons"]
    finetuned = [c for c in comparisons if all(m.endswith(" fine-tuned") for m in c["members"])]
    for sentences in (
        _ensemble_sentences(finetuned, trials, board),
        _frozen_sentences(result["against_frozen"], trials, board),
    ):
        yield " ".join(sentences)
        yield ""
    if not comparisons:
        return
    better = sum(c["significant"] and c["difference"] > 0 for c in comparisons)
    worse = sum(c["significant"] and c["difference"] < 0 for c in comparisons)
    yield (
        f"Paired bootstrap over the queries, {board.measure} of an aligned ensemble minus that of its better member: "
        f"of all {len(comparisons)}, {better} significantly better, {worse} significantly worse. Ensembles of two "
        "fine-tuned models:"
    )
    yield ""
    for one in finetuned:
        yield f"- {escape(one['ensemble'])}: {_verdict(one)} {escape(one['better_member'])}, {_evidence(one)}."
    if not finetuned:
        yield "- none."
    yield ""


def _ensemble_sentences(
    finetuned: Sequence[Mapping[str, Any]], trials: Mapping[str, Trial], board: Leaderboard
) -> Iterator[str]:
    """Report whether the aligned ensemble of fine-tuned models beats its better member."""
    if not finetuned:
        yield "Fewer than two backbones were fine-tuned, so there is no fine-tuned ensemble to compare."
        return
    one = max(finetuned, key=lambda c: trials[c["ensemble"]].validation.mean(board.measure))
    best = ", the best on validation" if len(finetuned) > 1 else ""
    beats = f"{'beats' if one['difference'] > 0 else 'does not beat'} its better member, and the difference is "
    beats += "significant" if one["significant"] else "not significant"
    yield (
        f"The aligned ensemble of fine-tuned models{best}, {escape(one['ensemble'])}, {beats}: {board.measure} "
        f"{_accuracy(board, trials[one['ensemble']]):.3f} against "
        f"{_accuracy(board, trials[one['better_member']]):.3f} of {escape(one['better_member'])}, {_evidence(one)}."
    )
    reset = [escape(m) for m in one["members"] if trials[m].state == "frozen"]
    if reset:
        yield f"Validation reset {' and '.join(reset)} to the pretrained weights."


def _frozen_sentences(
    comparisons: Sequence[Mapping[str, Any]], trials: Mapping[str, Trial], board: Leaderboard
) -> Iterator[str]:
    """Report how the winner compares with the best frozen single model, and with its own frozen form."""
    winner = board.winner.trial
    where = "query and gallery" if board.measured_on == "test" else "validation"
    accuracy = _accuracy(board, winner)
    yield f"The winner {escape(winner.name)} has a {board.measure} of {accuracy:.3f} on {where}."
    singles = [c for c in comparisons if trials[c["frozen"]].kind == "single"]
    best = max(singles, key=lambda c: _accuracy(board, trials[c["frozen"]]), default=None)
    frozen_form = next((c for c in comparisons if c["own_frozen_form"]), None)
    is_frozen_single = winner.kind == "single" and winner.state == "frozen"
    if is_frozen_single and (best is None or _accuracy(board, trials[best["frozen"]]) <= accuracy):
        yield "It is the best frozen single model itself."
    elif best is not None:
        which = "the best frozen single model on these queries"
        yield _comparison(best, trials, board, which + (", its own frozen form" if best is frozen_form else ""))
    if frozen_form is not None and frozen_form is not best:
        yield _comparison(frozen_form, trials, board, "its own frozen form")
    elif frozen_form is None and winner.state == "frozen" and not is_frozen_single:
        yield "None of its members is fine-tuned."


def _comparison(one: Mapping[str, Any], trials: Mapping[str, Trial], board: Leaderboard, which: str) -> str:
    accuracy = _accuracy(board, trials[one["frozen"]])
    return f"It is {_verdict(one)} {which}, {escape(one['frozen'])} with {accuracy:.3f}: {_evidence(one)}."


def _verdict(comparison: Mapping[str, Any]) -> str:
    if not comparison["significant"]:
        return "not significantly different from"
    return f"significantly {'better' if comparison['difference'] > 0 else 'worse'} than"


def _evidence(comparison: Mapping[str, Any]) -> str:
    difference, low, high = (format_difference(comparison[key]) for key in ("difference", "low", "high"))
    queries = counted(comparison["queries"], "query", "queries")
    return f"{difference} (95% interval of the paired bootstrap {low} to {high}, {queries})"


def _training(reports: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Report what fine-tuning did to each backbone, and how long it took."""
    if not reports:
        return
    measure = reports[0]["measure"]
    yield "Effect of fine-tuning, by the validation measure of early stopping:"
    yield ""
    header = ("backbone", "share of fine-tuned weights", "epochs", "seconds")
    header += (f"{measure} frozen", "with a trained head", "fine-tuned")
    yield table_line(header)
    yield f"|{'|'.join([':--', *['--:'] * (len(header) - 1)])}|"
    for report in reports:
        share = "head only" if report["share"] is None else f"{report['share']:.0%}"
        stages = (report["validation"].get(stage) for stage in ("frozen", "head", "fine_tuned"))
        values = [_MISSING if value is None else f"{value:.3f}" for value in stages]
        yield table_line(
            [escape(report["backbone"]), share, str(report["epochs"]), f"{report['seconds']:.0f}", *values]
        )
    yield ""


def _refit(refit: Mapping[str, Any]) -> str:
    measures = ", ".join(
        f"{name} {format_estimate(Estimate(**estimate))}" for name, estimate in refit["measures"].items()
    )
    return (
        f"{escape(refit['model'])}, trained again by `lookalike refit` on all {refit['images']:,} labelled images, "
        f"validation included ({refit['seconds']:.0f} s): {measures}. It has no validation accuracy, so it takes no "
        "part in the selection."
    )


def main() -> None:
    """Write docs/results.md."""
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    (HERE / "results.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
