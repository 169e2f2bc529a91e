"""Cron expressions of five fields and time zones: read, compared with a moment, moved to another zone."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from atelier.errors import ConfigError

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 6))
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
#: How far ahead the rules of two zones are compared, and a date is looked for.
AHEAD_DAYS = 3 * 366


def zone(name: str) -> ZoneInfo:
    """An IANA time zone.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"there is no time zone {name!r}", "an IANA name, e.g. TZ=Europe/Berlin or TZ=UTC") from None


@dataclass(frozen=True)
class Cron:
    """Five fields as sets; ``days`` and ``weekdays`` are None where the field is ``*``.

    As in cron, a day fits when its date or its weekday does, where both are given.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int] | None
    months: frozenset[int] | None
    weekdays: frozenset[int] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``minute hour day month weekday`` (lists, ranges, steps, English names; Sunday is 0 or 7).

        Raises:
            ConfigError: another form, a number out of range, or a date that never comes.
        """
        words = text.split()
        if len(words) != 5:
            raise ConfigError(
                f"CRON={text!r} has {len(words)} fields, not 5", 'minute hour day month weekday, e.g. CRON="0 3 * * 1"'
            )
        sets = [_field(word, place) for place, word in enumerate(words)]
        days, months, weekdays = (
            None if word in ("*", "?") else found for word, found in zip(words[2:], sets[2:], strict=True)
        )
        made = cls(sets[0], sets[1], days, months, weekdays)
        if (
            days
            and not weekdays
            and not any(day <= _longest(month) for day, month in product(days, months or range(1, 13)))
        ):
            raise ConfigError(f"CRON={text!r} names a date that never comes", "correct the day or the month")
        return made

    def matches(self, moment: datetime) -> bool:
        """Whether it is due in this very minute, by the moment's own clock."""
        if moment.minute not in self.minutes or moment.hour not in self.hours:
            return False
        if self.months is not None and moment.month not in self.months:
            return False
        dated = self.days is not None and moment.day in self.days
        named = self.weekdays is not None and moment.isoweekday() % 7 in self.weekdays
        if self.days is None or self.weekdays is None:
            return (self.days is None or dated) and (self.weekdays is None or named)
        return dated or named

    def six(self) -> str:
        """Kubeflow's six fields, which begin with the second."""
        fields = (
            "*" if len(self.minutes) == 60 else _text(self.minutes),
            "*" if len(self.hours) == 24 else _text(self.hours),
            _text(self.days),
            _text(self.months),
            _text(self.weekdays),
        )
        return " ".join(("0", *fields))


@dataclass(frozen=True)
class Moved:
    """A schedule by another clock.

    Attributes:
        cron: by that clock.
        exact: it is due at the very same moments; False: at these and, for a part of the year, at others too, so that
            a run must look whether it is its time.
        notes: what a person should know.
    """

    cron: Cron
    exact: bool
    notes: tuple[str, ...]


def move(cron: Cron, name: str, target: str, now: datetime | None = None) -> Moved:
    """A schedule in zone ``name``, by the clock of zone ``target``.

    Raises:
        ConfigError: no cron expression says the same by that clock.
    """
    here, there = zone(name), zone(target)
    start = now or datetime.now(UTC)
    moments = [start + timedelta(hours=6 * step) for step in range(AHEAD_DAYS * 4)]
    differences = sorted({(_offset(each, there) - _offset(each, here)) for each in moments})
    moved = [_shift(cron, difference, name, target) for difference in differences]
    whole = moved[0]
    for other in moved[1:]:
        whole = Cron(
            whole.minutes | other.minutes,
            whole.hours | other.hours,
            whole.days,
            whole.months,
            whole.weekdays | other.weekdays if whole.weekdays is not None and other.weekdays is not None else None,
        )
    exact = all(each == whole for each in moved)
    notes = []
    if not exact:
        notes.append(
            f"{name} changes its clock against {target}: Kubeflow starts a run at each hour that may be meant, and one "
            "that is not due ends after its first small step"
        )
    if any(_offset(each, here) != _offset(moments[0], here) for each in moments):
        notes.append(
            f"when {name} puts its clock forward, a time in the hour that is left out does not come that day; when it "
            "puts it back, a time in the hour that comes twice counts once"
        )
    return Moved(whole, exact, tuple(notes))


def _shift(cron: Cron, minutes: int, name: str, target: str) -> Cron:
    if not minutes:
        return cron
    times = [divmod(hour * 60 + minute + minutes, 1440) for hour, minute in product(cron.hours, cron.minutes)]
    carries = {carry for carry, _ in times}
    hours, left = {time // 60 for _, time in times}, {time % 60 for _, time in times}
    if len(hours) * len(left) != len(times):
        raise ConfigError(
            f"no one cron expression says these times of {name} by the clock of {target}",
            f'times with one minute, e.g. CRON="0 3,15 * * *", or run Kubeflow\'s controller in {name} '
            "(CRON_SCHEDULE_TIMEZONE, `cron_timezone` in the profile)",
        )
    weekdays = cron.weekdays
    if carries != {0} and (cron.days or cron.months or weekdays is not None):
        (carry,) = carries if len(carries) == 1 else (None,)
        if carry is None or cron.days or cron.months:
            raise ConfigError(
                f"by the clock of {target} these times of {name} are of another day, and no cron expression says that",
                f"times that are the same day in {target}, or run Kubeflow's controller in {name} "
                "(CRON_SCHEDULE_TIMEZONE, `cron_timezone` in the profile)",
            )
        weekdays = frozenset((day + carry) % 7 for day in weekdays or ())
    return Cron(frozenset(left), frozenset(hours), cron.days, cron.months, weekdays)


def _offset(moment: datetime, where: ZoneInfo) -> int:
    """Minutes that a zone's clock is ahead of UTC's."""
    shift = moment.astimezone(where).utcoffset() or timedelta()
    return int(shift.total_seconds() // 60)


def _field(word: str, place: int) -> frozenset[int]:
    what, low, high = _FIELDS[place]
    found: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?", part)
        if match is None:
            raise ConfigError(
                f"the {what} {word!r} cannot be read", "numbers, lists a,b, ranges a-b, steps */n; no L, W or #"
            )
        first, last, step = match[1], match[2], int(match[3] or 1)
        if first in "*?":
            start, end = low, high
        else:
            start = _number(first, place)
            end = _number(last, place) if last else (high if match[3] else start)
            if place == 4 and last and end == 0 < start:
                end = 7  # fri-sun
        if step < 1 or start > end or start < low or end > high + (place == 4):
            raise ConfigError(f"the {what} {part!r} is not within {low} to {high}", "correct the cron expression")
        found |= {value % 7 if place == 4 else value for value in range(start, end + 1, step)}
    return frozenset(found)


def _number(word: str, place: int) -> int:
    names = {3: dict(zip(_MONTHS, range(1, 13), strict=True)), 4: dict(zip(_DAYS, range(7), strict=True))}.get(
        place, {}
    )
    if word.lower()[:3] in names and word.isalpha():
        return names[word.lower()[:3]]
    if not word.isdigit():
        raise ConfigError(f"{word!r} is no {_FIELDS[place][0]}", "numbers, or jan…dec and mon…sun")
    return int(word)


def _text(values: frozenset[int] | None) -> str:
    return "*" if values is None else ",".join(str(value) for value in sorted(values))


def _longest(month: int) -> int:
    return 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
