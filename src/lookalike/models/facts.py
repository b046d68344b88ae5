"""What a bundle says of itself in `bundle.json`; read without loading its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike._files import read_json
from lookalike.errors import ModelError, StorageError

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder

FORMAT = 1
FACTS = "bundle.json"
WEIGHTS = "model.safetensors"
MODEL = "model"
"""Name of the bundle inside a folder of embeddings or an index."""


def alignment_key(number: int) -> str:
    """Return the name of a member's rotation among the weights."""
    return f"members.{number}.alignment"


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle."""
    return (path / FACTS).is_file()


def bundle_at(model: Path | str) -> Path | None:
    """Return the bundle that a path means: itself, or the one inside a folder of embeddings or an index."""
    path = Path(model)
    return next((place for place in (path, path / MODEL) if is_bundle(place)), None)


def described(
    encoder: Encoder, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Return the content of `bundle.json`.

    Args:
        encoder: that is saved.
        rows: what there is to say of each member.
        facts: further content.
        versions: that the bundle was made with.

    """
    return {
        "format": FORMAT,
        "name": encoder.name,
        "type": "ensemble" if encoder.is_ensemble else "single",
        "how": encoder.how if encoder.is_ensemble else None,
        "dim": encoder.dim,
        **(facts or {}),
        "members": rows,
        "versions": versions,
        "fingerprint": encoder.fingerprint,
    }


def read_facts(path: Path | str) -> dict[str, Any]:
    """Read a bundle's `bundle.json`.

    Raises:
        ModelError: no bundle there, or of a newer format.

    """
    path = Path(path)
    if not is_bundle(path):
        raise ModelError(f"{path} is not a bundle: it has no {FACTS}; make one with 'lookalike train'.")
    try:
        facts = read_json(path / FACTS, "the bundle's description")
    except StorageError as error:
        raise ModelError(f"{path / FACTS} is damaged or cannot be read; make the bundle again.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        got = facts.get("format") if isinstance(facts, dict) else None
        raise ModelError(
            f"{path} has bundle format {got}, this version reads {FORMAT}; update lookalike or make the bundle again."
        )
    return facts
