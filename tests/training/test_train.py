"""`train` from the data folder to the bundle: what it learns from, what it keeps, what it refuses."""

import hashlib
import shutil
import time

import numpy as np
import pytest
import torch

from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.embeddings.fit import fitted_encoder
from lookalike.errors import DataError, LookalikeError, ModelError, OptionError, StorageError
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.models.alignment import fit_alignment
from lookalike.models.encoder import Encoder
from lookalike.models.facts import read_facts
from lookalike.models.pretrained import build_trainable
from lookalike.models.torch_bundle import load_bundle
from lookalike.training.one_backbone import fresh_member, train_member, validation_fingerprint
from lookalike.training.precision import is_lowered
from lookalike.training.train import bundle_facts, train

SMALL = "test_efficientnet"


@pytest.fixture(scope="module")
def trained(data, weights, quick, recorder, tmp_path_factory):
    """One finished run: the bundle, the encoder that was returned, and what progress was told."""
    out = tmp_path_factory.mktemp("trained") / "model"
    listener = recorder()
    encoder = train(data, SMALL, weights=weights, out=out, options=quick(), progress=listener)
    return out, encoder, listener


def test_the_bundle_is_the_encoder_that_was_returned(trained, data):
    out, encoder, _ = trained
    loaded = load_bundle(out)
    images = [i.path for i in data.gallery]
    assert loaded.fingerprint == encoder.fingerprint
    assert np.array_equal(loaded.embed(images).vectors, encoder.embed(images).vectors)


def test_nothing_but_the_bundle_is_left(trained):
    out, _, _ = trained
    assert [p.name for p in out.parent.iterdir()] == ["model"]


def test_what_the_bundle_remembers(trained, data, quick):
    out, encoder, _ = trained
    facts = read_facts(out)
    assert facts["classes"] == ["astronaut", "cat", "coffee", "rocket"]
    assert facts["training_data"] == {
        "fingerprint": data.fingerprint,
        "images": 24,
        "validation_images": 8,
        "validation": validation_fingerprint(data),
        "contents": sorted(
            hashlib.blake2b(i.path.read_bytes(), digest_size=16).hexdigest()[:16] for i in data.training
        ),
    }
    assert facts["options"] == quick().to_dict()
    (report,) = facts["training"]
    assert report["backbone"] == SMALL
    assert report["skipped"] == []
    assert len(report["history"]) == 2
    assert set(report["validation"]) == {"frozen", "head", "fine-tuned", "kept"}
    assert report["validation"]["kept"] >= max(report["validation"].values())
    assert report["validation"]["head"] >= report["validation"]["frozen"]
    assert report["validation"]["fine-tuned"] == max(h["measure"] for h in report["history"])
    assert set(report["interpolation"]["measures"]) == {"0", "0.25", "0.5", "0.75", "1"}
    assert encoder.members[0].origin["fine_tuned_share"] == report["interpolation"]["share"]


def test_the_kept_weights_measure_best_of_all_that_were_tried(trained, data):
    out, encoder, _ = trained
    shares = read_facts(out)["training"][0]["interpolation"]["measures"]
    found, labels = encoder.embed(data.validation), {i.id: i.label for i in data.validation}
    again = evaluate_embeddings(found, found, labels, labels, ["map@r"]).mean("map@r")
    assert again == pytest.approx(max(shares.values()), abs=1e-4)


def test_the_bundle_s_measures_are_those_of_its_encoder_on_validation(trained, data):
    out, encoder, _ = trained
    found = encoder.embed(data.validation)
    labels = {i.id: i.label for i in data.validation}
    expected = evaluate_embeddings(found, found, labels, labels).to_dict()["measures"]
    assert read_facts(out)["measures"] == {"validation": expected}
    assert set(expected["precision@3"]) == {"mean", "low", "high"}


def test_progress_names_each_stage(trained):
    _, _, listener = trained
    assert listener.tasks == [
        "looking for leaks",
        f"{SMALL}: features",
        f"{SMALL}: validation",
        "epoch 1/2",
        "epoch 2/2",
        f"{SMALL}: last head at 75% of fine-tuning",
        f"{SMALL}: last head, validation",
        *(f"{SMALL}: last head at {share}% of fine-tuning" for share in (50, 100, 25)),
        f"{SMALL}: measures",
    ]
    assert ("epoch 2/2", 24, 24) in listener.steps
    assert any("epoch 2/2: loss" in text for text in listener.said)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(trained, data, weights, quick):
    _, encoder, _ = trained
    again = train(data, SMALL, weights=weights, options=quick())
    other = train(data, SMALL, weights=weights, options=quick(seed=1))
    assert again.fingerprint == encoder.fingerprint != other.fingerprint


def test_a_folder_is_loaded_and_cut_by_the_seed(crops_original, trained, weights, quick):
    _, encoder, _ = trained
    found = train(str(crops_original), SMALL, weights=weights, options=quick())
    assert found.fingerprint == encoder.fingerprint


def test_test_images_are_never_opened_and_validation_images_never_trained_on(data, weights, quick, monkeypatch):
    from lookalike.models import stream
    from lookalike.training import finetune

    embedded, trained_on = [], []

    def listed_in(kept, read):
        def reading(path, at_least):
            kept.append(path)
            return read(path, at_least)

        return reading

    monkeypatch.setattr(stream, "read_scaled", listed_in(embedded, stream.read_scaled))
    monkeypatch.setattr(finetune, "read_pixels", listed_in(trained_on, finetune.read_pixels))
    train(data, SMALL, weights=weights, options=quick(epochs=1))
    assert set(trained_on) == {i.path for i in data.training}
    assert set(embedded) == {i.path for i in (*data.training, *data.validation)}


def test_what_the_test_part_holds_changes_nothing(crops, trained, weights, quick):
    _, encoder, _ = trained
    for path in (crops / "test").rglob("*.png"):
        path.write_bytes(b"not a picture")
    assert train(crops, SMALL, weights=weights, options=quick()).fingerprint == encoder.fingerprint


def test_an_unreadable_training_file_is_left_out_and_listed(crops, weights, quick, tmp_path):
    data = with_validation(load_dataset(crops), seed=0)
    broken = data.training[0].path
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "model"
    train(data, SMALL, weights=weights, out=out, options=quick(epochs=1))
    (line,) = read_facts(out)["training"][0]["skipped"]
    assert line.startswith(f"{broken}: it cannot be decoded")


# ---------------------------------------------------------------- the stages


def test_a_frozen_run_keeps_the_backbone_and_takes_no_epoch(data, weights, quick, recorder, member):
    listener = recorder()
    encoder = train(data, SMALL, weights=weights, options=quick(frozen=True), progress=listener)
    assert not any(task.startswith("epoch") for task in listener.tasks)
    before, after = member.state(), encoder.members[0].state()
    assert all(np.array_equal(before[k], after[k]) for k in before if k.startswith("backbone."))
    assert not np.array_equal(before["head.linear.weight"], after["head.linear.weight"])


def test_where_fine_tuning_only_harms_the_start_is_kept_to_the_bit(data, weights, quick, monkeypatch):
    same = {"view": "squash", "head": "pca"}
    expected = train_member(data, SMALL, weights, quick(frozen=True, **same), None, Silent())
    monkeypatch.setattr("lookalike.training.job.Job.validate", lambda _job, _member: 0.0)
    outcome = train_member(data, SMALL, weights, quick(**same), None, listener := Silent())
    assert outcome.report["interpolation"]["share"] == 0.0
    assert outcome.report["interpolation"]["measures"]["0"] > 0
    assert outcome.member.fingerprint == expected.member.fingerprint
    assert outcome.member.origin == {**expected.member.origin, "fine_tuned_share": 0.0}
    assert "fine-tuning did not help, keeps the weights it came with" in listener.text


class Silent:
    """Keeps sentences only."""

    text = ""

    def step(self, task, done, total, detail=""):
        pass

    def info(self, text):
        self.text += text


def test_where_training_the_head_does_not_help_either_it_is_the_pca_head_to_the_bit(data, weights, quick, member):
    """With eight images `hit@7` is 1 for every head."""
    outcome = train_member(data, SMALL, weights, quick(frozen=True, stop_on="hit@7"), None, Silent())
    assert outcome.report["validation"] == {"frozen": 1.0, "head": 1.0}
    assert outcome.member.fingerprint == fitted_encoder([member], data.training).fingerprint
    assert outcome.member.origin == {"weights": f"file {weights.name}", "head": "PCA of 24 images", "trained": "frozen"}


def test_random_weights_are_not_mixed_back_in(data, quick):
    outcome = train_member(data, SMALL, "none", quick(epochs=1), None, Silent())
    assert outcome.report["interpolation"] == {"share": 1.0, "measures": {}}
    assert outcome.member.trained == "fine-tuned"


def test_the_loss_falls_from_epoch_to_epoch(data, quick):
    outcome = train_member(
        data, SMALL, "none", quick(loss="cross-entropy", epochs=6, lr=3e-3, crop_scale=0.3), None, Silent()
    )
    losses = [epoch["loss"] for epoch in outcome.report["history"]]
    assert losses[-1] < losses[2] < losses[0] < 2 * np.log(4)


def test_mixed_precision_trains_nearly_the_same_weights_in_float32(data, quick):
    plain, mixed = (
        train(data, SMALL, weights="none", options=quick(epochs=1, precision=precision, last_head="trained"))
        for precision in ("float32", "bfloat16")
    )
    assert {p.dtype for p in mixed.members[0].module.parameters()} == {torch.float32}
    # by their similarities: the principal components that the heads start from may turn among themselves
    first, second = (v @ v.T for v in (encoder.embed(data.validation).vectors for encoder in (plain, mixed)))
    assert 1e-6 < np.abs(first - second).mean() < 0.1


def test_a_tiny_budget_still_gives_a_bundle(data, weights, quick, tmp_path):
    out = tmp_path / "model"
    train(data, SMALL, weights=weights, out=out, options=quick(epochs=6, max_minutes=0.001))
    assert len(read_facts(out)["training"][0]["history"]) == 1


def test_a_budget_ends_the_epochs_when_they_take_longer_than_planned(data, weights, quick, recorder, tmp_path):
    slow = recorder(lambda task, _: task.startswith("epoch") and bool(time.sleep(1)))
    train(
        data, SMALL, weights=weights, out=tmp_path / "model", options=quick(epochs=40, max_minutes=0.2), progress=slow
    )
    report = read_facts(tmp_path / "model")["training"][0]
    assert 1 <= len(report["history"]) < report["plan"]["epochs"]
    stopped = len(report["history"]) + 1
    assert f"  stopped before epoch {stopped}/{report['plan']['epochs']}: the time is needed for the rest" in slow.said


def test_the_bundle_says_what_auto_became(data, weights, quick, tmp_path):
    train(
        data, SMALL, weights=weights, out=tmp_path / "model", options=quick(epochs=1, loss="triplet", precision="auto")
    )
    report = read_facts(tmp_path / "model")["training"][0]
    lowered = is_lowered(torch.device("cpu"), "auto")
    assert report["recipe"]["sampler"] == report["recipe"]["precision"] == "auto"
    assert report["resolved"] == {
        "recipe": "mobile-cnn",
        "sampler": "pk",
        "precision": "bfloat16" if lowered else "float32",
    }


def test_stochastic_depth_is_left_out_where_it_has_no_place_unless_asked_for(quick):
    _, recipe = fresh_member("efficientvit_m0", "none", quick(), unseen=False)
    assert recipe.drop_path == 0
    sentence = "drop_path needs a network of residual blocks, which EfficientVitMsra is not; set it to 0."
    with pytest.raises(OptionError, match=sentence):
        fresh_member("efficientvit_m0", "none", quick(drop_path=0.2), unseen=False)


# ---------------------------------------------------------------- ensembles


def test_two_backbones_become_one_aligned_bundle(data, quick, tmp_path):
    out = tmp_path / "model"
    encoder = train(data, f"{SMALL}+test_resnet", weights="none", out=out, options=quick(epochs=1))
    loaded = load_bundle(out)
    assert loaded.fingerprint == encoder.fingerprint
    assert (loaded.name, loaded.how, loaded.is_ensemble) == (f"{SMALL}+test_resnet", "aligned", True)
    first, second = (Encoder([m]).embed(data.training).vectors for m in loaded.members)
    np.testing.assert_allclose(loaded.alignments[1], fit_alignment(second, first), atol=1e-6)
    assert [r["backbone"] for r in read_facts(out)["training"]] == [SMALL, "test_resnet"]
    alone = train(data, SMALL, weights="none", options=quick(epochs=1))
    assert loaded.members[0].fingerprint == alone.fingerprint  # the other one changed nothing in it


def test_weights_by_name(data, weights, quick):
    names = f"{SMALL}+test_resnet"
    encoder = train(data, names, weights={SMALL: weights, "test_resnet": "none"}, options=quick(frozen=True))
    assert [m.origin["weights"] for m in encoder.members] == [f"file {weights.name}", "none"]


# ---------------------------------------------------------------- what is refused


def refused(kind: type[LookalikeError], *args, **options) -> str:
    with pytest.raises(kind) as raised:
        train(*args, **options)
    return str(raised.value)


def test_weights_for_the_wrong_names(data, weights, quick):
    assert refused(OptionError, data, SMALL, weights={"resnet": weights}, options=quick()) == (
        f"weights are given for 'resnet', which is not among {SMALL}; correct the name."
    )
    assert refused(OptionError, data, f"{SMALL}+test_vit", weights=weights, options=quick()) == (
        f"weights for {SMALL} and test_vit must be a mapping by name, got the single file {weights}; "
        "a file fits one backbone."
    )


def test_an_unknown_backbone(data, quick):
    assert refused(ModelError, data, f"{SMALL}+", weights="none", options=quick(frozen=True)).startswith(
        "there is no backbone named ''; "
    )


def test_one_class_only(crops, quick):
    for name in ("astronaut", "cat", "coffee"):
        shutil.rmtree(crops / "training" / name)
    assert refused(DataError, crops, SMALL, weights="none", options=quick(class_disjoint=False)) == (
        f"{crops} has training images of 1 class; fine-tuning needs at least 2, so add a class folder."
    )


def test_one_readable_class_only(crops, quick):
    data = with_validation(load_dataset(crops), seed=0)
    for item in data.training:
        if item.label != "cat":
            item.path.write_bytes(b"")
    assert refused(DataError, data, SMALL, weights="none", options=quick()) == (
        f"{crops} has readable training images of 1 class; fine-tuning needs at least 2, so add a class folder."
    )


def test_a_measure_that_looks_deeper_than_validation_is(data, quick):
    text = refused(OptionError, data, SMALL, weights="none", options=quick(stop_on="precision@10"))
    assert "precision@10" in text


def test_a_place_that_is_taken(trained, data, weights, quick, tmp_path):
    out, encoder, _ = trained
    assert refused(StorageError, data, SMALL, weights=weights, out=out, options=quick()) == (
        f"{out} already exists and is left as it is; choose another place or remove it first."
    )
    assert load_bundle(out).fingerprint == encoder.fingerprint
    for place in (".", tmp_path / ".."):
        text = refused(OptionError, data, SMALL, weights=weights, out=place, options=quick())
        assert text == f"out must be a folder with a name of its own, got {place}; write a name after it."


def test_an_older_bundle_is_replaced_only_when_asked(trained, data, weights, quick, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "model")
    other = quick(frozen=True, label_smoothing=0.3, seed=1)
    encoder = train(data.root, SMALL, weights=weights, out=out, options=other, replace=True)
    assert load_bundle(out).fingerprint == encoder.fingerprint != trained[1].fingerprint


def test_facts_of_a_bundle_that_was_not_trained(data, quick):
    facts = bundle_facts(data, quick(), [])
    assert facts["training"] == []
    assert facts["training_data"]["images"] == 24


def test_a_member_built_anew_is_not_the_trained_one(trained, weights):
    assert build_trainable(SMALL, weights).fingerprint != trained[1].members[0].fingerprint
