"""What is read of the machine: processor, cores, cache folder, installed versions."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike import _system
from lookalike._system import cache_folder, cpu_count, cpu_flags, cpu_name, installed_versions

CPUINFO = """processor : 0
model name : Example CPU 9000
flags : fpu avx2 avx512f amx_bf16

processor : 1
model name : Another
"""


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in place of /proc/cpuinfo."""
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    monkeypatch.setattr(_system, "_CPUINFO", path)
    _system._cpuinfo.cache_clear()
    yield path
    _system._cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, 4), ("2", 2), ("8", 4), ("0", 1), ("3,2", 3), (" 1 ", 1), ("many", 4), ("", 4)],
)
def test_cpu_count(monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert cpu_count() == expected


@pytest.mark.usefixtures("cpuinfo")
def test_the_processor_as_the_system_lists_it() -> None:
    assert cpu_name() == "Example CPU 9000"
    assert cpu_flags() == {"fpu", "avx2", "avx512f", "amx_bf16"}


def test_the_processor_where_the_system_lists_nothing(cpuinfo: Path) -> None:
    cpuinfo.unlink()
    assert cpu_name()  # the architecture
    assert cpu_flags() == frozenset()


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LOOKALIKE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(fail))
    with pytest.raises(OSError):
        cache_folder().mkdir(parents=True)
    assert not (cache_folder() / "timings").exists()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("LOOKALIKE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lookalike"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lookalike"


def test_installed_versions_skip_missing_packages() -> None:
    assert installed_versions("numpy", "not-a-package") == {"numpy": importlib.metadata.version("numpy")}
