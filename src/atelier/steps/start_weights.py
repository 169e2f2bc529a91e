"""What a training takes of the model that it starts from: that model's own weights, and what its export left out."""

from atelier.convert.training_checkpoint import shapes_of_parts, weights_of_parts
from atelier.convert.weights import Weights, shapes_of
from atelier.models.keys import Shape
from atelier.recipes.starting import Starting
from atelier.storage.inputs import InputFolder


def start_shapes(model: InputFolder, training: InputFolder | None, starting: Starting) -> dict[str, Shape]:
    """Shapes by the names of ``Objective.trainable_state``; arguments as of ``start_weights``."""
    left_out = shapes_of_parts(training, starting.training_only) if training else {}
    return left_out | shapes_of(_own(model, starting))


def start_weights(model: InputFolder, training: InputFolder | None, starting: Starting) -> Weights:
    """Weights by the names of ``Objective.trainable_state``, fetched and not yet read.

    Args:
        model: the folder of the model.
        training: the output of the training that made it; None where that holds nothing more.
        starting: what the recipe reads of them.

    Raises:
        DataError: a file is damaged or missing. StorageError, ServiceError: it cannot be fetched.
    """
    left_out = weights_of_parts(training, starting.training_only) if training else {}
    return left_out | _own(model, starting)


def _own(model: InputFolder, starting: Starting) -> Weights:
    return starting.read(model.fetch_all(*starting.files))
