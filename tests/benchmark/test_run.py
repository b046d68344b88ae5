from __future__ import annotations

import json

import pytest

from lookalike.benchmark.run import Run, measures_for, slug
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import OptionError, StorageError
from lookalike.progress import SILENT
from lookalike.training.options import TrainingOptions

OPTIONS = TrainingOptions()


@pytest.fixture
def run(photo_folder_original, tmp_path):
    return Run(with_validation(load_dataset(photo_folder_original)), tmp_path / "out", OPTIONS, ("mrr",), SILENT)


def test_slug():
    assert slug("vit_b_16 frozen + a.b fine-tuned, concat") == "vit-b-16-frozen-a.b-fine-tuned-concat"


def test_a_folder_with_other_things_is_refused(run):
    run.out.mkdir()
    (run.out / "holiday.jpg").touch()
    with pytest.raises(StorageError, match="is not empty and holds no benchmark; choose another --out"):
        run.claim({})
    assert [p.name for p in run.out.iterdir()] == ["holiday.jpg"]


def test_a_file_in_the_place_is_refused(run):
    run.out.touch()
    with pytest.raises(StorageError, match=r"out is a file; choose another --out\."):
        run.claim({})


def test_half_a_description_of_a_killed_run_is_not_in_the_way(run):
    run.out.mkdir()
    (run.out / ".run.json.x1y2").touch()
    run.claim({"a": "pretrained"})
    assert json.loads((run.out / "run.json").read_text())["weights"] == {"a": "pretrained"}


def test_backbones_join_but_keep_their_weights(run, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    run.claim({"a": "pretrained"})
    run.claim({"b": file})
    run.claim({"a": "pretrained", "b": file})
    assert set(json.loads((run.out / "run.json").read_text())["weights"]) == {"a", "b"}
    file.write_bytes(b"two")
    with pytest.raises(StorageError, match="with other weights of b; choose"):
        run.claim({"a": "pretrained", "b": file})
    with pytest.raises(StorageError, match="with other weights of a and weights of b; choose"):
        run.claim({"a": "none", "b": file})


def test_a_description_that_is_none_is_refused(run):
    run.out.mkdir()
    (run.out / "run.json").write_text("[]")
    with pytest.raises(StorageError, match=r"run\.json is not the description of a benchmark"):
        run.claim({})


def test_measures_are_the_one_to_choose_by_and_the_usual_ones(run):
    usual = ("precision@3", "hit@3", "hit@1", "map@r", "mrr")
    assert measures_for(run.data, "precision@3", OPTIONS) == usual
    assert measures_for(run.data, "mrr", OPTIONS) == ("mrr", "hit@3", "precision@3", "hit@1", "map@r")


@pytest.mark.parametrize("name", ["precision", "recall", "map", "ndcg"])
def test_a_measure_with_a_k_brings_the_hit_rate_of_that_k(run, name):
    taken = measures_for(run.data, f"{name}@5", OPTIONS)
    assert taken == (f"{name}@5", "hit@5", "precision@3", "hit@3", "hit@1", "map@r", "mrr")
    assert measures_for(run.data, "Recall@1", OPTIONS)[:3] == ("recall@1", "hit@1", "precision@3")


def test_a_measure_deeper_than_a_part_is_an_error_or_left_out(run):
    """Validation has 8 images, so 7 to find; the gallery has 12."""
    with pytest.raises(OptionError, match=r"precision@8 needs 8 hits, but validation.* has only 7 images to find"):
        measures_for(run.data, "precision@8", OPTIONS)
    with pytest.raises(OptionError, match="hit@9 needs 9 hits"):
        measures_for(run.data, "precision@3", TrainingOptions(stop_on="hit@9"))
    few = run.data.replace_items(
        i for n, i in enumerate(run.data.items) if i.split != "gallery" or i.id.endswith("0.jpg")
    )
    assert len(few.gallery) == 4
    with pytest.raises(OptionError, match="hit@5 needs 5 hits, but the gallery has only 4"):
        measures_for(few, "hit@5", OPTIONS)
    two = run.data.replace_items(
        i for i in run.data.items if i.split != "gallery" or i.id.endswith(("cat0.jpg", "cat1.jpg"))
    )
    assert measures_for(two, "mrr", OPTIONS) == ("mrr", "hit@1", "map@r")
    assert measures_for(run.data, "mrr", OPTIONS, {"validation": 8, "gallery": 2}) == ("mrr", "hit@1", "map@r")
    with pytest.raises(OptionError, match=r"precision@3 needs 3 hits, but validation.* has only 2 images to find"):
        measures_for(run.data, "precision@3", OPTIONS, {"validation": 3})
