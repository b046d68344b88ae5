"""Posted submissions and their scores: the record `submissions.csv` next to the submissions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lookalike._files import open_regular, reading_errors, spreadsheet_text, write_csv
from lookalike.errors import StorageError
from lookalike.progress import printable

RECORD_FILE = "submissions.csv"
COLUMNS = ("time_utc", "sha256", "file", "model", "fingerprint", "url", "status", "score")

_MAX_RECORD_BYTES = 50_000_000
_SHOWN_LINES = 8  # of a request


@dataclass(frozen=True)
class Posted:
    """A submission that was posted to a server, or that would be posted.

    Attributes:
        file: the submission, sent as it is.
        url: without user and password, and with "…" for the query.
        sha256: of the file's bytes.
        request: the start of the request as text, without secrets.
        model: name of the model, or empty.
        fingerprint: of the model, or empty.
        time: of the request, UTC; None if it was not sent.
        status: the HTTP status; None without an answer.
        score: of the answer; None without one.
    """

    file: Path
    url: str
    sha256: str
    request: str
    model: str = ""
    fingerprint: str = ""
    time: datetime | None = None
    status: int | None = None
    score: float | None = None

    def __repr__(self) -> str:
        return f"<Posted: {self.file} to {self.url}, status {self.status}, score {self.score}>"


def describe_request(url: str, headers: Mapping[str, str], body: bytes, sha256: str) -> str:
    """Return a request as text: its headers, the login hidden, and the first lines of its body."""
    headers = {**headers, "Content-Length": str(len(body))}
    if "Authorization" in headers:
        headers["Authorization"] = "Basic …"
    lines = body.decode().splitlines()
    start = [line if len(line) <= 200 else f"{line[:200]}…" for line in lines[:_SHOWN_LINES]]
    rest = f"… ({len(lines):,} lines, SHA-256 {sha256})" if len(lines) > _SHOWN_LINES else f"(SHA-256 {sha256})"
    text = [f"POST {url}", *(f"{name}: {value}" for name, value in headers.items()), "", *start, rest]
    return "\n".join(map(printable, text))


class PostRecord:
    """`submissions.csv`: one line per request, written before it is sent and completed when the answer is there.

    A line without a status is a request whose answer nobody saw, such as that of a process that was killed.
    """

    def __init__(self, path: Path) -> None:
        """Read the lines so far; `StorageError` for a file of another form."""
        self.path = path
        self._lines: list[dict[str, str]] = []
        if not path.exists():
            return
        with reading_errors(path, "the record of submissions", "submission"):
            with open_regular(path, _MAX_RECORD_BYTES) as file:
                reader = csv.DictReader(io.StringIO(file.read().decode("utf-8"), newline=""), strict=True)
            try:
                self._lines = list(reader)
            except csv.Error as error:
                raise ValueError(error) from error
        if tuple(reader.fieldnames or ()) != COLUMNS or any(None in {*x, *x.values()} for x in self._lines):
            raise StorageError(
                f"{path} is not a record of submissions with the columns {', '.join(COLUMNS)}; rename it.",
                argument="submission",
            )

    def start(self, posted: Posted) -> Posted:
        """Write the line of a request that is about to be sent, with the time."""
        posted = replace(posted, time=datetime.now(UTC).replace(microsecond=0))
        self._lines.append(_line(posted))
        self._write()
        return posted

    def complete(self, posted: Posted) -> None:
        """Add status and score to the last line."""
        self._lines[-1] = _line(posted)
        self._write()

    def counted(self, posted: Posted) -> str:
        """Return when and how the same file was posted to the same URL, if it counted or may have counted, or "".

        What a server refused with a status from 400 to 499, or with 503, did not count.
        """
        for line in reversed(self._lines):
            if (line["sha256"], line["url"]) != (posted.sha256, posted.url):
                continue
            if line["score"]:
                return f"at {line['time_utc']}, with the score {line['score']}"
            if not (line["status"].startswith("4") or line["status"] == "503"):
                answer = f"with the answer {line['status']}" if line["status"] else "without an answer"
                return f"at {line['time_utc']}, {answer}, and may have been counted"
        return ""

    def _write(self) -> None:
        write_csv(self.path, COLUMNS, [[line[column] for column in COLUMNS] for line in self._lines])


def score_text(score: float) -> str:
    """Return a score as text, a whole number without decimals."""
    return f"{score:.15g}"


def _line(posted: Posted) -> dict[str, str]:
    time = "" if posted.time is None else posted.time.strftime("%Y-%m-%dT%H:%M:%SZ")
    values = (
        time,
        posted.sha256,
        spreadsheet_text(posted.file.name),
        spreadsheet_text(posted.model),
        posted.fingerprint,
        posted.url,
        "" if posted.status is None else str(posted.status),
        "" if posted.score is None else score_text(posted.score),
    )
    return dict(zip(COLUMNS, values, strict=True))
