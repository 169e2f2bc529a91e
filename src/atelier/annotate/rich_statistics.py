"""What a set of rich labels is like: how long descriptions are, how many, how varied, how hard to read, how fitting.

They are counts by name, so that shards' and machines' add up: ``words 11`` is the number of descriptions of 11 words.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the annotator needs torch, and the page that shows these numbers does not
    from atelier.annotate.rich_annotator import RichAnnotation

FOG_STEP, FIT_STEP = 0.5, 1.0
"""Widths of the bins of the Gunning fog index, and of CLIP's scores."""
SYLLABLES = 3
"""Of these and more a word is a complex one."""

#: A histogram's name → the width of its bins.
HISTOGRAMS = {"objects": 1.0, "words": 1.0, "unique": 1.0, "fog": FOG_STEP, "fit": FIT_STEP}

WHOLE = ("objects", "words", "unique")
"""Those of whole numbers."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_VOWELS = re.compile(r"[aeiouy]+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case; "well-known" and "it's" are one each."""
    return [word.lower() for word in _WORD.findall(text)]


def syllables(word: str) -> int:
    """Groups of vowels, a silent e at the end left out: an estimate, for English."""
    heard = word[:-1] if word.endswith("e") and not word.endswith("le") else word
    return max(len(_VOWELS.findall(heard)), 1)


def fog(text: str) -> float:
    """Gunning's fog index, about the years of school that a text asks for: 0.4 · (words a sentence + 100 · the share of
    words of three syllables and more). 0 of a text without words."""
    found = words(text)
    if not found:
        return 0.0
    sentences = sum(bool(words(part)) for part in re.split(r"[.!?]+", text))
    hard = sum(syllables(word) >= SYLLABLES for word in found)
    return 0.4 * (len(found) / sentences + 100 * hard / len(found))


def counted(found: "RichAnnotation", captioned: bool) -> dict[str, int]:
    """One picture's counts.

    Args:
        captioned: whether it had a caption of its own.
    """
    counts = Counter({f"objects {len(found.objects)}": 1})
    texts = [one.description for one in found.objects]
    for one in found.objects:
        counts[f"words {len(words(one.description))}"] += 1
        counts["written" if one.written else "called by their tag"] += 1
        if one.mask is not None:
            counts["outlined"] += 1
        if one.fit is not None:
            counts[f"fit {int(one.fit // FIT_STEP)}"] += 1
    if texts:
        counts[f"unique {len({word for text in texts for word in words(text)})}"] += 1
        counts[f"fog {int(fog('. '.join(texts)) // FOG_STEP)}"] += 1
    counts["captions given" if captioned else "captions written" if found.caption else "captions missing"] += 1
    return dict(counts)


def statistics(counts: Mapping[str, int]) -> dict[str, Any]:
    """Of the counts of all pictures: ``histograms`` (name → ``step``, ``counts`` by the bins' lower edges), their
    ``means`` (of a bin wider than 1 its middle stands for it) and what else was counted."""
    histograms: dict[str, dict[int, int]] = {}
    others: dict[str, int] = {}
    for name, count in counts.items():
        kind, _, number = name.rpartition(" ")
        if kind in HISTOGRAMS:
            histograms.setdefault(kind, {})[int(number)] = count
        else:
            others[name] = count
    made, means = {}, {}
    for kind, step in HISTOGRAMS.items():
        if kind not in histograms:
            continue
        rows = sorted(histograms[kind].items())
        made[kind] = {"step": step, "counts": [[place * step, count] for place, count in rows]}
        middle = 0.0 if kind in WHOLE else step / 2
        total = sum(count for _, count in rows)
        means[kind] = round(sum((place * step + middle) * count for place, count in rows) / total, 3)
    return {"means": means, "counts": others, "histograms": made}
