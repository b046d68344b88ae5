"""The head fitted to the fine-tuned backbone: when it is taken, what the bundle says of it, and its repetition."""

import numpy as np
import pytest

from lookalike.embeddings.fit import Features, compute_features
from lookalike.models.facts import read_facts
from lookalike.models.projection import fit_whitened
from lookalike.models.torch_bundle import load_bundle
from lookalike.training.last_head import FITS, best_last_head, joined_features
from lookalike.training.one_backbone import train_member
from lookalike.training.refit import refit
from lookalike.training.start import class_rows
from lookalike.training.train import train
from lookalike.training.view import TRIED

SMALL = "test_efficientnet"


@pytest.fixture
def see(member, data):
    """Take the features of the training crops with the member's present backbone."""
    return lambda _share: (compute_features(member, data.training, task="test"), class_rows(data.training))


def test_the_best_of_all_is_kept_and_a_tie_goes_to_the_first(member, see):
    state = member.state()
    other = {k: v * 0.9 if v.is_floating_point() else v for k, v in state.items()}
    values = iter([0.1, 0.5, 0.5, 0, 0, 0, 0, 0, 0.2, 0.3, 0.4, 0.5, 0, 0, 0, 0])
    weights = {1.0: state, 0.5: other}
    kept = best_last_head(member, [1.0, 0.5], weights.get, see, lambda: lambda: next(values), 0.2, seed=0)
    assert (kept.share, kept.fit, kept.measure) == (1.0, FITS[1], 0.5)
    after = member.state()
    assert all(np.array_equal(after[k], state[k]) for k in state if k.startswith("backbone."))
    features, targets = see(1.0)
    shrinkage, emphasis = FITS[1]
    weight, bias = fit_whitened(features.rows, targets, shrinkage, member.dim, emphasis=emphasis, seed=0)
    assert np.array_equal(after["head.linear.weight"], weight)
    assert np.array_equal(after["head.linear.bias"], bias)
    assert member.origin["head"].startswith("whitened within the classes of 24 images after training")


def test_none_above_the_trained_head_leaves_everything_as_it_was(member, see):
    before, origin = member.state(), dict(member.origin)
    assert best_last_head(member, [1.0], lambda _: before, see, lambda: lambda: 0.7, 0.7, seed=0) is None
    after = member.state()
    assert all(np.array_equal(after[k], before[k]) for k in before)
    assert member.origin == origin


def test_further_shares_are_tried_only_while_there_is_time(member, see):
    seen = []
    best_last_head(
        member,
        [0.75, 0.5],
        lambda share: seen.append(share) or member.state(),
        see,
        lambda: lambda: 0.7,
        0.2,
        seed=0,
        may_go_on=lambda: False,
    )
    assert seen == [0.75]


def test_parts_of_several_processes_are_put_in_order():
    parts = [Features(("c", "a"), np.array([[3.0], [1.0]]), ()), Features(("b",), np.array([[2.0]]), ())]
    joined = joined_features(parts, ["a", "b", "missing", "c"])
    assert joined.ids == ("a", "b", "c")
    assert joined.rows[:, 0].tolist() == [1, 2, 3]


def test_a_head_asked_for_is_in_the_bundle_and_refit_repeats_it(data, crops_original, quick, tmp_path):
    train(data, SMALL, weights="none", out=tmp_path / "model", options=quick(last_head="whitened", view="center"))
    (report,) = read_facts(tmp_path / "model")["training"]
    assert tuple(report["last_head"]) in FITS
    assert report["view"] == "center"
    (member,) = load_bundle(tmp_path / "model").members
    assert member.origin["head"].startswith("whitened within the classes of 24 images after training")

    again = refit(crops_original, tmp_path / "model", out=tmp_path / "again", weights="none")
    (second,) = read_facts(tmp_path / "again")["training"]
    assert (second["last_head"], second["view"]) == (report["last_head"], "center")
    assert again.members[0].origin["head"].startswith("whitened within the classes of 32 images after training")
    assert again.members[0].preprocessing == member.preprocessing


def test_the_trained_head_stays_where_it_is_asked_for(data, weights, quick, heard):
    outcome = train_member(data, SMALL, weights, quick(last_head="trained"), None, heard())
    assert outcome.report["last_head"] is None
    assert "after training" not in outcome.member.origin["head"]


def test_what_is_seen_of_a_picture_goes_by_validation_where_the_backbone_stays_frozen(data, weights, quick, heard):
    listener = heard()
    outcome = train_member(data, SMALL, weights, quick(frozen=True), None, listener)
    (line,) = [text for text in listener.said if "by what is seen of a picture" in text]
    found = {}
    for part in line.split("picture: ")[1].split(", "):
        view, _, value = part.rpartition(" ")
        found[view] = float(value)
    assert tuple(found) == TRIED
    assert outcome.report["view"] == max(found, key=found.get)
    assert outcome.report["validation"]["frozen"] == pytest.approx(max(found.values()), abs=5e-5)


def test_the_whole_picture_is_seen_where_the_network_is_trained(data, weights, quick, heard):
    outcome = train_member(data, SMALL, weights, quick(epochs=1), None, heard())
    assert outcome.report["view"] == "squash"
    assert (outcome.member.preprocessing.crop_mode, outcome.member.preprocessing.crop_pct) == ("squash", 1.0)
