from datetime import UTC, datetime

import pytest

from lookalike.competition.clock import Clock, ClockProgress, OutOfTimeError, parse_deadline
from lookalike.errors import OptionError

NOON = datetime(2030, 5, 17, 12, 0, 0).astimezone()


class Lines:
    def __init__(self):
        self.steps, self.lines = [], []

    def step(self, task, done, total, detail=""):
        self.steps.append((task, done, total, detail))

    def info(self, text):
        self.lines.append(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90min", 5400),
        ("90 m", 5400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("45s", 45),
        ("14:30", 9000),
        ("11:00", 23 * 3600),  # tomorrow
        ("2030-05-17T12:10", 600),
    ],
)
def test_deadlines(text, seconds):
    assert parse_deadline(text, NOON) == seconds


def test_a_deadline_in_another_time_zone():
    now = datetime(2030, 5, 17, 12, tzinfo=UTC)

    assert parse_deadline("2030-05-17T15:00+02:00", now) == 3600


@pytest.mark.parametrize("text", ["", "soon", "2", "25:00", "h", "2030-13-01T10:00", "-1h", "10s", "2030-05-17T11:00"])
def test_what_is_not_a_deadline(text):
    with pytest.raises(OptionError) as caught:
        parse_deadline(text, NOON)

    assert caught.value.argument == "deadline"


def test_the_clock_says_what_is_left():
    clock = Clock(1000.0, 1600.0, lambda: 1090.0)

    assert (clock.elapsed, clock.left, clock.total) == (90.0, 510.0, 600.0)
    assert str(clock) == "[1 min 30 s, 8 min 30 s left]"


def test_work_ends_when_its_time_is_over():
    now = [1000.0]
    lines = Lines()
    progress = ClockProgress(lines, Clock(1000.0, 1600.0, lambda: now[0]))
    progress.until = 1100.0
    progress.step("training", 1, 10)
    now[0] = 1100.0

    progress.step("training", 10, 10)  # a finished task is not lost
    with pytest.raises(OutOfTimeError):
        progress.step("training", 2, 10)

    assert [step[:3] for step in lines.steps] == [("training", 1, 10), ("training", 10, 10)]
    assert "10 min to the deadline" in lines.steps[0][3]


def test_every_line_has_the_clock():
    lines = Lines()
    ClockProgress(lines, Clock(0.0, 60.0, lambda: 30.0)).info("now: training")

    assert lines.lines == ["[30 s, 30 s left] now: training"]
