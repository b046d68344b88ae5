"""Fine-tuning: the learning rate, the plan, batches, when it stops and what it keeps."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lookalike.errors import StorageError
from lookalike.models.adapt import family_of
from lookalike.models.info import LearningRates
from lookalike.models.trainable import build_trainable
from lookalike.training.batches import iterate_batches, training_preprocessing
from lookalike.training.context import class_indices
from lookalike.training.distributed import SINGLE_PROCESS
from lookalike.training.finetune import (
    FinetuneState,
    Validation,
    finetune,
    learning_rate_factor,
    load_checkpoint,
    plan_epochs,
    save_checkpoint,
)
from lookalike.training.trainer import Trainer

SMALL = "test_efficientnet"


@pytest.fixture
def targets(data):
    return class_indices(data.training)


@pytest.fixture
def make_state(member, quick):
    """Make a state with a new classifier; options and another encoder may be given."""

    def make(encoder=None, **overrides):
        encoder = encoder or member
        return Trainer(encoder, 4, quick(**overrides).recipe_for(family_of(encoder.module)))

    return make


def classifier_of(state):
    return state.objective.losses[0].classifier


def validation(measure, patience=3):
    return Validation("map@r", measure, patience)


def ignore(_run):
    """Do nothing after an epoch."""


# ---------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.5),  # two steps of warm-up
        (1, 1.0),
        (2, 1.0),  # the cosine starts at its maximum
        (6, 0.5 * (1 + math.cos(math.pi * 4 / 8))),
        (9, 0.5 * (1 + math.cos(math.pi * 7 / 8))),
        (10, 0.0),  # the step after the last
    ],
)
def test_factor_by_hand_for_ten_steps_with_two_of_warm_up(step, factor):
    assert learning_rate_factor(step, 10, 0.2) == pytest.approx(factor, abs=1e-12)


def test_factor_without_warm_up_only_decreases():
    factors = [learning_rate_factor(step, 20, 0.0) for step in range(20)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.02
    assert learning_rate_factor(0, 1, 0.1) == 1.0


def test_rates_hold_from_their_epoch(make_state, data, targets):
    run = FinetuneState(3, 1, rates=[LearningRates(0, 1e-4, 1e-3), LearningRates(1, 1e-5, 1e-4)])
    state = make_state(warmup=0.0, lr=0.5, head_lr=0.5)
    rates = []
    for _ in range(2):
        run.last_epoch = run.epoch + 1
        finetune(state, run, data.training, targets, None, ignore)
        rates.append({g["is_head"]: g["lr"] for g in state.optimizer.param_groups})
    # the steps are 1 of 3 and 2 of 3, and the first of them is the warm-up: factors 1 and (1 + cos(0)) / 2 = 1
    assert rates[0] == pytest.approx({False: 1e-4, True: 1e-3})
    assert rates[1] == pytest.approx({False: 1e-5, True: 1e-4})


def test_setting_rates():
    run = FinetuneState(3, 1)
    assert [run.set_rates(1e-4, 1e-3), run.set_rates(1e-4, 1e-3)] == [False, False]
    run.epochs = [SimpleNamespace()] * 2
    assert [run.set_rates(1e-5, 1e-3), run.set_rates(1e-5, 1e-3)] == [True, False]
    assert run.rates == [LearningRates(0, 1e-4, 1e-3), LearningRates(2, 1e-5, 1e-3)]


def test_dump_and_restore(make_state, data, targets):
    run = FinetuneState(2, 1, rates=[LearningRates(0, 1e-4, 1e-3)], last_epoch=1)
    finetune(make_state(), run, data.training, targets, validation(lambda: 0.5), ignore)
    restored = FinetuneState.restore(run.dump())
    assert {**vars(restored), "best": None} == {**vars(run), "best": None}
    assert all(torch.equal(run.best[k], v) for k, v in restored.best.items())


# ---------------------------------------------------------------- plan


def set_clock(monkeypatch, *readings):
    """Let the planner read these times, in seconds."""
    times = iter(readings)
    monkeypatch.setattr("lookalike.training.finetune.time", SimpleNamespace(perf_counter=lambda: next(times)))


def test_all_epochs_are_planned_without_a_budget(make_state, data, targets):
    run = plan_epochs(make_state(epochs=5), data.training, targets, None, 0.0)
    assert (run.planned_epochs, run.steps_per_epoch, run.epoch) == (5, 3, 0)


@pytest.mark.parametrize(
    ("seconds_left", "planned", "report"),
    [
        (9_999.0, (6, 3), ""),  # never more epochs than the recipe has
        (40.0, (4, 3), "allows 4 of 6 epochs; all 6 epochs would take about 1 minute more"),  # 3 · 2 + 4 seconds each
        (39.9, (3, 3), "allows 3 of 6 epochs"),
        (10.0, (1, 3), "allows 1 of 6 epochs"),
        (9.0, (1, 2), "allows 2 of 3 steps of one epoch"),  # (9 - 4) / 2 steps
        (5.0, (1, 1), "allows 1 of 3 steps of one epoch"),
        (-60.0, (1, 1), "all 6 epochs would take about 2 minutes more"),  # 60 + 60 s
    ],
)
def test_a_budget_is_divided_by_the_time_of_warm_steps(
    seconds_left, planned, report, make_state, data, recording_progress
):
    """3 steps of 2 s and 4 s of validation make an epoch; the first step, a warm-up, does not count."""
    progress, targets = recording_progress(), class_indices(data.training)
    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch, 90.0, 100.0, 102.0, 104.0)
        run = plan_epochs(make_state(epochs=6), data.training, targets, seconds_left, 4.0, progress)
    assert (run.planned_epochs, run.steps_per_epoch) == planned
    assert run.planned_share == planned[0] * planned[1] / 18
    assert report in "".join(progress.messages) and bool(progress.messages) == bool(report)


@pytest.mark.parametrize("start", ["file", "none"])
def test_planning_changes_nothing(start, make_state, member, data, targets):
    encoder = member if start == "file" else build_trainable(SMALL, "none")
    state = make_state(encoder, precision="bfloat16")
    before, classifier = encoder.fingerprint, classifier_of(state).weight.detach().clone()
    names = [name for name, _ in encoder.module.named_modules()]
    plan_epochs(state, data.training, targets, 60.0, 1.0)
    assert encoder.fingerprint == before
    assert torch.equal(classifier_of(state).weight, classifier)
    assert not state.optimizer.state
    assert all(p.grad is None for g in state.optimizer.param_groups for p in g["params"])
    assert not any(m.training for m in encoder.module.modules())
    assert [name for name, _ in encoder.module.named_modules()] == names


# ---------------------------------------------------------------- when it stops


def scripted(values):
    """Return a measure with these values, one per epoch."""
    remaining = iter(values)
    return lambda: next(remaining)


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.5, 0.4, 0.3, 0.9], 2, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 5),
        ([0.5, 0.5, 0.5, 0.9], 2, 3),  # an equal measure does not improve it
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.5, 0.4], 1, 2),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 9, 6),
    ],
)
def test_early_stopping_keeps_the_best_epoch(values, patience, epochs, make_state, data, targets):
    state = make_state()
    run = FinetuneState(len(values), 1)
    weights = []
    finetune(
        state,
        run,
        data.training,
        targets,
        validation(scripted(values), patience),
        lambda _: weights.append(state.dump()["encoder"]),
    )
    assert run.epoch == len(run.epochs) == epochs
    assert [e.measure for e in run.epochs] == values[:epochs]
    best = int(np.argmax(values[:epochs]))
    assert run.best_measure == values[best]
    assert all(torch.equal(run.best_weights[k], v) for k, v in weights[best].items())
    assert not all(torch.equal(weights[0][k], v) for k, v in weights[-1].items())


def test_a_finished_run_does_nothing(make_state, data, targets):
    state = make_state()
    before = state.encoder.fingerprint
    run = FinetuneState(2, 3, epochs=[SimpleNamespace(measure=None)] * 2)
    finetune(state, run, data.training, targets, validation(lambda: 1 / 0), lambda _: 1 / 0)
    assert state.encoder.fingerprint == before


def test_it_stops_without_time_for_another_epoch_unless_the_last_is_known(make_state, data, targets, recorder):
    progress, run = recorder(), FinetuneState(3, 1)
    answers = iter([True, False])
    finetune(make_state(), run, data.training, targets, None, ignore, has_time=lambda: next(answers), progress=progress)
    assert run.epoch == 2
    assert "stopping before epoch 3/3" in progress.messages[-1]
    run = FinetuneState(3, 1, last_epoch=2)
    finetune(make_state(), run, data.training, targets, None, ignore, has_time=lambda: False)
    assert run.epoch == 2


# ---------------------------------------------------------------- failures, provoked on purpose


@pytest.fixture
def guarded(make_state):
    """Make a state whose guards write to a list."""

    def make(encoder=None, **overrides):
        state, warnings = make_state(encoder, **overrides), []
        state.warn = warnings.append
        return state, warnings

    return make


def set_steps(state, losses):
    """Replace the steps of a state: each has the next loss."""
    values = iter(losses)
    state.step = lambda *_pixels_and_targets, **_options: next(values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_end_the_run_without_any_epoch(precision, guarded, data, targets):
    state, warnings = guarded(precision=precision, epochs=2)
    names = [name for name, _ in state.encoder.module.named_modules()]
    with torch.no_grad():
        state.encoder.module.conv_stem.weight.fill_(math.nan)
    run = FinetuneState(2, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.0), ignore)
    assert [name for name, _ in state.encoder.module.named_modules()] == names
    assert not state.encoder.module.training
    assert (run.epochs, run.best, run.reductions) == ([], None, 2)
    assert "step 1" in warnings[0] and "step 3" in warnings[1]
    assert "epoch 1/2" in warnings[-1]


def test_one_gradient_that_is_not_finite_skips_its_step(guarded, data, targets):
    """The second of three steps has no effect; the run reports it and continues."""
    state, warnings = guarded()
    calls, seen = [], []

    def spoil(gradient):
        calls.append(1)
        return gradient * math.nan if len(calls) == 2 else gradient

    state.encoder.head.linear.weight.register_hook(spoil)
    original = state.step

    def step(*args, **options):
        before = state.encoder.fingerprint
        loss = original(*args, **options)
        seen.append((math.isfinite(loss), state.encoder.fingerprint != before))
        return loss

    state.step = step
    run = FinetuneState(1, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5), ignore)
    assert seen == [(True, True), (False, False), (True, True)]
    assert len(warnings) == 1 and "step 2" in warnings[0]
    assert math.isfinite(run.epochs[0].loss)
    assert all(v.isfinite().all() for v in run.best_weights.values() if v.is_floating_point())


def test_activations_that_spoil_the_batch_statistics_restart_the_epoch(guarded, data, targets):
    """The step is skipped, but the forward pass has changed the statistics of a network from random weights."""
    state, warnings = guarded(build_trainable(SMALL, "none"))
    before, original = state.encoder.fingerprint, state.step

    def step(*_args, **_options):
        state.encoder.module.bn1.running_mean.fill_(math.nan)
        state.step = original
        return math.nan

    state.step = step
    run = FinetuneState(1, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5), ignore)
    assert "statistics are not finite" in warnings[1]
    assert (run.epoch, run.reductions) == (1, 1)
    assert state.encoder.fingerprint != before
    assert all(v.isfinite().all() for v in run.best_weights.values() if v.is_floating_point())


def test_a_diverging_epoch_starts_again_with_lower_rates(guarded, data, targets):
    state, warnings = guarded(lr=0.04, head_lr=0.4)
    rates, original = [], state.set_learning_rates
    state.set_learning_rates = lambda factor, peak: (rates.append(peak.lr), original(factor, peak))
    set_steps(state, [1.0] * 3 + [900.0] + [1.0] * 3)
    run = FinetuneState(2, 3)
    weights = []
    finetune(
        state, run, data.training, targets, validation(lambda: 0.5), lambda _: weights.append(state.encoder.fingerprint)
    )
    assert rates == [0.04] * 4 + [0.01] * 3
    assert run.rates == [LearningRates(0, 0.04, 0.4), LearningRates(1, 0.01, 0.1)]
    assert run.epoch == 2
    assert len(warnings) == 1 and "epoch 2/2" in warnings[0] and "step 4" in warnings[0]


def test_divergence_after_two_reductions_keeps_the_best_epoch(guarded, data, targets):
    state, warnings = guarded()
    set_steps(state, [1.0] * 3 + [900.0] * 3)
    run = FinetuneState(2, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5), ignore)
    assert (run.epoch, run.best_measure, run.reductions, len(warnings)) == (1, 0.5, 2, 3)
    assert "`lr`" in warnings[-1]


def test_lower_rates_after_a_divergence_survive_a_resume():
    run = FinetuneState(3, 1)
    run.set_rates(4e-4, 4e-3)
    run.reduce_rates()
    restored = FinetuneState.restore(run.dump())
    assert not restored.set_rates(4e-4, 4e-3)
    assert restored.rates[-1] == LearningRates(0, 1e-4, 1e-3)
    assert restored.set_rates(2e-4, 2e-3)


def test_a_learning_rate_of_nothing_is_reported_at_step_40_and_ends_at_step_120(guarded, data, targets, recorder):
    progress = recorder()
    state, warnings = guarded(lr=1e-12, head_lr=1e-12, batch_size=2, resolution=0.25, warmup=0.0)
    steps, original = [], state.step
    state.step = lambda *args, **options: (steps.append(1), original(*args, **options))[1]
    reported = []
    state.warn = lambda text: (reported.append(len(steps)), warnings.append(text))
    run = FinetuneState(50, 12)
    finetune(state, run, data.training, targets, validation(lambda: 0.5, 50), ignore, progress=progress)
    assert reported == [40, 120]
    assert run.epoch == 9
    assert "ln 4 = 1.386" in warnings[0] and "epoch 10/50" in warnings[1]


def test_a_short_run_that_learns_nothing_says_so_after_half_of_it_and_at_its_last_step(guarded, data, targets):
    state, warnings = guarded()
    set_steps(state, [1.386] * 30)
    state.guess = 1.386
    run = FinetuneState(10, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5, 50), ignore)
    assert [text.partition(":")[0] for text in warnings] == [
        "nothing is learned after 20 steps",
        "fine-tuning ends in epoch 10/10, and the best weights before it are used",
    ]
    assert run.epoch == 9


def test_a_run_that_ends_before_its_plan_says_that_nothing_was_learned(guarded, data, targets):
    """The patience ends it after 24 of 60 steps; a resumed run says it again."""
    state, warnings = guarded()
    set_steps(state, [1.386] * 24)
    state.guess = 1.386
    run = FinetuneState(20, 3)
    for _ in range(2):
        finetune(state, run, data.training, targets, validation(lambda: 0.5, 7), ignore)
        run = FinetuneState.restore(run.dump())
    assert run.epoch == 8
    assert [text.partition(":")[0] for text in warnings] == [
        "fine-tuning is over, and nothing is learned after 24 steps"
    ] * 2


def test_a_guard_of_an_older_checkpoint_gets_the_plan(guarded, data, targets):
    state, warnings = guarded()
    set_steps(state, [1.386] * 30)
    state.guess = 1.386
    run = FinetuneState(10, 3, last_epoch=5)
    finetune(state, run, data.training, targets, None, ignore)
    stored = run.dump()
    del stored["loss_guard"]["planned"]
    restored = FinetuneState.restore({**stored, "last_epoch": None})
    warnings.clear()
    finetune(state, restored, data.training, targets, None, ignore)
    assert "after 20 steps" in warnings[0] and "after 30 steps" in warnings[-1]


@pytest.mark.parametrize(
    ("values", "reported"),
    [([0.3, 0.2, 0.1], True), ([0.4, 0.3, 0.2], False), ([0.5, 0.3, 0.2], False)],
    ids=["below", "equal", "above"],
)
def test_a_first_epoch_below_frozen_is_reported_at_once(values, reported, guarded, data, targets):
    state, warnings = guarded()
    seen = []
    check = Validation("map@r", scripted(values), 9, frozen=0.4)
    finetune(state, FinetuneState(3, 1), data.training, targets, check, lambda _run: seen.append(len(warnings)))
    assert seen == [reported] * 3
    assert all("0.3000" in text and "0.4000" in text and "pretrained weights" in text for text in warnings)


def test_random_weights_are_not_compared_with_frozen(guarded, data, targets):
    state, warnings = guarded(build_trainable(SMALL, "none"))
    check = Validation("map@r", lambda: 0.3, 9, frozen=0.4)
    finetune(state, FinetuneState(1, 1), data.training, targets, check, ignore)
    assert warnings == []


@pytest.mark.parametrize(
    ("detached", "named"), [("projection", "projection.weight"), ("objective", "objective.losses.0.classifier.weight")]
)
def test_layers_behind_the_backbone_without_gradients_are_named(detached, named, guarded, data, targets):
    """The weights of one layer are replaced in the forward pass by a copy that is not trained."""
    state, warnings = guarded()
    layer = state.encoder.head.linear if detached == "projection" else classifier_of(state)
    with torch.no_grad():
        classifier_of(state).weight.normal_(generator=torch.Generator().manual_seed(0))
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight.detach(), layer.bias.detach())
    finetune(state, FinetuneState(2, 3), data.training, targets, None, ignore)
    assert len(warnings) == 1 and named in warnings[0] and warnings[0].startswith("2 of ")


def test_the_default_recipe_has_no_warning(guarded, data, targets):
    state, warnings = guarded(epochs=3)
    finetune(state, FinetuneState(15, 3), data.training, targets, validation(lambda: 0.5, 20), ignore)
    assert warnings == []


def test_a_backbone_without_gradients_ends_the_run_after_five_updates(guarded, data, targets):
    state, warnings = guarded(loss="arcface")
    forward, steps = state.encoder.module.forward, []
    state.encoder.module.forward = lambda x: (steps.append(1), forward(x).detach())[1]
    run = FinetuneState(4, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5), ignore)
    assert len(steps) == 5
    assert (run.epoch, len(warnings)) == (1, 1)
    assert "conv_stem.weight" in warnings[0]


def test_planning_and_training_continue_when_memory_runs_out(guarded, data, targets):
    """A network that fails with more than two images at once is trained in four parts per batch."""
    state, warnings = guarded()
    forward, sizes = state.encoder.module.forward, []

    def limited(x):
        if len(x) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes.")
        sizes.append(len(x))
        return forward(x)

    state.encoder.module.forward = limited
    plan_epochs(state, data.training, targets, 60.0, 1.0)
    assert len(warnings) == 2
    run = FinetuneState(1, 3)
    finetune(state, run, data.training, targets, validation(lambda: 0.5), ignore)
    assert len(warnings) == 2
    assert sizes == [2] * len(sizes)
    assert run.epoch == 1


# ---------------------------------------------------------------- epochs


class StepRecorder:
    """Replaces the step of a state and records what each step of training receives."""

    def __init__(self, state):
        self.state, self.steps = state, []
        self.original, state.step = state.step, self

    def __call__(self, pixels, targets, **options):
        paths = [m for m in self.state.encoder.module.modules() if type(m).__name__ == "DropPath"]
        self.steps.append(
            SimpleNamespace(
                side=pixels.shape[1],
                targets=sorted(targets.tolist()),
                lr=max(g["lr"] for g in self.state.optimizer.param_groups if not g["is_head"]),
                drops=[p.drop_prob for p in paths if p.training],
            )
        )
        return self.original(pixels, targets, **options)


def test_an_epoch_follows_the_recipe(make_state, data, targets):
    overrides = {"resolution": 0.4, "sampler": "pk", "per_class": 2, "warmup": 0.5, "drop_path": 0.2, "lr": 1e-3}
    recorded = StepRecorder(make_state(**overrides))
    finetune(recorded.state, FinetuneState(2, 3), data.training, targets, None, ignore)
    assert [s.side for s in recorded.steps] == [64] * 6
    assert all(s.targets == [0, 0, 1, 1, 2, 2, 3, 3] for s in recorded.steps)
    factors = [1 / 3, 2 / 3, 1, 1, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2]
    assert [s.lr for s in recorded.steps] == pytest.approx([1e-3 * factor for factor in factors])
    assert all(max(s.drops) == pytest.approx(0.2) for s in recorded.steps)


def test_an_image_that_an_epoch_shows_again_is_another_view(make_state, data):
    state = make_state()
    preprocessing = training_preprocessing(state.encoder, 0.5)

    def batch(order):
        (only,) = iterate_batches(
            data.training, np.array(order), preprocessing, state.recipe, SINGLE_PROCESS, seed=0, epoch=0
        )
        return only.pixels

    first, second, other, third = batch([3, 3, 1, 3])
    assert np.array_equal(batch([1, 3]), [other, first])
    assert not any(np.array_equal(a, b) for a, b in ((first, second), (first, third), (second, third)))


def test_steps_per_epoch_limit_the_batches(make_state, data, targets, recorder):
    progress = recorder()
    run = FinetuneState(1, 2)
    finetune(make_state(), run, data.training, targets, validation(lambda: 0.0), ignore, progress=progress)
    assert progress.steps == [("epoch 1/1", 8, 16), ("epoch 1/1", 16, 16)]


def test_a_single_remaining_image_is_not_a_batch_and_the_weights_are_updated(make_state, data, targets, recorder):
    progress, state = recorder(), make_state(batch_size=23, accumulate=2, loss="arcface")
    before = state.encoder.fingerprint
    run = FinetuneState(1, 2)
    finetune(state, run, data.training, targets, validation(lambda: 0.0), ignore, progress=progress)
    assert progress.steps == [("epoch 1/1", 23, 23)]
    assert state.encoder.fingerprint != before


# ---------------------------------------------------------------- the state


def statistics(encoder):
    return {k: v.clone() for k, v in encoder.module.state_dict().items() if "running" in k}


@pytest.mark.parametrize(("start", "fixed"), [("file", True), ("none", False)])
def test_batch_statistics_are_trained_only_for_random_weights(start, fixed, make_state, member, data, targets):
    encoder = member if start == "file" else build_trainable(SMALL, "none")
    before = statistics(encoder)
    finetune(make_state(encoder), FinetuneState(1, 3), data.training, targets, validation(lambda: 0.0), ignore)
    after = statistics(encoder)
    assert before
    assert all(torch.equal(before[k], after[k]) for k in before) is fixed


def test_a_dump_is_a_copy_and_can_be_loaded(make_state, data, targets):
    state = make_state()
    before = state.dump()
    fingerprint = state.encoder.fingerprint
    finetune(state, FinetuneState(1, 3), data.training, targets, validation(lambda: 0.0), ignore)
    assert state.encoder.fingerprint != fingerprint
    state.load(before)
    assert state.encoder.fingerprint == fingerprint
    assert torch.equal(classifier_of(state).weight.detach(), before["objective"]["losses.0.classifier.weight"])


def test_the_loss_is_the_cross_entropy_of_a_linear_classifier_on_the_projection(make_state):
    """Computed again with numpy from the pooled features of the same pixels."""
    state = make_state(label_smoothing=0.0)
    torch.nn.init.normal_(classifier_of(state).weight, generator=torch.Generator().manual_seed(0))
    pixels = np.stack([np.full((160, 160, 3), 40 * n, np.uint8) for n in range(4)])
    linear = state.encoder.head.linear
    features = state.encoder.torch_backbone().submit(pixels)().astype(np.float64)
    projections = features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    logits = projections @ classifier_of(state).weight.detach().numpy().T
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[range(4), range(4)])
    assert float(state.loss(pixels, torch.arange(4)).detach()) == pytest.approx(expected, abs=1e-3)


def test_the_linear_classifier_starts_at_zero(make_state):
    state = make_state(label_smoothing=0.0)
    pixels = np.stack([np.full((160, 160, 3), 40 * n, np.uint8) for n in range(4)])
    assert float(state.loss(pixels, torch.arange(4)).detach()) == pytest.approx(math.log(4), abs=1e-6)


# ---------------------------------------------------------------- checkpoint

CONTENT = {
    "key": "k",
    "state": {"w": torch.arange(6.0)},
    "history": [{"loss": 0.5}],
    "best": None,
    "low": -float("inf"),
}


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "0", CONTENT)
    content = load_checkpoint(tmp_path / "0", "k")
    assert torch.equal(content.pop("state")["w"], CONTENT["state"]["w"])
    assert content == {k: v for k, v in CONTENT.items() if k != "state"}
    assert [p.name for p in (tmp_path / "0").iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path, "k") is None
    assert load_checkpoint(None, "k") is None


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path, CONTENT)
    with pytest.raises(StorageError, match="belongs to a run with other data, weights or options") as raised:
        load_checkpoint(tmp_path, "other")
    assert str(tmp_path) in str(raised.value)


class Trap:
    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("damage", ["half", "noise", "empty", "code", "list"])
def test_a_damaged_checkpoint_is_refused_and_not_executed(damage, tmp_path):
    save_checkpoint(tmp_path, CONTENT)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    if damage == "code":
        torch.save({"key": "k", "trap": Trap(tmp_path / "it ran")}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "noise": b"\x93\x01zz" * 500, "empty": b""}[damage])
    with pytest.raises(StorageError) as raised:
        load_checkpoint(tmp_path, "k")
    assert str(tmp_path) in str(raised.value)
    assert not (tmp_path / "it ran").exists()


def test_an_interrupted_save_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, CONTENT)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**CONTENT, "history": []})
    assert load_checkpoint(tmp_path, "k")["history"] == [{"loss": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
