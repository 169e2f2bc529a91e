"""GenEval's rules (arXiv 2310.11513, section 3): is what was found what the prompt asks for?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atelier.evaluation.geneval.objects import Found
from atelier.evaluation.geneval.tasks import Asked, Task

MISSING, TOO_MANY, COLOUR, POSITION = "missing", "too many", "colour", "position"


@dataclass(frozen=True)
class Thresholds:
    """The published ones.

    Attributes:
        confidence: least score of an object.
        counting: the same for prompts that count, where a doubtful second box is a wrong answer. It was set for
            Mask2Former; detectors whose scores are lower throughout (Grounding DINO, OWL-ViT) want a lower one.
        offset: how far centres must be apart to be beside each other, of the two boxes' sizes added.
    """

    confidence: float = 0.3
    counting: float = 0.9
    offset: float = 0.1

    def of(self, tag: str) -> float:
        """The least score for a tag's prompts."""
        return self.counting if tag == "counting" else self.confidence


PUBLISHED = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its prompt; if not, what is wrong: (kind, sentence) each."""

    reasons: tuple[tuple[str, str], ...]

    @property
    def correct(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons


def judge(
    task: Task,
    found: Sequence[Found],
    colours: Callable[[Sequence[Found]], list[str]],
    thresholds: Thresholds = PUBLISHED,
) -> Verdict:
    """Looks for everything that the prompt includes, and for too many of what it excludes.

    Where more objects of a class are found than asked for, the surest are looked at: their colour, their position.

    Args:
        found: a detector's objects, of any score.
        colours: names the colour of objects.
    """
    sure = sorted((one for one in found if one.score >= thresholds.of(task.tag)), key=lambda one: -one.score)
    reasons: list[tuple[str, str]] = []
    chosen: list[list[Found]] = []
    for asked in task.include:
        own, why = _matching([one for one in sure if one.label == asked.label], asked, colours)
        chosen.append(own)
        reasons += why
    for asked, own in zip(task.include, chosen, strict=True):
        if asked.relation and own and chosen[asked.of]:
            reasons += _misplaced(asked, own, task.include[asked.of], chosen[asked.of], thresholds.offset)
    for asked in task.exclude:
        count = sum(one.label == asked.label for one in sure)
        if count >= asked.count:
            reasons.append((TOO_MANY, f"{count} × {asked.label}, fewer than {asked.count} wanted"))
    return Verdict(tuple(reasons))


def _matching(
    own: list[Found], asked: Asked, colours: Callable[[Sequence[Found]], list[str]]
) -> tuple[list[Found], list[tuple[str, str]]]:
    """The surest objects of a class, as many as asked for, and what is wrong with them."""
    if len(own) < asked.count:
        return own, [(MISSING, f"{len(own)} × {asked.label}, {asked.count} wanted")]
    own = own[: asked.count]
    read = colours(own) if asked.colour else []
    if any(colour != asked.colour for colour in read):
        return own, [(COLOUR, f"{asked.label} is {', '.join(read)}, {asked.colour} wanted")]
    return own, []


def _misplaced(
    asked: Asked, own: Sequence[Found], other: Asked, others: Sequence[Found], offset: float
) -> list[tuple[str, str]]:
    """What of ``own`` does not lie where it should, seen from each of ``others``."""
    wrong = []
    for one in own:
        for reference in others:
            seen = relations(one.box, reference.box, offset)
            if asked.relation not in seen:
                said = " and ".join(sorted(seen)) or "beside"
                wrong.append((POSITION, f"{asked.label} is {said} {other.label}, {asked.relation} wanted"))
    return wrong


def relations(box: Sequence[float], reference: Sequence[float], offset: float = PUBLISHED.offset) -> set[str]:
    """Where a box (xyxy, y downwards) lies, seen from another; none where the centres are nearly the same.

    Right of: its centre is to the right by more than ``offset`` times both widths added; and so on.
    """
    found = set()
    for axis, (before, after) in enumerate((("left of", "right of"), ("above", "below"))):
        apart = (box[axis] + box[axis + 2] - reference[axis] - reference[axis + 2]) / 2
        needed = offset * (box[axis + 2] - box[axis] + reference[axis + 2] - reference[axis])
        if abs(apart) > needed:
            found.add(after if apart > 0 else before)
    return found
