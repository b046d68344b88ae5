"""Training curves: drawn where there is something to draw, complete, in one file each."""

from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lookalike.models.bundle import read_bundle_info
from lookalike.models.info import EpochReport, HeadFit, LearningRates, StageMeasures, TrainingReport
from lookalike.training.config import Recipe
from lookalike.training.curves import draw_curves, write_curves
from lookalike.training.train import train

REPORT = TrainingReport(
    backbone="resnet50",
    options={},
    recipe=asdict(Recipe(loss="arcface")),
    recipe_name="transformer",
    family="cnn",
    precision="bfloat16",
    sampler="pk",
    measures=StageMeasures(0.2, 0.3, 0.5, 0.5),
    epochs=(EpochReport(1.5, 9.6, 0.25), EpochReport(1.125, 8.0, 0.5)),
    fine_tuned_share=0.75,
)


def page_of(folder, report):
    write_curves(folder, [report], "map@r")
    return " ".join((folder / "curves.html").read_text().split())


def test_the_page_has_the_values_and_the_recipe_and_no_links(tmp_path):
    page = page_of(tmp_path, REPORT)
    for text in ("<td>1<td>1.5000", "<td>0.5000<td>8", "75 % fine-tuned", "<td>loss<td>arcface", "frozen 0.2000"):
        assert text in page
    assert "http" not in page
    assert "Peak learning rates" not in page
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"


def test_the_page_lists_changed_learning_rates(tmp_path):
    rates = (LearningRates(0, 5e-4, 1e-3), LearningRates(1, 1e-4, 2e-4))
    page = page_of(tmp_path, replace(REPORT, rates=rates))
    assert "0.0005 and 0.001 for the head, 0.0001 and 0.0002 for the head after epoch 1." in page


def test_the_page_lists_what_was_chosen(tmp_path):
    page = page_of(tmp_path, replace(REPORT, initial_head=HeadFit(0.3, 4.0), posthoc_head=HeadFit(0.5, 2.0)))
    for text in (
        "Recipe transformer",
        "precision bfloat16",
        "pk batches",
        "shrinkage 0.3, emphasis 4",
        "shrinkage 0.5, emphasis 2",
    ):
        assert text in page


def test_the_lines_are_drawn_and_the_same_report_gives_the_same_image():
    reports = [REPORT, replace(REPORT, backbone="other")]
    image = draw_curves(reports, "map@r")
    assert image == draw_curves(reports, "map@r")
    with Image.open(BytesIO(image)) as opened:
        assert opened.size == (1200, 600)
        pixels = np.array(opened.convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        assert (pixels == colour).all(axis=1).sum() > 100


def test_one_panel_without_measures(tmp_path):
    report = replace(REPORT, epochs=(EpochReport(1.5, 9.6),))
    with Image.open(BytesIO(draw_curves([report], "map@r"))) as image:
        assert image.size == (600, 600)
    assert "<td>1.5000<td>–" in page_of(tmp_path, report)


def test_names_are_escaped(tmp_path):
    assert "<script>" not in page_of(tmp_path, replace(REPORT, backbone="<script>x</script>"))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_bundle_has_curves_if_the_network_was_fine_tuned(frozen, data, weights, quick, tmp_path):
    out = tmp_path / "model"
    train(data, "test_efficientnet", weights=weights, out=out, options=quick(epochs=1, frozen=frozen))
    assert (out / "curves.html").exists() is (out / "curves.png").exists() is not frozen
    (report,) = read_bundle_info(out).training
    assert report.recipe["epochs"] == 1
    assert report.family == "mobile-cnn"
