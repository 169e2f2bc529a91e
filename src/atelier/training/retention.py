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

    def apply(self, series: Series, published: int | None = None) -> None:
        """Removes what need not stay.

        Args:
            published: the step of the checkpoint that was just made. Those of later steps turned out damaged when the
                training was resumed: they neither count nor go, and are made again when it comes by.
        """
        steps = [step for step in series.steps() if published is None or step <= published]
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
