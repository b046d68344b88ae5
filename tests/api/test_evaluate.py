"""`evaluate` and `submit`: a model on the query and gallery images of a data set."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lookalike.api import evaluate as evaluate_module
from lookalike.api.evaluate import evaluate, submit
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, ModelError, OptionError, StorageError
from lookalike.evaluation.calibration import judge_first_hits, measure_reliability
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings
from lookalike.evaluation.measures import Measure
from lookalike.evaluation.submission import Submission
from lookalike.models.bundle import describe_encoder, save_bundle
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.reranking.steps import ClassSimilarity, GalleryAugmentation, Reranking
from lookalike.types import Calibration, Skipped

CLOSED = "the folder cannot be listed (permission denied)"


def at(*ks: int) -> list[str]:
    return [f"{kind}@{k}" for kind in ("precision", "hit", "recall") for k in ks]


class TestEvaluate:
    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({}, [*at(1, 3, 10), "map@r", "mrr"]),
            ({"k": (2,)}, [*at(2), "map@r", "mrr"]),
            ({"k": [4, 1], "measures": ["ndcg@5", "mrr"]}, [*at(4, 1), "map@r", "mrr", "ndcg@5"]),
            ({"measures": [Measure.parse("hit@2")]}, [*at(1, 3, 10), "map@r", "mrr", "hit@2"]),
        ],
        ids=["default", "k", "both", "measures"],
    )
    def test_the_measures(self, data_folder, encoder, options, names):
        evaluation = evaluate(data_folder, encoder, **options)
        assert list(evaluation.to_dict()["measures"]) == names
        assert evaluation.skipped == ()

    def test_the_values_are_those_of_the_embeddings(self, data_folder, encoder):
        data = load_dataset(data_folder)
        queries, gallery = encoder.embed(data.query), encoder.embed(data.gallery)
        expected = evaluate_embeddings(queries, gallery, data.labels("query"), data.labels("gallery"), ["precision@3"])
        evaluation = evaluate(data, encoder)
        assert isinstance(evaluation, Evaluation)
        np.testing.assert_array_equal(evaluation.values["precision@3"], expected.values["precision@3"])
        assert "precision@3" in str(evaluation)

    def test_the_reliability_of_a_calibration(self, data_folder, encoder, tmp_path):
        calibration = Calibration(12.5, -4.0, 200, 0.02)
        bundle = save_bundle(encoder, tmp_path / "model", describe_encoder(encoder, calibration=calibration))
        data = load_dataset(data_folder)
        labels = data.labels("query"), data.labels("gallery")
        hits = judge_first_hits(encoder.embed(data.query), encoder.embed(data.gallery), *labels)
        expected = measure_reliability(calibration.probabilities(hits.scores), hits)
        evaluation = evaluate(data, bundle)
        assert evaluation.reliability.error == pytest.approx(expected.error, abs=1e-3)
        assert f"calibration error {evaluation.reliability.error:.4f}" in str(evaluation)
        stored = json.loads(json.dumps(evaluation.to_dict()))["reliability"]
        assert stored["log_loss"] == pytest.approx(expected.log_loss, abs=1e-3)
        assert len(stored["bins"]) == len(evaluation.reliability.bins)
        assert evaluate(data, encoder).reliability is None

    def test_class_folders_in_test_are_evaluated_leave_one_out(self, data_folder, encoder, decoded):
        shutil.rmtree(data_folder / "test")
        (data_folder / "labels.csv").unlink()
        shutil.copytree(data_folder / "training", data_folder / "test")
        test = load_dataset(data_folder).test
        decoded.clear()
        evaluation = evaluate(data_folder, encoder)
        assert len(decoded) == len(test)  # each image once
        embeddings, labels = encoder.embed(test), {item.id: item.label for item in test}
        expected = evaluate_embeddings(embeddings, embeddings, labels, labels, ["precision@3"])
        np.testing.assert_array_equal(evaluation.values["precision@3"], expected.values["precision@3"])
        assert all(query not in hits for query, hits in zip(evaluation.query_ids, evaluation.hits.ids, strict=True))

    def test_classes_that_are_too_small_for_a_test_split(self, data_folder, tmp_path, encoder):
        for number, path in enumerate(sorted((data_folder / "training").rglob("*.jpg"))[:4]):
            (tmp_path / "small" / str(number)).mkdir(parents=True)
            shutil.copy(path, tmp_path / "small" / str(number))
        with pytest.raises(DataError, match="none of its classes has the 3 images"):
            evaluate(tmp_path / "small", encoder)

    def test_a_default_k_larger_than_the_gallery_is_omitted(self, data_folder, encoder):
        for path in list((data_folder / "test" / "gallery").glob("*.jpg"))[:3]:
            path.unlink()
        measures = evaluate(data_folder, encoder).to_dict()["measures"]
        assert "hit@3" in measures and "hit@10" not in measures

    def test_a_default_k_depends_on_the_images_that_can_be_read(self, data_folder, encoder):
        paths = sorted((data_folder / "test" / "gallery").glob("*.jpg"))
        for path in paths[:2]:
            path.unlink()
        paths[2].write_text("not an image")
        evaluation = evaluate(data_folder, encoder)  # 10 files, 9 images
        measures = evaluation.to_dict()["measures"]
        assert "hit@3" in measures and "hit@10" not in measures
        assert [file.path for file in evaluation.skipped] == [paths[2]]

    @pytest.mark.parametrize(
        ("argument", "options", "fact"),
        [
            ("k", {"k": [13]}, "precision@13 needs 13 hits, .* has only 12"),
            ("k", {"k": [3, 0]}, "got 0"),
            ("measures", {"measures": ["ndcg@1000"]}, "ndcg@1000 needs 1000 hits, .* has only 12"),
            ("measures", {"k": [3], "measures": ["precision@13"]}, "precision@13 needs 13 hits"),
            ("measures", {"measures": ["accuracy@3"]}, "accuracy@3"),
            ("runtime", {"runtime": "tensorrt"}, "tensorrt"),
            ("precision", {"precision": "int4"}, "int4"),
        ],
    )
    def test_invalid_arguments_are_reported_before_the_work(
        self, data_folder, encoder, decoded, argument, options, fact
    ):
        with pytest.raises(OptionError, match=fact) as caught:
            evaluate(data_folder, encoder, **options)
        assert caught.value.argument == argument
        assert decoded == []

    def test_data_without_labels(self, data_folder, encoder):
        (data_folder / "labels.csv").unlink()
        with pytest.raises(DataError, match="no labels") as caught:
            evaluate(data_folder, encoder)
        assert caught.value.argument == "data"

    def test_files_and_folders_that_cannot_be_read_are_listed(self, data_folder, encoder, close_folder):
        query = data_folder / "test" / "query" / "cat0.jpg"
        query.write_text("not an image")
        close_folder(data_folder / "training" / "cat")
        evaluation = evaluate(data_folder, encoder, k=1)
        folder, file = evaluation.skipped
        assert folder == Skipped(data_folder / "training" / "cat", CLOSED)
        assert file.path == query and "not an image" in file.cause
        assert len(evaluation.query_ids) == 7

    def test_a_query_folder_that_cannot_be_listed(self, data_folder, encoder, close_folder):
        close_folder(data_folder / "test" / "query")
        with pytest.raises(DataError) as caught:
            evaluate(data_folder, encoder)
        assert f"{data_folder / 'test' / 'query'}: {CLOSED}" in str(caught.value)
        assert caught.value.argument == "data"

    def test_no_readable_query(self, data_folder, encoder):
        for path in (data_folder / "test" / "query").iterdir():
            path.write_text("not an image")
        with pytest.raises(DataError, match="none of the 8 query images"):
            evaluate(data_folder, encoder)

    def test_class_folders_are_split_as_for_the_training(self, data_folder, encoder, tmp_path):
        """With another seed a model would be measured on images that it was trained on."""
        options = {"seed": 3, "class_disjoint": True}
        save_bundle(encoder, tmp_path / "trained", describe_encoder(encoder, options=options))
        evaluation = evaluate(data_folder / "training", tmp_path / "trained", k=[1])
        expected, other = (load_dataset(data_folder / "training", **o) for o in (options, {"class_disjoint": True}))
        assert set(evaluation.query_ids) == {item.id for item in expected.query}
        assert set(evaluation.query_ids) != {item.id for item in other.query}

    def test_float32_is_the_default_precision(self, data_folder, encoder, monkeypatch):
        precisions = []
        with_runtime = evaluate_module.with_runtime

        def recorded(encoder, runtime, precision):
            precisions.append(precision)
            return with_runtime(encoder, runtime, precision)

        monkeypatch.setattr(evaluate_module, "with_runtime", recorded)
        evaluate(data_folder, encoder, k=[1])
        assert precisions == ["float32"]


class TestAgainst:
    """Another model on the same queries."""

    def test_the_differences_are_those_of_two_evaluations(self, data_folder, encoder, other_encoder):
        (data_folder / "test" / "gallery" / "cat0.jpg").write_text("not an image")
        evaluation = evaluate(data_folder, encoder, against=other_encoder)
        alone, other = evaluate(data_folder, encoder), evaluate(data_folder, other_encoder)
        assert list(evaluation.against) == list(evaluation.values)
        assert evaluation.against == {name: alone.compare(other, name) for name in alone.values}
        assert evaluation.against_model == f"{other_encoder.name} ({other_encoder.state})"
        assert evaluation.skipped == alone.skipped
        assert alone.against == {}

    def test_weights_by_name_belong_to_either_model(self, data_folder, encoder):
        weights = {"test_efficientnet": "none", "test_resnet": "none"}
        evaluation = evaluate(data_folder, "test_resnet", against="test_efficientnet", weights=weights)
        assert evaluation.against_model == "test_efficientnet (untrained)"
        with pytest.raises(OptionError, match="test_efficientnet") as caught:
            evaluate(data_folder, "test_resnet", against=encoder, weights=weights)
        assert caught.value.argument == "weights"

    def test_a_model_that_cannot_be_loaded_is_reported_before_the_work(self, data_folder, encoder, decoded):
        with pytest.raises(ModelError, match="resnet5000") as caught:
            evaluate(data_folder, encoder, against="resnet5000")
        assert caught.value.argument == "against"
        assert decoded == []

    def test_class_folders_are_split_as_in_the_training_of_both(
        self, data_folder, tmp_path, encoder, other_encoder, decoded
    ):
        folder = data_folder / "training"
        for seed, (name, model) in enumerate([("first", encoder), ("second", other_encoder)]):
            save_bundle(model, tmp_path / name, describe_encoder(model, options={"seed": seed}))
        evaluation = evaluate(folder, encoder, k=1, against=tmp_path / "second")
        assert evaluation.query_ids == evaluate(folder, tmp_path / "second", k=1).query_ids
        decoded.clear()
        with pytest.raises(OptionError, match="another split") as caught:
            evaluate(folder, tmp_path / "first", against=tmp_path / "second")
        assert caught.value.argument == "against"
        assert decoded == []


@pytest.fixture(params=["folder link", "file links", "hard links", "manifest"])
def gallery_of_query_files(request, data_folder) -> Path:
    """A data folder whose gallery are the query files under other paths."""
    test = data_folder / "test"
    names = sorted(path.name for path in (test / "query").iterdir())
    shutil.rmtree(test / "gallery")
    if request.param == "manifest":
        (data_folder / "again").symlink_to(test / "query")
        rows = [f"{folder},{name[:-5]}" for name in names for folder in (f"test/query/{name}", f"again/{name}")]
        rows = [f"{row},{'query' if row.startswith('test') else 'gallery'}" for row in rows]
        (data_folder / "manifest.csv").write_text("\n".join(["path,label,split", *rows]))
    elif request.param == "folder link":
        (test / "gallery").symlink_to("query")
    else:
        (test / "gallery").mkdir()
        make_link = os.symlink if request.param == "file links" else os.link
        for name in names:
            make_link(test / "query" / name, test / "gallery" / name)
    return data_folder


class TestQueryFilesInTheGallery:
    """A query's file under another path is not its hit, as in leave-one-out."""

    def test_evaluate(self, gallery_of_query_files, encoder, recording_progress):
        data, progress = load_dataset(gallery_of_query_files), recording_progress()
        evaluation = evaluate(data, encoder, progress=progress)
        embeddings, labels = encoder.embed(data.query), data.labels("query")
        expected = evaluate_embeddings(embeddings, embeddings, labels, labels, [*at(1, 3), "map@r", "mrr"])
        assert list(evaluation.values) == list(expected.values)  # 10 hits are more than the 7 others
        assert all((evaluation.values[name] == expected.values[name]).all() for name in expected.values)
        assert evaluation.mean("precision@1") < 1
        assert any("leave-one-out by file: 8 of 8 queries" in message for message in progress.messages)
        assert "leave-one-out by file: 8 of 8 queries" in str(data)

    def test_more_hits_than_others(self, gallery_of_query_files, encoder, decoded):
        assert "hit@7" in evaluate(gallery_of_query_files, encoder, k=[7]).values
        decoded.clear()
        with pytest.raises(OptionError, match="has only 7 gallery images besides the query itself") as caught:
            evaluate(gallery_of_query_files, encoder, k=[8])
        assert caught.value.argument == "k"
        assert decoded == []

    def test_submit(self, gallery_of_query_files, encoder, tmp_path):
        submission = submit(gallery_of_query_files, encoder, top_k=7, out=tmp_path / "s.json")
        names = set(submission.images)
        assert all(set(hits) == names - {query} for query, hits in submission.images.items())
        with pytest.raises(OptionError, match=r"from 1 to 7, .* besides the query itself"):
            submit(gallery_of_query_files, encoder, top_k=8, out=tmp_path / "t.json")

    def test_submit_with_an_unreadable_gallery_image(self, data_folder, encoder, tmp_path):
        test = data_folder / "test"
        (test / "gallery" / "link.jpg").symlink_to(test / "query" / "cat0.jpg")
        (test / "gallery" / "cat1.jpg").write_text("not an image")
        with pytest.raises(OptionError, match="from 1 to 11,") as caught:  # of 13, without the two
            submit(data_folder, encoder, top_k=12, out=tmp_path / "s.json")
        assert caught.value.argument == "top_k"
        submission = submit(data_folder, encoder, top_k=11, out=tmp_path / "s.json")
        assert [query for query, hits in submission.images.items() if "link.jpg" not in hits] == ["cat0.jpg"]


class TestPretrained:
    """A model by the name of its backbone, whose head is fitted on the training split."""

    @pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet+test_resnet"])
    def test_each_image_is_decoded_once(self, data_folder, decoded, name):
        evaluation = evaluate(data_folder, name, k=[1], weights="none")
        assert len(evaluation.query_ids) == 8
        assert sorted(decoded) == sorted(item.id for item in load_dataset(data_folder).items)

    @pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet+test_resnet"])
    def test_a_gallery_that_the_head_is_fitted_on_is_decoded_once(self, data_folder, decoded, monkeypatch, name):
        shutil.rmtree(data_folder / "training")
        monkeypatch.setattr("lookalike.runtimes.fit.FIT_IMAGES", 5)  # the other 7 are computed later
        fit, encoders = evaluate_module.fit_pretrained, []

        def fit_and_record(*arguments, **options):
            fitted = fit(*arguments, **options)
            encoders.append(fitted.encoder)
            return fitted

        monkeypatch.setattr(evaluate_module, "fit_pretrained", fit_and_record)
        data = load_dataset(data_folder)
        evaluation = evaluate(data, name, k=[1, 3], weights="none")
        assert sorted(decoded) == sorted(item.id for item in data.items)
        (encoder,) = encoders
        queries, gallery = encoder.embed(data.query), encoder.embed(data.gallery)
        expected = evaluate_embeddings(queries, gallery, data.labels("query"), data.labels("gallery"), at(1, 3))
        assert all((evaluation.values[measure] == expected.values[measure]).all() for measure in at(1, 3))

    def test_an_unreadable_training_image_is_listed_once(self, data_folder, tmp_path):
        paths = [data_folder / "training" / "cat" / "cat0.jpg", data_folder / "test" / "gallery" / "cat0.jpg"]
        for path in paths:
            path.write_text("not an image")
        evaluation = evaluate(data_folder, "test_efficientnet", k=[1], weights="none")
        assert [file.path for file in evaluation.skipped] == paths
        submission = submit(data_folder, "test_efficientnet", top_k=1, weights="none", out=tmp_path / "s.json")
        assert submission.skipped == evaluation.skipped


class TestSubmit:
    def test_a_query_in_the_gallery_has_one_hit_less(self, data_folder, encoder, tmp_path, decoded):
        """Of a leave-one-out data set, refused before any image is read."""
        folder = data_folder / "test"
        for part in ("query", "gallery"):
            shutil.rmtree(folder / part)
        (data_folder / "labels.csv").unlink()
        for name in ("cat", "coffee"):
            shutil.copytree(data_folder / "training" / name, folder / name)
        gallery = len(load_dataset(data_folder).gallery)
        with pytest.raises(OptionError, match=f"from 1 to {gallery - 1}, .* besides the query itself") as caught:
            submit(data_folder, encoder, top_k=gallery, out=tmp_path / "s.json")
        assert caught.value.argument == "top_k"
        assert not decoded

    def test_the_submission_is_what_is_written(self, data_folder, encoder, tmp_path):
        broken = data_folder / "test" / "gallery" / "cat0.jpg"
        broken.write_text("not an image")
        out = tmp_path / "s.json"
        submission = submit(data_folder, encoder, top_k=2, group="us", out=out)
        assert isinstance(submission, Submission)
        assert [file.path for file in submission.skipped] == [broken]
        assert json.loads(out.read_text()) == submission.to_dict()
        assert (submission.group, len(submission.images)) == ("us", 8)
        assert all(len(names) == 2 and "cat0.jpg" not in names for names in submission.images.values())

    def test_every_query_must_be_readable(self, data_folder, encoder, tmp_path, close_folder):
        for split in ("gallery", "query"):
            (data_folder / "test" / split / "more").mkdir()
        close_folder(data_folder / "test" / "gallery" / "more")
        submission = submit(load_dataset(data_folder), encoder, top_k=1, out=tmp_path / "s.csv")
        assert submission.skipped == (Skipped(data_folder / "test" / "gallery" / "more", CLOSED),)
        folder = data_folder / "test" / "query" / "more"
        close_folder(folder)
        with pytest.raises(DataError) as caught:
            submit(data_folder, encoder, top_k=1, out=tmp_path / "t.csv")
        assert f"{folder}: {CLOSED}" in str(caught.value)
        assert not (tmp_path / "t.csv").exists()

    def test_an_unreadable_query(self, data_folder, encoder, tmp_path):
        (data_folder / "test" / "query" / "cat0.jpg").write_text("not an image")
        with pytest.raises(DataError, match=r"cat0\.jpg"):
            submit(data_folder, encoder, top_k=1, out=tmp_path / "s.json")
        assert not (tmp_path / "s.json").exists()

    def test_invalid_arguments_are_reported_before_the_work(self, data_folder, encoder, tmp_path, decoded):
        (tmp_path / "taken.json").touch()
        calls: list[tuple[type[Exception], str, dict[str, int | str | Path]]] = [
            (OptionError, "top_k", {"top_k": 13}),
            (OptionError, "top_k", {"top_k": "3"}),
            (OptionError, "top_k", {"top_k": 0}),
            (OptionError, "out", {"out": tmp_path / "s.txt"}),
            (StorageError, "out", {"out": tmp_path / "taken.json"}),
        ]
        for error, argument, options in calls:
            with pytest.raises(error) as caught:
                submit(data_folder, encoder, **{"out": tmp_path / "s.json", **options})
            assert caught.value.argument == argument
        assert decoded == []


def test_the_re_ranking_of_a_bundle_is_applied(data_folder, encoder, tmp_path, recording_progress):
    data = load_dataset(data_folder)
    queries, gallery = encoder.embed(data.query), encoder.embed(data.gallery)
    means = class_means(gallery, data.labels("gallery"))
    reranker = Reranker(Reranking(ClassSimilarity(), GalleryAugmentation(2)), means)
    bundle = save_bundle(encoder, tmp_path / "model", reranker=reranker)
    labels = data.labels("query"), data.labels("gallery")
    expected = evaluate_embeddings(queries, gallery, *labels, ["map@r"], reranker=reranker)
    progress = recording_progress()
    np.testing.assert_allclose(
        evaluate(data_folder, bundle, progress=progress).values["map@r"], expected.values["map@r"], atol=1e-6
    )
    assert any("gallery augmentation (transductive)" in text for text in progress.messages)
    plain = evaluate_embeddings(queries, gallery, *labels, ["map@r"])
    np.testing.assert_allclose(evaluate(data_folder, bundle, rerank=False).values["map@r"], plain.values["map@r"])
    submission = submit(data_folder, bundle, top_k=3, out=tmp_path / "submission.json")
    hits = reranker.search(queries, gallery, 3)
    expected_names = [[Path(item).name for item in ids] for ids in hits.ids]
    assert [list(names) for names in submission.images.values()] == expected_names
