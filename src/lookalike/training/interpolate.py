"""Between the frozen and the fine-tuned weights there is often something better than both."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lookalike.models.member import TrainableEncoder

SHARES = (0.25, 0.5, 0.75)

Weights = dict[str, torch.Tensor]


def mix(start: Weights, end: Weights, share: float) -> Weights:
    """Return `(1 - share) * start + share * end` of the floating-point tensors; others are taken from `end`.

    A share of 0 or 1 gives the very tensors of one side, counters and signs of zeros included.
    """
    if share in (0, 1):
        return dict(end if share else start)
    return {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value for key, value in end.items()
    }


def best_mix(
    member: TrainableEncoder,
    start: Weights,
    end: Weights,
    start_measure: float,
    end_measure: float,
    measure: Callable[[], float],
) -> tuple[float, dict[str, float]]:
    """Set the member to the interpolation that measures best on validation (WiSE-FT; Wortsman et al. 2022).

    Among equals the smaller share wins: what training did not better stays as it was.

    Args:
        member: is changed in place.
        start: its state before fine-tuning.
        end: its state after.
        start_measure: the measure of `start`, already known.
        end_measure: that of `end`.
        measure: takes the measure with the member's present weights.

    Returns:
        The chosen share of the fine-tuned weights, and the measure at each share.

    """
    found = {0.0: start_measure, 1.0: end_measure}
    for share in SHARES:
        member.load_state(mix(start, end, share))
        found[share] = measure()
    chosen = max(found, key=lambda share: (found[share], -share))  # among equals the nearest to the original
    member.load_state(mix(start, end, chosen))
    return chosen, {f"{share:g}": round(found[share], 5) for share in sorted(found)}
