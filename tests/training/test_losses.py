"""Losses by name: the sum, the proxies they start from, the neck that is folded away."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as library

from lookalike.errors import OptionError
from lookalike.training.losses import LOSSES, Objective, parse_loss
from lookalike.training.options import TrainingOptions

DIM, CLASSES = 6, 3
TARGETS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def projected():
    return torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_number_and_pulls_at_the_projection(name, projected):
    projected.requires_grad_()
    loss = Objective(name, CLASSES, DIM)(projected, TARGETS)
    if name == "cross-entropy":
        assert float(loss.detach()) == pytest.approx(math.log(3))  # undecided; its classifier moves first
        return
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert float(projected.grad.abs().sum()) > 0


def test_a_weighted_sum_is_the_sum_of_its_terms(projected):
    both = Objective("cross-entropy + 0.25*supervised-contrastive", CLASSES, DIM)
    expected = math.log(3) + 0.25 * float(library.SupConLoss(temperature=0.1)(projected, TARGETS))
    assert float(both(projected, TARGETS).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hinge", "there is no loss named 'hinge'; allowed are cross-entropy, "),
        ("", "the loss '' lacks a name; write losses with a + between them."),
        ("0.5*triplet+", "the loss '0.5*triplet+' lacks a name; write losses with a + between them."),
        ("0*triplet", "the weight of triplet must be a number above 0, got '0'."),
        ("much*triplet", "the weight of triplet must be a number above 0, got 'much'."),
        ("triplet+2*triplet", "the loss 'triplet+2*triplet' names a loss twice; give it once, with its weight."),
    ],
)
def test_a_text_that_is_no_loss(text, sentence):
    with pytest.raises(OptionError) as raised:
        parse_loss(text)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("name", ["normalised-softmax", "arcface", "cosface", "proxy-anchor"])
def test_proxies_begin_at_the_mean_of_their_class(name):
    means = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    objective = Objective(name, CLASSES, DIM)
    objective.start_from(means)
    (proxies,) = objective.parameters()
    torch.testing.assert_close(proxies.detach() if name == "proxy-anchor" else proxies.detach().T, means)


def test_three_proxies_of_a_class_begin_near_its_mean_and_apart():
    means = torch.eye(CLASSES, DIM)
    objective = Objective("subcenter-arcface", CLASSES, DIM)
    objective.start_from(means)
    (proxies,) = objective.parameters()
    near = torch.nn.functional.normalize(proxies.detach().T, dim=1) @ means.T
    assert near.argmax(dim=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(torch.unique(proxies.detach().T, dim=0)) == 9


def test_a_neck_folded_into_the_projection_computes_the_same(projected):
    objective = Objective("cross-entropy", CLASSES, DIM, neck=True)
    linear = torch.nn.Linear(4, DIM)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        objective(linear(x), torch.zeros(50, dtype=torch.long))  # moves the running statistics
    torch.nn.init.normal_(objective.neck.weight)
    objective.eval()
    weight, bias = objective.folded(linear)
    expected = objective.neck(linear(x)).detach()
    np.testing.assert_allclose((x @ weight.T + bias).detach().numpy(), expected.numpy(), atol=1e-5)


def test_cross_entropy_takes_shares_of_classes(projected):
    shares = torch.nn.functional.one_hot(TARGETS, CLASSES).float()
    objective = Objective("cross-entropy", CLASSES, DIM, label_smoothing=0.1)
    by_shares, by_rows = (float(objective(projected, t).detach()) for t in (shares, TARGETS))
    assert by_shares == pytest.approx(by_rows)


@pytest.mark.parametrize(
    ("loss", "fits"), [("triplet", False), ("triplet+0.5*multi-similarity", False), ("triplet+arcface", True)]
)
def test_a_neck_needs_a_loss_that_classifies(loss, fits):
    if fits:
        assert TrainingOptions(loss=loss, neck="bnneck").recipe_for("cnn").neck == "bnneck"
        return
    with pytest.raises(OptionError) as raised:
        TrainingOptions(loss=loss, neck="bnneck")
    assert str(raised.value) == (
        f"a neck stands before losses that classify, and {loss} only compares images; "
        "add a loss that classifies, or set neck to none."
    )


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0, "loss": "arcface"}])
def test_mixing_is_refused_at_once_with_a_loss_of_one_class_an_image(options):
    with pytest.raises(OptionError) as raised:
        TrainingOptions(**options)
    assert str(raised.value) == (
        "mixup and cutmix give an image two classes, which only cross-entropy takes; got the loss "
        f"{options.get('loss', 'subcenter-arcface')!r}, so give the loss cross-entropy, or set both to 0."
    )
    TrainingOptions(**{**options, "loss": "cross-entropy"})
