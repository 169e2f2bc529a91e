"""A fresh training that begins with what fits of another model's weights, and says what did not.

For a model of another resolution, language model or backbone: what has the same name and shape is taken over.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from atelier.convert.weights import Weights
from atelier.errors import ConfigError, DataError
from atelier.models.keys import listed
from atelier.storage.atomic import write_json

REPORT = "start.json"


@dataclass(frozen=True)
class PartialStart:
    """Every key of both models, by what became of it.

    Attributes:
        taken: in both, of one shape: the value is the other model's.
        fresh: only in this one.
        misshapen: in both, of another shape: fresh too; each with both shapes.
        unused: only in the other.
        share: of this model's numbers, how many were taken.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    misshapen: tuple[str, ...]
    unused: tuple[str, ...]
    share: float

    def lines(self) -> list[str]:
        """The account for a person."""
        kinds = (("taken", self.taken), ("fresh", self.fresh), ("misshapen", self.misshapen), ("unused", self.unused))
        return [f"{self.share:.1%} of the numbers taken over", *(listed(kind, names) for kind, names in kinds if names)]

    def write(self, folder: Path) -> None:
        """The whole account as ``start.json``, every key by name."""
        write_json(folder / REPORT, asdict(self))


def start_partly(state: Mapping[str, Tensor], found: Weights, what: str) -> PartialStart:
    """Writes what fits over a model's tensors, one at a time.

    Args:
        state: ``Objective.trainable_state``: views of the model's own memory.
        found: the other model's weights; floats of any precision.
        what: where they come from, for what is said about them.

    Raises:
        ConfigError: nothing fits.
        DataError: a tensor that fits holds NaN or infinity.
    """
    common = [name for name in state if name in found]
    taken = [name for name in common if tuple(found[name].shape) == tuple(state[name].shape)]
    if not taken:
        raise ConfigError(f"{what} has nothing in common with what is trained", "start from a model of this recipe")
    broken = []
    with torch.no_grad():
        for name in taken:
            value = found[name].tensor()
            if not torch.isfinite(value).all():
                broken.append(name)
            state[name].copy_(value)
    if broken:
        raise DataError(f"{what} is not finite in {listed('broken', broken)}", "start from another model")
    same = set(taken)
    return PartialStart(
        taken=tuple(taken),
        fresh=tuple(name for name in state if name not in found),
        misshapen=tuple(
            f"{name} {tuple(found[name].shape)} for {tuple(state[name].shape)}" for name in common if name not in same
        ),
        unused=tuple(name for name in found if name not in state),
        share=sum(state[name].numel() for name in taken) / sum(tensor.numel() for tensor in state.values()),
    )
