"""Make docs/performance.md and its plots from docs/performance/*.json, which the scripts in benchmarks/ write.

python docs/make_performance.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "performance"
_COLOURS = {"ours": "#0072b2", "theirs": "#999999"}

_INTRODUCTION = """# How fast it is

Made by `docs/make_performance.py` from `docs/performance/*.json`, which the scripts in `benchmarks/` write; not edited
by hand. In every table all contenders ran in turn, each in processes of their own, in one run on one machine: compare
rows of a table, not of two. Medians over the rounds, in brackets the least and the most; indexes are built once, and
what memory grows by is measured in one round. Memory is the process's peak. Shares of the machine's limit are of the
matrix products that were reached before or after the rounds of the same run, where the text below a table says so, else
of those of `benchmarks/limits.py` in a run of its own.
"""

_SECTIONS: Sequence[tuple[str, str, str]] = (
    ("limits", "The machine's own limits", "What `benchmarks/limits.py` reached at most."),
    ("embedding-", "From a folder of JPEGs to embeddings", "`benchmarks/embedding.py`; images a second."),
    (
        "precision-",
        "What bfloat16 and int8 cost",
        "`benchmarks/precision.py`; queries against gallery, a head on the frozen backbone. The gate is that of "
        "`lookalike export`: points of precision@3 lost on the validation part, with their 95 % interval.",
    ),
    ("decoding", "Decoding", "`benchmarks/decoding.py`; images a second, and how far the pixels are from Pillow's."),
    ("startup", "Start", "`benchmarks/startup.py`; seconds from the start of a process to its end."),
    ("training-step-", "The training step", "`benchmarks/training_step.py`; images a second."),
    ("memory", "Memory", "`benchmarks/memory.py`; what grows with the images are their names."),
    (
        "search-",
        "Search",
        "`benchmarks/search.py`; queries a second, all together and one by one, of an index that was asked a thousand "
        "times before: only then does an exact one make what rules vectors out. The vectors are made up, with the "
        "spectrum of a head of principal components. Graphs by hand have 32 links a vector; ours were built with 64 "
        "candidates a vector, usearch's with its own 128, hnswlib's and FAISS's with 40 and with 200.",
    ),
)


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for what the benchmarks kept, by name of the file."""
    parts = [_INTRODUCTION]
    for prefix, title, text in _SECTIONS:
        own = {name: found for name, found in results.items() if name.startswith(prefix)}
        if not own:
            continue
        parts.append(f"## {title}\n\n{text}\n")
        for name, found in own.items():
            if prefix == "limits":
                parts += _limits(found)
            elif prefix == "precision-":
                parts += _precisions(found)
            else:
                parts += _contest(name, found, results.get("limits"))
    return "\n".join(parts)


def _machine(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine.items() if k not in ("processor", "cores", "python"))
    return f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}.\n"


def _limits(found: Mapping[str, Any]) -> Iterator[str]:
    rows = [(f"matrix products in {name}", f"{rate:,.0f} GFLOP/s") for name, rate in found["gflops"].items()]
    rows.append(("copying memory", f"{found['copy_gb_s']:.0f} GB/s"))
    yield _table(("", "at most"), rows)
    yield _machine(found)


def _precisions(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {found['backbone']}\n"
    measures = list(next(iter(found["lost_points"].values())))
    rows = []
    for row in found["rows"]:
        cosines = f"{row['mean_cosine']:.4f}", f"{row['min_cosine']:.3f}"
        rows.append([row["data"], row["precision"], *(f"{row[name]:.3f}" for name in measures), *cosines, _gate(row)])
    yield _table(["data", "precision", *measures, "mean cosine", "least", "points lost at the gate"], rows)
    told = [
        f"{precision} {', '.join(f'{points:.2f} of {name}' for name, points in lost.items())}"
        for precision, lost in found["lost_points"].items()
    ]
    yield f"Points lost, mean of the data sets: {'; '.join(told)}.\n"
    yield _machine(found)


def _gate(row: Mapping[str, Any]) -> str:
    """Write what `export` measured on the validation part, and whether it would have refused that."""
    gate = row.get("gate")
    if gate is None:
        return "–"
    verdict = "passes" if gate["passes"] else "refused"
    return f"{gate['difference']:.2f} ({gate['low']:.2f} to {gate['high']:.2f}), {verdict}"


def _contest(name: str, found: Mapping[str, Any], limits: Mapping[str, Any] | None) -> Iterator[str]:
    about = [str(found[key]) for key in ("backbone", "data") if key in found]
    about += ["random weights"] if found.get("weights") == "none" else []
    about += [f"{found[key]:,} {what}" for key, what in (("images", "images"), ("count", "vectors")) if key in found]
    about += [f"batches of {found['batch_size']}"] if "batch_size" in found else []
    about += ["enlarged to 12 megapixels"] if found.get("large") else []
    yield f"### {', '.join(about) or name}\n"
    rate = found["rate"]
    figures = [key for key in next(iter(found["contenders"].values())) if key in _FIGURES]
    shares = _shares(found, found.get("limits") or limits)
    header = ["", _FIGURES[rate][0], f"times *{found['against']}*", *(_FIGURES[f][0] for f in figures if f != rate)]
    header += ["share of the limit"] if shares else []
    rows = []
    for contender, row in found["contenders"].items():
        cells = [contender, _spread(row[rate], rate), "–" if row["ratio"] is None else f"{row['ratio']:.2f}"]
        cells += [_cell(row.get(f), f) for f in figures if f != rate]
        cells += [f"{shares[contender]:.0%}" if contender in shares else ""] if shares else []
        rows.append(cells)
    yield _table(header, rows)
    if "limits" in found:
        reached = ", ".join(f"{rate:,.0f} in {precision}" for precision, rate in found["limits"]["gflops"].items())
        yield f"Matrix products in the same run, at most, GFLOP/s: {reached}.\n"
    yield from _to_the_model_alone(found)
    yield from _at_equal_recall(found)
    yield from _of_the_machine(found, limits)
    for contender, why in found["left_out"].items():
        yield f"Left out: {contender} ({why.rstrip('.')}).\n"
    yield f"![{name}](performance/{name}.svg)\n"
    yield _machine(found)


def _to_the_model_alone(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what share of the model's own rate is left from file to embedding."""
    rates = {name: row["per_second"]["median"] for name, row in found["contenders"].items() if "per_second" in row}
    pairs = {n: (rate, rates[f"{n}, model only"]) for n, rate in rates.items() if f"{n}, model only" in rates}
    written = [(n.split()[-1], rates[f"{n}, written"] / rate) for n, rate in rates.items() if f"{n}, written" in rates]
    if written:
        told = ", ".join(f"{share:.0%} ({name})" for name, share in written)
        yield f"`lookalike embed`, which finds files and writes embeddings, as a share of embedding alone: {told}.\n"
    if pairs:
        told = ", ".join(f"{rate / alone:.0%} ({name.split()[-1]})" for name, (rate, alone) in pairs.items())
        yield f"From file to embedding, as a share of the model alone: {told}.\n"
    decoding = rates.get("ours, decoding only")
    if pairs and decoding:
        told = ", ".join(
            f"{rate * (1 / alone + 1 / decoding):.0%} ({name.split()[-1]})" for name, (rate, alone) in pairs.items()
        )
        yield (
            "Decoding and the model share the processors; as a share of what both together allow, with not a moment "
            f"lost between them: {told}.\n"
        )


def _at_equal_recall(found: Mapping[str, Any]) -> Iterator[str]:
    """Set each of ours beside the quickest of the others that finds as much."""
    rows = found["contenders"]
    if not all("recall" in row for row in rows.values()):
        return
    for name, row in rows.items():
        if not name.startswith("ours, recall"):
            continue
        least = row["recall"]["median"] - _SAME_RECALL
        able = {o: its for o, its in rows.items() if not o.startswith("ours") and its["recall"]["median"] >= least}
        for rate, what in (("per_second", "all together"), ("single_ms", "one by one")):
            best = max(able, key=lambda other: _speed(able[other], rate), default=None)
            if best is not None:
                times = _speed(row, rate) / _speed(able[best], rate)
                yield f"*{name}* is {times:.2f} times *{best}*, the quickest other with as much recall, {what}.\n"


def _of_the_machine(found: Mapping[str, Any], limits: Mapping[str, Any] | None) -> Iterator[str]:
    """Say what comparing all vectors one after the other takes of what the machine can do."""
    flat = found["contenders"].get("FAISS flat")
    if limits is None or flat is None or "dim" not in found:
        return
    numbers = found["count"] * found["dim"] / 1e9
    products = 2 * numbers * flat["per_second"]["median"] / limits["gflops"]["float32"]
    reading = 4 * numbers / (flat["single_ms"]["median"] / 1e3) / limits["copy_gb_s"]
    yield (
        f"*FAISS flat* reaches {products:.0%} of the matrix products in float32 all together, and {reading:.0%} of the "
        "rate of copying memory one by one: what is many times as quick looks at fewer vectors, or at less of each.\n"
    )


def _speed(row: Mapping[str, Any], rate: str) -> float:
    value = float(row[rate]["median"])
    return 1 / value if rate == "single_ms" else value


_LARGE = 1000
_SAME_RECALL = 0.002
"""Recall that is taken for equal."""
_FIGURES: Mapping[str, tuple[str, str]] = {
    "per_second": ("a second", ",.4g"),
    "seconds": ("seconds", ".3f"),
    "peak_memory_mb": ("memory, MB", ",.0f"),
    "single_ms": ("ms, one by one", ".3g"),
    "single_ratio": ("one by one, times", ",.3g"),
    "recall": ("recall@10", ".3f"),
    "build_s": ("s to build", ",.0f"),
    "build_memory_mb": ("memory of building, MB", ",.0f"),
    "index_mb": ("index, MB", ",.0f"),
    "share_of_products": ("share of matrix products", ".0%"),
    "device_memory_mb": ("device memory, MB", ",.0f"),
    "side": ("side, pixels", ".0f"),
    "first_step_s": ("first step, s", ".1f"),
    "mean_difference": ("mean difference", ".3f"),
    "most_difference": ("largest difference", ".0f"),
}
"""Header and format of every figure that a contender may have."""


def _shares(found: Mapping[str, Any], limits: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what of the machine's fastest matrix products a model alone reaches, by contender."""
    if limits is None or "gflops_per_image" not in found:
        return {}
    shares = {}
    for contender, row in found["contenders"].items():
        precision = next((p for p in limits["gflops"] if f"openvino {p}, model only" in contender), None)
        if precision is not None:
            shares[contender] = row["per_second"]["median"] * found["gflops_per_image"] / limits["gflops"][precision]
    return shares


def _spread(value: Mapping[str, float], figure: str) -> str:
    return f"{_number(value['median'], figure)} ({_number(value['least'], figure)} to {_number(value['most'], figure)})"


def _cell(value: Any, figure: str) -> str:
    if value is None:
        return "–"
    return _number(value["median"] if isinstance(value, Mapping) else value, figure)


def _number(value: float, figure: str) -> str:
    """Write a figure; large ones to the whole, not with an exponent."""
    style = _FIGURES[figure][1]
    return f"{value:,.0f}" if style.endswith("g") and value >= _LARGE else f"{value:{style}}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(name: str, found: Mapping[str, Any]) -> None:
    """Draw a contest as bars, beside its JSON."""
    rate = found["rate"]
    rows = sorted(found["contenders"].items(), key=lambda row: row[1][rate]["median"])
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 0.8 + 0.35 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (contender, row) in enumerate(rows):
            value = row[rate]
            colour = _COLOURS["ours" if contender.startswith(("ours", "search by an", "search by the")) else "theirs"]
            around = [[value["median"] - value["least"]], [value["most"] - value["median"]]]
            axes.barh(place, value["median"], color=colour, xerr=around, ecolor="#333333", capsize=2)
        axes.set_yticks(range(len(rows)), [_with_recall(contender, row) for contender, row in rows])
        found_by = " (after the names: recall@10)" if any("recall" in row for _, row in rows) else ""
        axes.set_xlabel(f"{_FIGURES[rate][0]}{found_by}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def _with_recall(contender: str, row: Mapping[str, Any]) -> str:
    """Name a contender, with how much it finds where not all find the same: else the quickest would be the best."""
    return f"{contender}: {_cell(row['recall'], 'recall')}" if "recall" in row else contender


def main() -> None:
    """Draw all results and write the page."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    for name, found in results.items():
        if "contenders" in found:
            draw(name, found)
    page = HERE / "performance.md"
    page.write_text(render(results), encoding="utf-8")
    sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
