"""The card of an index's model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from lookalike.models.bundle import BUNDLE_FILE, MODEL_FOLDER
from lookalike.models.info import BenchmarkInfo, MeasuredCandidate
from lookalike.types import Estimate


def test_the_card_is_that_of_the_model_in_the_index(client, index_folder, encoder):
    record = json.loads((index_folder / MODEL_FOLDER / BUNDLE_FILE).read_text())
    card = client.get("/v1/indexes/small/model").json()
    assert (card["name"], card["dimensions"], card["state"]) == (encoder.name, encoder.dim, encoder.state)
    preprocessing = encoder.preprocessing
    assert card["members"] == [
        {"name": encoder.name, "state": encoder.state, "width": preprocessing.width, "height": preprocessing.height}
    ]
    assert card["calibrated"] is (record["calibration"] is not None)
    assert (card["training_images"], card["classes"], card["measures"]) == (None, 0, {})
    assert (card["reason"], card["leaderboard"]) == (None, None)


def test_the_leaderboard_of_the_benchmark_that_selected_it(client):
    candidates = (
        MeasuredCandidate("a + b", "ensemble, frozen", Estimate(0.9, 0.8, 1.0), None),
        MeasuredCandidate("a", "single, frozen", Estimate(0.8, 0.7, 0.9), 4.5, winner=True),
    )
    served = client.app.state.service.indexes["small"]
    served.model = replace(served.model, benchmark=BenchmarkInfo("a", "cheapest", 0, "hit@1", "test", candidates))
    card = client.get("/v1/indexes/small/model").json()
    assert card["reason"] == "cheapest"
    assert card["leaderboard"] == {
        "measure": "hit@1",
        "measured_on": "test",
        "candidates": [asdict(candidate) for candidate in candidates],
    }


def test_an_unknown_index(client):
    assert client.get("/v1/indexes/other/model").status_code == 404
