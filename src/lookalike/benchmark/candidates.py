"""The candidates of a benchmark: single encoders, each saved as a bundle, and ensembles of two of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

from lookalike._files import digest
from lookalike.benchmark.spec import BenchmarkSpec, bundle_name
from lookalike.benchmark.trial import Trial, TrialKind
from lookalike.data.dataset import Dataset, content_hashes, sample_evenly
from lookalike.embeddings.splits import SPLITS
from lookalike.errors import DataError, OptionError
from lookalike.models.bundle import describe_encoder, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import COMBINATIONS, SAMPLE_SIZE, AnyEncoder, Encoder, Ensemble, combine
from lookalike.models.heads import fit_alignment, pca_head
from lookalike.models.info import (
    FROZEN,
    MIN_PLANNED_SHARE,
    TIMM,
    UNTRAINED,
    Adaptation,
    BenchmarkInfo,
    BundleInfo,
    EncoderInfo,
    TrainingReport,
    TrainingState,
    joint_state,
)
from lookalike.models.pipeline import Backbone
from lookalike.models.registry import NONE
from lookalike.reranking.reranker import Reranker
from lookalike.runtimes.fit import compute_features
from lookalike.runtimes.load import load_bundle, load_pretrained
from lookalike.runtimes.select import AUTO, backbone_with_runtime, fixed_backbone
from lookalike.training.config import TrainingOptions
from lookalike.training.context import TrainingContext
from lookalike.training.curves import write_curves
from lookalike.training.run_folder import prepare_run_folder
from lookalike.training.train import image_hashes, train_into_bundle, training_info
from lookalike.types import Calibration, Embeddings, Vectors, take_shared

# By candidate name, then by split.
SplitEmbeddings = Mapping[str, Mapping[str, Embeddings]]


@dataclass(frozen=True)
class Candidate:
    """One bundle: a single encoder of this benchmark, or a bundle that was passed in."""

    name: str
    bundle: Path
    kind: TrialKind  # "single", or "ensemble" for a bundle with several members
    state: TrainingState
    architecture: str  # architectures and input sizes of its members; together with the runtime they decide its time
    fingerprint: str
    combination: str  # how a bundle with several members combines them, else ""
    dim: int
    from_random: bool
    backbone: str = ""  # name of its backbone, "" for a bundle that was passed in
    export: str = ""  # runtime and precision of an exported bundle, else ""
    note: str = ""  # one sentence for the reader, or ""
    leaked: bool = False  # whether it may have been trained on images that it is evaluated on here
    functions: tuple[Encoder, ...] = ()  # what the bundle needs to be loaded: the function that it was made with
    reranker: Reranker | None = None  # what is applied to its embeddings

    @property
    def title(self) -> str:
        """Name of its trial."""
        return _title(self.name, self.reranker)

    @property
    def members(self) -> tuple[Candidate, ...]:
        """The candidates whose bundles are used: itself."""
        return (self,)

    def embeddings(self, embeddings: SplitEmbeddings) -> Mapping[str, Embeddings]:
        """Return its embeddings by split."""
        return embeddings[self.name]

    def load(self, _: SplitEmbeddings) -> AnyEncoder:
        """Load its encoder."""
        return load_bundle(self.bundle, self.functions)


@dataclass(frozen=True)
class EnsembleCandidate:
    """Two candidates, combined; it uses their embeddings, so that it costs no forward pass."""

    name: str
    members: tuple[Candidate, Candidate]
    combination: str
    state: TrainingState
    dim: int
    from_random: bool
    leaked: bool
    kind: TrialKind = "ensemble"
    note: str = ""
    reranker: Reranker | None = None

    @property
    def title(self) -> str:
        """Name of its trial."""
        return _title(self.name, self.reranker)

    def embeddings(self, embeddings: SplitEmbeddings) -> Mapping[str, Embeddings]:
        """Combine the embeddings of both members, by split."""
        alignment = self._alignment(embeddings)
        rotation = b"" if alignment is None else alignment.tobytes()
        combined: dict[str, Embeddings] = {}
        for split in SPLITS:
            first, second = take_shared([embeddings[m.name][split] for m in self.members])
            vectors = combine([first.vectors, second.vectors], self.combination, [None, alignment])
            fingerprint = digest(first.fingerprint, second.fingerprint, self.combination, rotation)
            combined[split] = Embeddings(first.ids, vectors, fingerprint)
        return combined

    def load(self, embeddings: SplitEmbeddings) -> AnyEncoder:
        """Load both members as one encoder."""
        members = tuple(member for m in self.members for member in m.load(embeddings).members)
        return Ensemble(members, self.combination, (None, self._alignment(embeddings)))

    def _alignment(self, embeddings: SplitEmbeddings) -> Vectors | None:
        """Fit the rotation of the second space onto the first, on training embeddings only."""
        if self.combination != "aligned":
            return None
        first, second = take_shared([embeddings[m.name]["training"] for m in self.members])
        if len(first) < 2:
            raise DataError(
                f"aligning {self.name} needs 2 training images that both members can read, got {len(first)}.",
                argument="data",
            )
        return fit_alignment(second.vectors, first.vectors)


AnyCandidate = Candidate | EnsembleCandidate


def _title(name: str, reranker: Reranker | None) -> str:
    return name if reranker is None else f"{name} + re-ranking"


def make_candidates(spec: BenchmarkSpec, finished: Callable[[str], None] = lambda _: None) -> list[Candidate]:
    """Describe all bundles, and make those of every backbone unless they exist; `finished` gets each backbone."""
    candidates = [bundle_candidate(spec.data, bundle) for bundle in spec.bundles]
    for backbone in spec.weights:
        frozen = _frozen_candidate(spec, backbone)
        trained = _finetuned_candidate(spec, backbone) if backbone in spec.finetune else None
        if trained is not None and (trained.name, trained.fingerprint) == (frozen.name, frozen.fingerprint):
            (report,) = read_bundle_info(trained.bundle).training
            note = f"{_no_gain(report)}, so there is no fine-tuned candidate."
            spec.progress.info(f"{frozen.name}: {note}")
            frozen, trained = replace(frozen, note=note), None
        elif trained is not None and trained.name == frozen.name:  # the pretrained weights with another input
            trained = replace(trained, name=f"{trained.name} ({_changed_input(trained, frozen)})")
        candidates += [frozen] if trained is None else [frozen, trained]
        finished(backbone)
    return candidates


def _changed_input(candidate: Candidate, frozen: Candidate) -> str:
    """Return how the input or pooling of the training's recipe differs from that of the pretrained backbone."""
    changed, original = (read_bundle_info(c.bundle).members[0].backbone for c in (candidate, frozen))
    inputs, original_inputs = changed.preprocessing, original.preprocessing
    parts = [inputs.crop_mode] if inputs.crop_mode != original_inputs.crop_mode else []
    parts += [f"{inputs.height}x{inputs.width}"] if inputs.height != original_inputs.height else []
    parts += [changed.adaptation.pooling] if changed.adaptation.pooling != original.adaptation.pooling else []
    return ", ".join(parts) or "recipe"


def make_ensembles(candidates: Sequence[Candidate]) -> list[EnsembleCandidate]:
    """Return every pair of single candidates in every combination that one bundle can hold."""
    singles = [c for c in candidates if c.kind == "single"]
    pairs = [(a, b) for a, b in combinations(singles, 2) if a.export == b.export]
    return [
        EnsembleCandidate(
            name=f"{_as_member(a)} + {_as_member(b)}, {combination}",
            members=(a, b),
            combination=combination,
            state=joint_state({a.state, b.state}),
            dim=a.dim + b.dim if combination == "concat" else a.dim,
            from_random=a.from_random or b.from_random,
            leaked=a.leaked or b.leaked,
        )
        for a, b in pairs
        for combination in COMBINATIONS
        if a.dim == b.dim or combination == "concat"
    ]


def _as_member(candidate: Candidate) -> str:
    return f"({candidate.name})" if " + " in candidate.name else candidate.name


def require_candidates(spec: BenchmarkSpec) -> None:
    """Raise `OptionError` before the work starts if no candidate could win."""
    if not spec.finetune and all(str(weights) == NONE for weights in spec.weights.values()):
        candidates = [bundle_candidate(spec.data, bundle) for bundle in spec.bundles]
        leaked = [c for c in candidates if c.leaked]
        if leaked and all(c.leaked or c.state == UNTRAINED for c in candidates):
            raise OptionError(
                f"bundle {leaked[0].bundle} cannot win, and there is no other candidate: it "
                f"{leaked[0].note.removesuffix('.')}; add `backbones`, or pass the bundle that it was refitted from.",
                argument="bundles",
            )


def _frozen_candidate(spec: BenchmarkSpec, backbone: str) -> Candidate:
    """Save a pretrained backbone with a PCA head, fitted on the training split."""
    folder, seed = spec.bundle_folder(backbone, "frozen"), spec.options.seed
    if not is_bundle(folder):
        training = spec.data.training
        runtime, state = pretrained_backbone(spec, backbone)
        ready = runtime.prepare(sample_evenly(training, SAMPLE_SIZE), len(training), spec.progress)
        features = compute_features(
            ready, training, progress=spec.progress, task=f"{backbone}: features", cache=spec.cache
        )
        encoder = Encoder.of(ready, pca_head(features.rows, seed=seed), state)
        options = TrainingOptions(seed=seed, class_disjoint=spec.options.class_disjoint)  # how the data was split
        save_bundle(encoder, folder, training_info(encoder, spec.data, options, []))
    functions = tuple(encoder for name, encoder in spec.functions.items() if name == backbone)
    return replace(_backbone_candidate(backbone, folder), functions=functions)


def pretrained_backbone(spec: BenchmarkSpec, backbone: str) -> tuple[Backbone, TrainingState]:
    """Return a backbone on the runtime of the benchmark in float32, and its state."""
    if backbone in spec.functions:
        return spec.functions[backbone].backbone, spec.functions[backbone].state
    ((pretrained, state),) = load_pretrained(backbone, spec.weights[backbone], seed=spec.options.seed)
    runtime = AUTO if fixed_backbone(pretrained) else spec.runtime
    return backbone_with_runtime(pretrained, runtime, "float32"), state


def _finetuned_candidate(spec: BenchmarkSpec, backbone: str) -> Candidate:
    """Fine-tune a backbone, resuming an interrupted run; validation decides what is kept of the training."""
    folder = spec.bundle_folder(backbone, "fine-tuned")
    run_folder = prepare_run_folder(folder, resume=True, replace=False)
    if not is_bundle(folder):
        context = TrainingContext(spec.data, spec.options, spec.progress, run_folder, spec.cache, tracker=spec.tracker)
        train_into_bundle(context, [(backbone, spec.weights[backbone])], folder)
    shutil.rmtree(run_folder, ignore_errors=True)
    candidate = _backbone_candidate(backbone, folder)
    info = read_bundle_info(folder)
    warnings = [f"warning: {text}." for report in info.training if report is not None for text in report.warnings]
    return replace(candidate, note=" ".join(filter(None, [_finetuning_note(candidate.state, info), *warnings])))


def _backbone_candidate(backbone: str, folder: Path) -> Candidate:
    """Describe the bundle of a backbone, named after it and after what was trained."""
    info = read_bundle_info(folder)
    return replace(_candidate(folder, f"{backbone} {info.members[0].state}", info), backbone=backbone)


def _finetuning_note(state: TrainingState, info: BundleInfo) -> str:
    """Return what validation selected of the training; "" for all of it."""
    report = info.training[0]
    share = report.fine_tuned_share if report is not None else None
    if state in (FROZEN, UNTRAINED):
        what = "training only the head did not improve on it" if share is None else _no_gain(report)
        return f"{what}."
    if share is None:
        return "only the head was trained."
    if share == 0:
        return f"{_no_gain(report)}; validation selected the pretrained backbone with a trained head."
    if share == 1:
        return ""
    return f"uses {share:.0%} fine-tuned + {1 - share:.0%} pretrained weights, the best mix on validation."


def _no_gain(report: TrainingReport | None) -> str:
    """Say why the fine-tuned weights were not selected."""
    if report is not None and report.planned_share < MIN_PLANNED_SHARE:
        return f"the time limit allowed {report.planned_share:.1%} of the fine-tuning steps, too few to judge it"
    return "fine-tuning did not improve on it"


def bundle_candidate(data: Dataset, bundle: Path) -> Candidate:
    """Describe a bundle that was passed in, and detect images of this evaluation in its training data.

    Images are compared by content, which detects a bundle of another split or of a folder that has grown since.
    Images of this training split do not count: every candidate has seen them.
    """
    info = read_bundle_info(bundle)
    candidate = _candidate(bundle, bundle_name(bundle, joint_state({m.state for m in info.members})), info)
    if info.training_data is None:
        leaked = candidate.state not in (FROZEN, UNTRAINED)
        note = "does not record its training images, which may include some of these." if leaked else ""
        return replace(candidate, note=note, leaked=leaked)
    seen = set(info.training_data.contents) - set(image_hashes(data))
    for items, where in ((data.validation, "validation"), (data.test, "query and gallery")):
        count = sum(content[:16] in seen for content in content_hashes(items).values())
        if count:
            note = f"was trained on {count} of these {len(items)} {where} images, so its accuracy is optimistic."
            return replace(candidate, note=note, leaked=True)
    same = info.training_data.fingerprint == data.fingerprint
    return replace(candidate, note="" if same else "was trained on other data than this training split.")


def _candidate(bundle: Path, name: str, info: BundleInfo) -> Candidate:
    exports = [f"{m.graph.runtime}-{m.graph.precision}" for m in info.members if m.graph is not None]
    return Candidate(
        name=name,
        bundle=bundle,
        kind="single" if info.combination is None else "ensemble",
        state=joint_state({m.state for m in info.members}),
        architecture="+".join(map(_architecture, info.members)),
        fingerprint=info.fingerprint,
        combination=info.combination or "",
        dim=info.dim,
        from_random=any(m.backbone.weights == NONE for m in info.members),
        export="+".join(dict.fromkeys(exports)),
    )


def _architecture(member: EncoderInfo) -> str:
    backbone, graph = member.backbone, member.graph
    size = backbone.preprocessing
    changes = "" if backbone.adaptation == Adaptation() else f" changed {backbone.architecture[:8]}"
    runtime = f" on {graph.runtime} in {graph.precision}" if graph is not None else ""
    name = backbone.timm_name if backbone.library == TIMM else f"{backbone.timm_name} {backbone.weights_digest[:8]}"
    return f"{name}@{size.height}x{size.width}{changes}{runtime}"


def save_winner(
    spec: BenchmarkSpec,
    winner: AnyCandidate,
    benchmark: BenchmarkInfo,
    trial: Trial,
    embeddings: SplitEmbeddings,
    calibration: Calibration | None,
) -> None:
    """Save the winner as the bundle best/, with the training records of its members and its calibration."""
    infos = [read_bundle_info(m.bundle) for m in winner.members]
    records = [info.training_data for info in infos]
    complete = [record for record in records if record is not None]
    training_data = None
    if len(complete) == len(records):
        contents = sorted({image for record in complete for image in record.contents})
        training_data = replace(complete[0], contents=tuple(contents))
    measures = {"validation": trial.validation, "test": trial.test}
    training = tuple(report for info in infos for report in info.training or (None,) * len(info.members))
    encoder = winner.load(embeddings)
    record = describe_encoder(
        encoder,
        classes=infos[0].classes,
        options=infos[0].options,
        training_data=training_data,
        training=training,
        measures={split: s.measures for split, s in measures.items() if s},
        benchmark=benchmark,
        calibration=calibration,
    )
    reports = [report for report in training if report is not None]
    curves = partial(write_curves, reports=reports, measure=spec.options.stop_on)
    save_bundle(encoder, spec.out / "best", record, reranker=winner.reranker, replace_existing=True, write_extra=curves)
