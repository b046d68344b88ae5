"""Fine-tuning: the learning rate, the plan, batches, when it stops and what it keeps."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lookalike.errors import ModelError, StorageError
from lookalike.models.adapt import family_of
from lookalike.models.info import LearningRates
from lookalike.models.trainable import build_trainable
from lookalike.training.batches import iterate_batches, training_preprocessing
from lookalike.training.context import class_indices
from lookalike.training.distributed import SINGLE_PROCESS
from lookalike.training.finetune import (
    FinetuneState,
    Validation,
    _require_convergence,
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_not_finite_ends_the_run(precision, make_state, data, targets):
    state = make_state(precision=precision)
    names = [name for name, _ in state.encoder.module.named_modules()]
    with torch.no_grad():
        state.encoder.module.conv_stem.weight.fill_(math.nan)
    run = FinetuneState(2, 3)
    with pytest.raises(ModelError, match=r"epoch 1 .*not finite") as raised:
        finetune(state, run, data.training, targets, validation(lambda: 0.0), ignore)
    assert raised.value.argument == "lr"
    assert [name for name, _ in state.encoder.module.named_modules()] == names
    assert not state.encoder.module.training
    assert run.epochs == []


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(make_state, data, targets):
    state = make_state()
    state.encoder.head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    before = state.encoder.fingerprint
    with pytest.raises(ModelError, match=r"epoch 1 .*not finite"):
        finetune(state, FinetuneState(1, 3), data.training, targets, validation(lambda: 0.0), ignore)
    assert state.encoder.fingerprint == before


def test_an_average_loss_far_above_the_first_loss_is_divergence():
    run = FinetuneState(2, 30, epochs=[SimpleNamespace()])
    for _ in range(20):
        _require_convergence(run, 2.0, classes=4)
    assert run.first_loss == 2.0
    for _ in range(19):  # the mean of the last twenty is then 2 / 20 + 19 * 8 / 20 = 7.7, not above 4 * 2
        _require_convergence(run, 8.0, classes=4)
    with pytest.raises(ModelError, match=r"epoch 2 \(the loss rose from 2 to 8.43\)"):
        _require_convergence(run, 16.5, classes=4)  # 19 * 8 / 20 + 16.5 / 20 = 8.425


def test_a_low_first_loss_is_replaced_by_the_loss_of_guessing():
    run = FinetuneState(2, 30)
    for loss in [0.01] * 20 + [1.3] * 20:
        _require_convergence(run, loss, classes=4)
    assert run.first_loss == pytest.approx(math.log(4))


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
