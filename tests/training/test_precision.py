"""Mixed precision: chosen by the device, and slow layers taken out of it and put back."""

import numpy as np
import pytest
import torch

from lookalike.models import devices
from lookalike.models.devices import computes_bfloat16
from lookalike.models.pretrained import build_trainable
from lookalike.training import precision
from lookalike.training.precision import autocast, keep_slow_layers_float32, unwrap

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def member():
    return build_trainable("efficientnet_lite0")


def tree(module):
    """Every module with its name, its identity and its mode, in order."""
    return [(name, id(part), part.training) for name, part in module.named_modules()]


def slow_layers(module):
    """Depthwise convolutions that are wide or strided, found by their weights' shape."""
    return [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.Conv2d)
        and part.weight.shape[1] == 1
        and (part.weight.shape[-1] >= 5 or part.stride != (1, 1))
    ]


def test_wrapping_and_unwrapping_restores_the_very_same_tree(member):
    module = member.module
    before, names = tree(module), list(module.state_dict())
    assert len(slow_layers(module)) == 11
    keep_slow_layers_float32(module, CPU)
    wrapped = [m for m in module.modules() if isinstance(m, precision._Float32)]
    assert len(wrapped) == 11
    assert {id(w.layer) for w in wrapped} == {id(layer) for layer in slow_layers(module)}
    keep_slow_layers_float32(module, CPU)  # once more changes nothing
    assert len([m for m in module.modules() if isinstance(m, precision._Float32)]) == 11
    unwrap(module)
    assert tree(module) == before
    assert list(module.state_dict()) == names
    unwrap(module)
    assert tree(module) == before


def test_in_float32_the_output_is_the_same_and_in_bfloat16_nearly(member, photos):
    x = member.to_input(np.stack([member.preprocessing.pixels(photos[n]) for n in ("cat", "coffee")]))
    with torch.inference_mode():
        plain = member.module(x)
        keep_slow_layers_float32(member.module, CPU)
        try:
            wrapped = member.module(x)
            with autocast(CPU, "bfloat16"):
                mixed = member.module(x)
        finally:
            unwrap(member.module)
    assert torch.equal(plain, wrapped)
    assert mixed.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(plain, mixed.float())
    assert cosine.min() > 0.99
    assert not torch.equal(plain, mixed.float())


def test_gradients_reach_the_wrapped_layers(member):
    layer = slow_layers(member.module)[0]
    keep_slow_layers_float32(member.module, CPU)
    try:
        with autocast(CPU, "bfloat16"):
            member.module(torch.zeros(2, 3, 64, 64)).float().sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.dtype == torch.float32
    finally:
        unwrap(member.module)
        member.module.zero_grad(set_to_none=True)


def test_elsewhere_than_on_a_cpu_nothing_is_wrapped(member):
    before = tree(member.module)
    keep_slow_layers_float32(member.module, torch.device("cuda"))
    assert tree(member.module) == before


def enabled(device, wanted):
    with autocast(device, wanted):
        return torch.is_autocast_enabled(device.type)


@pytest.mark.parametrize(("flags", "native"), [("avx2 avx512_bf16", True), ("avx2 amx_bf16", True), ("avx2", False)])
def test_auto_takes_bfloat16_on_a_cpu_exactly_where_it_is_native(flags, native, monkeypatch):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset(flags.split()))
    assert computes_bfloat16(CPU) is native
    assert enabled(CPU, "auto") is native
    assert enabled(CPU, "bfloat16")
    assert not enabled(CPU, "float32")


def test_auto_takes_bfloat16_on_a_gpu_only_where_it_is_not_emulated(monkeypatch):
    asked = []

    def supported(*, including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not computes_bfloat16(torch.device("cuda"))
    assert asked == [False]
    assert not computes_bfloat16(torch.device("mps"))


def test_the_flags_are_read_from_the_first_processor(tmp_path, monkeypatch):
    place = tmp_path / "cpuinfo"
    place.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: none\n\nflags\t\t: fpu\n")
    monkeypatch.setattr(devices, "_CPUINFO", place)
    assert devices._cpu_flags() == {"fpu", "avx2", "avx512_bf16"}
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "none")
    assert devices._cpu_flags() == frozenset()
