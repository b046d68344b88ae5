"""The candidates of a benchmark that stand alone: encoders, each kept as a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookalike.benchmark.run import Run
from lookalike.benchmark.trial import Trained
from lookalike.benchmark.wanted import Wanted, bundle_name
from lookalike.data.dataset import Dataset, content_hashes
from lookalike.embeddings.fit import compute_features, fit_projection
from lookalike.errors import OptionError
from lookalike.models.encoder import Encoder
from lookalike.models.facts import is_bundle, read_facts
from lookalike.models.pretrained import build_trainable
from lookalike.models.torch_bundle import save_bundle
from lookalike.training.options import TrainingOptions
from lookalike.training.train import bundle_facts, prepare_work, train_into, trained_contents


@dataclass(frozen=True)
class Candidate:
    """One encoder that stands alone in the table.

    Attributes:
        name: what the table calls it.
        bundle: where it is kept.
        trained: frozen, fine-tuned or untrained.
        signature: what decides its time: the members' architectures and input sizes.
        fingerprint: of the encoder.
        members: names of its members' backbones; more than one when a given bundle is an ensemble.
        how: how these are combined; empty for one.
        dim: dimensions of an embedding.
        note: what a reader should know, one sentence.
        leaked: whether its training may have seen images that it is measured on here.
        exported: what an exported model is computed by and in; empty for a bundle of weights.

    """

    name: str
    bundle: Path
    trained: Trained
    signature: str
    fingerprint: str
    members: tuple[str, ...]
    how: str
    dim: int
    note: str = ""
    leaked: bool = False
    exported: str = ""

    @property
    def is_ensemble(self) -> bool:
        """Whether the bundle holds more than one member."""
        return len(self.members) > 1


def make_candidates(run: Run, wanted: Wanted) -> list[Candidate]:
    """Make all that stands alone, or take it as an earlier sitting left it: bundles, then each backbone's two forms."""
    found = [given_candidate(run.data, bundle) for bundle in wanted.bundles]
    for backbone, weights in wanted.weights.items():
        found.append(frozen_candidate(run, backbone, weights))
        if backbone in wanted.finetune:
            found.append(tuned_candidate(run, backbone, weights))
    return found


def frozen_candidate(run: Run, backbone: str, weights: str | Path) -> Candidate:
    """Keep a backbone as it came, with a head learnt from the training part, as a bundle."""
    place = run.member(backbone, "frozen")
    seed = run.options.seed
    if not is_bundle(place):
        member = build_trainable(backbone, weights, seed=seed)
        features = compute_features(
            member, run.data.training, progress=run.progress, task=f"{backbone}: features", cache=run.cache
        )
        fit_projection(member, features, seed=seed)
        options = TrainingOptions(seed=seed, class_disjoint=run.options.class_disjoint)  # how the data was split
        save_bundle(Encoder([member]), place, facts=bundle_facts(run.data, options, []))
    facts = read_facts(place)
    return _candidate(place, f"{backbone} {facts['members'][0]['origin']['trained']}", facts, "")


def tuned_candidate(run: Run, backbone: str, weights: str | Path) -> Candidate:
    """Fine-tune a backbone, going on where an interrupted run stopped, and keep it as a bundle.

    It is a candidate by its own name even when validation gave all of the fine-tuning up; the note says so.
    """
    place = run.member(backbone, "fine-tuned")
    work = prepare_work(place, resume=True, replace=False)
    assert work is not None
    if not is_bundle(place):
        train_into(
            place,
            work,
            run.data,
            [(backbone, weights)],
            run.options,
            cache=run.cache,
            progress=run.progress,
            tracked=run.tracked,
        )
    shutil.rmtree(work, ignore_errors=True)
    facts = read_facts(place)
    return _candidate(place, f"{backbone} fine-tuned", facts, _kept(facts))


def _kept(facts: Mapping[str, Any]) -> str:
    """Say what validation kept of the fine-tuning; empty when that is all of it."""
    trained = facts["members"][0]["origin"]["trained"]
    share = (facts["training"][0].get("interpolation") or {}).get("share")
    if trained == "untrained":
        return "training its head alone did not better its random weights."
    if share is None:
        return "only its head was trained." if trained == "fine-tuned" else _KEPT_ORIGINAL
    if share == 0:
        return "validation kept the original backbone, with a trained head." if trained != "frozen" else _KEPT_ORIGINAL
    if share == 1:
        return ""
    return (
        f"validation kept {share:.0%} of the fine-tuned weights and {1 - share:.0%} of the original ones, "
        "the mixture that measured best."
    )


_KEPT_ORIGINAL = "validation kept the original weights, since training did not better them."


def given_candidate(data: Dataset, bundle: Path) -> Candidate:
    """Take a bundle that was made before; says so when its training may have seen images that it is measured on here.

    Images are known by their bytes, so that a bundle of another split, or of a folder that grew since, is seen through.
    An image that this training part has as well does not count: every candidate has seen it.
    """
    facts = read_facts(bundle)
    found = _candidate(bundle, bundle_name(bundle), facts, "")
    trained_on = facts.get("training_data") or {}
    if "contents" not in trained_on:
        unknown = found.trained == "fine-tuned"
        note = "it does not say which images it was trained on, and may have seen those here." if unknown else ""
        return replace(found, note=note, leaked=unknown)
    seen = set(trained_on["contents"]) - set(trained_contents(data))
    for items, where in ((data.validation, "validation"), ((*data.query, *data.gallery), "query and gallery")):
        count = sum(content[:16] in seen for content in content_hashes(items).values())
        if count:
            note = f"its training saw {count} of {len(items)} {where} images, so it measures better there than it is."
            return replace(found, note=note, leaked=True)
    other = trained_on.get("fingerprint") != data.fingerprint
    return replace(found, note="trained on other data than this training part." if other else "")


def require_choosable(data: Dataset, wanted: Wanted) -> None:
    """Raise `OptionError` when no candidate could be chosen: hours later is too late to say so."""
    if wanted.has_trained_backbone:
        return
    given = [given_candidate(data, bundle) for bundle in wanted.bundles]
    leaked = [c for c in given if c.leaked]
    if all(c.leaked or c.trained == "untrained" for c in given) and leaked:
        raise OptionError(
            f"{leaked[0].bundle} cannot be chosen, and there is nothing else to choose: "
            f"{leaked[0].note.removesuffix('.')}; give a --backbone too, or the bundle that it was refitted from."
        )


def _candidate(bundle: Path, name: str, facts: Mapping[str, Any], note: str) -> Candidate:
    members = facts["members"]
    kinds = {m["origin"].get("trained", "frozen") for m in members}
    return Candidate(
        name=name,
        bundle=bundle,
        trained=together(kinds),
        signature="+".join(map(_signature, members)),
        fingerprint=facts["fingerprint"],
        members=tuple(m["backbone"] for m in members),
        how=facts["how"] or "",
        dim=facts["dim"],
        note=note,
        exported="+".join(dict.fromkeys(f"{m['runtime']}-{m['precision']}" for m in members if "runtime" in m)),
    )


def _signature(member: Mapping[str, Any]) -> str:
    """Name what decides a member's time."""
    size = member["preprocessing"]
    by = f" by {member['runtime']} in {member['precision']}" if "runtime" in member else ""
    return f"{member['timm_name']}@{size['height']}x{size['width']}{by}"


def together(kinds: set[Trained]) -> Trained:
    """Return what several members are together: untrained when one is, else fine-tuned when one is, else frozen."""
    return "untrained" if "untrained" in kinds else "fine-tuned" if "fine-tuned" in kinds else "frozen"
