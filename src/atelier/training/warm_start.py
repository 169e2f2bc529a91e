"""A fresh training that begins with the weights of another: weights alone, neither optimizer nor step."""

from collections.abc import Callable, Mapping

from torch import Tensor

from atelier.convert.weights import Weights, shapes_of
from atelier.models.keys import require_same_keys
from atelier.training.partial_start import PartialStart, start_partly

StartWeights = Callable[[Mapping[str, Tensor]], PartialStart]
"""Writes over ``Objective.trainable_state`` what a training begins with, and says what it wrote."""


def start_from(state: Mapping[str, Tensor], found: Weights, origin: str) -> PartialStart:
    """Writes an adapter's tensors over a model's, one at a time; every key must be on both sides.

    Args:
        state: ``Objective.trainable_state``: views of the model's own memory.
        found: weights of the same names; floats of any precision.
        origin: where they come from, for what is said about them.

    Raises:
        ConfigError: counts and lists the keys that are missing, unknown or of another shape; nothing was written.
        DataError: they hold NaN or infinity.
    """
    require_same_keys(
        shapes_of(found),
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        f"{origin} does not fit what is trained",
        "start from an adapter of the same recipe on the same base model",
    )
    return start_partly(state, found, origin)
