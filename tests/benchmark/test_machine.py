from __future__ import annotations

import importlib.metadata
import os

import pytest
import torch

from lookalike.benchmark.machine import machine, timing_setup
from lookalike.runtimes import machine as module


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """The file in which Linux names its processors, for the test to write."""
    place = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_LISTED", place)
    return place


def test_the_processor_is_named_as_the_system_does(listed):
    listed.write_text("processor\t: 0\nmodel name\t: Fast One @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    assert machine()["processor"] == timing_setup()["processor"] == "Fast One @ 3 GHz"


def test_a_processor_without_a_name_is_told_by_its_kind(listed, monkeypatch):
    listed.write_text("processor\t: 0\n")
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    monkeypatch.setattr(module.platform, "machine", lambda: "arm64")
    assert machine()["processor"] == "arm64"
    listed.unlink()
    assert timing_setup()["processor"] == "arm64"


def test_what_a_time_holds_for():
    setup = timing_setup()
    assert setup.keys() == {"processor", "device", "cores", "threads", "torch", "timm", "pillow", "openvino"}
    assert setup["threads"] == torch.get_num_threads()
    assert (setup["torch"], setup["timm"]) == tuple(importlib.metadata.version(n) for n in ("torch", "timm"))


def test_a_report_is_told_cores_and_versions():
    assert machine()["cores"] == os.cpu_count()
    assert list(machine())[3:] == ["lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy"]
