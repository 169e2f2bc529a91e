"""Solvers of the flow's equation dx/dt = v(x, t) from the text (t = 0) to the image (t = 1), on a uniform grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from atelier.errors import ConfigError

Velocity = Callable[[Tensor, float], Tensor]
"""The field at a state and a time."""

RELEASED_END = 1 - 1e-5
"""Where upstream's grid ends."""


@dataclass(frozen=True)
class Step:
    """One step, as an observer sees it: the time and field it was taken at, and the state that it led to."""

    number: int
    time: float
    velocity: Tensor
    x: Tensor


Observe = Callable[[Step], None]


class _Solver(Protocol):
    def __call__(self, velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor: ...


def _euler(velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor:
    """First order, one evaluation a step, at the step's own beginning."""
    for number in range(steps):
        time = number / steps
        field = velocity(x, time)
        x = x + field / steps
        observe(Step(number, time, field, x))
    return x


def _euler_released(velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor:
    """Upstream's Euler: the field is asked at times that reach the end, while the state lags up to a step behind."""
    for number in range(steps):
        time = RELEASED_END * number / max(steps - 1, 1)
        field = velocity(x, time)
        x = x + field * (RELEASED_END / steps)
        observe(Step(number, time, field, x))
    return x


def _midpoint(velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor:
    """Second order, two evaluations a step: at its beginning and in its middle."""
    for number in range(steps):
        time = number / steps
        middle = x + velocity(x, time) * (0.5 / steps)
        field = velocity(middle, time + 0.5 / steps)
        x = x + field / steps
        observe(Step(number, time, field, x))
    return x


def _heun(velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor:
    """Second order, two evaluations a step: at its beginning and at its end."""
    for number in range(steps):
        time = number / steps
        first = velocity(x, time)
        second = velocity(x + first / steps, (number + 1) / steps)
        field = (first + second) / 2
        x = x + field / steps
        observe(Step(number, time, field, x))
    return x


def _adams_bashforth(velocity: Velocity, x: Tensor, steps: int, observe: Observe) -> Tensor:
    """Second order with one evaluation a step: extrapolates from the step before (AB2, the first step is Euler's)."""
    before: Tensor | None = None
    for number in range(steps):
        time = number / steps
        here = velocity(x, time)
        field = here if before is None else 1.5 * here - 0.5 * before
        x, before = x + field / steps, here
        observe(Step(number, time, field, x))
    return x


SOLVERS: dict[str, _Solver] = {
    "ab2": _adams_bashforth,
    "euler": _euler,
    "euler_released": _euler_released,
    "heun": _heun,
    "midpoint": _midpoint,
}
EVALUATIONS = {"ab2": 1, "euler": 1, "euler_released": 1, "heun": 2, "midpoint": 2}
"""Evaluations of the field a step."""


def solve(
    velocity: Velocity, x: Tensor, steps: int, solver: str = "ab2", observe: Observe = lambda step: None
) -> Tensor:
    """The state at the image, from ``x`` at the text.

    Raises:
        ConfigError: there is no such solver, or no step.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"there is no flow solver {solver!r}", f"use one of {', '.join(SOLVERS)}")
    if steps < 1:
        raise ConfigError(f"{steps} steps lead nowhere", "give at least one")
    return SOLVERS[solver](velocity, x, steps, observe)
