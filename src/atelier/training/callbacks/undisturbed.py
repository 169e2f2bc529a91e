"""Work beside the training that must leave no trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from atelier.training.run import TrainingRun


@contextmanager
def undisturbed(run: TrainingRun) -> Iterator[None]:
    """Puts the model into evaluation without gradients, and afterwards everything back as it was.

    Put back are the modules' training flags and the global generators of torch (also the device's), numpy and Python.
    What the block does to weights or gradients is its own affair: it must not.
    """
    flags = {module: module.training for module in run.model.modules()}
    devices = [run.ranks.device.index or 0] if run.ranks.device.type == "cuda" else []
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            run.model.eval()
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for module, training in flags.items():
            module.training = training


def takes_part(run: TrainingRun) -> bool:
    """Whether this rank runs the model: rank 0 alone, or all of them where ZeRO 3 gathers each layer from all."""
    return run.ranks.first or run.config.zero_stage == 3
