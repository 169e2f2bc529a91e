"""Reads the trained weights out of a checkpoint of our engine."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from atelier.convert.weights import Weight, Weights
from atelier.errors import DataError
from atelier.models.keys import Shape
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from atelier.training.checkpoint import MANIFEST, Checkpoint, parse, verified
from atelier.training.masters import WEIGHT
from atelier.training.parts import SUFFIX, Parts, names_in

_FOLDER = "checkpoint"
"""Of a training's output: where its last checkpoint lies."""


def averaged(training: Manifest) -> bool:
    """Whether the weights of a training are its moving average: as it was trained, which an override may have changed,
    not as the recipe has it."""
    return training.metadata["config"]["ema_decay"] is not None


def shapes_of_parts(training: InputFolder, parts: tuple[str, ...]) -> dict[str, Shape]:
    """Names and shapes of some of the parameters that a training trained; no weights are fetched.

    Args:
        training: its output.
        parts: what stands before the names' first dots.

    Raises:
        DataError: there is no checkpoint in it.
    """
    return {
        name: tuple(shape)
        for name, shape in _checkpoint(training).state["parameters"].items()
        if name.partition(".")[0] in parts
    }


def weights_of_parts(training: InputFolder, parts: tuple[str, ...]) -> Weights:
    """Some of the parameters that a training trained, float32, averaged where an average was kept.

    Of the ranks' files those alone are fetched that hold some of them.

    Args:
        training, parts: as of ``shapes_of_parts``.

    Raises:
        DataError: there is no checkpoint in it, or a damaged one.
    """
    shapes = shapes_of_parts(training, parts)
    files = []
    for path in training.names(f"{_FOLDER}/*{SUFFIX}"):
        with training.look_into(path) as file:
            if names_in(file) & shapes.keys():
                files.append(path)
    if not files:
        return {}
    folder = training.fetch_all(*files) / _FOLDER
    held = Parts(folder, [path.removeprefix(f"{_FOLDER}/") for path in files])
    field = "ema" if averaged(training.manifest) else WEIGHT

    def reader(name: str, shape: Shape) -> Callable[[], Tensor]:
        return lambda: held.whole(field, name, list(shape))

    return {name: Weight(shape, torch.float32, reader(name, shape)) for name, shape in shapes.items()}


def _checkpoint(training: InputFolder) -> Checkpoint:
    place = training.fetch(f"{_FOLDER}/{MANIFEST}")
    try:
        return parse(json.loads(place.read_text()), place.parent)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{training.manifest.uri}/{_FOLDER} is no checkpoint ({error})", "run the training step again"
        ) from error


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
