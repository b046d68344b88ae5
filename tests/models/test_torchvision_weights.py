"""Weights of torchvision's models: the features of timm's networks are those of torchvision's own."""

import pytest
import torch
import torchvision
from timm.models import is_model

from lookalike.errors import ModelError
from lookalike.models.torchvision_weights import TORCHVISION_NAMES, convert_torchvision_state
from lookalike.models.trainable import build_trainable

SMALL_MODELS = {
    "efficientnet_b0": "efficientnet_b0",
    "mobilenetv2_100": "mobilenet_v2",
    "regnetx_004_tv": "regnet_x_400mf",
    "regnety_004": "regnet_y_400mf",
    "convnext_tiny": "convnext_tiny",
    "swin_tiny_patch4_window7_224": "swin_t",
    "resnet18": "resnet18",
}


def random_model(name):
    """Return a torchvision model with random weights and statistics."""
    torch.manual_seed(3)
    model = torchvision.models.get_model(name, weights=None).eval()
    for tensor_name, tensor in model.named_buffers():
        if tensor_name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        if tensor_name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter[0].numel() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def features_of(model, x):
    """Return what torchvision's classifier receives."""
    inputs = []
    classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.inference_mode():
        model(x)
    return inputs[0]


@pytest.mark.parametrize(
    ("timm_name", "name"),
    [*SMALL_MODELS.items(), pytest.param("vit_b_16", "vit_b_16", marks=pytest.mark.slow)],
)
def test_the_features_are_those_of_torchvision(timm_name, name, tmp_path):
    model = random_model(name)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    trainable = build_trainable(timm_name, tmp_path / "model.pth")
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        values = trainable.module(x.to(trainable.device)).cpu()
    torch.testing.assert_close(values, features_of(model, x), rtol=1e-4, atol=1e-5)


def test_the_preprocessing_is_that_of_torchvision(tmp_path):
    torch.save(random_model("swin_t").state_dict(), tmp_path / "model.pth")
    preprocessing = build_trainable("swin_tiny_patch4_window7_224", tmp_path / "model.pth").preprocessing
    assert (preprocessing.mean, preprocessing.interpolation) == ((0.485, 0.456, 0.406), "bicubic")
    assert preprocessing.crop_pct == 224 / 232


def test_a_classifier_of_other_classes(tmp_path):
    model = torchvision.models.get_model("mobilenet_v2", weights=None, num_classes=7)
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "model.pth")
    assert build_trainable("mobilenetv2_100", tmp_path / "model.pth").trained == "frozen"


def test_the_names_of_older_vit_files():
    """torchvision renamed `mlp.linear_1`; its files kept the name."""
    name = "vit_base_patch32_224"
    with torch.device("meta"):
        state = torchvision.models.get_model("vit_b_32", weights=None).state_dict()
    state = {key: torch.zeros(tensor.shape) for key, tensor in state.items()}
    older = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for key, t in state.items()}
    expected = build_trainable(name, "none").module.state_dict()
    converted = convert_torchvision_state(name, older, expected)
    assert converted is not None
    assert {key: tensor.shape for key, tensor in converted.items()} == {k: t.shape for k, t in expected.items()}


def test_a_family_that_is_not_converted_is_named(tmp_path):
    torch.save(torchvision.models.get_model("mobilenet_v3_small", weights=None).state_dict(), tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"torchvision's models are read for ViT, .* and DenseNet\)"):
        build_trainable("mobilenetv3_small_100", tmp_path / "model.pth")


def test_both_libraries_have_the_names():
    assert all(map(is_model, TORCHVISION_NAMES))
    assert set(TORCHVISION_NAMES.values()) <= set(torchvision.models.list_models())
