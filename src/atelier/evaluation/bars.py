"""What a metric must reach for a model to pass: at least, or where lower is better at most.

A bar is written as a number, which means the metric's own direction (``{"layout_accuracy": 0.8, "fid": 12}``), or as
an object that names it (``{"fid": {"max": 12}, "clip_score": {"min": 0.3, "max": 0.4}}``).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from atelier.errors import ConfigError

LOWER_IS_BETTER = ("fid",)
CONTROL = "_ungrounded"
_JUDGED = ("layout_accuracy", "layout_fill", "ink_in_boxes")
_BOXED = ("crop_clip", "crop_pick", "sam_iou")
METRICS = (
    *(f"{name}{suffix}" for suffix in ("", CONTROL) for name in (*_JUDGED, *_BOXED)),
    "fid",
    "clip_score",
)
"""What the pipelines' evaluation can find: the digit judge's and those of ``regional_evaluation``, both of the control
too, and those of ``text_evaluation``."""


class Bar(BaseModel):
    """Bounds of one metric, themselves included.

    Attributes:
        min, max: in the metric's unit; None: no bound on that side. One is there at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounds(self) -> "Bar":
        if self.min is None and self.max is None:
            raise ValueError("has neither min nor max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def met(self, value: float) -> bool:
        """Whether a value reaches it; one that is no number never does."""
        least = -math.inf if self.min is None else self.min
        most = math.inf if self.max is None else self.max
        return least <= value <= most

    @property
    def written(self) -> float | dict[str, float]:
        """As JSON: a number is a least value, to whoever reads it without knowing the metric."""
        if self.max is None and self.min is not None:
            return self.min
        return {name: value for name, value in (("min", self.min), ("max", self.max)) if value is not None}


def _directed(given: Any) -> Any:
    """Numbers as bars of their metrics' directions."""
    if not isinstance(given, Mapping):
        return given
    found = {}
    for name, bar in given.items():
        number = isinstance(bar, int | float) and not isinstance(bar, bool)
        found[name] = {"max" if name in LOWER_IS_BETTER else "min": bar} if number else bar
        least = bar.min if isinstance(bar, Bar) else bar.get("min") if isinstance(bar, Mapping) else None
        if least is not None and name in LOWER_IS_BETTER:
            raise ValueError(f"{name} is better when it is lower: a min would keep the good ones out")
    return found


Bars = Annotated[dict[str, Bar], BeforeValidator(_directed)]
"""Bars by metric, as a field of a recipe's configuration."""
_BARS = TypeAdapter(Bars)


def read(given: Mapping[str, Any]) -> dict[str, Bar]:
    """Bars from what ``written`` made of them.

    Raises:
        ConfigError: a bar that is none.
    """
    try:
        return _BARS.validate_python(dict(given))
    except ValidationError as error:
        raise _refusal(dict(given), error) from error


def changes(text: str) -> dict[str, Bar | None]:
    """Bars in the place of the recipe's own, from a JSON object; null takes one away. "" changes nothing.

    Raises:
        ConfigError: no JSON object, a metric that nobody measures, a bar that is none, or one in the wrong direction.
    """
    if not text.strip():
        return {}
    try:
        given = TypeAdapter(dict[str, Any]).validate_json(text)
        unknown = sorted(given.keys() - set(METRICS))
        if unknown:
            raise ConfigError(f"bars: there is no metric {', '.join(unknown)}", f"use {', '.join(METRICS)}")
        return {**dict.fromkeys(given), **_BARS.validate_python({k: v for k, v in given.items() if v is not None})}
    except ValidationError as error:
        raise _refusal(text, error) from error


def changed(bars: Mapping[str, Bar], by: Mapping[str, Bar | None]) -> dict[str, Bar]:
    """Bars with ``changes`` made to them."""
    return {name: bar for name, bar in {**bars, **by}.items() if bar is not None}


def written(bars: Mapping[str, Bar]) -> dict[str, float | dict[str, float]]:
    """Bars as JSON, for ``read``."""
    return {name: bar.written for name, bar in bars.items()}


def passed(bars: Mapping[str, Bar], metrics: Mapping[str, float]) -> bool:
    """Whether every bar is reached; a metric that was not measured reaches none."""
    return all(name in metrics and bar.met(metrics[name]) for name, bar in bars.items())


def _refusal(given: object, error: ValidationError) -> ConfigError:
    problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'bars'}: {e['msg']}" for e in error.errors())
    return ConfigError(f"bars {given!r}: {problems}", 'give a JSON object such as {"layout_accuracy": 0.8, "fid": 12}')
