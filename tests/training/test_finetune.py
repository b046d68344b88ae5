"""The full stage in its parts: the rate, the plan, one trainee, when it stops and what it keeps."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lookalike.errors import ModelError
from lookalike.models.adapt import family_of
from lookalike.models.pretrained import build_trainable
from lookalike.training.augment import training_view
from lookalike.training.finetune import Run, Validation, _batches, _require_sane, finetune, plan, schedule
from lookalike.training.start import class_rows
from lookalike.training.trainee import Rates, Trainee

SMALL = "test_efficientnet"


@pytest.fixture
def targets(data):
    return class_rows(data.training)


@pytest.fixture
def make_trainee(member, quick):
    """A trainee with a fresh classifier; other options and another member may be given."""

    def make(trained=None, **options):
        trained = trained or member
        options = {"loss": "cross-entropy", **options}
        return Trainee(trained, 4, quick(**options).recipe_for(family_of(trained.module)))

    return make


def classifier_of(trainee):
    return trainee.objective.losses[0].classifier


def watched(measure, patience=3):
    return Validation("map@r", measure, patience)


# ---------------------------------------------------------------- the rate


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.5),  # two steps of warm-up
        (1, 1.0),
        (2, 1.0),  # the cosine begins at its top
        (6, 0.5 * (1 + math.cos(math.pi * 4 / 8))),
        (9, 0.5 * (1 + math.cos(math.pi * 7 / 8))),
        (10, 0.0),  # would be the step after the last
    ],
)
def test_the_rate_by_hand_ten_steps_with_two_of_warm_up(step, share):
    assert schedule(step, 10, 0.2) == pytest.approx(share, abs=1e-12)


def test_the_rate_without_warm_up_begins_at_the_top_and_only_falls():
    rates = [schedule(step, 20, 0.0) for step in range(20)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.02
    assert schedule(0, 1, 0.1) == 1.0


def test_every_group_gets_its_share_of_its_own_peak(make_trainee):
    trainee = make_trainee(lr=1e-4, head_lr=1e-2)
    trainee.set_rate(0.5)
    assert sorted({g["lr"] for g in trainee.optimizer.param_groups}) == pytest.approx([5e-5, 5e-3])


def test_biases_and_normalisation_do_not_decay_and_every_weight_is_trained(make_trainee):
    trainee = make_trainee(weight_decay=0.03)
    groups = trainee.optimizer.param_groups
    for group in groups:
        dimensions = {p.ndim >= 2 for p in group["params"]}
        assert dimensions == {group["weight_decay"] == 0.03}
    count = sum(len(g["params"]) for g in groups)
    modules = (trainee.member.module, trainee.member.head, trainee.objective)
    assert count == sum(len(list(m.parameters())) for m in modules)


# ---------------------------------------------------------------- the plan


def clock(monkeypatch, *readings):
    """Let the full stage read these times, in seconds."""
    times = iter(readings)
    monkeypatch.setattr("lookalike.training.finetune.time", SimpleNamespace(perf_counter=lambda: next(times)))


def test_without_a_budget_all_epochs_are_planned(make_trainee, data, targets):
    run = plan(make_trainee(epochs=5), data.training, targets, None, 0.0)
    assert (run.epochs, run.steps, run.epoch) == (5, 3, 0)


@pytest.mark.parametrize(
    ("seconds_left", "planned"),
    [
        (9_999.0, (6, 3)),  # never more epochs than asked for
        (40.0, (4, 3)),  # 3 · 2 + 4 seconds each
        (39.9, (3, 3)),
        (10.0, (1, 3)),
        (9.0, (1, 2)),  # less than one epoch: (9 - 4) / 2 steps
        (5.0, (1, 1)),
        (-60.0, (1, 1)),
    ],
)
def test_a_budget_is_shared_out_by_what_warm_steps_took(seconds_left, planned, make_trainee, data, targets):
    """3 steps of 2 s, and 4 s of validation, make an epoch; the first step, which warms up, is not counted."""
    with pytest.MonkeyPatch.context() as patch:
        clock(patch, 90.0, 100.0, 102.0, 104.0)
        run = plan(make_trainee(epochs=6), data.training, targets, seconds_left, 4.0)
    assert (run.epochs, run.steps) == planned


@pytest.mark.parametrize("start", ["file", "none"])
def test_planning_changes_nothing(start, make_trainee, member, data, targets, monkeypatch):
    trained = member if start == "file" else build_trainable(SMALL, "none")
    trainee = make_trainee(trained, precision="bfloat16")
    before, classifier = trained.fingerprint, classifier_of(trainee).weight.detach().clone()
    names = [name for name, _ in trained.module.named_modules()]
    plan(trainee, data.training, targets, 60.0, 1.0)
    trained.changed()
    assert trained.fingerprint == before
    assert torch.equal(classifier_of(trainee).weight, classifier)
    assert not trainee.optimizer.state
    parameters = [p for g in trainee.optimizer.param_groups for p in g["params"]]
    assert all(p.grad is None for p in parameters)
    assert not any(m.training for m in trained.module.modules())
    assert [name for name, _ in trained.module.named_modules()] == names


# ---------------------------------------------------------------- when it stops


def scripted(values):
    """A measure that gives these values, one an epoch."""
    remaining = iter(values)
    return lambda: next(remaining)


@pytest.mark.parametrize(
    ("values", "patience", "ran"),
    [
        ([0.5, 0.4, 0.3, 0.9], 2, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 5),
        ([0.5, 0.5, 0.5, 0.9], 2, 3),  # as good is not better
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.5, 0.4], 1, 2),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 9, 6),
    ],
)
def test_it_stops_when_the_best_epoch_lies_so_far_back_and_keeps_that_one(
    values, patience, ran, make_trainee, data, targets
):
    trainee = make_trainee()
    run = Run(len(values), 1)
    states = []
    finetune(
        trainee,
        run,
        data.training,
        targets,
        watched(scripted(values), patience),
        lambda _: states.append(trainee.state()["member"]),
    )
    assert run.epoch == len(run.history) == ran
    assert [h["measure"] for h in run.history] == values[:ran]
    best = int(np.argmax(values[:ran]))
    assert run.best_measure == values[best]
    assert all(torch.equal(run.best[k], v) for k, v in states[best].items())
    assert not all(torch.equal(states[0][k], v) for k, v in states[-1].items())


def test_a_run_that_is_over_does_nothing(make_trainee, data, targets):
    trainee = make_trainee()
    before = trainee.member.fingerprint
    run = Run(2, 3, epoch=2)
    finetune(trainee, run, data.training, targets, watched(lambda: 1 / 0), lambda _: 1 / 0)
    trainee.member.changed()
    assert trainee.member.fingerprint == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_network_in_one_piece(
    precision, make_trainee, data, targets
):
    trainee = make_trainee(precision=precision)
    names = [name for name, _ in trainee.member.module.named_modules()]
    with torch.no_grad():
        trainee.member.module.conv_stem.weight.fill_(math.nan)
    run = Run(2, 3)
    with pytest.raises(ModelError) as raised:
        finetune(trainee, run, data.training, targets, watched(lambda: 0.0), lambda _: None)
    assert str(raised.value) == "training diverged in epoch 1 (the loss is nan); take a lower learning rate."
    assert [name for name, _ in trainee.member.module.named_modules()] == names
    assert not trainee.member.module.training
    assert run.history == []


def test_a_gradient_that_is_no_number_stops_the_run_before_it_reaches_the_weights(make_trainee, data, targets):
    trainee = make_trainee()
    trainee.member.head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    before = trainee.member.fingerprint
    with pytest.raises(ModelError) as raised:
        finetune(trainee, Run(1, 3), data.training, targets, watched(lambda: 0.0), lambda _: None)
    assert str(raised.value) == "training diverged in epoch 1 (a gradient is no number); take a lower learning rate."
    trainee.member.changed()
    assert trainee.member.fingerprint == before


# ---------------------------------------------------------------- what the recipe turns, in an epoch


class Watched:
    """Stands in for the loss of a trainee, and keeps what each step of training is given."""

    def __init__(self, trainee):
        self.trainee, self.steps = trainee, []
        self.own, trainee.loss = trainee.loss, self

    def __call__(self, pixels, rows, **given):
        paths = [m for m in self.trainee.member.module.modules() if type(m).__name__ == "DropPath"]
        self.steps.append(
            SimpleNamespace(
                side=pixels.shape[1],
                rows=sorted(rows.tolist()),
                lr=max(g["lr"] for g in self.trainee.optimizer.param_groups if g["share"]),
                drops=[p.drop_prob for p in paths if p.training],
            )
        )
        return self.own(pixels, rows, **given)


def test_an_epoch_has_the_sides_the_batches_the_rates_and_the_depth_of_its_recipe(make_trainee, data, targets):
    options = {"first_resolution": 0.4, "resolution": 1.0, "sampler": "pk", "per_class": 2, "warmup": 0.5}
    watch = Watched(make_trainee(drop_path=0.2, lr=1e-3, **options))
    finetune(watch.trainee, Run(2, 3), data.training, targets, None, lambda _: None)
    assert [s.side for s in watch.steps] == [64] * 3 + [160] * 3
    assert all(s.rows == [0, 0, 1, 1, 2, 2, 3, 3] for s in watch.steps)
    shares = [1 / 3, 2 / 3, 1, 1, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2]
    assert [s.lr for s in watch.steps] == pytest.approx([1e-3 * share for share in shares])
    assert all(max(s.drops) == pytest.approx(0.2) for s in watch.steps)


def test_classes_come_as_often_where_the_sampler_is_aware_of_them(make_trainee, data, targets):
    few = [n for n, row in enumerate(targets) if row != 0 or n < 1]  # 1 image of the first class, 6 of the others
    watch = Watched(make_trainee(sampler="class-aware", batch_size=4))
    finetune(watch.trainee, Run(1, 4), [data.training[n] for n in few], targets[few], None, lambda _: None)
    assert [s.rows for s in watch.steps] == [[0, 1, 2, 3]] * 4


def test_an_image_that_an_epoch_shows_again_is_another_view(make_trainee, data):
    trainee = make_trainee()
    view = training_view(trainee.member, 0.5)
    (several,) = _batches(trainee, data.training, np.array([3, 3, 1, 3]), view, epoch=0)
    (once,) = _batches(trainee, data.training, np.array([1, 3]), view, epoch=0)
    first, second, other, third = several.pixels
    assert np.array_equal(once.pixels, [other, first])
    assert not any(np.array_equal(a, b) for a, b in ((first, second), (first, third), (second, third)))


# ---------------------------------------------------------------- when it stops


def test_it_stops_when_there_is_no_time_for_another_epoch_unless_the_end_is_known(
    make_trainee, data, targets, recorder
):
    listener, run = recorder(), Run(3, 1)
    left = iter([True, False])
    finetune(
        make_trainee(),
        run,
        data.training,
        targets,
        None,
        lambda _: None,
        may_go_on=lambda: next(left),
        progress=listener,
    )
    assert run.epoch == 2
    assert listener.said[-1] == "  stopped before epoch 3/3: the time is needed for the rest"
    known = Run(3, 1, last=2)
    finetune(make_trainee(), known, data.training, targets, None, lambda _: None, may_go_on=lambda: False)
    assert known.epoch == 2


def test_a_loss_far_above_that_of_the_first_twenty_steps_is_divergence():
    run = Run(2, 30, epoch=1)
    for _ in range(20):
        _require_sane(run, 2.0, classes=4)
    assert run.level == 2.0
    for _ in range(19):  # the mean of the last twenty is then 2 / 20 + 19 * 8 / 20 = 7.7, not above 4 * 2
        _require_sane(run, 8.0, classes=4)
    with pytest.raises(ModelError) as raised:
        _require_sane(run, 16.5, classes=4)  # 19 * 8 / 20 + 16.5 / 20 = 8.425
    assert str(raised.value) == (
        "training diverged in epoch 2 (the loss rose from 2 to 8.43); take a lower learning rate."
    )


def test_a_start_that_is_nearly_perfect_is_no_level_to_fall_from():
    run = Run(2, 30)
    for loss in [0.01] * 20 + [1.3] * 20:
        _require_sane(run, loss, classes=4)
    assert run.level == pytest.approx(math.log(4))


def test_rates_hold_from_their_epoch(make_trainee, data, targets):
    run = Run(3, 1, rates=[Rates(0, 1e-4, 1e-3), Rates(1, 1e-5, 1e-4)])
    trainee = make_trainee(warmup=0.0, layer_decay=0.5, lr=0.5, head_lr=0.5)
    seen = []
    for _ in range(2):
        run.last = run.epoch + 1
        finetune(trainee, run, data.training, targets, None, lambda _: None)
        seen.append({g["share"]: g["lr"] for g in trainee.optimizer.param_groups})
    top, bottom = max(s for s in seen[0] if s), min(s for s in seen[0] if s)
    assert (top, bottom < 0.1) == (1.0, True)
    # the steps are 1 of 3 and 2 of 3, and the first of them is the whole warm-up: shares 1 and (1 + cos(0)) / 2 = 1
    for rates, lr, head_lr in ((seen[0], 1e-4, 1e-3), (seen[1], 1e-5, 1e-4)):
        assert rates[None] == pytest.approx(head_lr)
        assert (rates[top], rates[bottom]) == pytest.approx((lr, lr * bottom))


def test_a_run_takes_new_rates_once():
    run = Run(3, 1)
    assert [run.go_on_with(1e-4, 1e-3), run.go_on_with(1e-4, 1e-3)] == [False, False]
    run.epoch = 2
    assert [run.go_on_with(1e-5, 1e-3), run.go_on_with(1e-5, 1e-3)] == [True, False]
    assert run.rates == [(0, 1e-4, 1e-3), (2, 1e-5, 1e-3)]
    assert Run.restore(run.dump()) == run


def test_an_epoch_of_fewer_steps_sees_that_many_batches(make_trainee, data, targets, recorder):
    listener = recorder()
    finetune(make_trainee(), Run(1, 2), data.training, targets, watched(lambda: 0.0), lambda _: None, progress=listener)
    assert listener.steps == [("epoch 1/1", 8, 16), ("epoch 1/1", 16, 16)]


def test_an_image_left_over_is_no_batch_and_the_weights_move_all_the_same(make_trainee, data, targets, recorder):
    listener, trainee = recorder(), make_trainee(batch_size=23, accumulate=2)
    before = trainee.member.fingerprint
    finetune(trainee, Run(1, 2), data.training, targets, watched(lambda: 0.0), lambda _: None, progress=listener)
    assert listener.steps == [("epoch 1/1", 23, 23)]
    assert trainee.member.fingerprint != before


# ---------------------------------------------------------------- the trainee


def statistics(member):
    return {k: v.clone() for k, v in member.module.state_dict().items() if "running" in k}


@pytest.mark.parametrize(("start", "kept"), [("file", True), ("none", False)])
def test_batch_statistics_move_only_where_they_were_random(start, kept, make_trainee, member, data, targets):
    trained = member if start == "file" else build_trainable(SMALL, "none")
    before = statistics(trained)
    finetune(make_trainee(trained), Run(1, 3), data.training, targets, watched(lambda: 0.0), lambda _: None)
    after = statistics(trained)
    assert before
    assert all(torch.equal(before[k], after[k]) for k in before) is kept


def test_a_state_is_a_copy_and_comes_back(make_trainee, data, targets):
    trainee = make_trainee()
    before = trainee.state()
    fingerprint = trainee.member.fingerprint
    finetune(trainee, Run(1, 3), data.training, targets, watched(lambda: 0.0), lambda _: None)
    assert trainee.member.fingerprint != fingerprint
    trainee.load(before)
    assert trainee.member.fingerprint == fingerprint
    assert torch.equal(classifier_of(trainee).weight.detach(), before["objective"]["losses.0.classifier.weight"])


def test_the_loss_is_the_cross_entropy_of_a_linear_classifier_on_the_projection(make_trainee):
    """Computed once more with numpy from the pooled features of the same pixels."""
    trainee = make_trainee(label_smoothing=0.0)
    torch.nn.init.normal_(classifier_of(trainee).weight, generator=torch.Generator().manual_seed(0))
    pixels = np.stack([np.full((160, 160, 3), 40 * n, np.uint8) for n in range(4)])
    trainee.eval_mode()
    linear = trainee.member.head.linear
    features = trainee.member.features(pixels).astype(np.float64)
    projected = features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    logits = projected @ classifier_of(trainee).weight.detach().numpy().T
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[range(4), range(4)])
    assert float(trainee.loss(pixels, torch.arange(4)).detach()) == pytest.approx(expected, abs=1e-3)


def test_the_linear_classifier_starts_undecided(make_trainee):
    trainee = make_trainee(label_smoothing=0.0)
    pixels = np.stack([np.full((160, 160, 3), 40 * n, np.uint8) for n in range(4)])
    assert float(trainee.loss(pixels, torch.arange(4)).detach()) == pytest.approx(math.log(4), abs=1e-6)
