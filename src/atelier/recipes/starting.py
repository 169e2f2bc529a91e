"""How a recipe's training begins with a model that was made before; light to import, as every recipe is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atelier.convert.weights import Weights
    from atelier.models.keys import Shape
    from atelier.storage.inputs import InputFolder


@dataclass(frozen=True)
class Starting:
    """What of an earlier model's folder is read, and how much of it must fit.

    Attributes:
        files: patterns of the files that are read.
        needed: patterns without which the folder is no model of the recipe.
        same_base: patterns of the base's files that must be the very ones that the earlier model was trained on, by
            content; () asks for the very same base.
        parts: the subfolders of a foreign model's folder that hold them.
        take: (a foreign file or folder, an empty folder, the base) → writes ``files`` into the folder; returns what
            there is to say.
        read: a folder that holds the files → the weights by the names of ``Objective.trainable_state``.
        shapes: of what is trained, by those names, where a part of it may begin afresh; None: every key must fit.
        training_only: parts (what stands before a name's first dot) that are trained and left out of exports: they are
            taken from the training that made the model.
    """

    files: tuple[str, ...]
    needed: tuple[str, ...]
    same_base: tuple[str, ...]
    parts: tuple[str, ...]
    take: "Callable[[Path, Path, InputFolder], list[str]]"
    read: "Callable[[Path], Weights]"
    shapes: "Callable[[], dict[str, Shape]] | None" = None
    training_only: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether a part of what is trained may begin afresh."""
        return self.shapes is not None
