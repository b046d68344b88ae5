"""`post`: send a submission to a server that answers with its score; it is never counted twice by accident."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import open_regular, reading_errors, require_writable
from lookalike._lock import locked
from lookalike.errors import ModelError, OptionError, PostError
from lookalike.evaluation.http_post import Address, Answer, NoAnswerError, NotSentError, post_once
from lookalike.evaluation.posting import RECORD_FILE, Posted, PostRecord, describe_request, score_text
from lookalike.evaluation.submission import Submission
from lookalike.models.bundle import find_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder
from lookalike.progress import Progress, resolve_progress

SCORE_FIELD = "accuracy"

_MAX_SUBMISSION_BYTES = 200_000_000
_PAUSES_S = (1.0, 4.0, 15.0)  # before the second and later tries, unless the server names a time
_MAX_WAIT_S = 300.0


@checked_arguments()
def post(
    submission: Path | str,
    url: str,
    *,
    model: AnyEncoder | Path | str | None = None,
    score_field: str = SCORE_FIELD,
    again: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Posted:
    """Post a submission file unchanged, by HTTP, and read the score from the answer, a JSON object.

    `submissions.csv` next to the file records every request: time, SHA-256 of the file, model, URL, status and score. A
    request is repeated only where it was certainly not counted: no connection, or an answer 429 or 503 that names a
    time. Redirects are not followed. Proxies come from the environment (`https_proxy`, `no_proxy`).

    Args:
        submission: a `.json` file that `submit` wrote.
        url: http or https; `https://user:password@host/path` logs in. Neither login nor query is recorded or printed.
        model: an encoder or a bundle, for the record.
        score_field: the field of the answer that holds the score.
        again: post a file that was posted to this URL before.
        dry_run: send nothing; `.request` is what would be sent.
        progress: as in `embed`.

    Returns:
        The record of the request, with the score.

    Raises:
        PostError: no connection, no answer, or an answer without a score; `.may_be_counted` says which it was.
        OptionError: an invalid URL, or a file that was posted to this URL before, without `again`.
        DataError: not a submission.
        StorageError: a file that cannot be read, or another run that posts from the same folder.
    """
    path, progress = Path(submission), resolve_progress(progress)
    address = require_postable(path, url, score_field)
    with reading_errors(path, "the submission", "submission"), open_regular(path, _MAX_SUBMISSION_BYTES) as file:
        body = file.read()
        Submission.from_json(body)
    sha256 = hashlib.sha256(body).hexdigest()
    name, fingerprint = _model_record(model)
    request = describe_request(str(address), address.headers, body, sha256)
    posted = Posted(path, str(address), sha256, request, name, fingerprint)
    if dry_run:
        _open_record(posted, again)
        return posted
    with locked(path.with_name(RECORD_FILE), "submission"):
        record = _open_record(posted, again)
        posted, answer = _send(address, body, posted, record, progress)
        try:
            score = _read_score(answer, address, score_field)
            progress.info(f"posted {path} to {address}: {score_field} {score_text(score)}")
            posted = replace(posted, score=score)
        finally:
            record.complete(posted)
    progress.info(f"recorded in {record.path}")
    return posted


def require_postable(submission: Path, url: str, score_field: str) -> Address:
    """Return the address of a URL; raise the errors of `post` that do not depend on the submission's content."""
    address = Address.parse(url)
    if not score_field:
        raise OptionError(f"`score_field` must be the name of a field, got {score_field!r}.", argument="score_field")
    if submission.suffix.lower() != ".json":
        raise OptionError(
            f"only a .json submission can be posted, got {submission.name!r}; write one with 'lookalike submit'.",
            argument="submission",
        )
    record = submission.with_name(RECORD_FILE)
    require_writable(record, "submission")
    PostRecord(record)
    return address


def _open_record(posted: Posted, again: bool) -> PostRecord:
    """Return the record; refuse a file that it has, unless it is posted again on purpose."""
    record = PostRecord(posted.file.with_name(RECORD_FILE))
    earlier = record.counted(posted)
    if earlier and not again:
        raise OptionError(
            f"{posted.file} was posted to {posted.url} {earlier}; pass `again` to post it again.", argument="again"
        )
    return record


def _model_record(model: AnyEncoder | Path | str | None) -> tuple[str, str]:
    if model is None:
        return "", ""
    if not isinstance(model, str | Path):
        return model.name, model.fingerprint
    bundle = find_bundle(model)
    if bundle is None:
        raise ModelError(f"`model` must be a bundle, got {str(model)!r}.", argument="model")
    info = read_bundle_info(bundle)
    return info.name, info.fingerprint


def _send(
    address: Address, body: bytes, posted: Posted, record: PostRecord, progress: Progress
) -> tuple[Posted, Answer]:
    """Send the body until it is answered, again only where it was certainly not counted."""
    for pause_s in (*_PAUSES_S, None):
        sent: list[Posted] = []
        try:
            answer = post_once(address, body, before_sending=lambda: sent.append(record.start(posted)))  # noqa: B023
        except NotSentError as error:
            if pause_s is None or not error.temporary:
                raise PostError(
                    f"{address} cannot be reached ({error}); nothing was posted, check the URL and the network and "
                    f"post {posted.file} again."
                ) from error
            wait_s, cause = pause_s, f"cannot be reached ({error}), nothing was posted"
        except NoAnswerError as error:
            raise PostError(
                f"{posted.file} was sent to {address}, and then {error}; it may have been counted and is not sent "
                "again: look there first.",
                may_be_counted=True,
            ) from error
        except KeyboardInterrupt:
            if sent:
                progress.info(f"interrupted while {address} had the submission: it may have been counted")
            raise
        else:
            result = replace(sent[0], status=answer.status)
            requested_s = answer.wait_s(time.time())
            if requested_s is None or requested_s > _MAX_WAIT_S or pause_s is None:
                return result, answer
            record.complete(result)
            wait_s, cause = requested_s, f"does not accept it now ({answer.status} {answer.reason})"
        progress.info(f"{address} {cause}; next try in {wait_s:.0f} s")
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _read_score(answer: Answer, address: Address, score_field: str) -> float:
    """Return the score of an answer; raise `PostError` for an answer without one."""
    status = f"{answer.status} {answer.reason}".strip()
    excerpt = f"{address} answered {status} {answer.excerpt(address)}"
    if 200 <= answer.status < 300:
        score = None if answer.damage else _number(answer.body, score_field)
        if score is not None:
            return score
        raise PostError(
            f"{excerpt}; expected a JSON object with a number in {score_field!r} (`score_field`). It may have been "
            "counted: look there for its score.",
            status=answer.status,
            may_be_counted=True,
        )
    if 300 <= answer.status < 400:
        target = answer.redirected(address)
        raise PostError(
            f"{address} answered {status}, a redirect to {target or 'an unknown address'}, which is not followed; look "
            "there, and pass the right URL.",
            status=answer.status,
            may_be_counted=True,
        )
    wait_s = answer.wait_s(time.time())
    if wait_s is not None:
        raise PostError(f"{excerpt}; post it again in {wait_s:.0f} s.", status=answer.status)
    if 400 <= answer.status < 500 or answer.status == 503:
        raise PostError(f"{excerpt}; the submission was not accepted.", status=answer.status)
    raise PostError(
        f"{excerpt}; the submission may have been counted and is not sent again: look there first.",
        status=answer.status,
        may_be_counted=True,
    )


def _number(body: bytes, field: str) -> float | None:
    try:
        value: Any = json.loads(body)
        value = value.get(field) if isinstance(value, dict) else None
        score = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError, RecursionError):
        return None
    return score if math.isfinite(score) else None
