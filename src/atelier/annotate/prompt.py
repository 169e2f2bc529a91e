"""Tags as Grounding DINO wants to be asked for them, and back: which tag a box was found by."""

import re
from collections.abc import Callable, Sequence

SEPARATOR = ". "


def clean(tag: str) -> str:
    """A tag as the detector reads it: lower case, single spaces, no full stop (which divides tags) and no brackets
    (which the detector's answer would hold as words of their own)."""
    return " ".join(re.sub(r"[.|?()\[\]{}]", " ", tag.lower()).split())


def prompts(tags: Sequence[str], length: Callable[[str], int], limit: int) -> list[str]:
    """``["a dog", "Car"]`` → ``["a dog. car."]``; several prompts where one would be too long for the detector.

    Args:
        length: tokens of a text, the two at its ends included.
        limit: most tokens of a prompt. A tag that is longer alone stays a prompt of its own, and is cut by the model.

    Returns:
        No prompt where there are no tags.
    """
    found: list[str] = []
    for tag in dict.fromkeys(clean(tag) for tag in tags):
        if not tag:
            continue
        longer = f"{found[-1]} {tag}." if found else ""
        if found and length(longer) <= limit:
            found[-1] = longer
        else:
            found.append(f"{tag}.")
    return found


def tag_of(label: str, tags: Sequence[str]) -> str:
    """The tag that a detected label means.

    The detector names a box by the tokens that answer to it: a tag, a part of one ("light" of "traffic light"), or
    words of several.

    Returns:
        The tag that is the label; else the one with the largest share of its words in the label (of equal ones that
        with more of them, then the first); "" where no word fits.
    """
    asked = list(dict.fromkeys(filter(None, map(clean, tags))))
    label = clean(label)
    if label in asked:
        return label
    named = set(_words(label))

    def fit(tag: str) -> tuple[float, int]:
        words = set(_words(tag)) or {tag}
        return len(words & named) / len(words), len(words & named)

    best = max(asked, key=fit, default="")
    return best if best and fit(best)[1] else ""


def _words(text: str) -> list[str]:
    """The detector's tokenizer takes "t-shirt" apart, and says "t - shirt"."""
    return re.findall(r"\w+", text)
