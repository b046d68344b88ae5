"""Losses by name, their weighted sum, and the proxies from which training starts."""

import math

import pytest
import torch
from pytorch_metric_learning import losses as library

from lookalike.errors import OptionError
from lookalike.training.losses import LOSSES, parse_loss
from lookalike.training.objective import Objective

DIM, CLASSES = 6, 3
TARGETS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def projections():
    return torch.randn(6, DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_and_has_a_gradient(name, projections):
    projections.requires_grad_()
    loss = Objective(name, CLASSES, DIM)(projections, TARGETS)
    if name == "cross-entropy":
        assert float(loss.detach()) == pytest.approx(math.log(3))  # the classifier starts at zero
        return
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert float(projections.grad.abs().sum()) > 0


def test_weighted_sum(projections):
    objective = Objective("cross-entropy + 0.25*supervised-contrastive", CLASSES, DIM)
    expected = math.log(3) + 0.25 * float(library.SupConLoss(temperature=0.1)(projections, TARGETS))
    assert float(objective(projections, TARGETS).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("hinge", "'hinge'"),
        ("", "''"),
        ("0.5*triplet+", "'0.5*triplet+'"),
        ("0*triplet", "'0'"),
        ("much*triplet", "'much'"),
        ("triplet+2*triplet", "'triplet+2*triplet'"),
    ],
)
def test_invalid_loss(text, fact):
    with pytest.raises(OptionError) as raised:
        parse_loss(text)
    assert raised.value.argument == "loss"
    assert fact in str(raised.value)


@pytest.mark.parametrize("name", ["normalised-softmax", "arcface", "cosface", "proxy-anchor"])
def test_proxies_start_at_the_class_means(name):
    means = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    objective = Objective(name, CLASSES, DIM)
    objective.initialize_proxies(means)
    (proxies,) = objective.parameters()
    torch.testing.assert_close(proxies.detach() if name == "proxy-anchor" else proxies.detach().T, means)


def test_three_proxies_of_a_class_start_near_its_mean_but_differ():
    means = torch.eye(CLASSES, DIM)
    objective = Objective("subcenter-arcface", CLASSES, DIM)
    objective.initialize_proxies(means)
    (proxies,) = objective.parameters()
    near = torch.nn.functional.normalize(proxies.detach().T, dim=1) @ means.T
    assert near.argmax(dim=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(torch.unique(proxies.detach().T, dim=0)) == 9
