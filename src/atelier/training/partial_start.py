"""A fresh training that begins with what fits of another model's weights, and says what did not.

For a model of another resolution, language model or backbone: what has the same name and shape is taken over.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.convert.weights import Weights, shapes_of
from atelier.errors import ConfigError, DataError
from atelier.models.keys import Shape, listed
from atelier.storage.atomic import write_json

REPORT = "start.json"
LEAST = 1e-3
"""The share of a model's numbers below which another one has nothing in common with it: a temperature fits anywhere."""


@dataclass(frozen=True)
class PartialStart:
    """Every key of both models, by what became of it.

    Attributes:
        origin: where the other model's weights come from.
        taken: in both, of one shape: the value is the other model's.
        fresh: only in this one.
        misshapen: in both, of another shape: fresh too; each with both shapes.
        unused: only in the other.
        share: of this model's numbers, how many were taken.
    """

    origin: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    misshapen: tuple[str, ...]
    unused: tuple[str, ...]
    share: float

    def lines(self) -> list[str]:
        """The account for a person."""
        kinds = (("taken", self.taken), ("fresh", self.fresh), ("misshapen", self.misshapen), ("unused", self.unused))
        first = f"start: {self.share:.1%} of the numbers taken over from {self.origin}"
        return [first, *(listed(kind, names) for kind, names in kinds if names)]

    def summary(self) -> dict[str, Any]:
        """The share and how many keys of each kind."""
        counts = {kind: len(getattr(self, kind)) for kind in ("taken", "fresh", "misshapen", "unused")}
        return {"share": round(self.share, 6), **counts}

    def write(self, folder: Path) -> None:
        """The whole account as ``start.json``, every key by name."""
        write_json(folder / REPORT, asdict(self))


def read_start(path: Path) -> PartialStart:
    """An account that ``write`` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        return PartialStart(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no account of a start ({error})", "run the step again") from error


def compare(own: Mapping[str, Shape], found: Mapping[str, Shape], origin: str) -> PartialStart:
    """What a start would take over, by names and shapes alone.

    Args:
        own: of what is trained.
        found: of the other model.

    Raises:
        ConfigError: nothing fits, or next to nothing.
    """
    common = [name for name in own if name in found]
    same = {name for name in common if tuple(found[name]) == tuple(own[name])}
    share = sum(prod(own[name]) for name in same) / sum(prod(shape) for shape in own.values())
    if share < LEAST:
        raise ConfigError(
            f"{origin} has nothing in common with what is trained: of its {len(found)} keys {len(common)} have a name "
            f"that is known here, {len(same)} the shape too",
            "start from a model of this recipe",
        )
    return PartialStart(
        origin=origin,
        taken=tuple(name for name in common if name in same),
        fresh=tuple(name for name in own if name not in found),
        misshapen=tuple(f"{name} {tuple(found[name])} for {tuple(own[name])}" for name in common if name not in same),
        unused=tuple(name for name in found if name not in own),
        share=share,
    )


def start_partly(state: Mapping[str, Tensor], found: Weights, origin: str) -> PartialStart:
    """Writes what fits over a model's tensors, one at a time.

    Args:
        state: ``Objective.trainable_state``: views of the model's own memory.
        found: the other model's weights; floats of any precision.
        origin: where they come from, for what is said about them.

    Raises:
        ConfigError: nothing fits.
        DataError: a tensor that fits holds NaN or infinity.
    """
    account = compare({name: tuple(tensor.shape) for name, tensor in state.items()}, shapes_of(found), origin)
    broken = []
    with torch.no_grad():
        for name in account.taken:
            value = found[name].tensor()
            if not torch.isfinite(value).all():
                broken.append(name)
            state[name].copy_(value)
    if broken:
        raise DataError(f"{origin} is not finite in {listed('broken', broken)}", "start from another model")
    return account
