"""What is in an image: one Protocol; RAM, or CLIP or SigLIP over a vocabulary."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image


class Tagger(Protocol):
    """Names things."""

    def prepare(self, image: Image.Image) -> Any:
        """What ``tags`` needs of an RGB image; called from several threads."""
        ...

    def tags(self, prepared: Sequence[Any]) -> list[list[str]]:
        """The tags of each prepared image; an image may have none."""
        ...
