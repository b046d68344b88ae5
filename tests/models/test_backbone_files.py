"""Names such as `onnx:FILE?size=224`, and the settings in a JSON file, ours or that of an image processor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lookalike.errors import ModelError
from lookalike.models.backbone_files import parse_backbone_file, processor_settings, without_folders
from lookalike.models.preprocessing import Preprocessing


def test_names():
    file = parse_backbone_file("onnx:models/a.onnx?size=224&mean=0.5")
    assert (file.library, file.path, file.settings) == ("onnx", Path("models/a.onnx"), {"size": "224", "mean": "0.5"})
    assert parse_backbone_file("hf:models/vit").library == "transformers"
    for name in ("resnet50", "hf-hub:timm/resnet50", "timm/resnet50", "C:\\model", "a:b"):
        assert parse_backbone_file(name) is None
    for name in ("onnx:", "hf:", "onnx:?size=1", "onnx:a?", "hf:a?size=224"):
        if name == "onnx:a?":
            assert parse_backbone_file(name).settings == {}
            continue
        with pytest.raises(ModelError):
            parse_backbone_file(name)


def settings_of(tmp_path, record, query="", name="a.onnx.json"):
    (tmp_path / name).write_text(record if isinstance(record, str) else json.dumps(record))
    return parse_backbone_file(f"onnx:{tmp_path / 'a.onnx'}{query}").read_settings()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet50", "resnet50"),
        ("onnx:my models/a.onnx?size=224", "onnx:a.onnx?size=224"),
        ("hf:/srv/dino + onnx:/srv/b.onnx", "hf:dino + onnx:b.onnx"),
        ("hf-hub:org/name", "hf-hub:org/name"),
    ],
)
def test_names_without_folders(name, shown):
    assert without_folders(name) == shown


def test_a_record_and_what_overrides_it(tmp_path):
    record = {"size": 224, "mean": 0.5, "std": [0.1, 0.2, 0.3], "pool": "cls"}
    expected = {"size": (224, 224), "mean": (0.5,) * 3, "std": (0.1, 0.2, 0.3), "pool": "cls"}
    assert settings_of(tmp_path, record) == expected
    changed = settings_of(tmp_path, record, "?size=96x128&crop_pct=1&pool=mean")
    assert changed == {**expected, "size": (96, 128), "crop_pct": 1.0, "pool": "mean"}


@pytest.mark.parametrize("name", ["a.onnx.json", "a.json", "preprocessor_config.json"])
def test_where_the_record_may_be(name, tmp_path):
    assert settings_of(tmp_path, {"size": 8}, name=name) == {"size": (8, 8)}


@pytest.mark.parametrize(
    "record",
    [
        *("[]", "{", "null", " " * (1 << 21)),
        *({"sise": 1}, {"size": "224"}, {"size": [1, 2, 3]}, {"mean": ["a", 0, 0]}, {"pool": 1}),
        *({"image_mean": [1, 2]}, {"do_resize": True, "size": {"longest_edge": 1}}, {"resample": 5}),
        *({"do_normalize": True, "image_mean": None}, {"do_resize": True, "do_flip_channel_order": True}),
    ],
)
def test_wrong_records_are_refused(record, tmp_path):
    with pytest.raises(ModelError) as error:
        settings_of(tmp_path, record)
    assert error.value.argument == "backbone"


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # ViT: squashed to the size
        (
            {**HALF, "size": {"height": 224, "width": 224}, "resample": 2},
            {"size": (224, 224), "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"},
        ),
        # CLIP: the shorter side, then a crop of the same size
        (
            {**HALF, "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
            {"size": (224, 224), "crop_mode": "center", "crop_pct": 1.0, "interpolation": "bicubic"},
        ),
        # DINOv2: the shorter side, then a smaller crop
        (
            {**HALF, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            {"size": (224, 224), "crop_mode": "center", "crop_pct": 0.875},
        ),
        ({**HALF, "size": 96}, {"size": (96, 96), "crop_mode": "center", "crop_pct": 1.0}),
        (
            {"image_processor": {**HALF, "size": {"height": 8, "width": 6}}},
            {"size": (8, 6), "crop_mode": "squash", "crop_pct": 1.0},
        ),
    ],
)
def test_image_processors(record, expected):
    assert processor_settings(record) == {"mean": (0.5,) * 3, "std": (0.5,) * 3, **expected}


def test_scaling_becomes_part_of_mean_and_deviation():
    none = processor_settings({"do_normalize": False, "size": 8})
    assert (none["mean"], none["std"]) == ((0.0,) * 3, (1.0,) * 3)
    raw = processor_settings({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3})
    assert (raw["mean"], raw["std"]) == ((0.5,) * 3, (0.2,) * 3)
    wide = processor_settings({"rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3})
    assert (wide["mean"], wide["std"]) == (pytest.approx([0.5] * 3), pytest.approx([0.5] * 3))


def test_the_crop_is_that_of_the_resized_image():
    for resized in range(224, 520):
        settings = processor_settings({**HALF, "size": {"shortest_edge": resized}, "crop_size": 224})
        assert math.floor(224 / settings["crop_pct"]) == resized
        assert Preprocessing(224, 224, settings["crop_pct"])._resized == (resized, resized)
