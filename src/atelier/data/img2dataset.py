"""Reads the WebDataset tars that img2dataset writes (LAION-400M, LAION-2B, COYO, CC12M …) as a stream.

A sample is ``<key>.jpg`` (or ``.png``, ``.webp``), ``<key>.txt`` with the caption and ``<key>.json``: caption, url,
key, status, error_message, width, height, original_width, original_height, exif, sha256, and the metadata columns that
were kept, for LAION-400M ``NSFW``, ``similarity`` and ``LICENSE``. A sample's members follow each other, as
WebDataset's writer leaves them. Source: img2dataset's ``writer.py`` and ``dataset_examples/laion400m.md``.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.data.geometry import image_size
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b import KEY, checked_text
from atelier.data.tar_stream import Member, TarDamaged, members

MAX_JSON = 2**20
"""Bytes of a sample's json: exif and all, a few thousand."""

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")


def read_tar(tar: Path) -> Iterator[RawExample | Quarantined | Filtered]:
    """The examples of one tar in its order, one item at the least; what cannot be used comes as ``Quarantined``, files
    of another kind as ``Filtered``.

    Of a damaged tar the samples before the damage are used, but for the last one, which may lack members; the tar is
    quarantined under its own name.

    Raises:
        StorageError: the file is missing, or the disk fails.
    """
    return examples_of(members(tar), tar.name)


def examples_of(found: Iterator[Member], tar: str) -> Iterator[RawExample | Quarantined | Filtered]:
    """``read_tar`` of members that are being read, from the tar of this name."""
    seen, sample, key, empty = set[str](), dict[str, bytes](), "", True
    try:
        for member in found:
            empty = False
            own, kind = _key_and_kind(member)
            if problem := _problem(member, own, kind):
                yield problem
                continue
            if own != key:
                if sample:
                    yield _example(key, sample, seen)
                sample, key = {}, own
            if kind in sample:
                yield Quarantined(own, f"a member is there twice: {kind}")
            else:
                sample[kind] = member.data
        if sample:
            yield _example(key, sample, seen)
    except TarDamaged as error:
        empty = False
        if sample:
            yield Quarantined(key, f"lost in a damaged tar: {tar}")
        yield Quarantined(tar, f"damaged tar: {error}")
    if empty:
        yield Quarantined(tar, "no files in the tar")


def _key_and_kind(member: Member) -> tuple[str, str]:
    """``"./000000012.jpg"`` → ``("000000012", "jpg")``."""
    key, _, kind = PurePosixPath(member.name).name.partition(".")
    return key, "image" if kind.lower() in _IMAGES else kind.lower()


def _problem(member: Member, key: str, kind: str) -> Quarantined | Filtered | None:
    if member.problem:
        return Quarantined(member.name, member.problem)
    if not KEY.fullmatch(key):
        return Quarantined(member.name, "unusable name: not 1 to 64 letters, digits, _ and -")
    if kind not in (*_TEXTS, "image"):
        return Filtered(member.name, f"unused kind of file: {kind}")
    return None


def _example(key: str, sample: dict[str, bytes], seen: set[str]) -> RawExample | Quarantined:
    try:
        if key in seen:
            raise ValueError("the sample is there twice")
        seen.add(key)
        if "image" not in sample:
            raise ValueError(f"no image for its {'json' if 'json' in sample else 'caption'}")
        facts = _facts(sample["json"]) if "json" in sample else {}
        said = facts.get("caption")
        # A caption that is missing may be null or, as tables write it, NaN.
        caption = _caption(sample["txt"]) if "txt" in sample else said if isinstance(said, str) else ""
        none, size = np.empty((0, 4), np.float32), image_size(sample["image"])
        return RawExample(
            key, sample["image"], size, checked_text(caption, "caption"), none, np.empty(0, np.float32), (), facts=facts
        )
    except ValueError as error:
        return Quarantined(key, str(error))


def _caption(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("caption is not Unicode text") from None


def _facts(data: bytes) -> dict[str, Any]:
    """The json's plain values; Python's own parser, as img2dataset writes NaN where a score is missing."""
    if len(data) > MAX_JSON:
        raise ValueError(f"its json is too large: {len(data):,} bytes, at most {MAX_JSON:,}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its json is not readable: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"its json is not readable: {type(found).__name__}, not an object")
    return {name: value for name, value in found.items() if value is None or isinstance(value, str | int | float)}
