"""What a recipe turns in training: layers and their rates, the running mean, mixing, accumulation, half precision."""

import shutil

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import OptionError
from lookalike.models.adapt import Adaptation
from lookalike.models.pretrained import build_trainable
from lookalike.training.average import RunningMean
from lookalike.training.layers import freeze_first_layers, layer_numbers, rate_shares, stochastic_depth
from lookalike.training.mixing import mixed
from lookalike.training.recipe import Recipe
from lookalike.training.trainee import Trainee

SMALL = "test_efficientnet"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
TARGETS = torch.arange(8) % 4


def trainee(member, **changes):
    return Trainee(member, 4, Recipe(**{"precision": "float32", **changes}))


def weights_of(member):
    return {k: v.clone() for k, v in member.state().items()}


def train_a_step(trained, pixels=PIXELS, targets=TARGETS, **how):
    with trained.training():
        trained.set_rate(1.0)
        trained.step(trained.loss(pixels, targets), **how)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", SMALL])
def test_layers_rise_from_the_first_to_the_last(name):
    module = timm.create_model(name, num_classes=0)
    numbers = layer_numbers(module)
    assert set(numbers) == {n for n, _ in module.named_parameters()}
    assert min(numbers.values()) == 0
    first, last = next(iter(numbers)), list(numbers)[-1]
    assert numbers[first] < numbers[last]


@pytest.mark.parametrize("name", ["test_resnet", SMALL, "test_convnext"])
def test_a_pooling_that_is_trained_is_no_layer_of_its_own(name):
    numbers = {}
    for pooling in ("as it came", "gem"):
        module = build_trainable(name, "none", adapt=lambda _, p=pooling: Adaptation(pooling=p)).module
        numbers[pooling] = layer_numbers(module)
    (exponent,) = numbers["gem"].keys() - numbers["as it came"].keys()
    last = numbers["gem"].pop(exponent)
    assert numbers["gem"] == numbers["as it came"]
    assert last == max(numbers["gem"].values())


def test_rates_fall_by_the_decay_from_layer_to_layer():
    module = timm.create_model("test_vit", num_classes=0)
    numbers, shares = layer_numbers(module), rate_shares(module, 0.5)
    top = max(numbers.values())
    assert all(shares[name] == 0.5 ** (top - number) for name, number in numbers.items())
    assert set(rate_shares(module, 1.0).values()) == {1.0}


@pytest.mark.parametrize(("share", "trained"), [(1.0, 1.0), (0.5, None), (1e-9, None)])
def test_only_the_last_layers_are_trained(share, trained, member):
    made = trainee(member, unfreeze=share, lr=0.01, loss="cross-entropy")
    before = weights_of(member)
    train_a_step(made)
    made.objective.losses[0].classifier.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    train_a_step(made)
    numbers = layer_numbers(member.module)
    moved = {numbers[k] for k, _ in member.module.named_parameters() if not torch.equal(member.state()[f"backbone.{k}"], before[f"backbone.{k}"])}  # fmt: skip  # noqa: E501
    frozen = {numbers[k] for k, p in member.module.named_parameters() if not p.requires_grad}
    assert not moved & frozen
    assert max(numbers.values()) in moved
    assert (frozen == set()) is (trained == 1.0)
    if share < 0.1:
        assert moved == {max(numbers.values())}
    freeze_first_layers(member.module, 1.0)
    assert all(p.requires_grad for p in member.module.parameters())


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "mobilenetv3_small_050"])
def test_stochastic_depth_is_there_only_inside_and_only_in_training(name):
    module = timm.create_model(name, num_classes=0)
    names = [n for n, _ in module.named_modules()]
    x = torch.randn(16, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    for layer in module.eval().modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # some blocks begin as if they were passed over
            torch.nn.init.ones_(layer.weight)
    plain = module(x).detach()
    torch.manual_seed(0)
    with stochastic_depth(module, 0.9):
        assert torch.equal(module(x).detach(), plain)
        for layer in module.modules():
            if type(layer).__name__ == "DropPath":
                layer.train()
        assert not torch.equal(module(x).detach(), plain)
    assert torch.equal(module(x).detach(), plain)
    assert [n for n, _ in module.named_modules()] == names


def test_stochastic_depth_needs_residual_blocks():
    sentence = "drop_path needs a network of residual blocks, which Sequential is not"
    with pytest.raises(OptionError, match=sentence), stochastic_depth(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0.1):
        pass


# ---------------------------------------------------------------- the running mean


def test_the_running_mean_by_hand():
    """From 0, weights of 1 and then 3: decays of 2/11 and 3/12, both below .9."""
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.zero_()
    mean = RunningMean([layer], 0.9)
    for value in (1.0, 3.0):
        layer.weight.data.fill_(value)
        mean.update()
    first = 1 - 2 / 11
    expected = first * 3 / 12 + 3.0 * (1 - 3 / 12)
    mean.swap()
    assert layer.weight.item() == pytest.approx(expected)
    mean.swap()
    assert layer.weight.item() == 3.0


def test_what_is_kept_is_the_mean_and_training_goes_on_from_the_last_weights(member):
    made = trainee(member, ema=0.999, lr=0.01)
    start = weights_of(member)
    for _ in range(3):
        train_a_step(made)
    last = weights_of(member)
    with made.as_kept():
        kept = weights_of(member)
    key = "head.linear.weight"
    assert not torch.equal(kept[key], last[key])
    between = (kept[key] - start[key]).norm() < (last[key] - start[key]).norm()
    assert between
    assert all(torch.equal(v, last[k]) for k, v in weights_of(member).items())


def test_a_checkpoint_brings_mean_optimizer_and_scale_back(weights):
    members = [build_trainable(SMALL, weights) for _ in range(2)]
    one, two = (trainee(m, ema=0.9, neck="bnneck", lr=0.01) for m in members)
    train_a_step(one)
    two.load(one.state())
    for made in (one, two):
        train_a_step(made)
    with one.as_kept(), two.as_kept():
        assert all(torch.equal(v, members[1].state()[k]) for k, v in members[0].state().items())


def test_the_neck_that_is_folded_is_the_mean_of_it_too(member):
    made = trainee(member, ema=0.9, neck="bnneck", lr=0.01)
    train_a_step(made)
    with made.as_kept():
        kept = weights_of(member)["head.linear.weight"]
    made.objective.neck.weight.data.fill_(7.0)
    with made.as_kept():
        assert torch.equal(weights_of(member)["head.linear.weight"], kept)


def test_the_means_of_statistics_are_told_from_those_of_weights():
    modules = [torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(5)]
    mean = RunningMean(modules, 0.9)
    assert [tuple(t.shape) for t in mean.of_buffers()] == [(3,), (3,), (5,), (5,)]
    assert all(any(t is m for m in mean.means) for t in mean.of_buffers())


# ---------------------------------------------------------------- gradients


def test_two_accumulated_halves_move_the_weights_as_the_whole_batch(weights):
    members = [build_trainable(SMALL, weights) for _ in range(2)]
    whole, halves = trainee(members[0]), trainee(members[1], accumulate=2)
    train_a_step(whole)
    before = weights_of(members[1])
    train_a_step(halves, PIXELS[:4], TARGETS[:4], last=False)
    assert all(torch.equal(v, before[k]) for k, v in weights_of(members[1]).items())
    train_a_step(halves, PIXELS[4:], TARGETS[4:], last=False)
    for key, value in members[0].state().items():
        torch.testing.assert_close(members[1].state()[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float16"},
        {"precision": "bfloat16"},
        {"checkpointing": True},
        {"channels_last": False},
        {"pooling": "gem"},
        {"neck": "bnneck"},
        {"optimizer": "sgd", "lr": 0.01},
    ],
    ids=lambda c: next(iter(c)),
)
def test_the_loss_falls_with(changes, weights):
    pooling = Adaptation(pooling=changes.get("pooling", "as it came"))
    made = trainee(build_trainable(SMALL, weights, adapt=lambda _: pooling), **changes)
    losses = []
    for _ in range(8):
        with made.training():
            made.set_rate(1.0)
            loss = made.loss(PIXELS, TARGETS)
            losses.append(float(loss.detach()))
            made.step(loss)
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("clip", [0.01, 0.0], ids=["clipped", "not clipped"])
def test_the_first_step_of_sgd_by_hand(clip, member):
    """Nesterov's first step is 1 + .9 of the gradient, which is as long as the limit where there is one."""
    made = trainee(member, optimizer="sgd", clip=clip, lr=0.1, head_lr=0.1, weight_decay=0.0, layer_decay=1.0)
    parameters = [p for group in made.optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    with made.training():
        made.set_rate(0.5)
        made.loss(PIXELS, TARGETS).backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
        made.optimizer.zero_grad()
        assert made.step(made.loss(PIXELS, TARGETS))
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)]).norm().item()
    assert gradient > 0.1
    assert moved == pytest.approx(0.5 * 0.1 * 1.9 * (clip or gradient), rel=1e-3)


def test_gradients_too_small_for_float16_arrive_because_the_loss_is_scaled(weights):
    moved = {}
    for scaled in (True, False):
        made = trainee(
            build_trainable(SMALL, weights), precision="float16", optimizer="sgd", lr=10.0, clip=0.0, weight_decay=0.0
        )
        assert made.scaler.is_enabled()
        if not scaled:
            made.scaler = torch.amp.GradScaler("cpu", enabled=False)
        with made.training():
            made.set_rate(1.0)
            made.step(1e-7 * made.loss(PIXELS, TARGETS))
        changes = made.member.module.conv_stem.weight - build_trainable(SMALL, weights).module.conv_stem.weight
        moved[scaled] = (changes != 0).float().mean().item()
    assert moved[True] > 0.9
    assert moved[False] < 0.1


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 1), ({"clip": 0.0}, 1), ({"precision": "float16"}, 18), ({"precision": "float16", "clip": 0.0}, 18)],
    ids=lambda c: "-".join(map(str, c.values())) if isinstance(c, dict) else "",
)
def test_a_gradient_that_is_no_number_is_told_and_never_reaches_the_weights(changes, steps, member):
    """A scale of 2 to the power of 16 is one after 16 steps that overflow, and below one after 17."""
    made = trainee(member, **changes)
    member.head.linear.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights_of(member)
    with made.training():
        made.set_rate(1.0)
        told = [made.step(made.loss(PIXELS, TARGETS)) for _ in range(steps)]
    assert told == [True] * (steps - 1) + [False]
    assert all(torch.equal(v, before[k]) for k, v in weights_of(member).items())


def test_checkpointing_goes_through_the_blocks_twice(weights):
    passes = {}
    for on in (False, True):
        made = trainee(build_trainable(SMALL, weights), checkpointing=on)
        counted = []
        made.member.module.blocks[1][0].register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        with made.training():
            made.loss(PIXELS, TARGETS).backward()
        passes[on] = len(counted)
    assert passes == {False: 1, True: 2}


@pytest.mark.parametrize("on", [True, False])
def test_the_network_computes_in_the_memory_layout_asked_for(on, member):
    made, seen = trainee(member, channels_last=on), []
    for layer in member.module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _given, out: seen.append(out))
    with made.training():
        made.loss(PIXELS, TARGETS)
    maps = [out for out in seen if out.shape[1] > 1 and out.shape[2] > 1]  # of others both layouts are the same
    assert len(maps) > 5
    assert {out.is_contiguous(memory_format=torch.channels_last) for out in maps} == {on}


# ---------------------------------------------------------------- mixing


@pytest.mark.parametrize("changes", [{"mixup": 0.2}, {"cutmix": 1.0}, {}], ids=["mixup", "cutmix", "neither"])
def test_training_mixes_when_it_is_asked_to(changes, member):
    made = trainee(member, loss="cross-entropy", mix_probability=1.0, **changes)
    seen = []
    made.learner.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    with made.training():
        made.loss(PIXELS, TARGETS)
    if not changes:
        assert torch.equal(seen[0], TARGETS)
        return
    assert seen[0].shape == (8, 4)
    torch.testing.assert_close(seen[0].sum(dim=1), torch.ones(8))
    assert ((seen[0] > 0) & (seen[0] < 1)).any()


def test_mixup_is_the_weighted_mean_of_pictures_and_of_labels():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    out, shares = mixed(x, torch.arange(4), 4, Recipe(mixup=1.0, mix_probability=1.0), (0, 0, 0))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(out[:, 0, 0, 0], shares @ torch.arange(4.0))


def test_cutmix_shares_are_the_areas():
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    for step in range(20):
        out, shares = mixed(x, torch.arange(4), 4, Recipe(cutmix=1.0, mix_probability=1.0), (0, 0, step))
        for picture, share in zip(out, shares, strict=True):
            areas = [(picture[0] == c).float().mean().item() for c in range(4)]
            assert share.tolist() == pytest.approx(areas)


def test_a_share_of_the_batches_is_mixed():
    x, recipe = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8), Recipe(mixup=1.0, mix_probability=0.25)
    plain = sum(mixed(x, torch.arange(4), 4, recipe, (0, 0, step))[0] is x for step in range(200))
    assert 130 < plain < 170


# ---------------------------------------------------------------- the large ones


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss_name"),
    [
        ("vit_b_16", "subcenter-arcface"),
        ("efficientnet_b0", "subcenter-arcface"),
        ("resnet50", "cross-entropy"),
        ("mobilevitv2_050", "cross-entropy"),
    ],
)
def test_a_step_of_the_recipe_moves_every_layer_of_the_large_ones(name, loss_name):
    """Of random weights, a batch of two: the second step's gradients reach the first layer."""
    from lookalike.models.adapt import family_of
    from lookalike.training.recipe import make_recipe

    member = build_trainable(name, "none", seed=0)
    random = np.random.default_rng(0)
    member.head.set(random.normal(0, 0.05, (512, member.features_width)).astype(np.float32), np.zeros(512, np.float32))
    recipe = make_recipe("auto", family_of(member.module), drop_path=0.0, warmup=0.0, loss=loss_name)
    trained = Trainee(member, 2, recipe)
    p = member.preprocessing
    pixels = random.integers(0, 256, (2, p.height, p.width, 3), dtype=np.uint8)
    before = {n: w.detach().clone() for n, w in member.module.named_parameters()}
    losses = []
    with trained.training():
        trained.set_rate(1.0)
        for _ in range(3):  # cross-entropy's classifier begins at zero, and lets nothing through in the first
            loss = trained.loss(pixels, torch.tensor([0, 1]))
            losses.append(float(loss.detach()))
            trained.step(loss)
    assert loss_name != "cross-entropy" or losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert all(np.isfinite(losses))
    still = [n for n, w in member.module.named_parameters() if torch.equal(w, before[n])]
    assert still == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_has_nearly_the_same_loss_and_gradients():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("compiling a network on a CPU needs a C++ compiler, and none is installed")
    made = {}
    for compiled in (False, True):
        member = build_trainable("test_vit", "none", seed=0)
        made[compiled] = trainee(member, compile=compiled, loss="cross-entropy")
        made[compiled].objective.losses[0].classifier.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    p = made[True].member.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (8, p.height, p.width, 3), dtype=np.uint8)
    gradients = {}
    for compiled, own in made.items():
        with own.training():
            loss = own.loss(pixels, TARGETS)
            loss.backward()
        assert float(loss.detach()) == pytest.approx(float(made[False].loss(pixels, TARGETS).detach()), rel=1e-4)
        gradients[compiled] = torch.cat([w.grad.flatten() for w in own.member.module.parameters()])
    assert torch.nn.functional.cosine_similarity(gradients[False], gradients[True], dim=0) > 0.9999
