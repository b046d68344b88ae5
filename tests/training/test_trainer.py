"""The trainer: layers and rates, precision, one step, accumulation, and what a checkpoint restores."""

from functools import partial

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import ModelError
from lookalike.models import torch_backbone
from lookalike.models.adapt import Adaptation, family_of
from lookalike.models.heads import Head
from lookalike.models.info import LearningRates
from lookalike.models.torch_backbone import has_bfloat16
from lookalike.models.trainable import build_trainable
from lookalike.training import trainer as trainer_module
from lookalike.training.config import Recipe, make_recipe
from lookalike.training.guards import MemoryGuard
from lookalike.training.trainer import Trainer, add_stochastic_depth, autocast, slow_layers_in_float32

SMALL = "test_efficientnet"
CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
TARGETS = torch.arange(8) % 4


def build_with(monkeypatch, **options):
    """Let timm build networks with these options, such as fewer blocks."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **others: create(name, **options, **others))


def make_trainer(encoder, **overrides):
    """Make a trainer whose first step has a gradient for the backbone, which cross-entropy's does not."""
    return Trainer(encoder, 4, Recipe(**{"precision": "float32", "loss": "subcenter-arcface", **overrides}))


def weights_of(encoder):
    return {k: v.clone() for k, v in encoder.state().items()}


def peak(trainer):
    return LearningRates(0, trainer.recipe.lr, trainer.recipe.head_lr)


def train_step(trainer, pixels=PIXELS, targets=TARGETS, **options):
    with trainer.training():
        trainer.set_learning_rates(1.0, peak(trainer))
        return trainer.step(pixels, targets, **options)


# ---------------------------------------------------------------- layers and rates


def test_learning_rates_decay_from_layer_to_layer():
    trainer = make_trainer(build_trainable("test_vit", "none"), layer_decay=0.5, lr=1e-3, head_lr=1e-2)
    trainer.set_learning_rates(0.5, peak(trainer))
    rates = sorted({g["lr"] for g in trainer.optimizer.param_groups if not g["is_head"]}, reverse=True)
    assert rates == pytest.approx([5e-4 * 0.5**n for n in range(len(rates))])
    assert len(rates) > 4
    assert {g["lr"] for g in trainer.optimizer.param_groups if g["is_head"]} == {5e-3}


def test_without_layer_decay_there_are_two_learning_rates(member):
    trainer = make_trainer(member, lr=1e-4, head_lr=1e-2)
    trainer.set_learning_rates(0.5, peak(trainer))
    assert sorted({g["lr"] for g in trainer.optimizer.param_groups}) == pytest.approx([5e-5, 5e-3])


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_biases_and_normalisation_have_no_weight_decay_and_every_weight_is_trained(layer_decay, member):
    trainer = make_trainer(member, weight_decay=0.03, layer_decay=layer_decay)
    groups = trainer.optimizer.param_groups
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.03}
    count = sum(len(g["params"]) for g in groups)
    assert count == sum(len(list(m.parameters())) for m in (member.module, member.head, trainer.objective))


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "mobilenetv3_small_050"])
def test_stochastic_depth_acts_in_training_only(name):
    module = timm.create_model(name, num_classes=0)
    x = torch.randn(16, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    for layer in module.eval().modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # some blocks start as if they were skipped
            torch.nn.init.ones_(layer.weight)
    before = module(x).detach()
    keys = list(module.state_dict())
    add_stochastic_depth(module, 0.9)
    assert list(module.state_dict()) == keys
    assert torch.equal(module(x).detach(), before)
    paths = [m for m in module.modules() if type(m).__name__ == "DropPath"]
    assert max(p.drop_prob for p in paths) == pytest.approx(0.9)
    assert min(p.drop_prob for p in paths) == 0
    torch.manual_seed(0)
    for path in paths:
        path.train()
    assert not torch.equal(module(x).detach(), before)


def test_stochastic_depth_leaves_networks_without_residual_blocks_unchanged():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    add_stochastic_depth(module, 0.1)
    assert [type(m).__name__ for m in module.modules()] == ["Sequential", "Linear"]


# ---------------------------------------------------------------- steps


def test_a_restored_checkpoint_continues_exactly(weights):
    encoders = [build_trainable(SMALL, weights) for _ in range(2)]
    first, second = (make_trainer(e, lr=0.01) for e in encoders)
    train_step(first)
    second.load(first.dump())
    for trainer in (first, second):
        train_step(trainer)
    assert all(torch.equal(v, encoders[1].state()[k]) for k, v in encoders[0].state().items())


def test_two_accumulated_halves_update_the_weights_like_the_whole_batch(weights):
    encoders = [build_trainable(SMALL, weights) for _ in range(2)]
    whole, halves = make_trainer(encoders[0]), make_trainer(encoders[1], accumulate=2)
    train_step(whole)
    before = weights_of(encoders[1])
    train_step(halves, PIXELS[:4], TARGETS[:4], last=False)
    assert all(torch.equal(v, before[k]) for k, v in weights_of(encoders[1]).items())
    train_step(halves, PIXELS[4:], TARGETS[4:], last=False)
    for key, value in encoders[0].state().items():
        torch.testing.assert_close(encoders[1].state()[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        {"precision": "float16"},
        {"precision": "bfloat16"},
        {"checkpointing": True},
        {"channels_last": False},
        {"pooling": "gem"},
        {"drop_path": 0.1},
        {"optimizer": "sgd", "lr": 0.01},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_the_loss_decreases_with(overrides, weights):
    adaptation = Adaptation(pooling=overrides.get("pooling", "pretrained"))
    trainer = make_trainer(build_trainable(SMALL, weights, adapt=lambda _: adaptation), **overrides)
    losses = [train_step(trainer) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("clip", [0.01, 0.0], ids=["clipped", "not clipped"])
def test_the_first_step_of_sgd_by_hand(clip, member):
    """Nesterov's first step is 1 + 0.9 times the gradient, which has the maximum norm if it is clipped."""
    trainer = make_trainer(member, optimizer="sgd", clip=clip, lr=0.1, head_lr=0.1, weight_decay=0.0, layer_decay=1.0)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    with trainer.training():
        trainer.set_learning_rates(0.5, peak(trainer))
        trainer.loss(PIXELS, TARGETS).backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
        trainer.optimizer.zero_grad()
        assert np.isfinite(trainer.step(PIXELS, TARGETS))
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)]).norm().item()
    assert gradient > 0.1
    assert moved == pytest.approx(0.5 * 0.1 * 1.9 * (clip or gradient), rel=1e-3)


def test_loss_scaling_keeps_small_float16_gradients(weights):
    moved = {}
    for scaled in (True, False):
        overrides = {"loss": "1e-7*arcface", "optimizer": "sgd", "lr": 10.0, "clip": 0.0, "weight_decay": 0.0}
        trainer = make_trainer(build_trainable(SMALL, weights), precision="float16", **overrides)
        assert trainer.scaler.is_enabled()
        if not scaled:
            trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
        train_step(trainer)
        changes = trainer.encoder.module.conv_stem.weight - build_trainable(SMALL, weights).module.conv_stem.weight
        moved[scaled] = (changes != 0).float().mean().item()
    assert moved[True] > 0.9
    assert moved[False] < 0.1


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [({}, 1), ({"clip": 0.0}, 1), ({"precision": "float16"}, 3), ({"precision": "float16", "clip": 0.0}, 3)],
    ids=lambda c: "-".join(map(str, c.values())) if isinstance(c, dict) else "",
)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(overrides, steps, member):
    """A scale of two is one after the first step that overflows, and below one after the second."""
    trainer = make_trainer(member, **overrides)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0})
    member.head.linear.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights_of(member)
    losses = [train_step(trainer) for _ in range(steps)]
    assert list(np.isnan(losses)) == [False] * (steps - 1) + [True]
    assert all(torch.equal(v, before[k]) for k, v in weights_of(member).items())


def test_checkpointing_computes_blocks_twice(weights):
    passes = {}
    for enabled in (False, True):
        trainer = make_trainer(build_trainable(SMALL, weights), checkpointing=enabled)
        calls = []
        trainer.encoder.module.blocks[1][0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with trainer.training():
            trainer.loss(PIXELS, TARGETS).backward()
        passes[enabled] = len(calls)
    assert passes == {False: 1, True: 2}


@pytest.mark.parametrize("enabled", [True, False])
def test_memory_layout(enabled, member):
    trainer, outputs = make_trainer(member, channels_last=enabled), []
    for layer in member.module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _inputs, out: outputs.append(out))
    with trainer.training():
        trainer.loss(PIXELS, TARGETS)
    maps = [out for out in outputs if out.shape[1] > 1 and out.shape[2] > 1]  # for others both layouts are the same
    assert len(maps) > 5
    assert {out.is_contiguous(memory_format=torch.channels_last) for out in maps} == {enabled}


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["gpu", "cpu"])
def test_a_batch_that_does_not_fit_is_divided_and_updates_the_weights_alike(error, weights):
    encoders = [build_trainable(SMALL, weights) for _ in range(2)]
    whole, halves = (make_trainer(e, loss="arcface", batch_size=8) for e in encoders)
    warnings = []
    halves.warn = warnings.append
    forward = encoders[1].module.forward

    def limited(x):
        if len(x) > 4:
            raise error
        return forward(x)

    encoders[1].module.forward = limited
    losses = [[train_step(trainer) for _ in range(2)] for trainer in (whole, halves)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(warnings) == 1 and "8 images" in warnings[0] and "with 4" in warnings[0] and ";" in warnings[0]
    for key, value in encoders[0].state().items():
        torch.testing.assert_close(encoders[1].state()[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("start", "loss", "changes"),
    [("file", "arcface", 0), ("file", "triplet", 1), ("none", "proxy-anchor", 2), ("none", "arcface", 1)],
)
def test_what_a_divided_batch_changes_is_said(start, loss, changes, weights):
    encoder = build_trainable(SMALL, weights if start == "file" else "none")
    trainer, warnings = make_trainer(encoder, loss=loss, batch_size=8), []
    trainer.warn = warnings.append
    forward = encoder.module.forward

    def limited(x):
        if len(x) > 4:
            raise MemoryError
        return forward(x)

    encoder.module.forward = limited
    train_step(trainer)
    assert warnings[0].count("; ") == 1 + changes


def test_memory_for_less_than_two_images_is_an_error(member):
    trainer = make_trainer(member)

    def fails(_x):
        raise MemoryError

    member.module.forward = fails
    with pytest.raises(ModelError) as raised:
        train_step(trainer)
    assert raised.value.argument == "batch_size"


def test_other_errors_are_raised(member):
    trainer = make_trainer(member)

    def fails(_x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    member.module.forward = fails
    with pytest.raises(RuntimeError, match="mat1"):
        train_step(trainer)


def test_a_batch_is_divided_evenly():
    guard = MemoryGuard(32, CPU)
    guard.at_once = 4
    assert [(p.start, p.stop) for p in guard.parts(9)] == [(0, 3), (3, 6), (6, 9)]
    assert [(p.start, p.stop) for p in guard.parts(4)] == [(0, 4)]


@pytest.mark.parametrize("at_once", [2, 3, 4, 5, 16])
def test_no_part_of_a_batch_has_one_image(at_once):
    """Losses cannot compare one image, and it has no batch statistics."""
    guard = MemoryGuard(32, CPU)
    guard.at_once = at_once
    for count in range(2, 40):
        parts = guard.parts(count)
        assert [n for part in parts for n in range(count)[part]] == list(range(count))
        assert min(part.stop - part.start for part in parts) >= 2
        assert max(part.stop - part.start for part in parts) <= max(at_once, 3)
    assert len(guard.parts(1)) == 1


# ---------------------------------------------------------------- precision


@pytest.fixture(scope="module")
def lite():
    return build_trainable("efficientnet_lite0")


def tree(module):
    """Every submodule with its name, identity and mode, in order."""
    return [(name, id(part), part.training) for name, part in module.named_modules()]


def wrapped_layers(module):
    return [m for m in module.modules() if isinstance(m, trainer_module._Float32)]


def slow_layers(module):
    """Depthwise convolutions that are wide or strided, found by the shape of their weights."""
    return [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.Conv2d)
        and part.weight.shape[1] == 1
        and (part.weight.shape[-1] >= 5 or part.stride != (1, 1))
    ]


def test_slow_layers_are_wrapped_inside_only(lite):
    before, names, slow = tree(lite.module), list(lite.module.state_dict()), slow_layers(lite.module)
    assert len(slow) == 11
    with slow_layers_in_float32(lite.module, CPU):
        assert {id(w.layer) for w in wrapped_layers(lite.module)} == {id(layer) for layer in slow}
    assert tree(lite.module) == before
    assert list(lite.module.state_dict()) == names
    with slow_layers_in_float32(lite.module, torch.device("cuda")):
        assert tree(lite.module) == before


def test_wrapped_layers_compute_the_same_in_float32_and_nearly_the_same_in_bfloat16(lite, sample_images):
    x = lite.to_input(np.stack([lite.preprocessing.pixels(sample_images[n]) for n in ("cat", "coffee")]))
    with torch.inference_mode():
        plain = lite.module(x)
        with slow_layers_in_float32(lite.module, CPU):
            wrapped = lite.module(x)
            with autocast(CPU, "bfloat16"):
                mixed = lite.module(x)
    assert torch.equal(plain, wrapped)
    assert mixed.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(plain, mixed.float()).min() > 0.99
    assert not torch.equal(plain, mixed.float())


def test_gradients_reach_wrapped_layers(lite):
    layer = slow_layers(lite.module)[0]
    with slow_layers_in_float32(lite.module, CPU), autocast(CPU, "bfloat16"):
        lite.module(torch.zeros(2, 3, 64, 64)).float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    lite.module.zero_grad(set_to_none=True)


def autocast_is_enabled(device, precision):
    with autocast(device, precision):
        return torch.is_autocast_enabled(device.type)


@pytest.mark.parametrize(("flags", "native"), [("avx2 avx512_bf16", True), ("avx2 amx_bf16", True), ("avx2", False)])
def test_auto_uses_bfloat16_on_a_cpu_only_where_it_is_native(flags, native, monkeypatch):
    monkeypatch.setattr(torch_backbone, "cpu_flags", lambda: frozenset(flags.split()))
    assert has_bfloat16(CPU) is native
    assert autocast_is_enabled(CPU, "auto") is native
    assert autocast_is_enabled(CPU, "bfloat16")
    assert not autocast_is_enabled(CPU, "float32")


def test_auto_uses_bfloat16_on_a_gpu_only_where_it_is_not_emulated(monkeypatch):
    calls = []

    def supported(*, including_emulation):
        calls.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bfloat16(torch.device("cuda"))
    assert calls == [False]
    assert not has_bfloat16(torch.device("mps"))


# ---------------------------------------------------------------- large networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("vit_b_16", "subcenter-arcface"),
        ("efficientnet_b0", "subcenter-arcface"),
        ("resnet50", "cross-entropy"),
        ("mobilevitv2_050", "cross-entropy"),
    ],
)
def test_three_steps_update_every_layer(name, loss, monkeypatch):
    """Random weights and a batch of two: the second step's gradients reach the first layer."""
    if name == "vit_b_16":
        build_with(monkeypatch, depth=2)
    encoder = build_trainable(name, "none", seed=0)
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.05, (512, encoder.features_width)).astype(np.float32)
    encoder.set_head(Head(weight, np.zeros(512, np.float32), "random"))
    recipe = make_recipe("auto", family_of(encoder.module), drop_path=0.0, warmup=0.0, loss=loss)
    trainer = Trainer(encoder, 2, recipe)
    p = encoder.preprocessing
    pixels = generator.integers(0, 256, (2, p.height, p.width, 3), dtype=np.uint8)
    before = {n: w.detach().clone() for n, w in encoder.module.named_parameters()}
    # the classifier of cross-entropy starts at zero, so that the first step has no gradient for the backbone
    losses = [train_step(trainer, pixels, torch.tensor([0, 1])) for _ in range(3)]
    assert loss != "cross-entropy" or losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert all(np.isfinite(losses))
    assert [n for n, w in encoder.module.named_parameters() if torch.equal(w, before[n])] == []


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_has_nearly_the_same_loss_and_gradients(monkeypatch):
    """With the backend aot_eager: the default one writes and compiles C++ code for half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    build_with(monkeypatch, depth=1)
    states = {}
    for compiled in (False, True):
        encoder = build_trainable("test_vit", "none", seed=0)
        states[compiled] = make_trainer(encoder, compile=compiled, loss="cross-entropy")
        states[compiled].objective.losses[0].classifier.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    p = states[True].encoder.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (8, p.height, p.width, 3), dtype=np.uint8)
    gradients = {}
    for compiled, trainer in states.items():
        with trainer.training():
            loss = trainer.loss(pixels, TARGETS)
            loss.backward()
        assert float(loss.detach()) == pytest.approx(float(states[False].loss(pixels, TARGETS).detach()), rel=1e-4)
        gradients[compiled] = torch.cat([w.grad.flatten() for w in trainer.encoder.module.parameters()])
    assert torch.nn.functional.cosine_similarity(gradients[False], gradients[True], dim=0) > 0.9999
