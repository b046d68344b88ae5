"""Versions of installed packages, as bundles, indexes and reports name them."""

from __future__ import annotations


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of those that are installed, by name."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of the imports that a search needs

    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
