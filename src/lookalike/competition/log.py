"""The log of a competition: every step with its reason, one JSON object per line; a resumed run reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lookalike._files import open_regular, storage_errors
from lookalike._records import read_record
from lookalike.reranking.steps import Reranking

Outcome = Literal["started", "kept", "dropped", "failed", "finished"]
_MAX_BYTES = 100_000_000


@dataclass(frozen=True)
class SubmittedModels:
    """What a submission is made from; a resumed run continues with it.

    Attributes:
        weights: by name of the candidate, in descending order.
        reranking: the steps after the search.
        refitted: names of the candidates whose refit, on all labelled images, took their place.

    """

    weights: Mapping[str, float]
    reranking: Reranking
    refitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogEntry:
    """One line of the log.

    Attributes:
        seconds: since the start of the competition.
        step: what was done, such as `fine-tuning efficientnet_lite0`.
        outcome: started, kept (the submission was replaced), dropped (it was not), failed, or finished.
        reason: why, in one sentence.
        took: seconds that the step took.
        score: validation measure of the best submission that the step makes possible; None if it was not measured.
        submission: the file of the submission, inside the folder of the competition; None if there is no new one.
        model: the models that a new submission is made from, in words; empty if there is none.
        models: the same as a record; None if there is none, or a backbone that was not measured.
    """

    seconds: float
    step: str
    outcome: Outcome
    reason: str
    took: float = 0.0
    score: float | None = None
    submission: str | None = None
    model: str = ""
    models: SubmittedModels | None = None


class Log:
    """Appends to `log.jsonl`; a line that a killed run has not finished is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[LogEntry] = []
        lines: list[bytes] = []
        if path.is_file():
            with open_regular(path, _MAX_BYTES) as file:
                lines = file.read().split(b"\n")
        for line in filter(None, lines):
            try:
                self.entries.append(read_record(LogEntry, json.loads(line)))
            except ValueError:
                continue

    @property
    def submitted(self) -> LogEntry | None:
        """The entry of the submission; None before the first one."""
        return next((entry for entry in reversed(self.entries) if entry.submission is not None), None)

    def has(self, step: str, *outcomes: Outcome) -> bool:
        """Whether a step had one of these outcomes."""
        return any(entry.step == step and entry.outcome in outcomes for entry in self.entries)

    def add(self, entry: LogEntry) -> None:
        """Append an entry; it is on the disk afterwards."""
        self.entries.append(entry)
        line = json.dumps(asdict(entry), ensure_ascii=False).encode(errors="surrogateescape")
        with storage_errors(self.path), self.path.open("ab") as file:
            # an unfinished line is ended, so that it spoils no other
            file.write(b"\n" + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
