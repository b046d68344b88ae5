"""The settings of `serve`: command line, environment, file, default, in this order."""

from __future__ import annotations

import os
import tomllib

import pytest


@pytest.fixture
def settings(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return write


def test_where_settings_come_from(lookalike, settings, monkeypatch):
    path = settings('indexes = ["hats=a.index"]\nport = 81\ntimeout = 2\nallowed-host = ["a.example"]\nhost = "::1"\n')
    monkeypatch.setenv("LOOKALIKE_SERVE_PORT", "82")
    monkeypatch.setenv("LOOKALIKE_SERVE_HOST", "127.0.0.2")
    monkeypatch.setenv("LOOKALIKE_SERVE_CORS_ORIGINS", "https://a.example https://b.example")
    outcome = lookalike(f"serve --settings {path} --host localhost --show-settings")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    for line in (
        'indexes = ["hats=a.index"]  # settings file',
        'host = "localhost"  # command line',
        "port = 82  # environment",
        "timeout = 2.0  # settings file",
        'allowed-host = ["a.example"]  # settings file',
        'cors-origin = ["https://a.example", "https://b.example"]  # environment',
        'max-body = "32MB"  # default',
        "# token-file is not set  # default",
    ):
        assert line in lines


def test_what_is_printed_is_a_settings_file(lookalike, settings):
    printed = lookalike("serve a.index --port 81 --require-token --show-settings").out
    assert tomllib.loads(printed)["require-token"] is True
    again = lookalike(f"serve --settings {settings(printed)} --show-settings").out
    assert tomllib.loads(again) == tomllib.loads(printed)


def test_indexes_from_the_environment(lookalike, monkeypatch):
    monkeypatch.setenv("LOOKALIKE_SERVE_INDEXES", "a.index b.index")
    assert 'indexes = ["a.index", "b.index"]  # environment' in lookalike("serve --show-settings").out


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("prt = 80", "'prt', but the keys are indexes, host"),
        ("port = [80]", "'port' in"),
        ('port = "http"', "--port"),
        ('require-token = "maybe"', "--require-token"),
        ("port = ", "settings.toml cannot be read"),
        ('allowed-host = "a.example"', "must be a list of texts, got 'a.example'"),
        ("indexes = 3", "must be a list of texts, got 3"),
        ("show-settings = true", "'show-settings'"),
    ],
)
def test_wrong_settings_are_refused(lookalike, settings, text, fact):
    outcome = lookalike(f"serve a.index --settings {settings(text)}")
    assert outcome.code == 2
    (error,) = outcome.errors
    assert fact in error


def test_a_missing_settings_file(lookalike, tmp_path):
    (error,) = lookalike(f"serve a.index --settings {tmp_path / 'lost.toml'}").errors
    assert error == f"the --settings {tmp_path / 'lost.toml'} cannot be read (No such file or directory)."


def test_a_pipe_in_place_of_a_settings_file(lookalike, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (error,) = lookalike(f"serve a.index --settings {tmp_path / 'pipe'}").errors
    assert "it is a pipe" in error
