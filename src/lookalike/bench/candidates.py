"""The candidates of a benchmark: encoders by themselves, kept as bundles, with their embeddings cached."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from lookalike.backbones import Encoder, build_member, combine, fit_alignment, load_bundle, save_bundle
from lookalike.backbones.bundle import is_bundle, read_facts
from lookalike.backbones.weights import PRETRAINED
from lookalike.bench.trial import Trained
from lookalike.data import Dataset, Item
from lookalike.embedding import compute_features, fit_projection
from lookalike.errors import DataError
from lookalike.files import digest, write_file
from lookalike.progress import Progress
from lookalike.training import TrainingOptions, train
from lookalike.training.train import bundle_facts, validation_fingerprint
from lookalike.types import Embeddings, Vectors

WAYS = ("aligned", "average", "concat")
PARTS = ("training", "validation", "query", "gallery")


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
        note: what a reader should know.

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

    @property
    def is_ensemble(self) -> bool:
        """Whether the bundle holds more than one member."""
        return len(self.members) > 1


def slug(name: str) -> str:
    """Return a file name for a candidate's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def frozen_candidate(
    data: Dataset, backbone: str, weights: str | Path, out: Path, seed: int, progress: Progress
) -> Candidate:
    """Keep a backbone as it came, with a head learnt from the training part, as a bundle."""
    place = out / "members" / f"{slug(backbone)}-frozen"
    if not is_bundle(place):
        member = build_member(backbone, weights, seed=seed)
        features = compute_features(member, data.training, progress=progress, task=f"{backbone}: features")
        fit_projection(member, features, seed=seed)
        save_bundle(Encoder([member]), place, facts=bundle_facts(data, TrainingOptions(seed=seed), []))
    facts = read_facts(place)
    kind = facts["members"][0]["origin"]["trained"]
    return _candidate(place, f"{backbone} {kind}", "")


def tuned_candidate(
    data: Dataset, backbone: str, weights: str | Path, out: Path, options: TrainingOptions, progress: Progress
) -> Candidate:
    """Fine-tune a backbone, going on where an interrupted run stopped, and keep it as a bundle."""
    place = out / "members" / f"{slug(backbone)}-fine-tuned"
    if not is_bundle(place):
        train(data, backbone, weights=weights, out=place, options=options, resume=True, progress=progress)
    share = (read_facts(place)["training"][0].get("interpolation") or {}).get("share")
    note = (
        "" if share in (None, 1.0) else f"validation kept {share:.0%} of the fine-tuned weights, the rest as they came"
    )
    return _candidate(place, f"{backbone} fine-tuned", note)


def given_candidate(data: Dataset, bundle: Path) -> Candidate:
    """Take a bundle that was made before; says so when its training may have seen the validation part."""
    facts = read_facts(bundle)
    trained_on = facts.get("training_data") or {}
    note = ""
    if trained_on.get("fingerprint") != data.fingerprint:
        note = "trained on other data than this training part"
    elif trained_on.get("validation") != validation_fingerprint(data):
        note = "its training held out other images, so its validation accuracy is too good"
    return _candidate(bundle, bundle.name, note)


def _candidate(bundle: Path, name: str, note: str) -> Candidate:
    facts = read_facts(bundle)
    members = facts["members"]
    kinds = {m["origin"].get("trained", "frozen") for m in members}
    trained: Trained = "untrained" if "untrained" in kinds else "fine-tuned" if "fine-tuned" in kinds else "frozen"
    signature = "+".join(
        f"{m['timm_name']}@{m['preprocessing']['height']}x{m['preprocessing']['width']}" for m in members
    )
    backbones = tuple(m["backbone"] for m in members)
    return Candidate(
        name, bundle, trained, signature, facts["fingerprint"], backbones, facts["how"] or "", facts["dim"], note
    )


def embedded(candidate: Candidate, data: Dataset, out: Path, progress: Progress) -> dict[str, Embeddings]:
    """Embed all parts with a candidate, or read them from the cache of an earlier, interrupted run."""
    encoder: Encoder | None = None
    found: dict[str, Embeddings] = {}
    for part in PARTS:
        items = data.part(part)
        place = out / "cache" / f"{slug(candidate.name)}-{part}.npz"
        key = digest(candidate.fingerprint, *(f"{i.id}\t{_stamp(i)}" for i in items))
        cached = _read_cache(place, key, candidate.fingerprint)
        if cached is None:
            encoder = encoder or load_bundle(candidate.bundle)
            cached = encoder.embed(items, progress=progress, task=f"{candidate.name}: {part}")
            _write_cache(place, key, cached)
        found[part] = cached
    return found


def _stamp(item: Item) -> str:
    try:
        stat = item.path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size}/{stat.st_mtime_ns}"


def _read_cache(place: Path, key: str, fingerprint: str) -> Embeddings | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            return Embeddings(tuple(stored["ids"].tolist()), stored["vectors"], fingerprint)
    except (OSError, ValueError, KeyError, EOFError):
        return None  # absent or cut short: it is made anew


def _write_cache(place: Path, key: str, embeddings: Embeddings) -> None:
    def fill(path: Path) -> None:
        with path.open("wb") as handle:
            np.savez(handle, key=np.array(key), ids=np.array(embeddings.ids, dtype=np.str_), vectors=embeddings.vectors)

    write_file(place, fill)


@dataclass(frozen=True)
class Pair:
    """Two candidates whose embeddings are combined.

    Attributes:
        first, second: the candidates.
        how: aligned, average or concat.

    """

    first: Candidate
    second: Candidate
    how: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.first.name} + {self.second.name}, {self.how}"

    @property
    def trained(self) -> Trained:
        """Untrained when a member is; fine-tuned when a member is; else frozen."""
        kinds = {self.first.trained, self.second.trained}
        return "untrained" if "untrained" in kinds else "fine-tuned" if "fine-tuned" in kinds else "frozen"


def pairs(candidates: Sequence[Candidate], ways: Sequence[str] = WAYS) -> list[Pair]:
    """Return every pair of single candidates in every way; given ensembles are not paired again."""
    singles = [c for c in candidates if not c.is_ensemble]
    return [Pair(a, b, how) for a, b in combinations(singles, 2) for how in ways if a.dim == b.dim or how == "concat"]


def alignment_of(pair: Pair, parts: Mapping[str, Mapping[str, Embeddings]]) -> Vectors | None:
    """Fit the second member's rotation onto the first, on training embeddings only; None when not aligned."""
    if pair.how != "aligned":
        return None
    first, second = parts[pair.first.name]["training"], parts[pair.second.name]["training"]
    shared = _shared(first, second)
    if len(shared) < 2:
        raise DataError(
            f"aligning {pair.name} needs at least 2 training images that both members read, got {len(shared)}."
        )
    return fit_alignment(second.take(shared).vectors, first.take(shared).vectors)


def combined(
    pair: Pair, alignment: Vectors | None, part: str, parts: Mapping[str, Mapping[str, Embeddings]]
) -> Embeddings:
    """Combine two members' cached embeddings of one part; costs no forward pass."""
    first, second = parts[pair.first.name][part], parts[pair.second.name][part]
    shared = _shared(first, second)
    vectors = combine([first.take(shared).vectors, second.take(shared).vectors], pair.how, [None, alignment])
    key = digest(first.fingerprint, second.fingerprint, pair.how, b"" if alignment is None else alignment.tobytes())
    return Embeddings(shared, vectors, key)


def _shared(first: Embeddings, second: Embeddings) -> tuple[str, ...]:
    kept = set(second.ids)
    return tuple(i for i in first.ids if i in kept)


def joined_encoder(pair: Pair, alignment: Vectors | None) -> Encoder:
    """Load both members as one encoder."""
    members = [*load_bundle(pair.first.bundle).members, *load_bundle(pair.second.bundle).members]
    return Encoder(members, pair.how, [None, alignment])


def weights_of(backbone: str, weights: str | Path | Mapping[str, str | Path]) -> str | Path:
    """Return the weights given for one backbone."""
    return weights.get(backbone, PRETRAINED) if isinstance(weights, Mapping) else weights
