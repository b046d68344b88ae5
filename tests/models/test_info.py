"""The records of a bundle: the way through JSON, fingerprints, and training reports."""

import json
from dataclasses import asdict, replace

import pytest

from lookalike._files import with_digest
from lookalike._records import read_record
from lookalike.errors import DataError
from lookalike.models.bundle import describe_encoder
from lookalike.models.info import (
    BUNDLE_FORMAT,
    Adaptation,
    BackboneInfo,
    BenchmarkInfo,
    BundleInfo,
    EncoderInfo,
    EpochReport,
    GraphInfo,
    HeadFit,
    LearningRates,
    MeasuredCandidate,
    Parity,
    RequestInfo,
    StageMeasures,
    TrainingData,
    TrainingReport,
    joint_state,
)
from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Calibration, Comparison, Estimate

BACKBONE = BackboneInfo(
    "small", "test_resnet", 64, Preprocessing(96, 64, 1.0, "bilinear"), Adaptation("gem", 1.5), "model hub", "abc"
)
ENCODER = EncoderInfo(BACKBONE, 512, "PCA of 9 images", "frozen", "def")
PARITY = Parity("images", 16, 0.9, 0.99, 1.0, 200, {"hit@1": (0.5, 0.49)}, Comparison(0.4, 0.1, 0.7))


def test_a_record_survives_json(make_ensemble):
    info = describe_encoder(
        make_ensemble("aligned"),
        classes=("cat", "dog"),
        training_data=TrainingData("f", 24, 4, "v", ("aa", "bb")),
        options={"seed": 3},
        training=(TrainingReport("a", {"seed": 3}, {"lr": 0.1}, "cnn", "cnn", "float32", "pk"), None),
        measures={"validation": {"precision@3": Estimate(0.5, 0.4, 0.6)}},
        request=RequestInfo(("a",), ("model hub",)),
        benchmark=BenchmarkInfo(
            "a",
            "the only candidate",
            0,
            "hit@1",
            "test",
            (MeasuredCandidate("a", "single, frozen", Estimate(0.5, 0.4, 0.6), None, winner=True),),
        ),
        refit_of="other",
        calibration=Calibration(12.5, -4.0, 200, 0.02),
    )
    assert BundleInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.to_dict()["format"] == BUNDLE_FORMAT
    assert (info.name, info.dim, info.combination) == ("test_efficientnet+test_resnet", 512, "aligned")
    assert {"python", "lookalike", "torch", "timm"} <= set(info.versions)
    assert not info.is_exported


def test_an_exported_record_survives_json():
    member = replace(ENCODER, graph=GraphInfo("openvino", "int8", {"member-0.xml": "1", "member-0.bin": "2"}, ""))
    info = BundleInfo("small", 512, "def", (member,), exported_from="other", parity=PARITY)
    loaded = BundleInfo.from_dict(json.loads(json.dumps(info.to_dict())))
    assert loaded == info
    assert loaded.is_exported
    assert list(loaded.members[0].graph.digests) == ["member-0.xml", "member-0.bin"]  # the first is the one to load


@pytest.mark.parametrize(
    "change",
    [
        {"measures": {"validation": {"precision@3": {"mean": 0.5}}}},
        {"measures": {"validation": {"precision@3": {"mean": 0.5, "low": "0.4", "high": 0.6}}}},
        {"benchmark": {"candidate": "a", "reason": "the only candidate", "seed": "0"}},
        {"request": {"backbones": "a", "weights": ["none"]}},
        {"parity": {"count": 16}},
        {"calibration": {"slope": 12.5, "intercept": -4.0}},
        {"parity": asdict(PARITY) | {"measures": {"hit@1": [0.5]}}},
    ],
)
def test_a_part_of_another_form_is_refused(change):
    record = asdict(BundleInfo("small", 512, "def", (ENCODER,)))
    BundleInfo.from_dict(with_digest({"format": BUNDLE_FORMAT, **record}))
    with pytest.raises(ValueError, match=r"has no|expected"):
        BundleInfo.from_dict(with_digest({"format": BUNDLE_FORMAT, **record, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"timm_name": "test_vit"},
        {"preprocessing": replace(BACKBONE.preprocessing, crop_pct=0.9)},
        {"preprocessing": replace(BACKBONE.preprocessing, crop_mode="squash")},
        {"preprocessing": replace(BACKBONE.preprocessing, mean=(0.5, 0.5, 0.5))},
        {"adaptation": Adaptation("max", 1.5)},
        {"weights_digest": "abd"},
    ],
)
def test_the_fingerprint_depends_on_everything_that_decides_the_features(change):
    assert replace(BACKBONE, **change).fingerprint != BACKBONE.fingerprint


def test_an_impossible_calibration_is_refused():
    record = asdict(BundleInfo("small", 512, "def", (ENCODER,), calibration=Calibration(12.5, -4.0, 200, 0.02)))
    record["calibration"]["slope"] = -1.0
    with pytest.raises(DataError, match="positive slope"):
        BundleInfo.from_dict(with_digest({"format": BUNDLE_FORMAT, **record}))


def test_names_do_not_change_the_fingerprint():
    assert replace(BACKBONE, name="other", weights="file a.pth").fingerprint == BACKBONE.fingerprint


def test_two_sets_of_weights_share_the_architecture_that_runtimes_are_timed_for():
    assert replace(BACKBONE, weights_digest="other").architecture == BACKBONE.architecture
    assert replace(BACKBONE, preprocessing=Preprocessing(128, 64)).architecture != BACKBONE.architecture
    assert replace(BACKBONE, adaptation=Adaptation()).architecture != BACKBONE.architecture


# ---------------------------------------------------------------- training reports


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


def test_a_training_report_survives_json(report):
    assert read_record(TrainingReport, json.loads(json.dumps(asdict(report)))) == report


def test_best_epoch(report):
    assert report.best_epoch == 2  # the first of two equal ones
    assert replace(report, epochs=(EpochReport(1.0, 1.0),)).best_epoch == 0


def test_measures_as_text():
    assert str(StageMeasures(0.5, 0.25)) == "frozen 0.5000, head 0.2500"
    assert str(StageMeasures(0.5, 0.25, 1.0, 0.0)).endswith("fine-tuned 1.0000, selected 0.0000")


def test_joint_state_of_several_members():
    assert joint_state({"frozen"}) == "frozen"
    assert joint_state({"frozen", "fine-tuned"}) == "mixed"
    assert joint_state({"frozen + trained head"}) == "frozen + trained head"
    assert joint_state({"frozen", "fine-tuned", "untrained"}) == "untrained"
