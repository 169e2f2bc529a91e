"""What a collection of pictures from the web is sifted by before anything is decoded: sizes, scores, captions.

A sample that a filter drops is no flaw of the data: it is counted by its reason and does not count towards
``max_quarantined``.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from atelier.data.raw_example import RawExample
from atelier.data.t5_captions import clean_caption
from atelier.errors import ConfigError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Filters:
    """Thresholds. Scores are those that LAION publishes and img2dataset keeps in each picture's json.

    The defaults keep what LAION-400M itself calls safe and similar (its own bound is 0.3), and of LAION-2B what
    Stable Diffusion 2 took (``punsafe`` 0.1). A source without scores is sifted by size, shape and caption alone.
    """

    min_side: int | None = Field(
        default=None,
        ge=0,
        description="pixels of the shorter side, as stored; None: the greatest resolution that is encoded",
    )
    max_aspect: float = Field(default=2.0, ge=1, description="longer side over shorter side")
    same_proportions: bool = Field(
        default=False,
        description="drop pictures of other proportions than their original: img2dataset's resize_mode border, its "
        "default, puts white bands around them (center_crop changes proportions too, without bands)",
    )
    nsfw: tuple[str, ...] = Field(
        default=("UNLIKELY",), description="values of NSFW that are kept: UNLIKELY, UNSURE, NSFW"
    )
    min_similarity: float = Field(default=0.3, description="of picture and caption, by CLIP ViT-B/32")
    max_punsafe: float = Field(default=0.1, description="LAION-2B's probability of unsafe content")
    max_pwatermark: float = Field(default=0.5, description="LAION-2B's probability of a watermark")
    unscored: bool = Field(default=True, description="keep samples that lack a score; one that is no number is dropped")
    empty_captions: bool = Field(default=False, description="keep samples whose caption is empty")
    for_t5: bool = Field(default=False, description="captions are cleaned for T5: judge by what is left of them")


def changed(filters: Filters, fields: str) -> Filters:
    """The filters with some fields replaced.

    Args:
        fields: a JSON object, or "".

    Raises:
        ConfigError: no JSON object, an unknown field, or a value that does not fit.
    """
    if not fields.strip():
        return filters
    adapter = TypeAdapter(dict[str, Any])
    try:
        given = adapter.validate_json(fields)
        return TypeAdapter(Filters).validate_python({**TypeAdapter(Filters).dump_python(filters), **given})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'filters'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"filters {fields!r}: {problems}", "give a JSON object of fields of data.filters") from error


def reason(example: RawExample, filters: Filters, side: int) -> str:
    """Why a sample is dropped, or "". Looks at its header, json and caption; the picture is not decoded.

    Args:
        side: ``min_side`` where the filters have none.

    Returns:
        What is counted, and after a colon the value.
    """
    facts, (height, width) = example.facts, example.original_size
    least, status = side if filters.min_side is None else filters.min_side, facts.get("status")
    if status not in (None, "success"):
        return f"status: {status}"
    if min(height, width) < least:
        return f"too small: {width}×{height}, at least {least}"
    if max(height, width) > filters.max_aspect * min(height, width):
        return f"too long: {width}×{height}"
    if filters.same_proportions and _reshaped(width, height, facts):
        return f"other proportions: {width}×{height}"
    if facts.get("NSFW") is not None and facts["NSFW"] not in filters.nsfw:
        return f"nsfw: {facts['NSFW']}"
    for name, least_score, most in (
        ("similarity", filters.min_similarity, math.inf),
        ("punsafe", -math.inf, filters.max_punsafe),
        ("pwatermark", -math.inf, filters.max_pwatermark),
    ):
        if problem := _out_of_range(name, facts.get(name), least_score, most):
            return problem
    if not filters.unscored and (missing := _unscored(facts)):
        return f"no score: {missing}"
    if not filters.empty_captions:
        if not example.caption.strip():
            return "empty caption"
        if filters.for_t5 and not any(sign.isalnum() for sign in clean_caption(example.caption)):
            return f"nothing left of the caption: {example.caption}"
    return ""


def _unscored(facts: Mapping[str, Any]) -> str:
    """LAION-400M has NSFW, LAION-2B punsafe in its place; both have the similarity."""
    if facts.get("similarity") is None:
        return "similarity"
    return "NSFW" if facts.get("NSFW") is None and facts.get("punsafe") is None else ""


def _out_of_range(name: str, value: object, least: float, most: float) -> str:
    if value is None:
        return ""
    # Similarities are cosines and the others probabilities; what is far beyond 1 (or NaN) is something else.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2:
        return f"unreadable score: {name} {value!r}"
    return "" if least <= value <= most else f"{name}: {value}"


def _reshaped(width: int, height: int, facts: Mapping[str, Any]) -> bool:
    """Whether a picture has other proportions than its original, by more than rounding to whole pixels."""
    wide, high = facts.get("original_width"), facts.get("original_height")
    if not isinstance(wide, int) or not isinstance(high, int) or min(wide, high) < 1:
        return False
    return abs(width * high - height * wide) > wide + high
