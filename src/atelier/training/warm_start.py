"""A fresh training that begins with the weights of another: weights alone, neither optimizer nor step."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from atelier.convert.weights import of_safetensors, shapes_of
from atelier.errors import DataError
from atelier.models.keys import listed, require_same_keys


def start_from(state: Mapping[str, Tensor], adapter: Path) -> None:
    """Writes an adapter's tensors over a model's, one at a time; every key must be on both sides.

    Args:
        state: ``Objective.trainable_state``: views of the model's own memory.
        adapter: a safetensors file with the same names; floats of any precision.

    Raises:
        ConfigError: counts and lists the keys that are missing, unknown or of another shape; nothing was written.
        DataError: the file is damaged, or holds NaN or infinity.
    """
    found = of_safetensors(adapter)
    require_same_keys(
        shapes_of(found),
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        f"{adapter} does not fit what is trained",
        "start from an adapter of the same recipe on the same base model",
    )
    broken = []
    with torch.no_grad():
        for name, tensor in state.items():
            value = found[name].tensor()
            if not torch.isfinite(value).all():
                broken.append(name)
            tensor.copy_(value)
    if broken:
        raise DataError(f"{adapter} is not finite in {listed('broken', broken)}", "start from another adapter")
