"""What pictures of described boxes are measured with, as it is given; opens nothing."""

from dataclasses import dataclass
from pathlib import Path

from atelier.errors import ConfigError

RESULT, OBJECTS = "evaluation.json", "objects.jsonl"
METRICS = ("crop_clip", "crop_pick", "sam_iou")


@dataclass(frozen=True)
class RegionalYardsticks:
    """What boxes are measured with; what is "" leaves its metric out.

    Attributes:
        clip: folder or id of a CLIP, published ViT-B/32.
        pick: of PickScore.
        pick_tokenizer: of the CLIP whose tokenizer PickScore takes; "": that of ``clip``, or its own.
        sam: of a SAM, published ViT-H.
        legacy: see ``SamIoU``.
    """

    clip: str = ""
    pick: str = ""
    pick_tokenizer: str = ""
    sam: str = ""
    legacy: bool = False

    def check(self) -> None:
        """Refuses what gives no figure.

        Raises:
            ConfigError: none is given, or a part of one without the rest.
        """
        if not (self.clip or self.pick or self.sam):
            raise ConfigError("no CLIP, no PickScore and no SAM is given", "give one of them, or all")
        if self.pick_tokenizer and not self.pick:
            raise ConfigError("PickScore's tokenizer is given, and no PickScore", "give both")
        if self.legacy and not self.sam:
            raise ConfigError("SAM's published box is asked for, and no SAM is given", "give both")

    @property
    def skipped(self) -> dict[str, str]:
        """The metrics that are left out, and why."""
        given = {"crop_clip": (self.clip, "CLIP"), "crop_pick": (self.pick, "PickScore"), "sam_iou": (self.sam, "SAM")}
        return {name: f"no {what} was given" for name, (place, what) in given.items() if not place}

    @property
    def states(self) -> dict[str, str]:
        """Marks of what lies at the places now."""
        from atelier.storage.state import state_of_model

        places = {"clip": self.clip, "pick": self.pick, "pick_tokenizer": self.pick_tokenizer, "sam": self.sam}
        return {name: mark for name, place in places.items() if place and (mark := state_of_model(place))}


@dataclass(frozen=True)
class Boxed:
    """A picture that was drawn, and what was asked for in it.

    Attributes:
        path: of the picture.
        boxes: normalised xyxy of the picture.
        phrases: a description each.
        padded: (W, H) of a picture of which this is the square, with padding at one side (``data.padding``), which is
            taken off before it is measured; None: it has none.
    """

    path: Path
    boxes: list[list[float]]
    phrases: list[str]
    padded: tuple[int, int] | None = None
