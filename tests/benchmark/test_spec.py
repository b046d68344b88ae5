from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.benchmark.benchmark import benchmark
from lookalike.benchmark.spec import (
    BenchmarkSpec,
    bundle_name,
    check_candidates,
    select_measures,
    slug,
    validation_ceiling,
    write_or_check_record,
)
from lookalike.data.dataset import Split
from lookalike.errors import LookalikeError, ModelError, OptionError, StorageError
from lookalike.models.bundle import save_bundle
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.training.config import TrainingOptions

NAME = "test_efficientnet"
OPTIONS = TrainingOptions()


def refused(kind: type[LookalikeError], pattern: str, argument: str | None = None, **arguments) -> None:
    """Check that the benchmark refuses these arguments before it looks at the data, which does not exist."""
    with pytest.raises(kind, match=pattern) as caught:
        benchmark(Path("no-such-folder"), arguments.pop("backbones", ()), **arguments)
    assert caught.value.argument == argument
    assert str(caught.value).endswith((".", "?"))


@pytest.fixture
def random_bundle(tmp_path):
    return save_bundle(build_trainable(NAME, "none").freeze(), tmp_path / "random")


def test_nothing_to_measure():
    refused(OptionError, "`backbones` and `bundles`, got none", "backbones")


def test_bundles_must_exist_and_be_complete(random_bundle, tmp_path):
    refused(ModelError, "lost does not exist", "bundles", backbones=[NAME], bundles=[tmp_path / "lost"])
    refused(ModelError, "is not a bundle", "bundles", bundles=[tmp_path])
    weights = random_bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(ModelError, "random", "bundles", bundles=[random_bundle])


def test_only_random_weights_are_refused(random_bundle):
    for arguments in (
        {"backbones": [NAME], "weights": "none", "finetune": False},
        {"backbones": [NAME], "weights": {NAME: "none"}, "finetune": False, "bundles": [random_bundle]},
        {"backbones": [NAME], "weights": "none", "finetune": (), "bundles": [random_bundle]},
        {"bundles": [random_bundle]},
    ):
        refused(OptionError, "every candidate would have random weights", "weights", **arguments)


def test_random_weights_are_accepted_if_fine_tuned_or_not_alone(random_bundle, finished):
    assert check_candidates([NAME], [], "none", finetune=True)[0] == {NAME: "none"}
    weights, _, _ = check_candidates([NAME, "resnet50"], [], {NAME: "none"}, finetune=False)
    assert weights == {NAME: "none", "resnet50": "pretrained"}
    bundles = [random_bundle, finished.out / "best"]
    assert check_candidates([], bundles, "none", finetune=False)[1] == tuple(bundles)


@pytest.mark.parametrize(
    ("finetune", "names"), [(True, {NAME, "resnet50"}), (False, set()), (["resnet50"], {"resnet50"}), ((), set())]
)
def test_which_backbones_are_fine_tuned(finetune, names):
    assert check_candidates([NAME, "resnet50"], [], {NAME: "none"}, finetune=finetune)[2] == names


def test_duplicate_names(random_bundle):
    refused(OptionError, f"duplicate '{NAME}'", "backbones", backbones=[NAME, NAME])
    twice = r"'random \(untrained\)' and 'random \(untrained\)'"
    refused(OptionError, twice, "bundles", bundles=[random_bundle, random_bundle])


def test_bundles_that_map_to_the_same_file(random_bundle):
    same = shutil.copytree(random_bundle, random_bundle.with_name("random-"))
    refused(OptionError, r"'random \(untrained\)' and 'random- \(unt", "bundles", bundles=[random_bundle, same])


@pytest.mark.parametrize("name", [NAME, f"{NAME} frozen", f"{NAME}-untrained"])
def test_a_bundle_may_be_named_like_a_backbone(random_bundle, name):
    bundle = random_bundle.rename(random_bundle.with_name(name))
    check_candidates([NAME], [bundle], "pretrained", finetune=True)
    assert slug(bundle_name(bundle, "frozen")) != slug(f"{NAME} frozen")


def test_backbones_must_be_known_names_or_pairs(tmp_path):
    with pytest.raises(OptionError, match="two different names, got 'a\\+b\\+c'"):
        benchmark(tmp_path, ["a+b+c"])
    with pytest.raises(OptionError, match="two different names"):
        benchmark(tmp_path, ["resnet50+resnet50"])
    with pytest.raises(ModelError, match="resnet5"):
        benchmark(tmp_path, ["resnet5"])


def test_missing_weights_are_found_before_the_data_is_read(tmp_path):
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(ModelError, match=r"missing\.safetensors does not exist"):
        benchmark(tmp_path / "no data", ["test_resnet"], weights=missing, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pair_is_requested_in_any_order_and_its_members_are_not(make_spec):
    spec = make_spec(requested=("a", "c", "a+b"))
    asked = [("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "a"), ("a", "c"), ("b", "c"), ("",), ("", "b"), ("", "c")]
    assert [spec.is_requested(names) for names in asked] == [
        True, False, True, True, True, True, False, True, False, True,
    ]  # fmt: skip
    assert make_spec().is_requested(("b",))


def test_weights_and_fine_tuning_of_another_backbone():
    refused(OptionError, f"'b'.*'{NAME}'", "weights", backbones=[NAME], weights={"b": "none"})
    refused(OptionError, f"'vit_b_16'.*'{NAME}'", "finetune", backbones=[NAME], finetune=["vit_b_16"])


@pytest.mark.parametrize("budget", [0, -3, float("nan"), float("inf")])
def test_a_budget_must_be_positive(budget):
    refused(OptionError, f"got {budget}", "budget_ms", backbones=[NAME], budget_ms=budget)


def test_unknown_measure_and_runtime():
    with pytest.raises(OptionError, match="'accuracy'") as caught:
        benchmark(Path("no-such-folder"), [NAME], measure="accuracy")
    assert caught.value.argument == "measure"
    with pytest.raises(OptionError, match="'abacus'"):
        benchmark(Path("no-such-folder"), [NAME], runtime="abacus")


def test_missing_weights_are_an_error_before_anything_is_written(again, tiny_weights, tmp_path):
    with pytest.raises(ModelError, match="lost"):
        again(tmp_path / "run", weights={**tiny_weights, "test_resnet": tmp_path / "lost.safetensors"})
    assert not (tmp_path / "run").exists()


def test_slug():
    assert slug("vit_b_16 frozen + a.b fine-tuned, concat") == "vit-b-16-frozen-a.b-fine-tuned-concat"
    assert slug("my model (frozen + trained head)") == "my-model_frozen-trained-head"
    assert slug("(a + b (mixed)) + c frozen, concat") == "a-b_mixed-c-frozen-concat"


@pytest.fixture
def spec(data, tmp_path) -> BenchmarkSpec:
    return BenchmarkSpec(
        data, tmp_path / "out", {}, (), frozenset(), OPTIONS, ("mrr",), None, "torch", None, (), SILENT
    )  # fmt: skip


@pytest.fixture
def lock(spec) -> Callable[..., None]:
    """Lock the folder for a benchmark with these weights."""
    return lambda **weights: write_or_check_record(replace(spec, weights=weights))


def test_a_folder_with_other_files_is_refused(spec, lock):
    spec.out.mkdir()
    (spec.out / "holiday.jpg").touch()
    with pytest.raises(StorageError, match="not empty") as caught:
        lock()
    assert caught.value.argument == "out"
    assert [p.name for p in spec.out.iterdir()] == ["holiday.jpg"]


def test_a_file_is_refused(spec, lock):
    spec.out.touch()
    with pytest.raises(StorageError, match="out is a file"):
        lock()


def test_a_temporary_file_of_a_killed_run_is_ignored(spec, lock):
    spec.out.mkdir()
    (spec.out / ".run.json.x1y2").touch()
    lock(a="pretrained")
    stored = json.loads((spec.out / "run.json").read_text())
    assert (stored["version"], stored["weights"]) == (1, {"a": "pretrained"})


def test_backbones_can_be_added_with_the_same_weights(spec, lock, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    lock(a="pretrained")
    lock(b=file)
    lock(a="pretrained", b=file)
    assert set(json.loads((spec.out / "run.json").read_text())["weights"]) == {"a", "b"}
    file.write_bytes(b"two")
    with pytest.raises(StorageError, match="different weights of b;"):
        lock(a="pretrained", b=file)
    with pytest.raises(StorageError, match="weights of a and weights of b"):
        lock(a="none", b=file)


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": 0}', "{"])
def test_a_file_that_is_not_a_record_is_refused(spec, lock, content):
    spec.out.mkdir()
    (spec.out / "run.json").write_text(content)
    with pytest.raises(StorageError, match=r"run\.json"):
        lock()


def test_another_version_is_refused(spec, lock):
    lock()
    path = spec.out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(StorageError, match="version 2"):
        lock()


def test_measures_are_the_selected_one_and_the_default_ones(data):
    default = ("precision@3", "hit@3", "hit@1", "map@r", "mrr")
    assert select_measures(data, "precision@3", OPTIONS) == default
    assert select_measures(data, "mrr", OPTIONS) == ("mrr", "hit@3", "precision@3", "hit@1", "map@r")
    assert select_measures(data, "Recall@1", OPTIONS)[:3] == ("recall@1", "hit@1", "precision@3")


@pytest.mark.parametrize("name", ["precision", "recall", "map", "ndcg"])
def test_a_measure_with_k_adds_hit_at_the_same_k(data, name):
    measures = select_measures(data, f"{name}@5", OPTIONS)
    assert measures == (f"{name}@5", "hit@5", "precision@3", "hit@3", "hit@1", "map@r", "mrr")


def test_the_ceiling_of_validation(data):
    """Validation has two images of each class: of the first three hits at most one is relevant."""
    assert validation_ceiling(data, "precision@3") == pytest.approx(1 / 3)
    assert validation_ceiling(data, "map@r") == validation_ceiling(data, "hit@3") == 1
    larger = replace(data, items=tuple(replace(i, label="one", split=Split.VALIDATION) for i in data.items))
    assert validation_ceiling(larger, "precision@3") == 1


def test_a_measure_that_needs_more_images_is_refused_or_skipped(data):
    """Validation has 8 images, so 7 to find; the gallery has 12."""
    with pytest.raises(OptionError, match=r"precision@8 needs 8 hits, but validation.* only 7") as caught:
        select_measures(data, "precision@8", OPTIONS)
    assert caught.value.argument == "measure"
    with pytest.raises(OptionError, match="hit@9 needs 9 hits") as caught:
        select_measures(data, "precision@3", TrainingOptions(stop_on="hit@9"))
    assert caught.value.argument == "stop_on"
    few = data.replace_items(i for i in data.items if i.split != "gallery" or i.id.endswith("0.jpg"))
    assert len(few.gallery) == 4
    with pytest.raises(OptionError, match="hit@5 needs 5 hits, but the gallery has only 4"):
        select_measures(few, "hit@5", OPTIONS)
    tested = few.replace_items(replace(i, split=Split.TEST) if i.split == "gallery" else i for i in few.items)
    with pytest.raises(OptionError, match="hit@4 needs 4 hits, but the gallery besides the query itself has only 3"):
        select_measures(tested, "hit@4", OPTIONS)
    two = data.replace_items(i for i in data.items if i.split != "gallery" or i.id.endswith(("cat0.jpg", "cat1.jpg")))
    assert select_measures(two, "mrr", OPTIONS) == ("mrr", "hit@1", "map@r")
    assert select_measures(data, "mrr", OPTIONS, {"validation": 8, "gallery": 2}) == ("mrr", "hit@1", "map@r")
    with pytest.raises(OptionError, match=r"validation.* has only 2"):
        select_measures(data, "precision@3", OPTIONS, {"validation": 3})
