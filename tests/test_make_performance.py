"""The page of performance, from figures made by hand; and that it has not drifted from those that were measured."""

import importlib.util
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_performance", REPOSITORY / "docs" / "make_performance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINE = {"processor": "Some Processor", "cores": 2, "python": "3.12.1", "torch": "2.9"}


def spread(median, least, most):
    return {"median": median, "least": least, "most": most}


def row(median, ratio, **further):
    return {"per_second": spread(median, median - 1, median + 1), "ratio": ratio, **further}


RESULTS = {
    "embedding-resnet50": {
        "machine": MACHINE,
        "rate": "per_second",
        "against": "theirs",
        "backbone": "resnet50",
        "data": "clothing",
        "images": 1587,
        "gflops_per_image": 8.0,
        "left_out": {"another": "it is not there."},
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
    assert "|  | a second | times *theirs* | memory, MB | share of the limit |" in page
    assert "| theirs | 20 (19 to 21) | 1.00 | 1,200 |  |" in page
    assert "| ours, openvino int8, model only | 170 (169 to 171) | 8.50 | 300 | 80% |" in page  # 170 * 8 / 1700
    assert "Left out: another (it is not there)." in page
    assert "Some Processor, 2 cores; Python 3.12.1, torch 2.9." in page
    assert page.index("The machine's own limits") < page.index("From a folder of JPEGs")


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
    written = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    assert written == make.render(results), "run: python docs/make_performance.py"
