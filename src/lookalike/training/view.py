"""What is seen of a picture: the crop that the weights came with, or more of it."""

from __future__ import annotations

from dataclasses import replace

from lookalike.models.member import TrainableEncoder

AS_IT_CAME = "as it came"
_CROPS = {"center": ("center", 1.0), "squash": ("squash", 1.0), "border": ("border", 1.0)}
TRIED = (AS_IT_CAME, "center", "squash")
"""What `auto` chooses among; borders were behind on every set tried (docs/log.md)."""


def look(member: TrainableEncoder, view: str) -> None:
    """Let a member that is fresh from its weights see pictures so."""
    if view != AS_IT_CAME:
        mode, share = _CROPS[view]
        member.preprocessing = replace(member.preprocessing, crop_mode=mode, crop_pct=share)
    member.changed()
