"""What a sampled picture is shown beside: the same prompt and seed without what the model was trained for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """How a page speaks of it.

    Attributes:
        shown, beside: under a picture, and under its control.
        without: of the control's figures.
        text: what both are.
    """

    shown: str
    beside: str
    without: str
    text: str


CONTROLS = {
    "grounding": Control(
        "with boxes",
        "without",
        "without grounding",
        "Held-out layouts, {some}, not picked. Left: the boxes and phrases went into the model. Right, as control: the"
        " same prompt and seed with grounding off; the dashed boxes are where things would have been asked for.",
    ),
    "null": Control(
        "by the text",
        "null velocity",
        "of the null velocity",
        "Held-out prompts, {some}, not picked. Left: as the model draws them; boxes, where there are any, are where the"
        " judge reads. Right, as control: from the same text's latent by the null velocity alone (guidance 0), which"
        " was trained towards any image.",
    ),
}
"""By a recipe's ``control``."""
