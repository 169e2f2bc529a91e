"""Verdicts to figures: a share a tag, their mean, and what failures are counted by."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from atelier.evaluation.geneval.rules import Verdict
from atelier.evaluation.geneval.tasks import TAGS


def scores(tags: Sequence[str], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Figures of pictures.

    Returns:
        ``metrics``: ``geneval_<tag>``, the share of a tag's pictures that are right, and ``geneval``, the mean of the
        tags that are there; ``failures``: tag → kind → pictures; ``pictures``: tag → number.
    """
    order = [*(tag for tag in TAGS if tag in tags), *sorted(set(tags) - set(TAGS))]
    metrics: dict[str, float] = {}
    failures: dict[str, dict[str, int]] = {}
    for tag in order:
        own = [verdict for name, verdict in zip(tags, verdicts, strict=True) if name == tag]
        metrics[f"geneval_{tag}"] = sum(verdict.correct for verdict in own) / len(own)
        kinds = Counter(kind for verdict in own for kind in {kind for kind, _ in verdict.reasons})
        failures[tag] = dict(sorted(kinds.items()))
    metrics["geneval"] = sum(metrics.values()) / len(metrics)
    return {"metrics": metrics, "failures": failures, "pictures": dict(Counter(tags))}
