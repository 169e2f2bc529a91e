"""What, beside input and encoder, decides the bytes of the shards."""

from dataclasses import dataclass

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
    """

    res: int
    samples_per_shard: int
    batch: int
    min_confidence: float = MIN_CONFIDENCE
    max_boxes: int = MAX_BOXES
    min_area: float = 0.01
