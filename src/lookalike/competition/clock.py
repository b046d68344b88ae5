"""The clock of a competition: its deadline, the time left, and stopping a step that takes too long."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from lookalike.errors import OptionError
from lookalike.progress import Progress, format_duration

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)\s*h)?\s*(?:(\d+(?:\.\d+)?)\s*m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)\s*s)?")
_TIME = re.compile(r"(\d{1,2}):(\d{2})")
_SHORTEST_S = 30.0


class OutOfTimeError(Exception):
    """The time of a step is over; the step is stopped."""


def parse_deadline(text: str, now: datetime) -> float:
    """Return the seconds from `now` until a deadline.

    Args:
        text: a duration such as `2h`, `90min` or `1h30m`, the next time of day such as `14:30`, or a date with a time
            in ISO 8601, such as `2030-05-17T14:30`.
        now: the present, in local time, with its zone.

    Raises:
        OptionError: another form, or less than 30 seconds.
    """
    seconds = _seconds(text.strip().lower(), now)
    if seconds is None:
        raise OptionError(
            f"`deadline` must be a duration such as 2h, 90min or 1h30m, a time such as 14:30, or a date with a time, "
            f"got {text!r}.",
            argument="deadline",
        )
    if seconds < _SHORTEST_S:
        raise OptionError(
            f"`deadline` must be at least {_SHORTEST_S:.0f} s away, got {text!r}, which is {seconds:.0f} s from now.",
            argument="deadline",
        )
    return seconds


def is_duration(text: str) -> bool:
    """Whether a deadline is a duration, which counts from the start of the competition."""
    match = _DURATION.fullmatch(text.strip().lower())
    return match is not None and any(match.groups())


def _seconds(text: str, now: datetime) -> float | None:
    duration, day_time = _DURATION.fullmatch(text), _TIME.fullmatch(text)
    if duration is not None and is_duration(text):
        hours, minutes, seconds = (float(part or 0) for part in duration.groups())
        return 3600 * hours + 60 * minutes + seconds
    try:
        if day_time is not None:
            end = now.replace(hour=int(day_time[1]), minute=int(day_time[2]), second=0, microsecond=0)
            return (end - now + timedelta(days=end <= now)).total_seconds()
        end = datetime.fromisoformat(text)
    except ValueError:
        return None
    return ((end if end.tzinfo is not None else end.replace(tzinfo=now.tzinfo)) - now).total_seconds()


@dataclass(frozen=True)
class Clock:
    """When a competition started and when it ends, in seconds since the epoch: a resumed run has the same ones."""

    started: float
    ends: float
    now: Callable[[], float] = time.time

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.now() - self.started

    @property
    def left(self) -> float:
        """Seconds until the deadline, below 0 after it."""
        return self.ends - self.now()

    @property
    def total(self) -> float:
        """Seconds from the start to the deadline."""
        return self.ends - self.started

    def __str__(self) -> str:
        left = max(0.0, self.left)
        return f"[{format_duration(self.elapsed)}, {format_duration(left)} left]"


class ClockProgress:
    """Adds the time left to every report, and stops a step that reports after `until`.

    Every long function of the library reports its progress for each batch, so it can be stopped here.

    Attributes:
        until: seconds since the epoch after which `step` raises `OutOfTimeError`.
    """

    def __init__(self, progress: Progress, clock: Clock) -> None:
        self._progress = progress
        self.clock = clock
        self.until = clock.ends

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report a step with the time left; `OutOfTimeError` if the time is over and the task is not."""
        if done < total and self.clock.now() >= self.until:
            raise OutOfTimeError(task)
        left = f"{format_duration(max(0.0, self.clock.left))} to the deadline"
        self._progress.step(task, done, total, f"{detail}, {left}" if detail else left)

    def info(self, text: str) -> None:
        """Report a line with the clock."""
        self._progress.info(f"{self.clock} {text}")
