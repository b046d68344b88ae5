"""Curves of a training: drawn where there is something to draw, complete, in one file each."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lookalike.training.curves import curves_png, write_curves
from lookalike.training.recipe import Recipe
from lookalike.training.train import train

REPORT = {
    "backbone": "resnet50",
    "history": [{"loss": 1.5, "measure": 0.25, "seconds": 9.6}, {"loss": 1.125, "measure": 0.5, "seconds": 8.0}],
    "validation": {"frozen": 0.2, "head": 0.3, "fine-tuned": 0.5},
    "interpolation": {"share": 0.75},
    "recipe": Recipe(loss="arcface").to_dict(),
}


def test_the_page_has_the_figures_and_the_recipe_and_needs_nothing_else(tmp_path):
    assert write_curves(tmp_path, [REPORT], "map@r")
    page = (tmp_path / "curves.html").read_text()
    for text in ("<td>1<td>1.5000", "<td>0.5000<td>8", "75 % of the fine-tuned weights", "<td>loss<td>arcface"):
        assert text in page
    assert "http" not in page
    assert "Learning rates" not in page
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_the_page_tells_of_learning_rates_that_were_changed(tmp_path):
    rates = [{"epoch": 0, "lr": 5e-4, "head_lr": 1e-3}, {"epoch": 1, "lr": 1e-4, "head_lr": 2e-4}]
    write_curves(tmp_path, [{**REPORT, "rates": rates}], "map@r")
    page = (tmp_path / "curves.html").read_text()
    assert "changed on the way: 0.0005 and 0.001 for the head, 0.0001 and 0.0002 for the head after epoch 1." in page


def test_the_page_says_what_auto_became(tmp_path):
    auto = {"recipe": "transformer", "precision": "bfloat16", "sampler": "pk"}
    write_curves(tmp_path, [{**REPORT, "resolved": auto, "shrinkage": 0.3, "last_head": [0.5, 2.0]}], "map@r")
    page = " ".join((tmp_path / "curves.html").read_text().split())
    assert "<summary>Recipe transformer</summary>" in page
    assert "Precision bfloat16, images pk. The head that training starts from is whitened within the classes" in page
    assert "shrinkage 0.3. The head was fitted anew after training, shrinkage 0.5, emphasis 2.0." in page


def test_a_report_that_does_not_name_its_recipe_has_a_page_too(tmp_path):
    write_curves(tmp_path, [{**REPORT, "resolved": {"precision": "float32", "sampler": "shuffled"}}], "map@r")
    assert "<summary>Recipe</summary>" in (tmp_path / "curves.html").read_text()


def test_the_lines_are_there_and_the_same_report_draws_the_same():
    first = curves_png([REPORT, {**REPORT, "backbone": "other"}], "map@r")
    assert first == curves_png([REPORT, {**REPORT, "backbone": "other"}], "map@r")
    with Image.open(BytesIO(first)) as image:
        assert image.size == (1200, 600)
        pixels = np.array(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        assert (pixels == colour).all(axis=1).sum() > 100


def test_without_measures_there_is_one_panel_and_the_page_says_whose_they_are(tmp_path):
    again = {**REPORT, "history": [{"loss": 1.5, "seconds": 9.6}]}
    with Image.open(BytesIO(curves_png([again], "map@r"))) as image:
        assert image.size == (600, 600)
    write_curves(tmp_path, [again], "map@r")
    assert "Validation map@r of the first training: frozen 0.2000" in (tmp_path / "curves.html").read_text()


def test_a_name_cannot_break_the_page(tmp_path):
    write_curves(tmp_path, [{**REPORT, "backbone": "<script>x</script>"}], "map@r")
    assert "<script>" not in (tmp_path / "curves.html").read_text()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bundle_has_them_when_the_whole_was_trained(frozen, data, weights, quick, tmp_path):
    out = tmp_path / "model"
    train(data, "test_efficientnet", weights=weights, out=out, options=quick(epochs=1, frozen=frozen))
    assert (out / "curves.html").exists() is (out / "curves.png").exists() is not frozen
    report = json.loads((out / "bundle.json").read_text())["training"][0]
    assert report["recipe"]["epochs"] == 1
    assert report["family"] == "mobile-cnn"
