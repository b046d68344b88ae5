"""What a benchmark is asked to measure, looked through before hours are spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike.benchmark.run import Run, slug
from lookalike.benchmark.trial import TRAINED
from lookalike.errors import ModelError, OptionError
from lookalike.models.pretrained import build_trainable
from lookalike.models.registry import find_row
from lookalike.models.weights import NONE, PRETRAINED
from lookalike.runtimes.bundle import load_bundle

Weights = str | Path


@dataclass(frozen=True)
class Wanted:
    """What the caller wants in the table.

    Attributes:
        weights: by backbone, in the order given: `pretrained`, `none` or a file.
        bundles: encoders made before.
        finetune: names of the backbones that are fine-tuned as well.

    """

    weights: Mapping[str, Weights]
    bundles: tuple[Path, ...]
    finetune: frozenset[str]

    @classmethod
    def of(
        cls,
        backbones: Sequence[str],
        bundles: Sequence[Path | str],
        weights: Weights | Mapping[str, Weights],
        finetune: bool | Collection[str],
    ) -> Wanted:
        """Check what was given and bring it to one form; no data is read yet.

        Raises:
            OptionError: nothing to measure, a name given twice, an ensemble among the backbones, weights or
                fine-tuning for a backbone that is not there, or nothing but random weights.
            ModelError: an unknown backbone, or a bundle that is missing or damaged.

        """
        for what, given in (("backbones", backbones), ("bundles", bundles), ("finetune", finetune)):
            if isinstance(given, str | Path):
                raise OptionError(f"{what} must be a list, got the single {given!s}; put it in a list.")
        if not backbones and not bundles:
            raise OptionError("a benchmark needs at least one --backbone or --bundle, got none.")
        joined = next((b for b in backbones if "+" in b), None)
        if joined is not None:
            raise OptionError(f"{joined!r} is an ensemble; give its members one by one, every pair is measured anyway.")
        places = tuple(Path(b) for b in bundles)
        _require_distinct(backbones, [bundle_name(b) for b in places])
        for backbone in backbones:
            find_row(backbone)
        wanted = cls(_by_backbone(backbones, weights), places, _tuned(backbones, finetune))
        wanted._require_trained([_trained(b) for b in places])
        return wanted

    def _require_trained(self, bundles: Sequence[bool]) -> None:
        """Raise `OptionError` when every candidate would have random weights; `bundles` says which of them have not."""
        if not (self.has_trained_backbone or any(bundles)):
            raise OptionError(
                "every candidate would have random weights, and such a model is never chosen; "
                "give pretrained weights for one of them, or leave fine-tuning on."
            )

    @property
    def has_trained_backbone(self) -> bool:
        """Whether a backbone has pretrained weights, or is fine-tuned."""
        return any(str(w) != NONE or name in self.finetune for name, w in self.weights.items())

    def require_weights(self, run: Run) -> None:
        """Build every backbone that has not been used yet, and forget it: what is missing is missing before the work.

        Raises:
            WeightsUnavailable: pretrained weights cannot be had.
            ModelError: a weights file that is missing or does not fit.

        """
        for backbone, weights in self.weights.items():
            if not run.member(backbone, "frozen").exists():
                build_trainable(backbone, weights, seed=run.options.seed)


def bundle_name(bundle: Path) -> str:
    """Return what tables call a bundle: the name of its folder."""
    return bundle.resolve().name


def _require_distinct(backbones: Sequence[str], bundles: Sequence[str]) -> None:
    """Raise `OptionError` when two candidates would have one name in tables, or files of one name."""
    for given in (backbones, bundles):
        twice = next((n for n, count in Counter(given).items() if count > 1), None)
        if twice is not None:
            raise OptionError(f"{twice!r} is given more than once; candidates need distinct names, so rename a bundle.")
    files: dict[str, str] = {}
    for name in (*(f"{b} {kind}" for b in backbones for kind in TRAINED), *bundles):
        other = files.get(slug(name))
        files[slug(name)] = name
        if other is not None:
            raise OptionError(f"{other!r} and {name!r} are too much alike to have files of their own; rename a bundle.")


def _by_backbone(backbones: Sequence[str], weights: Weights | Mapping[str, Weights]) -> dict[str, Weights]:
    if not isinstance(weights, Mapping):
        return dict.fromkeys(backbones, weights)
    unknown = next((name for name in weights if name not in backbones), None)
    if unknown is not None:
        raise OptionError(
            f"weights are given for {unknown!r}, which is not among {', '.join(backbones)}; correct the name."
        )
    return {b: weights.get(b, PRETRAINED) for b in backbones}


def _tuned(backbones: Sequence[str], finetune: bool | Collection[str]) -> frozenset[str]:
    if isinstance(finetune, bool):
        return frozenset(backbones if finetune else ())
    unknown = next((name for name in finetune if name not in backbones), None)
    if unknown is not None:
        among = f"not among {', '.join(backbones)}" if backbones else "no backbone of this benchmark"
        raise OptionError(f"{unknown!r} is to be fine-tuned, but is {among}; correct the name.")
    return frozenset(finetune)


def _trained(bundle: Path) -> bool:
    """Load a bundle, which checks all of it, and say whether none of its members has random weights."""
    if not bundle.exists():
        raise ModelError(f"the bundle {bundle} does not exist; give the folder that 'lookalike train' wrote.")
    return all(m.trained != "untrained" for m in load_bundle(bundle).members)
