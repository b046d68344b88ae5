"""Training reports: JSON and back, and what is refused."""

import json
from dataclasses import asdict

import pytest

from lookalike.errors import ModelError
from lookalike.models.records import (
    EpochReport,
    HeadFit,
    LearningRates,
    StageMeasures,
    TrainingReport,
)


@pytest.fixture
def report():
    return TrainingReport(
        backbone="resnet50",
        options={"seed": 0},
        recipe={"lr": 1e-4},
        recipe_name="cnn",
        family="cnn",
        precision="float32",
        sampler="shuffled",
        run="abc",
        measures=StageMeasures(0.5, 0.6, 0.7, 0.75),
        skipped=("a.jpg: cannot be decoded",),
        epochs=(EpochReport(1.5, 2.0, 0.6), EpochReport(1.0, 2.0, 0.7), EpochReport(0.5, 2.0, 0.7)),
        rates=(LearningRates(0, 1e-4, 1e-3),),
        fine_tuned_share=0.75,
        share_measures={"0": 0.6, "1": 0.7},
        posthoc_head=HeadFit(0.3, 2.0),
    )


def test_json_round_trip(report):
    assert TrainingReport.from_dict(json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize("change", [{"version": 2}, {"version": None}, {"speed": 1}])
def test_other_versions_and_unknown_fields_are_refused(change, report):
    with pytest.raises(ModelError):
        TrainingReport.from_dict({**asdict(report), **change})


def test_a_missing_field_is_refused(report):
    value = asdict(report)
    del value["epochs"]
    with pytest.raises(ModelError):
        TrainingReport.from_dict(value)


def test_best_epoch(report):
    assert report.best_epoch == 2  # the first of two equal ones
    assert TrainingReport.from_dict({**asdict(report), "epochs": [{"loss": 1.0, "seconds": 1.0}]}).best_epoch == 0


def test_measures_as_text():
    assert str(StageMeasures(0.5, 0.25)) == "frozen 0.5000, head 0.2500"
    assert str(StageMeasures(0.5, 0.25, 1.0, 0.0)).endswith("fine-tuned 1.0000, selected 0.0000")
