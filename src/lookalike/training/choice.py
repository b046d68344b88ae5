"""Which weights and which head are kept of a training: what validation prefers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lookalike.embeddings.fit import Features
from lookalike.models.member import TrainableEncoder
from lookalike.models.projection import Whitening
from lookalike.training.finetune import Run
from lookalike.training.interpolate import SHARES, best_mix, mix
from lookalike.training.job import Job
from lookalike.training.last_head import Fit, Kept, best_last_head, set_last_head
from lookalike.training.start import Rows, Start, are_unseen


def choose_weights(job: Job, member: TrainableEncoder, start: Start, run: Run) -> dict[str, Any]:
    """Set the member to the weights and the head that validation prefers, and return what the report says of it."""
    assert run.best is not None
    end = run.best
    if member.trained == "untrained":  # random weights are nothing to go back to
        member.load_state(end)
        share, shares = 1.0, dict[str, float]()
    else:
        before, after = start.with_head, run.best_measure
        share, shares = best_mix(member, start.state, end, before, after, lambda: job.validate(member))
    best = shares.get(f"{share:g}", run.best_measure)
    kept: Kept | None = None
    if job.recipe.last_head != "trained" and run.epoch:
        # for unseen classes, or where none was kept, another share may be the best once the head is another
        several = bool(shares) and (are_unseen(job.data) or share == 0)
        kept = best_last_head(
            member,
            sorted((1.0, *SHARES), key=lambda s: abs(s - 0.7)) if several else (share,),
            lambda s: mix(start.state, end, s),
            lambda s: _seen(job, member, start, f"last head at {s:.0%} of fine-tuning" if several else "last head"),
            lambda: job.measure_heads(member),
            -math.inf if job.recipe.last_head == "whitened" and share > 0 else best,
            seed=job.options.seed,
            may_go_on=job.has_time_for_more,
        )
    share, best = (share, best) if kept is None else (kept.share, kept.measure)
    keep_share(member, start, share, job.recipe.loss if kept is None else str(member.origin["head"]))
    found = ", ".join(f"{float(s):.0%} {value:.4f}" for s, value in shares.items())
    told = [f"{member.backbone}: keeps {share:.0%} of the fine-tuned weights, the rest of those it came with"]
    if share == 0:
        told = [f"{member.backbone}: fine-tuning did not help, keeps the weights it came with"]
    if found:
        told.append(f"validation {job.options.stop_on} by share: {found}")
    if kept is not None:
        told.append(f"{best:.4f} with a head fitted to them (shrinkage {kept.fit[0]:g}, emphasis {kept.fit[1]:g})")
    job.progress.info("; ".join(told))
    return {
        "interpolation": {"share": share, "measures": shares},
        "last_head": list(kept.fit) if kept else None,
        "kept": best,
    }


def repeat_last_head(job: Job, member: TrainableEncoder, start: Start, fit: Fit) -> None:
    """Fit the head to the member's present backbone, as validation has found it best."""
    features, targets = _seen(job, member, start, "last head")
    whitening = Whitening(features.rows, targets, member.dim, seed=job.options.seed)
    set_last_head(member, whitening, fit, len(features.ids))


def _seen(job: Job, member: TrainableEncoder, start: Start, task: str) -> tuple[Features, Rows]:
    """Take the features of the training images with the present backbone, and their class rows."""
    features = job.features(member, start.items, task)
    rows = dict(zip((i.id for i in start.items), start.targets.tolist(), strict=True))
    return features, np.array([rows[i] for i in features.ids], dtype=np.int64)


def keep_share(member: TrainableEncoder, start: Start, share: float, head: str) -> None:
    """Say how much of the fine-tuned weights the member has, and what made its head."""
    if share > 0:
        member.origin.update(trained="fine-tuned", head=head)
    else:
        keep_start(member, start)
    member.origin["fine_tuned_share"] = share
    member.changed()


def keep_start(member: TrainableEncoder, start: Start) -> None:
    """Say what the stage with the frozen backbone made; a head that training did not better is still the PCA one."""
    if start.head_helped:
        trained = "cross-entropy, backbone frozen" if start.head_epochs else start.head
        member.origin.update(trained="fine-tuned", head=trained)
    else:
        member.origin.update(head=start.head)
    member.changed()
