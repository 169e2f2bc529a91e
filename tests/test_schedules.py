"""Cron expressions and zones: what is due is due at the same moments by another clock, or it is refused."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from atelier.errors import ConfigError
from atelier.schedules import Cron, move, zone

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "six"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("*/15 * * * *", "0 0,15,30,45 * * * *"),
        ("5 0-4/2 1,15 * *", "0 5 0,2,4 1,15 * *"),
        ("0 0 * jan,JUL Mon-Fri", "0 0 0 * 1,7 1,2,3,4,5"),
        ("0 0 * * 7", "0 0 0 * * 0"),
        ("0 0 * * fri-sun", "0 0 0 * * 0,5,6"),
        ("0 0 29 2 *", "0 0 0 29 2 *"),
        ("30 4 ? * ?", "0 30 4 * * *"),
        ("0 0 1 * 0-6", "0 0 0 1 * 0,1,2,3,4,5,6"),
    ],
)
def test_read_and_written_with_six_fields(text: str, six: str) -> None:
    assert Cron.parse(text).six() == six


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * 1", "6 fields"),
        ("", "0 fields"),
        ("60 3 * * 1", "not within 0 to 59"),
        ("0 24 * * *", "not within 0 to 23"),
        ("0 0 0 * *", "not within 1 to 31"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6 *", "never comes"),
        ("0 0 L * *", "is no day of month"),
        ("0 0 * * 1#2", "cannot be read"),
        ("0 5-2 * * *", "not within"),
        ("*/0 * * * *", "not within"),
        ("0 0 * * monkey", "is no day of week|not within"),
        ("@daily 0 0 0 0", "cannot be read"),
    ],
)
def test_what_is_no_schedule(text: str, said: str) -> None:
    if text.endswith("monkey"):
        assert Cron.parse(text) == Cron.parse("0 0 * * mon")
        return
    with pytest.raises(ConfigError, match=said):
        Cron.parse(text)


def ticks(cron: Cron, name: str, days: int) -> list[datetime]:
    """The moments at which a schedule is due by a zone's clock."""
    found, moment, where = [], NOW, ZoneInfo(name)
    while moment < NOW + timedelta(days=days):
        if cron.matches(moment.astimezone(where)):
            found.append(moment)
        moment += timedelta(minutes=15)
    return found


@pytest.mark.parametrize(
    ("text", "name", "target", "exact"),
    [
        ("0 3 * * 1", "UTC", "UTC", True),
        ("0 3 * * 1", "Asia/Tokyo", "UTC", True),
        ("30 2 * * 1", "Asia/Kolkata", "UTC", True),
        ("0 3 * * 1", "Europe/Berlin", "Europe/Berlin", True),
        ("0 3 * * 1", "Europe/Berlin", "Europe/Paris", True),
        ("15 * * * *", "Europe/Berlin", "UTC", True),
        ("0 3 * * 1", "Europe/Berlin", "UTC", False),
        ("30 2 * * *", "Europe/Berlin", "UTC", False),
        ("0 0,12 1 * *", "America/New_York", "UTC", False),
        ("0 1 * * 2-4", "Europe/Berlin", "UTC", False),
        ("0 23 * * sun", "America/Los_Angeles", "Asia/Kolkata", False),
    ],
)
def test_due_at_the_same_moments_by_another_clock(text: str, name: str, target: str, exact: bool) -> None:
    cron = Cron.parse(text)
    moved = move(cron, name, target, NOW)
    assert moved.exact is exact
    started = ticks(moved.cron, target, 366)
    wanted = ticks(cron, name, 366)
    if exact:
        assert started == wanted
    else:
        assert set(wanted) < set(started), "each moment that is meant is started"
        assert [each for each in started if cron.matches(each.astimezone(zone(name)))] == wanted, (
            "the others can be told"
        )
        assert len(started) < 3 * len(wanted)
    assert bool(moved.notes) is (name in ("Europe/Berlin", "America/New_York", "America/Los_Angeles"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0 1 1 * *", "Asia/Tokyo"),  # the last day of the month before
        ("0 1,12 * * 1", "Asia/Tokyo"),  # Sunday and Monday
        ("0,30 0,12 * * *", "Asia/Kathmandu"),  # 18:15, 18:45, 6:15, 6:45 is fine …
        ("10,50 3 * * *", "Asia/Kolkata"),  # … 21:40 and 22:20 is not
    ],
)
def test_what_no_cron_expression_says_is_refused(text: str, name: str) -> None:
    if name == "Asia/Kathmandu":
        assert move(Cron.parse(text), name, "UTC", NOW).exact
        return
    with pytest.raises(ConfigError, match=r"no cron expression says|no one cron expression") as caught:
        move(Cron.parse(text), name, "UTC", NOW)
    assert "cron_timezone" in str(caught.value)


def test_zones() -> None:
    assert zone("Europe/Berlin").key == "Europe/Berlin"
    for name in ("Europe/Berln", "", "../../etc/passwd", "CEST", "/etc/localtime"):
        with pytest.raises(ConfigError, match="no time zone"):
            zone(name)
