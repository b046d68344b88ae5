"""Make docs/results.md from docs/results.json, which benchmarks/real_sets.py writes.

python docs/make_results.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.bench.markdown import escape
from lookalike.bench.trial import ms_text

HERE = Path(__file__).parent
_ABSENT = "–"
_FIGURES = ("hit@3", "hit@1", "map@r", "ms p50", "ms p95", "ms batched", "memory MB")

_INTRODUCTION = """# Results

Made by `docs/make_results.py` from `docs/results.json`, which `benchmarks/real_sets.py` writes; not edited by hand.

Every backbone as it came (*frozen*, with principal components as its head) and fine-tuned, and every pair of these. The
choice is made on a validation part cut from training; the tables show query and gallery, which nothing was chosen by.
Milliseconds are of one image, from file to embedding: one at a time (median and 95th percentile), and in batches;
memory is the largest that the measuring process had. Trials of the same architectures share one measurement of time.
Rows in italics are the yardstick: what the plainest code reached with the same backbone on the same data.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page for what `real_sets.py` kept, by data set."""
    sections = [_INTRODUCTION, *("\n".join(_section(name, found)) for name, found in results.items())]
    return "\n".join(sections)


def _section(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield "```"
    yield found["context"]["data"]
    yield "```"
    yield ""
    yield f"**Chosen: {escape(found['choice']['winner'])}.** {escape(found['choice']['reason'])}"
    yield ""
    first = [r for r in found["rows"] if r["kind"] == "single" or r["combine"] == "aligned"]
    yield from _table(first, found["measure"], found["yardstick"])
    yield ""
    yield escape(found["caption"])
    yield ""
    yield _machine(found)
    yield ""
    yield from _significance(found["comparisons"], found["measure"])
    yield ""
    yield from _training(found["training"])
    others = [r for r in found["rows"] if r not in first]
    if others:
        yield f"<details><summary>{len(others)} ensembles without alignment: plain average, and end to end</summary>"
        yield ""
        yield from _table(others, found["measure"], {})
        yield ""
        yield "</details>"
        yield ""


def _table(rows: Iterable[Mapping[str, Any]], measure: str, yardstick: Mapping[str, Sequence[float]]) -> Iterator[str]:
    header = ("model", measure, "95% interval", *_FIGURES)
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join([':--', *['--:'] * (len(header) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(_cells(row))} |"
        if row["model"] in yardstick:
            accuracy, hit_1, map_r = (f"*{value:.3f}*" for value in yardstick[row["model"]])
            cells = [f"*yardstick for {escape(row['model'])}*", accuracy, _ABSENT, _ABSENT, hit_1, map_r]
            yield f"| {' | '.join([*cells, *[_ABSENT] * 4])} |"


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = escape(row["model"])
    accuracy = f"untrained ({row['accuracy']:.3f})" if row["trained"] == "untrained" else f"{row['accuracy']:.3f}"
    return [
        f"**{name}** (chosen)" if row["winner"] else name,
        accuracy,
        f"{row['low']:.3f}–{row['high']:.3f}",
        *(_ABSENT if row[key] is None else f"{row[key]:.3f}" for key in ("hit_3", "hit_1", "map_r")),
        *(_ABSENT if row[key] is None else ms_text(row[key]) for key in ("p50_ms", "p95_ms", "batched_ms")),
        _ABSENT if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
    ]


def _machine(found: Mapping[str, Any]) -> str:
    machine, timing = found["context"]["machine"], found["timing"]
    packages = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "timm"))
    return (
        f"Machine: {escape(str(machine['processor']))}, {machine['cores']} cores; {timing['threads']} threads on "
        f"{timing['device']}, {timing['images']} images one at a time, batches of {timing['batch_size']}; {packages}."
    )


def _significance(comparisons: Sequence[Mapping[str, Any]], measure: str) -> Iterator[str]:
    """Say whether ensembles of fine-tuned models are better than the better one of their members."""
    if not comparisons:
        return
    better = sum(c["significant"] and c["difference"] > 0 for c in comparisons)
    worse = sum(c["significant"] and c["difference"] < 0 for c in comparisons)
    yield (
        f"Paired bootstrap on the queries, {measure} of an aligned ensemble less that of the better of its members: of "
        f"all {len(comparisons)}, {better} are significantly better, {worse} significantly worse. Of those of two "
        "fine-tuned models:"
    )
    yield ""
    tuned = [c for c in comparisons if all(m.endswith(" fine-tuned") for m in c["members"])]
    for found in tuned:
        verdict = ("significantly better" if found["difference"] > 0 else "significantly worse") + " than"
        if not found["significant"]:
            verdict = "not significantly different from"
        yield (
            f"- {escape(found['ensemble'])}: {verdict} {escape(found['better_member'])}, "
            f"{_signed(found['difference'])} (95% interval {_signed(found['low'])} to {_signed(found['high'])}, "
            f"{found['queries']} queries)."
        )
    if not tuned:
        yield "- there is none."


def _signed(value: float) -> str:
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


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


def main() -> None:
    """Write docs/results.md."""
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    (HERE / "results.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
