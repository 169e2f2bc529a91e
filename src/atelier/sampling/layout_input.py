"""Boxes and phrases as a caller gives them, checked and brought into one form: a layout a prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.errors import ConfigError

Box = Sequence[float]
Boxes = Sequence[Box]


@dataclass(frozen=True)
class PromptLayout:
    """What one prompt's picture is grounded on.

    Attributes:
        boxes: normalised xyxy.
        phrases: one a box; empty where ``embeddings`` are given.
        embeddings: [boxes, width] phrase embeddings computed before, instead of phrases.
    """

    boxes: list[tuple[float, float, float, float]]
    phrases: list[str]
    embeddings: Tensor | None = None


@dataclass(frozen=True)
class Names:
    """What errors call a caller's arguments: GLIGEN's, unless he says otherwise.

    Attributes:
        phrase: one of the phrases.
        phrases, embeddings: the arguments that they, and their embeddings, are given by.
        room: what to do about more boxes than there may be.
    """

    phrase: str = "phrase"
    phrases: str = "gligen_phrases"
    embeddings: str = "gligen_phrase_embeds"
    room: str = "leave some out; gligen_max_boxes is what the model was trained with"


def read_layouts(
    boxes: Boxes | Sequence[Boxes | None] | Tensor | None,
    phrases: Sequence[str] | Sequence[Sequence[str] | None] | None,
    embeddings: Tensor | Sequence[Tensor | None] | None,
    prompts: int,
    max_boxes: int,
    names: Names | None = None,
) -> list[PromptLayout]:
    """A layout a prompt, or an empty list where nothing is given.

    Args:
        boxes: one list of boxes for every prompt, or a list a prompt.
        phrases: one list of phrases for every prompt, or a list a prompt.
        embeddings: instead of phrases: [N, width] for every prompt, or one a prompt.
        prompts: how many prompts there are.
        max_boxes: the number of slots.
        names: of the arguments, for what is raised.

    Raises:
        ConfigError: says which prompt and which box, what is wrong and what to do.
    """
    names = names or Names()
    if phrases is not None and embeddings is not None:
        raise ConfigError(f"{names.phrases} and {names.embeddings} are both given", "give one of the two")
    if isinstance(phrases, str):
        raise ConfigError(f"{names.phrases} is the string {phrases!r}", f"give a list: a {names.phrase} a box")
    if _absent(boxes) and _absent(phrases) and _absent(embeddings):
        return []
    own_boxes = _a_prompt(boxes, _boxes_are_shared(boxes), prompts, "boxes")
    own_phrases = _a_prompt(
        phrases, phrases is not None and any(isinstance(p, str) for p in phrases), prompts, f"{names.phrase}s"
    )
    own_embeddings = _a_prompt(
        embeddings, isinstance(embeddings, Tensor) and embeddings.dim() == 2, prompts, f"{names.phrase} embeddings"
    )
    return [
        _layout(number, *given, max_boxes, names)
        for number, given in enumerate(zip(own_boxes, own_phrases, own_embeddings, strict=True))
    ]


def box_fault(box: Any) -> str | None:
    """What is wrong with a box, or None."""
    try:
        values = [float(value) for value in box]
    except (TypeError, ValueError):
        return "is not four numbers"
    if len(values) != 4:
        return f"has {len(values)} numbers, not 4"
    if not all(math.isfinite(value) for value in values):
        return "holds a number that is not finite"
    x0, y0, x1, y1 = values
    if min(values) < 0 or max(values) > 1:
        return "is not within 0 to 1"
    if x0 > x1 or y0 > y1:
        return "is reversed"
    if x0 == x1 or y0 == y1:
        return "has no area"
    return None


def _absent(value: Any) -> bool:
    return value is None or len(value) == 0


def _boxes_are_shared(boxes: Any) -> bool:
    """Whether ``boxes`` is one list of boxes, judged by its first box that holds anything."""
    for inner in () if boxes is None else boxes:
        if inner is not None and len(inner):
            first = inner[0]
            return isinstance(first, Real) or (isinstance(first, Tensor | np.ndarray) and first.ndim == 0)
    return False


def _a_prompt(given: Any, shared: bool, prompts: int, what: str) -> list[Any]:
    if _absent(given):
        return [None] * prompts
    if shared:
        return [given] * prompts
    if len(given) != prompts:
        raise ConfigError(
            f"{len(given)} lists of {what} for {prompts} prompt{'s' * (prompts != 1)}",
            "give one list for all prompts, or one a prompt",
        )
    return list(given)


def _layout(number: int, boxes: Any, phrases: Any, embeddings: Any, max_boxes: int, names: Names) -> PromptLayout:
    boxes = [] if boxes is None else list(boxes)
    phrases = [] if phrases is None else list(phrases)
    one = names.phrase
    counted, what = (len(phrases), f"{one}s") if embeddings is None else (len(embeddings), f"{one} embeddings")
    if len(boxes) != counted:
        raise ConfigError(f"prompt {number} has {len(boxes)} boxes and {counted} {what}", f"give a {one} a box")
    if len(boxes) > max_boxes:
        raise ConfigError(
            f"prompt {number} has {len(boxes)} boxes, more than the {max_boxes} slots",
            names.room,
        )
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise ConfigError(f"{one} {phrase!r} of prompt {number} is not a string", f"give a {one} a box")
    for place, box in enumerate(boxes):
        if fault := box_fault(box):
            shown = box.tolist() if isinstance(box, Tensor | np.ndarray) else box
            raise ConfigError(
                f"box {place} of prompt {number}, {shown}, is not a box: it {fault}",
                "give [x0, y0, x1, y1] with x0 < x1 and y0 < y1, as shares of the picture within 0 to 1",
            )
    exact = [(float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in boxes]
    return PromptLayout(exact, phrases, None if embeddings is None else torch.as_tensor(embeddings))
