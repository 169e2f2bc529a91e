"""The solvers on a flow whose solution is known, and what guidance asks of the network."""

import math

import pytest
import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.sampling.flow_solvers import EVALUATIONS, SOLVERS, solve
from atelier.sampling.guided_flow import GuidedFlow
from atelier.sampling.latent_arithmetic import combine, interpolate
from tests.models.crossflow.tiny import DIMR, DIT, made


def field(x: Tensor, t: float) -> Tensor:
    """x' = cos(3t) − x."""
    return math.cos(3 * t) - x


def exact(x: Tensor, t: float) -> Tensor:
    particular = (math.cos(3 * t) + 3 * math.sin(3 * t)) / 10
    return particular + (x - 0.1) * math.exp(-t)


def error(solver: str, steps: int) -> float:
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)
    return float((solve(field, start, steps, solver) - exact(start, 1.0)).abs().max())


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 2), ("euler_released", 1)]
)
def test_order(solver: str, order: int) -> None:
    """Twice the steps, a quarter of a second-order error and half of a first-order one."""
    ratio = error(solver, 40) / error(solver, 80)
    assert 2**order * 0.85 < ratio < 2**order * 1.15


def test_the_second_order_is_better_at_equal_evaluations() -> None:
    evaluations = 24
    wrong = {name: error(name, evaluations // EVALUATIONS[name]) for name in SOLVERS}
    assert max(wrong[name] for name in ("midpoint", "heun", "ab2")) < wrong["euler"] / 3


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_as_said(solver: str) -> None:
    times: list[float] = []

    def counted(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return field(x, t)

    seen = []
    solve(counted, torch.ones(2), 5, solver, seen.append)
    assert len(times) == 5 * EVALUATIONS[solver]
    assert [step.number for step in seen] == [0, 1, 2, 3, 4]
    assert min(times) == 0
    assert max(times) <= 1


@pytest.mark.parametrize(("solver", "steps"), [("rk4", 4), ("euler", 0)])
def test_what_cannot_be_solved(solver: str, steps: int) -> None:
    with pytest.raises(ConfigError):
        solve(field, torch.ones(1), steps, solver)


@pytest.mark.parametrize("config", [DIT, DIMR], ids=["dit", "dimr"])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 7.0])
@torch.no_grad()
def test_guidance_is_the_formula(config: object, guidance: float) -> None:
    """One batch, or one half of it, gives what two calls give."""
    flow = made(config).flow  # type: ignore[arg-type]
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.25)
    text = flow(x, t, torch.zeros(2, dtype=torch.bool))[-1]
    null = flow(x, t, torch.ones(2, dtype=torch.bool))[-1]
    calls: list[int] = []

    def watched(*given: Tensor) -> list[Tensor]:
        calls.append(len(given[0]))
        velocities: list[Tensor] = flow(*given)
        return velocities

    found = GuidedFlow(watched, guidance)(x, 0.25)  # type: ignore[arg-type]
    torch.testing.assert_close(found, null + guidance * (text - null), atol=2e-5, rtol=1e-4)
    assert calls == [2 if guidance in (0, 1) else 4]


def test_arithmetic() -> None:
    a, b = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    line = interpolate(a, b, 5)
    assert torch.equal(line[0], a)
    assert torch.equal(line[-1], b)
    torch.testing.assert_close(line[2], (a + b) / 2)
    total = combine(a, [b], [a * 0.5])
    torch.testing.assert_close(total * (0.5 * a + b).std() + (0.5 * a + b).mean(), 0.5 * a + b)
    with pytest.raises(ConfigError, match="is nothing"):
        combine(a, removed=[a])
    with pytest.raises(ConfigError, match="at least 2"):
        interpolate(a, b, 1)
