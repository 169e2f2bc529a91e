"""What, beside input and encoder, decides the bytes of the shards."""

from dataclasses import dataclass
from typing import Any

from atelier.data.filters import Filters
from atelier.data.sa1b_select import MAX_BOXES, MIN_CONFIDENCE


@dataclass(frozen=True)
class Settings:
    """How raw examples become samples.

    Attributes:
        res: pixels of the square that is encoded.
        samples_per_shard: examples that a shard covers.
        batch: examples encoded at once.
        max_boxes: boxes of a sample.
        min_confidence: of a detected box, see ``sa1b_select.select``.
        min_area: least share of the square that an annotated box covers, see ``coco_boxes.transform``.
        also: further squares of the same image that are encoded with it, in pixels.
        crop: how a square is cut, see ``squares.CROPS``.
        filters: what drops an example before it is decoded; None: nothing.
    """

    res: int
    samples_per_shard: int
    batch: int
    min_confidence: float = MIN_CONFIDENCE
    max_boxes: int = MAX_BOXES
    min_area: float = 0.01
    also: tuple[int, ...] = ()
    crop: str = "bilinear"
    filters: Filters | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Settings":
        """From ``dataclasses.asdict``, as JSON brings it to another process."""
        filters = values.get("filters")
        made = Filters(**filters) if isinstance(filters, dict) else filters
        return cls(**{**values, "also": tuple(values.get("also", ())), "filters": made})

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Every square that is encoded, the smallest first."""
        return tuple(sorted({self.res, *self.also}))
