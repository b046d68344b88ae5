"""The page of performance, from figures made by hand; and that it has not drifted from those that were measured."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make(load_script):
    return load_script("docs/make_performance.py")


MACHINE = {"processor": "Some Processor", "cores": 2, "python": "3.12.1", "torch": "2.9"}


def spread(median, low, high):
    return {"median": median, "min": low, "max": high}


def row(median, ratio, **further):
    return {"per_second": spread(median, median - 1, median + 1), "ratio": ratio, **further}


RESULTS = {
    "embedding-resnet50": {
        "machine": MACHINE,
        "rate": "per_second",
        "baseline": "theirs",
        "backbone": "resnet50",
        "data": "clothing",
        "images": 1587,
        "gflops_per_image": 8.0,
        "skipped": {"another": "it is not there."},
        "contenders": {
            "theirs": row(20.0, 1.0, peak_memory_mb=spread(1200.4, 1190, 1210)),
            "ours, openvino int8, model only": row(170.0, 8.5, peak_memory_mb=spread(300.0, 299, 301)),
        },
    },
    "limits": {"machine": MACHINE, "gflops": {"float32": 400.0, "int8": 1700.0}, "copy_gb_s": 71.2},
}


def test_the_page_by_hand(make):
    page = make.render(RESULTS)
    assert "| matrix products in int8 | 1,700 GFLOP/s |" in page
    assert "| copying memory | 71 GB/s |" in page
    assert "### resnet50, clothing, 1,587 images" in page
    assert "|  | per second | times *theirs* | memory, MB | share of the limit |" in page
    assert "| theirs | 20 (19 to 21) | 1.00 | 1,200 |  |" in page
    assert "| ours, openvino int8, model only | 170 (169 to 171) | 8.50 | 300 | 80% |" in page  # 170 * 8 / 1700
    assert "Skipped: another (it is not there)." in page
    assert "Some Processor, 2 cores; Python 3.12.1, torch 2.9." in page
    assert page.index("The machine's own limits") < page.index("From a folder of JPEGs")


def test_whole_commands_are_the_first_table(make):
    def command(seconds, ratio, memory):
        return {"seconds": spread(seconds, seconds - 1, seconds + 1), "ratio": ratio, "peak_memory_mb": memory}

    commands = {
        "machine": MACHINE,
        "rate": "seconds",
        "baseline": "timm + DataLoader",
        "backbone": "resnet50",
        "images": 1822,
        "precision": "bfloat16",
        "skipped": {},
        "contenders": {
            "lookalike embed, bundle": command(10.0, 6.0, spread(400.0, 390, 410)),
            "timm + DataLoader": command(60.0, 1.0, spread(1300.0, 1290, 1310)),
        },
        "start_images": 10,
        "starts": {"lookalike search": command(0.5, None, spread(150.0, 149, 151))},
    }
    page = make.render({"commands": commands, **RESULTS})
    assert "| lookalike embed, bundle | 10.000 (9.000 to 11.000) | 6.00 | 400 |" in page
    assert "used the fastest one, bfloat16." in page
    assert "The same commands on 10 images" in page
    assert "| lookalike search | 0.500 (-0.500 to 1.500) | 150 |" in page
    assert page.index("## Whole commands") < page.index("## The machine's own limits")


def test_what_precision_costs_by_hand(make):
    lost = {"bfloat16": {"precision@3": -0.25, "hit@1": 0.5}}
    common = {"data": "clothing", "mean_cosine": 0.99891, "min_cosine": 0.9871}
    rows = [{"precision": "bfloat16", "precision@3": 0.7961, "hit@1": 0.80149, **common}]
    figures = {"machine": MACHINE, "backbone": "resnet50", "rows": rows, "lost_points": lost}
    page = make.render({"precision-resnet50": figures})
    assert "| clothing | bfloat16 | 0.796 | 0.801 | 0.9989 | 0.987 |" in page
    assert "Points lost, mean of the data sets: bfloat16 -0.25 of precision@3, 0.50 of hit@1." in page


def test_the_model_alone_and_equal_recall_by_hand(make):
    rows = {
        "ours, openvino int8": row(90.0, 1.0),
        "ours, openvino int8, model only": row(100.0, 1.0),
    }
    figures = {**RESULTS["embedding-resnet50"], "contenders": rows}
    page = make.render({"embedding-resnet50": figures})
    assert "as a share of the model alone: 90% (int8)." in page
    assert "without any idle time" not in page
    rows["ours, decoding only"] = row(400.0, 1.0)
    page = make.render({"embedding-resnet50": figures})
    assert "without any idle time: 112% (int8)." in page  # 90 of 1 / (1 / 100 + 1 / 400)

    def searching(rate, ms, recall):
        return row(rate, 1.0, single_ms=spread(ms, ms, ms), recall=spread(recall, recall, recall))

    rows = {
        "flat": searching(10.0, 100.0, 1.0),
        "graph, shallow": searching(900.0, 1.0, 0.9),
        "graph, deep": searching(300.0, 2.0, 0.97),
        "ours, recall 0.95": searching(600.0, 1.0, 0.96),
    }
    page = make.render({"search-1": {**figures, "contenders": rows}})
    assert "*ours, recall 0.95* is 2.00 times *graph, deep*, the fastest other with this recall, in one batch" in page
    assert "*ours, recall 0.95* is 2.00 times *graph, deep*, the fastest other with this recall, one by one" in page


def test_a_changing_index_by_hand(make):
    rows = {
        "all": {"recall": 1.0, "p50 ms": 2.0, "p99 ms": 3.0},
        "5 %": {"recall": 0.9876, "p50 ms": 0.5, "p99 ms": 1.0},
    }
    result = {"machine": MACHINE, "count": 100_000, "dim": 512, "searches": {"changed": rows}}
    page = make.render({"stores-100000": {**result, "figures": {"adding many at once, per s": 15_775.2}}})
    assert "### 100,000 vectors of 512 dimensions" in page
    assert "| changed | none | 1.000 | 2 | 3 | 1.00 |" in page
    assert "| changed | 5 % | 0.988 | 0.5 | 1 | 0.25 |" in page
    assert "| adding many at once, per s | 15,775 |" in page
    assert "| changed | 5 % | 0.988 |\n" in make.render({"stores-100000": result})  # recall alone


def test_what_was_not_measured_is_not_named(make):
    assert "## Search" not in make.render(RESULTS)
    assert "share of the limit" not in make.render({"embedding-resnet50": RESULTS["embedding-resnet50"]})


def test_a_plot_is_the_same_each_time(make, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "RESULTS", tmp_path)
    drawn = []
    for _ in range(2):
        make.draw("embedding-resnet50", RESULTS["embedding-resnet50"])
        drawn.append((tmp_path / "embedding-resnet50.svg").read_text())
    assert drawn[0] == drawn[1]
    assert "ours, openvino int8, model only" in drawn[0]


def test_the_page_has_not_drifted(make):
    results = {path.stem: json.loads(path.read_text()) for path in sorted(make.RESULTS.glob("*.json"))}
    if not results:
        pytest.skip("nothing was measured yet")
    written = (REPOSITORY / "docs" / "results" / "performance.md").read_text(encoding="utf-8")
    assert written == make.render(results), "run: python docs/make_performance.py"
