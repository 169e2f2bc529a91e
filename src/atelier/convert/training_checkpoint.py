"""Reads the trained weights out of a checkpoint of our engine."""

from pathlib import Path

from torch import Tensor

from atelier.errors import DataError
from atelier.training.checkpoint import verified
from atelier.training.masters import WEIGHT
from atelier.training.parts import Parts


def trainable_state(checkpoint: Path, average: bool = False) -> dict[str, Tensor]:
    """The trained parameters, float32, by the names of the objective's model.

    Args:
        checkpoint: a folder written by ``atelier.training``, of any ZeRO stage and number of ranks.
        average: the exponential moving average of the weights instead of the last ones.

    Raises:
        DataError: the checkpoint is damaged or holds no moving average.
    """
    found = verified(checkpoint)
    if found is None:
        raise DataError(
            f"{checkpoint} is no whole checkpoint", "run the training step again: it resumes and saves anew"
        )
    field, shapes = "ema" if average else WEIGHT, found.state["parameters"]
    with Parts(found.folder, found.names) as parts:
        if average and not all(parts.holds(field, name) for name in shapes):
            raise DataError(f"{checkpoint} holds no moving average", "train with ema_decay")
        return {name: parts.whole(field, name, shape) for name, shape in shapes.items()}
