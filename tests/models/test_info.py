"""The record of a bundle: the way through JSON, fingerprints, and damaged records."""

import json
from dataclasses import replace

import pytest

from lookalike.errors import ModelError
from lookalike.models.bundle import describe_encoder
from lookalike.models.info import (
    BUNDLE_FORMAT,
    Adaptation,
    BackboneInfo,
    BundleInfo,
    EncoderInfo,
    GraphInfo,
    TrainingData,
    find_bundle,
    is_bundle,
    read_bundle_info,
)
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.records import TrainingReport

BACKBONE = BackboneInfo(
    "small", "test_resnet", 64, Preprocessing(96, 64, 1.0, "bilinear"), Adaptation("gem", 1.5), "model hub", "abc"
)
ENCODER = EncoderInfo(BACKBONE, 512, "PCA of 9 images", "frozen", "def")


def test_a_record_survives_json(make_ensemble):
    info = describe_encoder(
        make_ensemble("aligned"),
        classes=("cat", "dog"),
        training_data=TrainingData("f", 24, 4, "v", ("aa", "bb")),
        options={"seed": 3},
        training=(TrainingReport("a", {"seed": 3}, {"lr": 0.1}, "cnn", "cnn", "float32", "pk"), None),
        measures={"validation": {"precision@3": {"mean": 0.5}}},
        request={"names": ["a"]},
        refit_of="other",
    )
    assert BundleInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.to_dict()["format"] == BUNDLE_FORMAT
    assert (info.name, info.dim, info.combination) == ("test_efficientnet+test_resnet", 512, "aligned")
    assert {"python", "lookalike", "torch", "timm"} <= set(info.versions)
    assert not info.is_exported


def test_an_exported_record_survives_json():
    member = replace(ENCODER, graph=GraphInfo("openvino", "int8", {"member-0.xml": "1", "member-0.bin": "2"}, ""))
    info = BundleInfo("small", 512, "def", (member,), exported_from="other", parity={"count": 16})
    loaded = BundleInfo.from_dict(json.loads(json.dumps(info.to_dict())))
    assert loaded == info
    assert loaded.is_exported
    assert list(loaded.members[0].graph.digests) == ["member-0.xml", "member-0.bin"]  # the first is the one to load


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


def test_names_do_not_change_the_fingerprint():
    assert replace(BACKBONE, name="other", weights="file a.pth").fingerprint == BACKBONE.fingerprint


def test_two_sets_of_weights_share_the_architecture_that_runtimes_are_timed_for():
    assert replace(BACKBONE, weights_digest="other").architecture == BACKBONE.architecture
    assert replace(BACKBONE, preprocessing=Preprocessing(128, 64)).architecture != BACKBONE.architecture
    assert replace(BACKBONE, adaptation=Adaptation()).architecture != BACKBONE.architecture


def test_the_default_adaptation_changes_nothing():
    assert Adaptation().changes_nothing
    assert not BACKBONE.adaptation.changes_nothing


# ---------------------------------------------------------------- files


def edit(bundle, change):
    file = bundle / "bundle.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_a_bundle_is_found_at_a_path_or_inside_an_index(bundle, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    assert find_bundle(index) is None
    bundle.rename(index / "model")
    assert find_bundle(index) == find_bundle(str(index / "model")) == index / "model"
    assert is_bundle(index / "model")
    assert not is_bundle(tmp_path / "missing")


def test_a_folder_without_a_record_is_not_a_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelError, match=r"is not a bundle: it has no bundle\.json"):
            read_bundle_info(path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 50_000])
def test_a_record_that_is_not_json_is_damaged(text, bundle):
    (bundle / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"bundle\.json is damaged; make the bundle again\.$"):
        read_bundle_info(bundle)


@pytest.mark.parametrize(("text", "version"), [('{"format": 1}', "1"), ("[]", "None"), ("{}", "None")])
def test_another_format_is_refused(text, version, bundle):
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ModelError, match=f"has bundle format {version}, this version reads {BUNDLE_FORMAT}"):
        read_bundle_info(bundle)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r.pop("fingerprint"), "KeyError: 'fingerprint'"),
        (lambda r: r.pop("members"), "KeyError: 'members'"),
        (lambda r: r.update(members=[]), "no members"),
        (lambda r: r.update(members="two"), "TypeError"),
        (lambda r: r.update(training=[{"version": 0}]), "has version 0"),
        (lambda r: r["members"][0].pop("head"), "KeyError: 'head'"),
        (lambda r: r["members"][0].update(dim="many"), "ValueError"),
        (lambda r: r["members"][0]["backbone"].update(adaptation={"flip": 1}), "TypeError"),
        (lambda r: r["members"][0]["backbone"]["preprocessing"].pop("mean"), "preprocessing is not valid"),
        (lambda r: r["members"][0]["backbone"]["preprocessing"].update(crop_mode="corner"), "crop_mode must be"),
    ],
)
def test_a_missing_or_misplaced_field_is_named(change, cause, bundle):
    edit(bundle, change)
    with pytest.raises(ModelError, match=r"bundle\.json is damaged \(.*\); make the bundle again\.$") as raised:
        read_bundle_info(bundle)
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)
