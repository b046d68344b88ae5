"""Mixing two sets of weights: exact at the ends, and the best on validation is what stays."""

import pytest
import torch

from lookalike.training.interpolate import best_mix, mix


@pytest.fixture
def ends():
    """Numbers whose mixture by arithmetic would not come back exact: tiny beside huge, minus zero, a counter."""
    start = {"w": torch.tensor([1e-8, -0.0, 0.1, 3e30]), "n": torch.tensor(3)}
    end = {"w": torch.tensor([1e8, 2.0, -0.3, -3e30]), "n": torch.tensor(9)}
    return start, end


def bits(state):
    return {k: v.numpy().tobytes() for k, v in state.items()}


def test_the_ends_are_exact(ends):
    start, end = ends
    assert bits(mix(start, end, 0.0)) == bits(start)
    assert bits(mix(start, end, 1.0)) == bits(end)


def test_in_between_by_hand():
    start = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    end = {"w": torch.tensor([8.0, 0.0]), "n": torch.tensor(9)}
    found = mix(start, end, 0.25)
    assert found["w"].tolist() == [2.0, 3.0]
    assert found["n"].item() == 9


@pytest.fixture
def trained(member):
    """A member, its state, and another state to go to."""
    start = member.state()
    end = {k: v + 0.5 if v.is_floating_point() else v for k, v in start.items()}
    return member, start, end


@pytest.mark.parametrize(
    ("start_measure", "tried", "end_measure", "chosen"),
    [
        (0.1, [0.2, 0.7, 0.3], 0.4, 0.5),
        (0.1, [0.8, 0.7, 0.3], 0.4, 0.25),
        (0.1, [0.2, 0.3, 0.3], 0.4, 1.0),
        (0.9, [0.2, 0.3, 0.3], 0.4, 0.0),
        (0.4, [0.4, 0.4, 0.4], 0.4, 0.0),  # no better: it stays what it was
    ],
)
def test_the_best_share_is_chosen_and_set(start_measure, tried, end_measure, chosen, trained):
    member, start, end = trained
    values = iter(tried)
    seen = []

    def measure():
        seen.append(member.state()["head.linear.bias"][0].item())
        return next(values)

    share, found = best_mix(member, start, end, start_measure, end_measure, measure)
    assert share == chosen
    assert seen == pytest.approx([start["head.linear.bias"][0].item() + 0.5 * s for s in (0.25, 0.5, 0.75)])
    assert found == dict(zip(("0", "0.25", "0.5", "0.75", "1"), [start_measure, *tried, end_measure], strict=True))
    assert bits(member.state()) == bits(mix(start, end, chosen))


def test_where_the_start_is_best_the_member_is_the_one_it_was(trained):
    member, start, end = trained
    before = member.fingerprint
    share, _ = best_mix(member, start, end, 0.9, 0.1, lambda: 0.5)
    assert share == 0.0
    assert member.fingerprint == before
