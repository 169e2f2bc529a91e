"""What GenEval needs of a detector and of a reader of colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Found:
    """An object in a picture.

    Attributes:
        label: the class, by the name that was asked for.
        score: the detector's, in [0, 1].
        box: xyxy in pixels.
        mask: bool [H, W] of the picture, where the detector gives one.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


class ObjectFinder(Protocol):
    """A detector of the user's choice."""

    def check(self, labels: Sequence[str]) -> None:
        """Refuses classes that it cannot find.

        Raises:
            ConfigError: names them.
        """
        ...

    def find(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Found]]:
        """The objects of each picture, of its own classes alone; the surest first, unsure ones included.

        Args:
            labels: the classes that each picture is asked for.
        """
        ...


class ColourReader(Protocol):
    """Names colours."""

    def read(self, picture: Image.Image, objects: Sequence[Found]) -> list[str]:
        """The colour of each object, one of ``tasks.COLOURS``."""
        ...
