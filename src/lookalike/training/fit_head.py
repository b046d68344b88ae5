"""The head before and without fine-tuning: principal components, then cross-entropy on cached features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lookalike.backbones import Encoder, Member, fit_alignment, fit_pca
from lookalike.backbones.stream import BATCH_SIZE, Source, batches
from lookalike.errors import DataError
from lookalike.progress import SILENT, Progress
from lookalike.types import Skipped, Vectors, unit


@dataclass(frozen=True)
class Features:
    """Pooled features `(n, features)` of images by one backbone."""

    ids: tuple[str, ...]
    rows: Vectors
    skipped: tuple[Skipped, ...]


def compute_features(
    member: Member, images: Sequence[Source], *, batch_size: int = BATCH_SIZE, progress: Progress = SILENT, task: str
) -> Features:
    """Run the backbone without its head over the images."""
    ids: list[str] = []
    rows: list[Vectors] = []
    skipped: list[Skipped] = []
    for batch in batches(images, [member.preprocessing], batch_size):
        ids.extend(batch.ids)
        skipped.extend(batch.skipped)
        if batch.pixels:
            rows.append(member.features(batch.pixels[0]))
        progress.step(task, batch.done, len(images))
    if len(ids) < 2:
        raise DataError(
            f"at least 2 readable images are needed to fit {member.backbone}, got {len(ids)} of {len(images)}."
        )
    return Features(tuple(ids), np.concatenate(rows), tuple(skipped))


def fit_projection(member: Member, features: Features, *, seed: int = 0) -> None:
    """Put the principal components of training features in the member's head."""
    member.head.set(*fit_pca(features.rows, member.dim, seed=seed))
    member.origin["head"] = f"PCA of {len(features.ids)} images"
    member.changed()


def fitted_encoder(
    members: Sequence[Member],
    images: Sequence[Source],
    *,
    how: str = "aligned",
    seed: int = 0,
    progress: Progress = SILENT,
) -> Encoder:
    """Fit every member's head on the images (no label is used), and the alignments of an ensemble."""
    projected: list[dict[str, np.ndarray]] = []
    for member in members:
        features = compute_features(member, images, progress=progress, task=f"fitting {member.backbone}")
        fit_projection(member, features, seed=seed)
        projected.append(dict(zip(features.ids, member.project(features.rows), strict=True)))
    if len(members) == 1:
        return Encoder(members)
    shared = [i for i in projected[0] if all(i in p for p in projected)]
    stacks = [np.stack([p[i] for i in shared]) for p in projected]
    alignments = [None, *(fit_alignment(s, stacks[0]) for s in stacks[1:])] if how == "aligned" else None
    return Encoder(members, how, alignments)


class Classifier(nn.Module):
    """Logits `(n, classes)` from unit-length embeddings: scaled cosine to one unit vector a class."""

    def __init__(self, embeddings: Vectors, targets: np.ndarray, classes: int, scale: float = 16.0) -> None:
        super().__init__()
        means = np.stack([embeddings[targets == c].mean(axis=0) for c in range(classes)])
        self.weight = nn.Parameter(torch.from_numpy(unit(means)))
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits `(n, classes)`."""
        return self.scale * nn.functional.linear(embeddings, nn.functional.normalize(self.weight, dim=1))


def train_head(
    member: Member,
    classifier: Classifier,
    features: Features,
    targets: np.ndarray,
    measure: Callable[[], float],
    *,
    label_smoothing: float,
    seed: int,
    epochs: int = 20,
    batch_size: int = 128,
) -> float:
    """Train head and classifier with cross-entropy on cached features; keep the epoch that measures best.

    Args:
        measure: retrieval measure of the validation part with the member's present head.

    Returns:
        The best measure; it is the starting one when training did not help.

    """
    head = member.head.train()
    device = member.device
    x, y = torch.from_numpy(features.rows).to(device), torch.from_numpy(targets).to(device)
    classifier.to(device)
    optimizer = torch.optim.AdamW([*head.parameters(), *classifier.parameters()], lr=3e-4, weight_decay=1e-2)
    order = torch.Generator().manual_seed(seed)
    best, kept = measure(), _copy(head, classifier)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).to(device).split(batch_size):
            loss = nn.functional.cross_entropy(classifier(head(x[rows])), y[rows], label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = measure()
        if now > best:
            best, kept = now, _copy(head, classifier)
    head.load_state_dict(kept[0])
    classifier.load_state_dict(kept[1])
    head.eval()
    member.changed()
    return best


def _copy(*modules: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in modules]
