"""Guards: each failure at its step, by hand, and no alarm where there is no failure."""

import math

import pytest
import torch
from torch import nn

from lookalike.training.guards import (
    GRADIENT_UPDATES,
    WARNING_STEPS,
    DivergenceError,
    FutileTrainingError,
    GradientGuard,
    LossGuard,
    require_finite,
)


def follow(guard, losses, guesses):
    """Return the guard after some steps, and its warnings by step."""
    warnings = {}
    for loss, guess in zip(losses, guesses, strict=True):
        guard = guard.add(loss, guess)
        if guard.warning:
            warnings[guard.steps] = guard.warning
    return guard, warnings


# ---------------------------------------------------------------- a loss of guessing


def test_a_loss_of_guessing_is_reported_and_then_ends_the_training():
    """6.70 where guessing among 921 classes has 6.83: only how frequent the classes are was learned."""
    guard, warnings = follow(LossGuard(921), [6.70] * WARNING_STEPS, [6.72] * WARNING_STEPS)
    assert list(warnings) == [WARNING_STEPS]
    assert all(number in warnings[WARNING_STEPS] for number in ("6.700", "6.720", "6.825", "step 120"))
    with pytest.raises(FutileTrainingError, match="120 steps"):
        follow(guard, [6.70] * 3 * WARNING_STEPS, [6.72] * 3 * WARNING_STEPS)


@pytest.mark.parametrize(
    ("losses", "guesses"),
    [
        ([1.38] * 30 + [1.2] * 200, [1.386] * 230),  # falls in time
        ([5.4] * 230, [5.5] * 230),  # 1.8 % below guessing
        ([0.19] * 230, [0.2] * 230),  # a loss whose values are small
    ],
)
def test_a_loss_below_guessing_is_not_a_failure(losses, guesses):
    guard, warnings = follow(LossGuard(4), losses, guesses)
    assert guard.has_learned
    assert not warnings


def test_a_long_warm_up_delays_the_warning_and_the_end():
    guard, warnings = follow(LossGuard(4, warmup=400), [1.386] * 359, [1.386] * 359)  # 6 * 20 = 120, and 3 * 120
    assert list(warnings) == [120]
    with pytest.raises(FutileTrainingError):
        guard.add(1.386, 1.386)


@pytest.mark.parametrize(
    ("planned", "warned", "last"),
    [
        (1000, 40, 120),
        (100, 40, 100),
        (60, 30, 60),  # half of it, and all of it
        (30, 20, 30),  # never before the window is full
        (20, None, 20),
    ],
)
def test_a_short_training_is_warned_after_half_of_its_steps_and_ended_at_the_last(planned, warned, last):
    guard, warnings = follow(LossGuard(4, planned=planned), [1.386] * (last - 1), [1.386] * (last - 1))
    assert list(warnings) == ([warned] if warned else [])
    with pytest.raises(FutileTrainingError, match=f"{last} steps"):
        guard.add(1.386, 1.386)


def test_a_long_warm_up_does_not_delay_the_warning_beyond_half_of_the_training():
    _, warnings = follow(LossGuard(4, warmup=400, planned=100), [1.386] * 99, [1.386] * 99)
    assert list(warnings) == [50]


def test_last_words():
    """A training that ends early says that nothing was learned, unless it had less than a window of steps."""
    guard, _ = follow(LossGuard(4, planned=100), [1.386] * 19, [1.386] * 19)
    assert guard.last_words == ""
    guard = guard.add(1.386, 1.386)
    assert "nothing is learned after 20 steps" in guard.last_words
    guard, _ = follow(LossGuard(4, planned=100), [1.0] * 20, [1.386] * 20)
    assert guard.last_words == ""


def test_what_is_learned_once_is_not_compared_again():
    guard, _ = follow(LossGuard(4), [1.0] * 20, [1.4] * 20)
    _, warnings = follow(guard, [1.4] * 200, [math.nan] * 200)
    assert not warnings


# ---------------------------------------------------------------- divergence


def test_a_mean_loss_far_above_the_first_loss_is_divergence():
    guard, _ = follow(LossGuard(4), [2.0] * 20, [9.0] * 20)
    assert guard.first_loss == 2.0
    # the mean of the last twenty is then 2 / 20 + 19 * 8 / 20 = 7.7, not above 4 * 2
    guard, _ = follow(guard, [8.0] * 19, [9.0] * 19)
    with pytest.raises(DivergenceError, match=r"from 2 to 8\.43 at step 40"):  # 19 * 8 / 20 + 16.5 / 20 = 8.425
        guard.add(16.5)


def test_a_low_first_loss_is_replaced_by_the_loss_of_guessing():
    guard, _ = follow(LossGuard(4), [0.01] * 20 + [1.3] * 20, [9.0] * 40)
    assert guard.first_loss == pytest.approx(math.log(4))


def test_the_third_skipped_step_of_a_window_is_divergence():
    guard, warnings = follow(LossGuard(4), [1.0, math.nan, 1.0, math.nan, 1.0], [1.4] * 5)
    assert list(warnings) == [2]
    assert guard.mean == 1.0
    with pytest.raises(DivergenceError, match="step 6"):
        guard.add(math.nan)


def test_skipped_steps_far_apart_are_reported_each():
    _, warnings = follow(LossGuard(4), [math.nan, *[1.0] * 30] * 4, [1.4] * 124)
    assert list(warnings) == [1, 32, 63, 94]


def test_infinity_is_not_finite():
    with pytest.raises(DivergenceError, match="step 3"):
        follow(LossGuard(4), [math.inf] * 3, [math.nan] * 3)


def test_only_floating_point_values_must_be_finite():
    require_finite([torch.ones(2), torch.tensor(3)], "weights")
    require_finite([], "weights")
    with pytest.raises(DivergenceError, match="weights"):
        require_finite([torch.ones(2), torch.tensor([1.0, math.inf])], "weights")


# ---------------------------------------------------------------- gradients


@pytest.fixture
def layers():
    """Three layers; the first is detached, the last starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)])
    nn.init.zeros_(layers[2].weight)
    return layers


def update(layers, optimizer, *, detach):
    optimizer.zero_grad(set_to_none=True)
    x = layers[0](torch.ones(2, 3))
    layers[2](layers[1](x.detach() if detach else x)).sum().backward()


@pytest.mark.parametrize("detach", [True, False])
def test_a_detached_layer_is_named_after_the_last_observed_update(detach, layers):
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    guard, texts = GradientGuard(dict(layers.named_parameters())), []
    for _ in range(GRADIENT_UPDATES + 2):
        update(layers, optimizer, detach=detach)
        texts.append(guard.observe())
        optimizer.step()
    assert [bool(text) for text in texts] == [detach and n == GRADIENT_UPDATES for n in range(1, GRADIENT_UPDATES + 3)]
    if detach:
        assert texts[GRADIENT_UPDATES - 1].startswith("2 of 6 parameters")
        assert "0.weight, 0.bias" in texts[GRADIENT_UPDATES - 1]


def test_no_gradient_of_the_needed_part_is_futile(layers):
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    guard = GradientGuard(dict(layers.named_parameters()), needed="0.")
    for _ in range(GRADIENT_UPDATES - 1):
        update(layers, optimizer, detach=True)
        assert guard.observe() == ""
        optimizer.step()
    update(layers, optimizer, detach=True)
    with pytest.raises(FutileTrainingError, match=r"2 of 6 .*: 0\.weight, 0\.bias"):
        guard.observe()


def test_no_gradient_at_all_is_futile(layers):
    guard = GradientGuard(dict(layers.named_parameters()))
    for _ in range(GRADIENT_UPDATES - 1):
        assert guard.observe() == ""
    with pytest.raises(FutileTrainingError, match=r"6 of 6 .* and 3 more"):
        guard.observe()
