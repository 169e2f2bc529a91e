"""How strongly each step is grounded."""

import pytest

from atelier.errors import ConfigError
from atelier.sampling.schedule import grounding_scales


@pytest.mark.parametrize(
    ("steps", "beta", "decay", "expected"),
    [
        (5, 0.4, 0.0, [1, 1, 0, 0, 0]),
        (5, 0.0, 0.0, [0, 0, 0, 0, 0]),
        (5, 1.0, 0.0, [1, 1, 1, 1, 1]),
        (3, 0.3, 0.0, [0, 0, 0]),  # int(0.9): as diffusers rounds
        (10, 0.3, 0.4, [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
        (4, 0.0, 1.0, [0.75, 0.5, 0.25, 0]),
        (1, 1.0, 0.0, [1]),
        (0, 0.3, 0.0, []),
    ],
)
def test_scales(steps: int, beta: float, decay: float, expected: list[float]) -> None:
    assert grounding_scales(steps, beta, decay) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("beta", "decay", "named"),
    [
        (1.5, 0.0, "gligen_scheduled_sampling_beta is 1.5"),
        (float("nan"), 0.0, "gligen_scheduled_sampling_beta is nan"),
        (0.3, -0.1, "gligen_decay is -0.1"),
        (0.7, 0.4, "more than all steps"),
    ],
)
def test_shares_that_cannot_be(beta: float, decay: float, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        grounding_scales(10, beta, decay)
