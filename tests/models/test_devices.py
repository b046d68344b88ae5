"""What the processor reports about itself."""

from lookalike.models import devices


def test_the_flags_are_those_of_the_first_processor(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: none\n\nflags\t\t: fpu\n")
    monkeypatch.setattr(devices, "_CPUINFO", path)
    assert devices._cpu_flags() == {"fpu", "avx2", "avx512_bf16"}
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "none")
    assert devices._cpu_flags() == frozenset()
