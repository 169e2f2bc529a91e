"""What a benchmark is: a function that measures and returns one figure with its bar."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        bench: its name (``../docs/architecture.md`` lists them).
        value: a ratio wherever time is meant: both sides measured in this run, alternating.
        unit: e.g. ``"x"``, ``"s"``, ``"%"``.
        bar: what it must reach; None where there is none.
        better: which side of the bar is good.
        note: the two sides in absolute numbers, for a person.
    """

    bench: str
    value: float
    unit: str
    bar: float | None = None
    better: Literal["higher", "lower"] = "higher"
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bar is reached."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    def line(self) -> str:
        """The result as a line of JSON."""
        record = asdict(self)
        note = record.pop("note")
        return json.dumps(record | {"ok": self.ok} | ({"note": note} if note else {}))


Bench = Callable[[], Result]


def side_by_side(first: Callable[[], object], second: Callable[[], object], rounds: int = 5) -> tuple[float, float]:
    """Median seconds of two functions, called in turn, after one call of each to warm up.

    Alternating makes a machine's slow minute hit both alike.
    """
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip((first, second), times, strict=True):
            began = time.perf_counter()
            function()
            taken.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])
