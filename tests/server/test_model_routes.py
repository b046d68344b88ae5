"""The card of an index's model."""

from __future__ import annotations

import json

from lookalike.models.bundle import BUNDLE_FILE, MODEL_FOLDER


def test_the_card_is_that_of_the_model_in_the_index(client, index_folder, encoder):
    record = json.loads((index_folder / MODEL_FOLDER / BUNDLE_FILE).read_text())
    card = client.get("/v1/indexes/small/model").json()
    assert (card["name"], card["dimensions"], card["state"]) == (encoder.name, encoder.dim, encoder.state)
    preprocessing = encoder.preprocessing
    assert card["members"] == [
        {"name": encoder.name, "state": encoder.state, "width": preprocessing.width, "height": preprocessing.height}
    ]
    assert card["calibrated"] is (record["calibration"] is not None)
    assert (card["training_images"], card["classes"], card["measures"], card["reason"]) == (None, 0, {}, None)


def test_an_unknown_index(client):
    assert client.get("/v1/indexes/other/model").status_code == 404
