"""Real-world and hostile input: each module holds the cases of some kinds."""

from __future__ import annotations

from bad_input_cases import commands, environment, folders, identity, images, models, stored

KINDS = (
    folders.KIND,
    identity.KIND,
    identity.TEMPORARY,
    environment.KIND,
    environment.SIGNALS,
    images.KIND,
    images.LARGE,
    models.KIND,
    models.PYTHON,
    models.NETWORK,
    stored.BUNDLES,
    stored.KIND,
    commands.OPTIONS,
    commands.SMALL,
    commands.FIRST,
)
CASES = {case.id: case for kind in KINDS for case in kind.cases}
# assert len(CASES) == sum(len(kind.cases) for kind in KINDS), "two cases have the same id"
