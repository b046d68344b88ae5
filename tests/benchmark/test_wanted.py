from __future__ import annotations

import re
from pathlib import Path

import pytest

from lookalike.benchmark.benchmark import benchmark
from lookalike.benchmark.wanted import Wanted
from lookalike.errors import LookalikeError, ModelError, OptionError
from lookalike.models.encoder import Encoder
from lookalike.models.pretrained import build_trainable
from lookalike.models.torch_bundle import save_bundle

NAME = "test_efficientnet"


def refused(kind: type[LookalikeError], pattern: str, **given):
    """See that the benchmark refuses this in one sentence before it looks at the data, which is not there."""
    with pytest.raises(kind, match=pattern) as caught:
        benchmark(Path("no-such-folder"), given.pop("backbones", ()), **given)
    sentence = str(caught.value)
    assert sentence[-1] in ".?" and "\n" not in sentence and not re.search(r"[.!?] [A-Z]", sentence)


@pytest.fixture
def random_bundle(tmp_path):
    return save_bundle(Encoder([build_trainable(NAME, "none")]), tmp_path / "random")


def test_nothing_to_measure():
    refused(OptionError, "at least one --backbone or --bundle, got none")


def test_a_missing_bundle(tmp_path):
    refused(ModelError, "bundle .*lost does not exist; give the folder", backbones=[NAME], bundles=[tmp_path / "lost"])


def test_a_folder_that_is_no_bundle(tmp_path):
    refused(ModelError, "is not a bundle", bundles=[tmp_path])


def test_a_damaged_bundle(random_bundle):
    place = random_bundle / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-1000])
    refused(ModelError, "random", bundles=[random_bundle])


def test_nothing_but_random_weights(random_bundle):
    pattern = "every candidate would have random weights, and such a model is never chosen"
    refused(OptionError, pattern, backbones=[NAME], weights="none", finetune=False)
    refused(
        OptionError,
        pattern,
        backbones=[NAME],
        weights={NAME: "none"},
        finetune=False,
        bundles=[random_bundle],
    )
    refused(OptionError, pattern, bundles=[random_bundle])


def test_random_weights_that_are_trained_or_not_alone_are_taken(random_bundle, finished):
    assert Wanted.of([NAME], [], "none", finetune=True).weights == {NAME: "none"}
    assert Wanted.of([NAME, "resnet50"], [], {NAME: "none"}, finetune=False).weights["resnet50"] == "pretrained"
    assert len(Wanted.of([], [random_bundle, finished.out / "best"], "none", finetune=False).bundles) == 2


def test_fine_tuning_some_of_the_backbones(random_bundle):
    def tuned(finetune):
        return Wanted.of([NAME, "resnet50"], [], {NAME: "none"}, finetune=finetune).finetune

    assert tuned(finetune=True) == {NAME, "resnet50"}
    assert tuned(finetune=False) == set()
    assert tuned(finetune=["resnet50"]) == {"resnet50"}
    refused(
        OptionError, f"'vit_b_16' is to be fine-tuned, but is not among {NAME}", backbones=[NAME], finetune=["vit_b_16"]
    )
    refused(
        OptionError,
        "every candidate would have random weights",
        backbones=[NAME],
        weights="none",
        finetune=(),
        bundles=[random_bundle],
    )


def test_one_name_is_no_list():
    refused(OptionError, "backbones must be a list, got the single resnet50; put it in a list", backbones="resnet50")
    refused(OptionError, "finetune must be a list, got the single b", backbones=[NAME], finetune="b")


def test_names_twice(random_bundle):
    refused(OptionError, f"'{NAME}' is given more than once", backbones=[NAME, NAME])
    refused(OptionError, "'random' is given more than once.*rename a bundle", bundles=[random_bundle, random_bundle])


def test_names_that_would_share_files(random_bundle):
    alike = random_bundle.rename(random_bundle.with_name(f"{NAME}-frozen"))
    refused(OptionError, f"'{NAME} frozen' and '{NAME}-frozen' are too much alike", backbones=[NAME], bundles=[alike])
    same = alike.rename(alike.with_name(f"{NAME} frozen"))
    refused(OptionError, f"'{NAME} frozen' and '{NAME} frozen' are too much alike", backbones=[NAME], bundles=[same])
    alike = same
    Wanted.of(
        [NAME], [alike.rename(alike.with_name(NAME))], "pretrained", finetune=True
    )  # the backbone's own name is free


def test_an_ensemble_as_backbone():
    refused(OptionError, "is an ensemble; give its members one by one", backbones=["resnet50+vit_b_16"])


def test_an_unknown_backbone():
    refused(ModelError, "no backbone named 'resnet5O'; did you mean", backbones=[NAME, "resnet5O"])


def test_weights_for_a_backbone_that_is_not_there():
    refused(
        OptionError, f"weights are given for 'b', which is not among {NAME}", backbones=[NAME], weights={"b": "none"}
    )


@pytest.mark.parametrize("budget", [0, -3, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(budget):
    refused(OptionError, "budget must be a number above 0", backbones=[NAME], budget_ms=budget)


def test_an_unknown_measure():
    refused(OptionError, "the measure 'accuracy' is not known", backbones=[NAME], measure="accuracy")


def test_weights_that_cannot_be_had_are_told_before_the_folder_is_taken(again, tiny_weights, tmp_path):
    with pytest.raises(ModelError, match="lost"):
        again(tmp_path / "run", weights={**tiny_weights, "test_resnet": tmp_path / "lost.safetensors"})
    assert not (tmp_path / "run").exists()
