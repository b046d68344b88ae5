"""Interpolated weights and closed-form heads: exact at the ends, and the best on validation is selected."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lookalike.models.bundle import read_bundle_info
from lookalike.models.heads import Whitening
from lookalike.models.info import EpochReport
from lookalike.progress import SILENT
from lookalike.runtimes.fit import compute_features
from lookalike.runtimes.load import load_encoder
from lookalike.training.config import Recipe
from lookalike.training.context import TrainingContext, class_indices
from lookalike.training.finetune import FinetuneState
from lookalike.training.refit import refit
from lookalike.training.train import train
from lookalike.training.train_backbone import train_backbone
from lookalike.training.weight_selection import HEAD_FITS, fit_posthoc_head, interpolate_weights, select_weights

SMALL = "test_efficientnet"


def bits(state):
    return {k: v.numpy().tobytes() for k, v in state.items()}


# ---------------------------------------------------------------- weights


@pytest.fixture
def ends():
    """Values that arithmetic would not reproduce: tiny beside huge, minus zero, a counter."""
    pretrained = {"w": torch.tensor([1e-8, -0.0, 0.1, 3e30]), "n": torch.tensor(3)}
    fine_tuned = {"w": torch.tensor([1e8, 2.0, -0.3, -3e30]), "n": torch.tensor(9)}
    return pretrained, fine_tuned


def test_shares_of_zero_and_one_are_exact(ends):
    pretrained, fine_tuned = ends
    assert bits(interpolate_weights(pretrained, fine_tuned, 0.0)) == bits(pretrained)
    assert bits(interpolate_weights(pretrained, fine_tuned, 1.0)) == bits(fine_tuned)


def test_interpolation_by_hand():
    pretrained = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    fine_tuned = {"w": torch.tensor([8.0, 0.0]), "n": torch.tensor(9)}
    state = interpolate_weights(pretrained, fine_tuned, 0.25)
    assert state["w"].tolist() == [2.0, 3.0]
    assert state["n"].item() == 9


@pytest.fixture
def stage(member, data):
    """A frozen stage that left the encoder as it is."""
    return SimpleNamespace(
        state=member.state(),
        items=data.training,
        targets=class_indices(data.training),
        head_measure=0.1,
        head_epochs=0,
        head_origin="PCA",
        fit=None,
    )


@pytest.fixture
def fine_tuned(member):
    """Other weights for the same encoder."""
    return {k: v + 0.5 if v.is_floating_point() else v for k, v in member.state().items()}


class ScriptedContext:
    """A training context whose measures are given."""

    progress = SILENT
    unseen_classes = False
    options = SimpleNamespace(seed=0, stop_on="map@r")

    def __init__(self, values, *, posthoc_head="trained", has_time=True):
        self.values = iter(values)
        self.recipe = Recipe(posthoc_head=posthoc_head)
        self.has_time_for_more = lambda: has_time
        self.weights = []
        self.tasks = []

    def measure(self, encoder):
        self.weights.append(encoder.state()["head.linear.bias"][0].item())
        return next(self.values)

    def make_head_measure(self, _encoder):
        return lambda: next(self.values)

    def current_features(self, encoder, items, task):
        self.tasks.append(task)
        return compute_features(encoder.torch_backbone(), items, progress=SILENT, task=task)


@pytest.mark.parametrize(
    ("measures", "selected"),  # of the shares 0, 0.25, 0.5, 0.75 and 1
    [
        ([0.1, 0.2, 0.7, 0.3, 0.4], 0.5),
        ([0.1, 0.8, 0.7, 0.3, 0.4], 0.25),
        ([0.1, 0.2, 0.3, 0.3, 0.4], 1.0),
        ([0.9, 0.2, 0.3, 0.3, 0.4], 0.0),
        ([0.4, 0.4, 0.4, 0.4, 0.4], 0.0),  # no improvement: the pretrained weights
    ],
)
def test_the_best_share_is_selected(measures, selected, member, stage, fine_tuned):
    stage.head_measure = measures[0]
    run = FinetuneState(1, 1, epochs=[EpochReport(1.0, 1.0)], best=fine_tuned, best_measure=measures[-1])
    context = ScriptedContext(measures[1:-1])
    selection = select_weights(context, member, stage, run)
    assert selection.share == selected
    start = stage.state["head.linear.bias"][0].item()
    assert context.weights == pytest.approx([start + 0.5 * share for share in (0.25, 0.5, 0.75)])
    assert dict(sorted(selection.share_measures.items())) == dict(zip((0, 0.25, 0.5, 0.75, 1), measures, strict=True))
    assert selection.measure == max(measures)
    assert bits(member.state()) == bits(interpolate_weights(stage.state, fine_tuned, selected))
    assert member.trained == ("fine-tuned" if selected else "frozen")


# ---------------------------------------------------------------- closed-form head


def test_the_best_head_is_selected_and_of_equals_the_first(member, stage):
    other = {k: v * 0.9 if v.is_floating_point() else v for k, v in stage.state.items()}
    context = ScriptedContext([0.1, 0.5, 0.5, 0, 0, 0, 0, 0, 0.2, 0.3, 0.4, 0.5, 0, 0, 0, 0])
    selection = fit_posthoc_head(context, member, stage, other, [1.0, 0.5], 0.2)
    assert (selection.share, selection.posthoc_head, selection.measure) == (1.0, HEAD_FITS[1], 0.5)
    assert context.tasks == ["closed-form head at 100% of fine-tuning", "closed-form head at 50% of fine-tuning"]
    after = member.state()
    assert all(np.array_equal(after[k], other[k]) for k in other if k.startswith("backbone."))
    member.load_state(other)
    features = compute_features(member.torch_backbone(), stage.items, progress=SILENT, task="test")
    fit = HEAD_FITS[1]
    weight, bias = Whitening(features.rows, stage.targets, member.dim).fit(fit.shrinkage, fit.emphasis)
    assert np.array_equal(after["head.linear.weight"], weight)
    assert np.array_equal(after["head.linear.bias"], bias)
    assert member.head_origin.startswith("whitened within the classes of 24 images after training")


def test_no_head_above_the_trained_one_changes_nothing(member, stage, fine_tuned):
    before, origin = member.state(), member.head_origin
    assert fit_posthoc_head(ScriptedContext([0.7] * 8), member, stage, fine_tuned, [1.0], 0.7) is None
    assert bits(member.state()) == bits(before)
    assert member.head_origin == origin


def test_further_shares_are_tried_only_while_there_is_time(member, stage, fine_tuned):
    context = ScriptedContext([0.7] * 8, has_time=False)
    fit_posthoc_head(context, member, stage, fine_tuned, [0.75, 0.5], 0.2)
    assert context.tasks == ["closed-form head at 75% of fine-tuning"]


def test_a_whitened_head_is_in_the_bundle_and_refit_repeats_it(data, crops_original, quick, tmp_path):
    options = quick(posthoc_head="whitened", crop_mode="center")
    train(data, SMALL, weights="none", out=tmp_path / "model", options=options)
    (report,) = read_bundle_info(tmp_path / "model").training
    assert report.posthoc_head in HEAD_FITS
    assert report.crop_mode == "center"
    (encoder,) = load_encoder(tmp_path / "model").members
    assert encoder.info.head.startswith("whitened within the classes of 24 images after training")

    again = refit(crops_original, tmp_path / "model", out=tmp_path / "again", weights="none")
    (second,) = read_bundle_info(tmp_path / "again").training
    assert (second.posthoc_head, second.crop_mode) == (report.posthoc_head, "center")
    assert again.info.head.startswith("whitened within the classes of 32 images after training")
    assert again.preprocessing == encoder.preprocessing


def test_the_trained_head_is_kept_if_the_recipe_says_so(data, weights, quick):
    context = TrainingContext(data, quick(posthoc_head="trained"))
    trained = train_backbone(context, SMALL, weights)
    assert trained.report.posthoc_head is None
    assert "after training" not in trained.encoder.head_origin
