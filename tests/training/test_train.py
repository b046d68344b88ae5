"""`train` from the data folder to the bundle: what it trains on, what the bundle records, what is refused."""

import hashlib
import shutil
import time
from dataclasses import asdict

import numpy as np
import pytest

from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.errors import DataError, LookalikeError, ModelError, OptionError, StorageError
from lookalike.evaluation import calibration
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.models import auto
from lookalike.models.auto import AutoChoice
from lookalike.models.bundle import read_bundle_info
from lookalike.models.heads import fit_alignment
from lookalike.models.trainable import build_trainable
from lookalike.runtimes.load import load_encoder
from lookalike.training import train as train_module
from lookalike.training.train import train, training_info
from lookalike.training.train_backbone import validation_fingerprint

SMALL = "test_efficientnet"


@pytest.fixture(scope="module")
def trained(data, weights, quick, recorder, tmp_path_factory):
    """One finished run: the bundle, the returned encoder, and the progress messages."""
    out = tmp_path_factory.mktemp("trained") / "model"
    listener = recorder()
    encoder = train(data, SMALL, weights=weights, out=out, options=quick(), progress=listener)
    return out, encoder, listener


def test_the_bundle_is_the_returned_encoder(trained, data):
    out, encoder, _ = trained
    loaded = load_encoder(out)
    images = [i.path for i in data.gallery]
    assert loaded.fingerprint == encoder.fingerprint
    assert np.array_equal(loaded.embed(images).vectors, encoder.embed(images).vectors)


def test_only_the_bundle_remains(trained):
    out, _, _ = trained
    assert [p.name for p in out.parent.iterdir()] == ["model"]


def test_what_the_bundle_records(trained, data, quick):
    out, _, _ = trained
    info = read_bundle_info(out)
    assert info.classes == ("astronaut", "cat", "coffee", "rocket")
    assert asdict(info.training_data) == {
        "fingerprint": data.fingerprint,
        "images": 24,
        "validation_images": 8,
        "validation": validation_fingerprint(data),
        "contents": tuple(
            sorted(hashlib.blake2b(i.path.read_bytes(), digest_size=16).hexdigest()[:16] for i in data.training)
        ),
    }
    assert info.options == quick().to_dict()
    (report,) = info.training
    assert report.backbone == SMALL
    assert report.skipped == ()
    assert (report.images, len(report.epochs), report.planned_epochs, report.steps_per_epoch) == (24, 2, 2, 3)
    measures = report.measures
    assert measures.selected >= max(measures.fine_tuned, measures.head) >= measures.frozen
    assert measures.fine_tuned == max(epoch.measure for epoch in report.epochs)
    assert set(report.share_measures) == {"0", "0.25", "0.5", "0.75", "1"}


def test_the_selected_weights_have_the_recorded_measure(trained, data):
    out, encoder, _ = trained
    (report,) = read_bundle_info(out).training
    embeddings, labels = encoder.embed(data.validation), {i.id: i.label for i in data.validation}
    again = evaluate_embeddings(embeddings, embeddings, labels, labels, ["map@r"]).mean("map@r")
    assert again == pytest.approx(report.measures.selected, abs=1e-4)


def test_the_measures_of_a_bundle_are_those_of_its_encoder_on_validation(trained, data):
    out, encoder, _ = trained
    embeddings = encoder.embed(data.validation)
    labels = {i.id: i.label for i in data.validation}
    expected = evaluate_embeddings(embeddings, embeddings, labels, labels).measures
    assert read_bundle_info(out).measures == {"validation": expected}


def test_a_bundle_has_a_calibration_of_its_encoder_on_validation(data, weights, quick, monkeypatch, tmp_path):
    for module in (calibration, train_module):
        monkeypatch.setattr(module, "MIN_QUERIES", 2)
    encoder = train(data, SMALL, weights=weights, out=tmp_path / "model", options=quick(frozen=True))
    hits = calibration.validation_hits(data, encoder.embed(data.validation), encoder.embed(data.training))
    stored = read_bundle_info(tmp_path / "model").calibration
    assert asdict(stored) == pytest.approx(asdict(calibration.fit_calibration(hits)), rel=1e-3)


def test_progress_names_each_stage(trained):
    _, _, listener = trained
    assert listener.tasks == [
        "looking for leaks",
        f"{SMALL}: features",
        f"{SMALL}: validation",
        "epoch 1/2",
        "epoch 2/2",
        f"{SMALL}: closed-form head at 75% of fine-tuning",
        f"{SMALL}: closed-form head, validation",
        *(f"{SMALL}: closed-form head at {share}% of fine-tuning" for share in (50, 100, 25)),
        f"{SMALL}: measures",
    ]
    assert ("epoch 2/2", 24, 24) in listener.steps
    assert any("epoch 2/2: loss" in text for text in listener.messages)


def test_the_seed_decides_the_model(trained, data, weights, quick):
    _, encoder, _ = trained
    again = train(data, SMALL, weights=weights, options=quick())
    other = train(data, SMALL, weights=weights, options=quick(seed=1))
    assert again.fingerprint == encoder.fingerprint != other.fingerprint


def test_a_folder_is_loaded_and_split_by_the_seed(crops_original, trained, weights, quick):
    _, encoder, _ = trained
    trained = train(str(crops_original), SMALL, weights=weights, options=quick())
    assert trained.fingerprint == encoder.fingerprint


def test_test_images_are_never_read_and_validation_images_never_trained_on(data, weights, quick, monkeypatch):
    from lookalike.models import pipeline
    from lookalike.training import batches

    embedded, trained_on = [], []

    def recording(paths, read):
        def reading(path, sides):
            paths.append(path)
            return read(path, sides)

        return reading

    monkeypatch.setattr(pipeline, "read_scaled", recording(embedded, pipeline.read_scaled))
    monkeypatch.setattr(batches, "read_pixels", recording(trained_on, batches.read_pixels))
    train(data, SMALL, weights=weights, options=quick(epochs=1))
    assert set(trained_on) == {i.path for i in data.training}
    assert set(embedded) == {i.path for i in (*data.training, *data.validation)}


def test_the_content_of_the_test_split_changes_nothing(crops, trained, weights, quick):
    _, encoder, _ = trained
    for path in (crops / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    assert train(crops, SMALL, weights=weights, options=quick()).fingerprint == encoder.fingerprint


def test_an_unreadable_training_file_is_skipped_and_reported(crops, weights, quick, tmp_path):
    data = with_validation(load_dataset(crops), seed=0)
    broken = data.training[0].path
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "model"
    train(data, SMALL, weights=weights, out=out, options=quick(epochs=1))
    (line,) = read_bundle_info(out).training[0].skipped
    assert line.startswith(f"{broken}: it cannot be decoded")


def test_mixed_precision_trains_nearly_the_same_weights_in_float32(data, quick):
    plain, mixed = (
        train(data, SMALL, weights="none", options=quick(epochs=1, precision=precision, posthoc_head="trained"))
        for precision in ("float32", "bfloat16")
    )
    assert {str(w.dtype) for w in mixed.backbone.weights().values()} == {"float32", "int64"}
    # by their similarities: the principal components that the heads start from may turn among themselves
    first, second = (v @ v.T for v in (encoder.embed(data.validation).vectors for encoder in (plain, mixed)))
    assert 1e-6 < np.abs(first - second).mean() < 0.1


def test_a_tiny_budget_still_gives_a_bundle(data, weights, quick, tmp_path):
    out = tmp_path / "model"
    train(data, SMALL, weights=weights, out=out, options=quick(epochs=6, max_minutes=0.001))
    assert len(read_bundle_info(out).training[0].epochs) == 1


def test_a_budget_ends_the_epochs_when_they_take_longer_than_planned(data, weights, quick, recorder, tmp_path):
    slow = recorder(lambda task, _: task.startswith("epoch") and bool(time.sleep(0.5)))
    train(
        data, SMALL, weights=weights, out=tmp_path / "model", options=quick(epochs=40, max_minutes=0.1), progress=slow
    )
    (report,) = read_bundle_info(tmp_path / "model").training
    assert 1 <= len(report.epochs) < report.planned_epochs
    stop = f"stopping before epoch {len(report.epochs) + 1}/{report.planned_epochs}"
    assert any(stop in text for text in slow.messages)


# ---------------------------------------------------------------- ensembles


def test_two_backbones_become_one_aligned_bundle(data, quick, tmp_path):
    out = tmp_path / "model"
    encoder = train(data, f"{SMALL}+test_resnet", weights="none", out=out, options=quick(epochs=1))
    loaded = load_encoder(out)
    assert loaded.fingerprint == encoder.fingerprint
    assert (loaded.name, loaded.combination) == (f"{SMALL}+test_resnet", "aligned")
    first, second = (m.embed(data.training).vectors for m in loaded.members)
    np.testing.assert_allclose(loaded.alignments[1], fit_alignment(second, first), atol=1e-6)
    assert [report.backbone for report in read_bundle_info(out).training] == [SMALL, "test_resnet"]
    alone = train(data, SMALL, weights="none", options=quick(epochs=1))
    assert loaded.members[0].fingerprint == alone.fingerprint  # the other one changed nothing in it


def test_weights_by_name(data, weights, quick):
    names = f"{SMALL}+test_resnet"
    encoder = train(data, names, weights={SMALL: weights, "test_resnet": "none"}, options=quick(frozen=True))
    assert [m.info.backbone.weights for m in encoder.members] == [f"file {weights.name}", "none"]


# ---------------------------------------------------------------- what is refused


def refused(kind: type[LookalikeError], *args, **options) -> LookalikeError:
    with pytest.raises(kind) as raised:
        train(*args, **options)
    return raised.value


def test_weights_for_the_wrong_names(data, weights, quick):
    error = refused(OptionError, data, SMALL, weights={"resnet": weights}, options=quick())
    assert error.argument == "weights" and "'resnet'" in str(error)
    error = refused(OptionError, data, f"{SMALL}+test_vit", weights=weights, options=quick())
    assert error.argument == "weights" and "mapping by name" in str(error)


def test_an_unknown_backbone(data, quick):
    assert "''" in str(refused(ModelError, data, f"{SMALL}+", weights="none", options=quick(frozen=True)))


def test_one_class_only(crops, quick):
    for name in ("astronaut", "cat", "coffee"):
        shutil.rmtree(crops / "training" / name)
    error = refused(DataError, crops, SMALL, weights="none", options=quick(class_disjoint=False))
    assert f"{crops} has training images of 1 class" in str(error)


def test_one_readable_class_only(crops, quick):
    data = with_validation(load_dataset(crops), seed=0)
    for item in data.training:
        if item.label != "cat":
            item.path.write_bytes(b"")
    error = refused(DataError, data, SMALL, weights="none", options=quick())
    assert f"{crops} has readable training images of 1 class" in str(error)


def test_a_measure_that_looks_deeper_than_validation_is(data, quick):
    assert "precision@10" in str(
        refused(OptionError, data, SMALL, weights="none", options=quick(stop_on="precision@10"))
    )


def test_an_existing_folder(trained, data, weights, quick, tmp_path):
    out, encoder, _ = trained
    assert str(out) in str(refused(StorageError, data, SMALL, weights=weights, out=out, options=quick()))
    assert load_encoder(out).fingerprint == encoder.fingerprint
    for path in (".", tmp_path / ".."):
        error = refused(StorageError, data, SMALL, weights=weights, out=path, options=quick())
        assert error.argument == "out"


def test_replace_overwrites_a_bundle(trained, data, weights, quick, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "model")
    other = quick(frozen=True, label_smoothing=0.3, seed=1)
    encoder = train(data.root, SMALL, weights=weights, out=out, options=other, replace=True)
    assert load_encoder(out).fingerprint == encoder.fingerprint != trained[1].fingerprint


def test_record_of_a_bundle_that_was_not_trained(data, quick):
    info = training_info(build_trainable(SMALL, "none").freeze(), data, quick(), [])
    assert info.training == ()
    assert info.training_data.images == 24


def test_a_fresh_encoder_is_not_the_trained_one(trained, weights):
    assert build_trainable(SMALL, weights).fingerprint != trained[1].members[0].fingerprint


def test_auto_trains_what_it_picks_and_a_resumed_run_keeps_it(data, weights, quick, recorder, monkeypatch, tmp_path):
    calls = []

    def pick(images, minutes, files):
        calls.append((images, minutes, files))
        return AutoChoice("small CNN", SMALL, "here"), AutoChoice("image-text tower", "", "no hub")

    out, files, listener = tmp_path / "model", {SMALL: weights}, recorder(lambda task, _: task.startswith("epoch 2"))
    monkeypatch.setattr(auto, "auto_backbones", pick)
    with pytest.raises(KeyboardInterrupt):
        train(data, "auto", weights=files, out=out, options=quick(), progress=listener)
    lines = [message for message in listener.messages if message.startswith("auto: ")]
    assert len(lines) == 2
    for _ in range(2):  # an unfinished and a finished run
        train(data, "auto", weights=files, out=out, options=quick(), resume=True)
        assert [member.backbone.name for member in read_bundle_info(out).members] == [SMALL]
    assert calls == [(32, None, files)]
