from __future__ import annotations

import io
import json
import resource
import subprocess

import numpy as np
import pytest

from lookalike._cores import cores
from lookalike.benchmark import timing
from lookalike.benchmark.timing import main, measure_timing, peak_memory_mb, time_members
from lookalike.data.layouts import find_images
from lookalike.errors import LookalikeError
from lookalike.models.pretrained import build_trainable

NAMES = ("test_efficientnet", "test_resnet")


@pytest.fixture
def images(photo_folder_original):
    return find_images(photo_folder_original / "test" / "gallery")


def test_a_process_of_its_own_measures_all_ways_and_its_own_memory(finished, images):
    """The parent's memory must not count, though on Linux a child starts with the parent's peak as its own."""
    assert np.ones(125_000_000).all()  # 1 GB, all of it touched and given back: the parent's peak from now on
    bundles = [finished.out / "members" / f"{name.replace('_', '-')}-frozen" for name in NAMES]
    found = measure_timing(bundles, ["aligned", "average", "concat"], images)
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert list(found) == ["aligned", "average", "concat"]
    for cost in found.values():
        assert 0 < cost.single_decode_ms < cost.single_p50_ms <= cost.single_p95_ms
        assert cost.single_model_p50_ms < cost.single_p50_ms
        assert cost.batched_model_ms > 0
        assert (cost.images, cost.batch_size, cost.device) == (40, 16, "cpu")
        assert cost.threads >= 1
        assert 100 < cost.peak_memory_mb < mine - 300


def test_ways_share_every_pass_and_differ_by_their_own_arithmetic(images, monkeypatch):
    monkeypatch.setattr(timing, "SINGLE_IMAGES", 6)
    members = [build_trainable(name, "none") for name in NAMES]
    passes = []
    for member in members:
        encode = member.encode
        monkeypatch.setattr(
            member, "encode", lambda pixels, encode=encode: passes.append(len(pixels)) or encode(pixels)
        )
    found = time_members(lambda _: members, ["aligned", "average", "concat"], images)
    # of each member: five to warm up and six to time, one batch to warm up, four with decoding, some without
    assert passes.count(1) == 2 * 11
    assert passes.count(16) >= 2 * (1 + 4 + 2)
    assert set(passes) == {1, 16}
    assert len({cost.single_decode_ms for cost in found.values()}) == 1
    costs = [cost.single_p50_ms for cost in found.values()]
    assert max(costs) - min(costs) < 0.5 * min(costs)
    assert {cost.threads for cost in found.values()} == {cores()}


def test_one_member(images, monkeypatch):
    monkeypatch.setattr(timing, "SINGLE_IMAGES", 3)
    asked = []
    found = time_members(lambda single: asked.append(single) or [build_trainable(NAMES[0], "none")], [""], images[:1])
    assert asked == [True, False]
    assert list(found) == [""]
    assert found[""].images == 3


def test_peak_memory_is_the_one_of_this_program(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t    2000 kB\nVmRSS:\t 1000 kB\n")
    monkeypatch.setattr(timing, "_STATUS", status)
    assert peak_memory_mb() == 2.048


def test_peak_memory_where_there_is_no_such_file(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(timing.sys, "platform", "darwin")  # counts bytes
    assert peak_memory_mb() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@pytest.mark.parametrize(
    ("status", "stderr", "said"),
    [
        (-9, "", "failed with status -9: no output; start"),
        (1, "Traceback\nRuntimeError: no room.\n", "failed with status 1: RuntimeError: no room; start"),
    ],
)
def test_a_process_that_fails_is_told_in_one_sentence(finished, images, monkeypatch, status, stderr, said):
    done = subprocess.CompletedProcess([], status, "", stderr)
    monkeypatch.setattr(timing.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(LookalikeError, match=said):
        measure_timing([finished.out / "best"], [""], images)


def test_the_process_answers_an_unusable_bundle_with_a_sentence(monkeypatch, tmp_path):
    request = {"bundles": [str(tmp_path)], "ways": [""], "images": []}
    monkeypatch.setattr(timing.sys, "stdin", io.StringIO(json.dumps(request)))
    with pytest.raises(SystemExit, match="is not a bundle"):
        main()


def test_the_engine_that_is_asked_for_is_timed(finished, images, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path))
    bundle = finished.out / "members" / "test-efficientnet-frozen"
    assert measure_timing([bundle], [""], images, runtime="auto", count=1)[""].runtime == "torch in float32"
    found = measure_timing([bundle], [""], images, runtime="openvino")
    assert found[""].runtime == "openvino in float32"
