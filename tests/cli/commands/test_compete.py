"""The command `compete`; the competition itself is tested in tests/competition."""

import json

import pytest


@pytest.mark.slow
def test_a_short_competition(workspace, lookalike):
    command = "compete photos --group us --deadline 40s -k 5 --out out"
    outcome = lookalike(f"{command} --backbone test_efficientnet --weights small.safetensors")

    assert outcome.code == 0
    assert outcome.out.strip() == "out/submission.json"
    content = json.loads((workspace / "out" / "submission.json").read_text())
    assert content["groupname"] == "us"
    assert all(len(names) == 5 for names in content["images"].values())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--group us --deadline soon", "--deadline"),
        ("--group ''", "--group"),
        ("--group us -k 100", "-k"),
        ("--group us --backbone nosuch", "nosuch"),
    ],
)
def test_bad_input(workspace, lookalike, options, named):
    outcome = lookalike(f"compete photos --out out {options}")

    assert outcome.code == 2
    assert named in outcome.err
    assert not (workspace / "out").exists()
