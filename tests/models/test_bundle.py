"""Saving and loading: the same vectors bit for bit, a fingerprint that notices, and no half bundle ever."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from lookalike.models.facts import is_bundle, read_facts
from lookalike.models.torch_bundle import load_bundle, save_bundle
from safetensors.torch import load_file, save_file

from lookalike.errors import ModelError, StorageError
from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable

WAYS = ("single", "aligned", "average", "concat")


@pytest.fixture
def make_encoder(make_trainable, make_ensemble):
    return lambda how: Encoder([make_trainable()]) if how == "single" else make_ensemble(how)


@pytest.fixture
def bundle(make_encoder, tmp_path):
    """A saved single encoder."""
    return save_bundle(make_encoder("single"), tmp_path / "model")


def edit(bundle, change):
    """Change `bundle.json` in place."""
    path = bundle / "bundle.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize("how", WAYS)
def test_a_round_trip_gives_the_same_vectors_bit_for_bit(how, make_encoder, image_files, tmp_path):
    encoder = make_encoder(how)
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    before, after = encoder.embed(image_files), loaded.embed(image_files)
    assert np.array_equal(before.vectors, after.vectors)
    assert before.fingerprint == after.fingerprint
    assert (loaded.name, loaded.how, loaded.dim) == (encoder.name, encoder.how, encoder.dim)
    assert [m.preprocessing for m in loaded.members] == [m.preprocessing for m in encoder.members]
    assert [m.origin for m in loaded.members] == [m.origin for m in encoder.members]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_mambaout", "test_nfnet"])
def test_every_family_comes_back_whole(name, image_files, tmp_path):
    """Loading skips the random start, so anything that is not in the file would show here."""
    encoder = Encoder([build_trainable(name, "none")])
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert np.array_equal(encoder.embed(image_files[:3]).vectors, loaded.embed(image_files[:3]).vectors)


def test_pretrained_weights_from_a_package_come_back_too(image_files, tmp_path):
    encoder = Encoder([build_trainable("efficientnet_lite0")])
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert np.array_equal(encoder.embed(image_files[:2]).vectors, loaded.embed(image_files[:2]).vectors)


def test_what_the_description_says(make_encoder, tmp_path):
    facts = {"classes": ["cat", "dog"], "measures": {"map@r": 0.5}}
    out = save_bundle(make_encoder("aligned"), tmp_path / "a" / "model", facts=facts)
    assert sorted(p.name for p in out.iterdir()) == ["bundle.json", "model.safetensors"]
    found = read_facts(out)
    assert found["format"] == 1
    assert (found["name"], found["type"], found["how"]) == ("test_efficientnet+test_resnet", "ensemble", "aligned")
    assert found["dim"] == 512
    assert found["classes"] == ["cat", "dog"]
    assert found["measures"] == {"map@r": 0.5}
    first, second = found["members"]
    assert (first["aligned"], second["aligned"]) == (False, True)
    assert first["head"] == {"kind": "ProjectionHead", "features": 256, "dim": 512}
    assert first["preprocessing"]["height"] == 160
    versions = {"python", "lookalike", "torch", "timm", "numpy", "pillow", "pytorch-metric-learning"}
    assert set(found["versions"]) == versions
    assert found["fingerprint"] == make_encoder("aligned").fingerprint
    assert read_facts(save_bundle(make_encoder("single"), tmp_path / "one"))["how"] is None


def test_the_preprocessing_travels(make_trainable, image_files, tmp_path):
    member = make_trainable()
    plain = Encoder([member]).embed(image_files).vectors
    member.preprocessing = dataclasses.replace(
        member.preprocessing, height=128, width=128, crop_pct=1.0, interpolation="bilinear", crop_mode="squash"
    )
    member.changed()
    encoder = Encoder([member])
    loaded = load_bundle(save_bundle(encoder, tmp_path / "model"))
    assert loaded.members[0].preprocessing == member.preprocessing
    assert np.array_equal(loaded.embed(image_files).vectors, encoder.embed(image_files).vectors)
    assert not np.allclose(loaded.embed(image_files).vectors, plain, atol=1e-3)


def test_the_fingerprint_changes_with_all_that_decides_an_embedding(make_trainable, make_ensemble):
    base = make_trainable()
    names = {"base": base.fingerprint}

    def changed(member):
        member.changed()
        return member.fingerprint

    weight, bias, statistics, crop, mean = (make_trainable() for _ in range(5))
    with torch.no_grad():
        weight.module.conv_stem.weight[0, 0, 0, 0] += 1e-3
        bias.head.linear.bias[5] += 1e-3
        statistics.module.bn1.running_mean[0] += 1e-3
    crop.preprocessing = dataclasses.replace(crop.preprocessing, crop_pct=0.9)
    mean.preprocessing = dataclasses.replace(mean.preprocessing, mean=(0.5, 0.5, 0.5))
    names |= {
        "weight": changed(weight),
        "bias": changed(bias),
        "statistics": changed(statistics),
        "crop": changed(crop),
        "mean": changed(mean),
        "other architecture": make_trainable("test_resnet").fingerprint,
    }
    for how in ("aligned", "average", "concat"):
        names[how] = make_ensemble(how).fingerprint
    ensemble = make_ensemble("aligned")
    turned = ensemble.alignments[1].copy()
    turned[0] *= -1
    names["other alignment"] = Encoder(ensemble.members, "aligned", [None, turned]).fingerprint
    names["other order"] = Encoder(ensemble.members[::-1], "average").fingerprint
    assert len(set(names.values())) == len(names), names
    assert make_trainable().fingerprint == names["base"]
    assert make_ensemble("aligned").fingerprint == names["aligned"]


def test_a_fact_for_people_does_not_change_the_fingerprint(make_trainable):
    member = make_trainable()
    member.origin["note"] = "made on a Sunday"
    member.changed()
    assert member.fingerprint == make_trainable().fingerprint


# ---------------------------------------------------------------- what cannot be loaded


def refusal(path) -> str:
    with pytest.raises(ModelError) as raised:
        load_bundle(path)
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_no_bundle_at_all(tmp_path):
    assert refusal(tmp_path) == (f"{tmp_path} is not a bundle: it has no bundle.json; make one with 'lookalike train'.")
    assert not is_bundle(tmp_path / "nowhere")
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'} is not a bundle")


def test_weights_that_are_gone_damaged_or_cut_short(bundle):
    path = bundle / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    assert refusal(bundle).startswith(f"{path} is corrupt or not a weights file (")
    path.write_bytes(b"\xff" * 1000)
    assert refusal(bundle).startswith(f"{path} is corrupt or not a weights file (")
    path.unlink()
    assert refusal(bundle) == f"the weights file {path} does not exist; check the path."


def test_one_flipped_bit_in_the_weights_is_noticed(bundle):
    path = bundle / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert refusal(bundle) == (
        f"{bundle} was changed after it was saved (its fingerprint differs); make the bundle again."
    )


def test_weights_of_another_shape(bundle):
    path = bundle / "model.safetensors"
    state = load_file(path)
    state["members.0.head.linear.bias"] = torch.zeros(3)
    del state["members.0.backbone.bn1.bias"]
    save_file(state, path)
    text = refusal(bundle)
    assert text.startswith(f"{path} does not fit {bundle / 'bundle.json'}: 1 of ")
    assert "(first backbone.bn1.bias)" in text
    assert "1 have another shape (first head.linear.bias: (3,), not (512,))" in text


CHANGED = "was changed after it was saved (its fingerprint differs); make the bundle again."


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f["members"][0]["preprocessing"].update(crop_pct=0.5), CHANGED),
        (lambda f: f.update(fingerprint="0" * 32), CHANGED),
        (lambda f: f.pop("fingerprint"), CHANGED),
        (lambda f: f.pop("members"), "is damaged (KeyError: 'members')"),
        (lambda f: f.update(members=[]), "an encoder needs at least one member, got none."),
        (lambda f: f.update(members="two"), "is damaged (TypeError: "),
        (lambda f: f.update(how="sum"), "is damaged (OptionError: a combination must be one of"),
        (lambda f: f["members"][0].pop("origin"), "is damaged (KeyError: 'origin')"),
        (lambda f: f["members"][0].update(timm_name="nope"), "is damaged (RuntimeError: Unknown model (nope))"),
        (lambda f: f["members"][0].update(timm_name="test_vit"), "does not fit"),
        (lambda f: f["members"][0]["head"].update(dim="many"), "is damaged (TypeError: "),
        (lambda f: f["members"][0]["head"].update(dim=-1), "is damaged (RuntimeError: "),
        (lambda f: f["members"][0]["preprocessing"].pop("mean"), "the bundle's preprocessing is not one that this"),
        (lambda f: f["members"][0]["preprocessing"].update(mean=[1]), CHANGED),
    ],
)
def test_an_edited_description_is_noticed(change, expected, bundle):
    edit(bundle, change)
    assert expected in refusal(bundle)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 50_000])
def test_a_description_that_is_no_json(text, bundle):
    (bundle / "bundle.json").write_bytes(text.encode("latin-1"))
    assert refusal(bundle) == f"{bundle / 'bundle.json'} is damaged or cannot be read; make the bundle again."


@pytest.mark.parametrize(("form", "got"), [('{"format": 2}', "2"), ("[]", "None"), ("{}", "None")])
def test_another_format_says_what_to_do(form, got, bundle):
    (bundle / "bundle.json").write_text(form)
    assert refusal(bundle) == (
        f"{bundle} has bundle format {got}, this version reads 1; update lookalike or make the bundle again."
    )


# ---------------------------------------------------------------- what cannot be saved


def test_a_place_that_is_taken_is_left_as_it_is(bundle, make_trainable, tmp_path):
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    other = Encoder([make_trainable(seed=9)])
    with pytest.raises(StorageError) as raised:
        save_bundle(other, bundle)
    assert str(raised.value) == (
        f"{bundle} already exists and is left as it is; choose another place or remove it first."
    )
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    save_bundle(other, bundle, replace=True)
    assert load_bundle(bundle).fingerprint == other.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("stops_at", ["save_file", "write_json"])
def test_an_interrupted_save_leaves_the_old_bundle(stops_at, bundle, make_trainable, monkeypatch, tmp_path):
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lookalike.models.torch_bundle.{stops_at}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(Encoder([make_trainable(seed=9)]), bundle, replace=True)
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(KeyboardInterrupt):
        save_bundle(Encoder([make_trainable(seed=9)]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_said_in_one_sentence(make_trainable, monkeypatch, tmp_path):
    from safetensors import SafetensorError

    def full(*args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("lookalike.models.torch_bundle.save_file", full)
    with pytest.raises(StorageError) as raised:
        save_bundle(Encoder([make_trainable()]), tmp_path / "model")
    assert str(raised.value) == (
        f"{tmp_path / 'model'} cannot be written (Error while serializing: I/O error: No space left on device "
        "(os error 28)); free some space or choose another place."
    )
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(make_trainable, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"file is not a folder; choose another place\.$"):
        save_bundle(Encoder([make_trainable()]), tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"
