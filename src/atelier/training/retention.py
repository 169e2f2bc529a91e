"""Which checkpoints stay: the newest few, and the best one by a logged number."""

from dataclasses import dataclass
from typing import Any, Literal

from atelier.training.series import Series


@dataclass(frozen=True)
class Retention:
    """Applied after a new checkpoint was verified and published, never before.

    Attributes:
        keep: how many of the newest stay.
        best: a logged number (``"loss"``) whose best checkpoint stays too; None: by age alone.
        mode: whether the lowest or the highest is best.
    """

    keep: int
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def apply(self, series: Series) -> None:
        """Removes what need not stay."""
        steps = series.steps()
        stay = set(steps[: self.keep])
        if self.best is not None:
            found = [(value, step) for step in steps if (value := self._value(series, step)) is not None]
            if found:
                # Of equal ones the newest.
                stay.add(max(found, key=lambda item: (item[0] if self.mode == "max" else -item[0], item[1]))[1])
        for step in steps:
            if step not in stay:
                series.remove(step)

    def _value(self, series: Series, step: int) -> float | None:
        checkpoint = series.read(step)
        value: Any = checkpoint.state.get("metrics", {}).get(self.best) if checkpoint else None
        return float(value) if isinstance(value, (int, float)) else None
