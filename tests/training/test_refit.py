"""Training once more on all images, by what validation found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike._files import write_json
from lookalike.embeddings.fit import compute_features
from lookalike.errors import DataError, ModelError, OptionError, StorageError
from lookalike.models.facts import read_facts
from lookalike.models.projection import fit_pca
from lookalike.models.torch_bundle import load_bundle
from lookalike.progress import SILENT
from lookalike.training.refit import Schedule, _planned, refit
from lookalike.training.start import NOTHING, Known, repeat_start
from lookalike.training.train import train
from lookalike.training.trainee import Rates, Trainee

SMALL = "test_efficientnet"
WITH_VALIDATION = 32  # 24 training and 8 validation crops


@pytest.fixture(scope="module")
def first(crops_original, weights, quick, tmp_path_factory) -> Path:
    """A bundle of a run of three epochs; its report is then made to say what the tests count on."""
    out = tmp_path_factory.mktemp("first") / "first"
    train(crops_original, SMALL, weights=weights, out=out, options=quick(epochs=3, lr=1e-3))
    rewritten(out, share=0.5, measures=[0.2, 0.4, 0.3], head_epochs=2)
    return out


def rewritten(bundle: Path, *, share: float, measures: list[float], head_epochs: int) -> None:
    facts = read_facts(bundle)
    report = facts["training"][0]
    report["interpolation"] = {"share": share, "measures": {}}
    report["history"] = [{"loss": 1.0, "measure": m, "seconds": 1.0} for m in measures]
    report["head_epochs"] = head_epochs
    write_json(bundle / "bundle.json", facts)


def test_the_schedule_is_what_validation_found_best():
    report: dict[str, Any] = {
        "head_epochs": 4,
        "plan": {"epochs": 6, "steps": 9},
        "rates": [{"epoch": 0, "lr": 1e-3, "head_lr": 1e-2}, {"epoch": 1, "lr": 1e-4, "head_lr": 1e-3}],
        "shrinkage": 0.5,
        "history": [{"measure": m} for m in (0.2, 0.5, 0.4)],
        "interpolation": {"share": 0.75},
    }
    rates = (Rates(0, 1e-3, 1e-2), Rates(1, 1e-4, 1e-3))
    assert Schedule.of(report) == Schedule(Known(4, 0.5), epochs=6, steps=9, last=2, share=0.75, rates=rates)
    assert Schedule.of({**report, "interpolation": {"share": 0}}) == Schedule(Known(4, 0.5))
    assert Schedule.of({"head_epochs": 7, "shrinkage": None}) == Schedule(Known(7))
    assert Schedule.of(None) == Schedule()


def test_it_trains_as_long_as_validation_said_on_all_images(first, crops_original, weights, recorder, tmp_path):
    progress = recorder()
    model = refit(crops_original, first, out=tmp_path / "again", weights=weights, progress=progress)
    epochs = [task for task in progress.tasks if task.startswith("epoch")]
    assert epochs == ["epoch 1/2", "epoch 2/2"]  # the learning rate falls as for three
    assert {total for task, _, total in progress.steps if task in epochs} == {WITH_VALIDATION}
    facts = read_facts(tmp_path / "again")
    assert facts["refit_of"] == load_bundle(first).fingerprint
    assert facts["training_data"]["images"] == WITH_VALIDATION
    assert facts["training_data"]["validation_images"] == 0
    assert (tmp_path / "again" / "curves.png").exists() and (tmp_path / "again" / "curves.html").exists()
    report = facts["training"][0]
    assert report["images"] == WITH_VALIDATION
    assert report["validation"] == read_facts(first)["training"][0]["validation"]
    assert report["rates"] == read_facts(first)["training"][0]["rates"]
    assert report["options"] == read_facts(first)["options"]
    assert "measures" not in facts and "precision@3" in read_facts(first)["measures"]["validation"]
    assert [set(epoch) for epoch in report["history"]] == [{"loss", "seconds"}] * 2
    assert model.members[0].origin["fine_tuned_share"] == 0.5
    assert model.fingerprint == load_bundle(tmp_path / "again").fingerprint != load_bundle(first).fingerprint
    assert not (tmp_path / "again.training").exists()


@pytest.mark.parametrize("moment", [("epoch 1/2", 16), ("epoch 2/2", 16)])
def test_interrupted_and_resumed_it_is_the_same_to_the_bit(moment, first, crops_original, weights, recorder, tmp_path):
    whole = refit(crops_original, first, out=tmp_path / "whole", weights=weights)
    given = {"out": tmp_path / "parts", "weights": weights}
    with pytest.raises(KeyboardInterrupt):
        refit(crops_original, first, progress=recorder(lambda task, done: (task, done) == moment), **given)
    with pytest.raises(StorageError, match="holds an unfinished run; go on with --resume"):
        refit(crops_original, first, **given)
    resumed = refit(crops_original, first, resume=True, **given)
    assert resumed.fingerprint == whole.fingerprint
    progress = recorder()
    assert refit(crops_original, first, resume=True, progress=progress, **given).fingerprint == whole.fingerprint
    assert progress.said == [f"{tmp_path / 'parts'} is the finished bundle of this run, there is nothing to go on with"]


def test_a_member_that_was_not_trained_gets_its_head_from_all_images(data, crops_original, weights, member, tmp_path):
    from lookalike.embeddings.fit import fit_projection
    from lookalike.models.encoder import Encoder
    from lookalike.models.torch_bundle import save_bundle
    from lookalike.training.options import TrainingOptions
    from lookalike.training.train import bundle_facts

    fit_projection(member, compute_features(member, data.training, task=""))
    facts = bundle_facts(data, TrainingOptions(), [])
    first = save_bundle(Encoder([member]), tmp_path / "frozen", facts=facts)
    model = refit(crops_original, first, out=tmp_path / "again", weights=weights)
    rows = [compute_features(member, part, task="").rows for part in (data.training, data.validation)]
    weight, bias = fit_pca(np.concatenate(rows), member.dim, seed=0)
    head = model.members[0].head.linear
    np.testing.assert_allclose(head.weight.detach().numpy(), weight, atol=1e-6)
    np.testing.assert_allclose(head.bias.detach().numpy(), bias, atol=1e-6)
    assert model.members[0].origin["head"] == f"PCA of {WITH_VALIDATION} images"
    assert model.members[0].trained == "frozen"


def test_an_ensemble_is_aligned_anew(crops_original, weights, quick, tmp_path):
    both = f"{SMALL}+test_vit"
    given = {SMALL: weights, "test_vit": "none"}
    train(crops_original, both, weights=given, out=tmp_path / "first", options=quick(epochs=1))
    model = refit(crops_original, tmp_path / "first", out=tmp_path / "again", weights=given)
    assert [m.backbone for m in model.members] == [SMALL, "test_vit"]
    alignment = model.alignments[1]
    assert alignment is not None
    np.testing.assert_allclose(alignment @ alignment.T, np.eye(len(alignment)), atol=1e-4)


def test_unlabelled_validation_images_are_left_out(data, member, quick):
    lost = data.validation[0]
    held_out = [replace(i, label=None) if i.id == lost.id else i for i in data.items]
    start = repeat_start(
        member,
        data.replace_items(held_out),
        quick(),
        quick().recipe_for("mobile-cnn"),
        NOTHING,
        cache=None,
        progress=SILENT,
    )
    assert start.classes == 4
    assert lost.id not in {i.id for i in start.items}
    assert len(start.items) == WITH_VALIDATION - 1


def test_an_epoch_that_a_budget_cut_short_stays_short(data, member, quick):
    """24 training images in batches of 8 are 3 steps; with validation they are 32, 4 steps."""
    start = repeat_start(member, data, quick(), quick().recipe_for("mobile-cnn"), NOTHING, cache=None, progress=SILENT)
    trainee = Trainee(member, 4, quick().recipe_for("mobile-cnn"))
    rates = (Rates(0, 1e-3, 1e-2),)
    planned = {n: _planned(Schedule(NOTHING, 3, n, 2, 1.0, rates=rates), start, trainee) for n in (2, 3)}
    assert [run.rates for run in planned.values()] == [list(rates)] * 2
    assert {n: (run.epochs, run.last, run.steps) for n, run in planned.items()} == {2: (3, 2, 2), 3: (3, 2, 4)}


def test_what_was_refitted_is_refused(first, crops_original, weights, tmp_path):
    again = Path(shutil.copytree(first, tmp_path / "again"))
    facts = read_facts(again)
    write_json(again / "bundle.json", {**facts, "refit_of": "another"})
    with pytest.raises(ModelError, match="again was refitted already, on all images that there are; give the bundle"):
        refit(crops_original, again, out=tmp_path / "more", weights=weights)


def test_other_data_is_refused(first, crops, weights, tmp_path):
    next((crops / "training").rglob("*.png")).unlink()
    with pytest.raises(DataError, match=f"{first} was not trained on the images in {crops}; give the folder"):
        refit(crops, first, out=tmp_path / "again", weights=weights)


def test_other_weights_are_refused(first, crops_original, tmp_path):
    with pytest.raises(ModelError, match=f"{SMALL} was not trained from these weights .*; give the weights that"):
        refit(crops_original, first, out=tmp_path / "again", weights="none")
    with pytest.raises(OptionError, match="weights are given for 'resnet50', which is not among"):
        refit(crops_original, first, out=tmp_path / "again", weights={"resnet50": "none"})


def test_a_bundle_that_does_not_say_how_it_was_trained(encoder_bundle, crops_original, tmp_path):
    with pytest.raises(ModelError, match="does not say how it was trained; give a bundle that 'lookalike train' or"):
        refit(crops_original, encoder_bundle, out=tmp_path / "again", weights="none")
    assert not (tmp_path / "again").exists()


@pytest.fixture
def encoder_bundle(member, tmp_path) -> Path:
    from lookalike.models.encoder import Encoder
    from lookalike.models.torch_bundle import save_bundle

    return save_bundle(Encoder([member]), tmp_path / "plain")


def test_a_place_that_is_taken_stays_as_it_is(first, crops_original, weights, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "mine.json").write_text(json.dumps(1))
    with pytest.raises(StorageError, match="already exists"):
        refit(crops_original, first, out=tmp_path / "again", weights=weights)
    assert (tmp_path / "again" / "mine.json").read_text() == "1"
