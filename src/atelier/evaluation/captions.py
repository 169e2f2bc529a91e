"""What a text-to-image model is evaluated on: one caption of each of COCO's images, or the prompts of a file."""

import json
from pathlib import Path

import numpy as np

from atelier.data.coco import CaptionFile, usable
from atelier.errors import ConfigError, DataError
from atelier.storage.atomic import os_errors


def coco_captions(path: Path, count: int, seed: int) -> list[str]:
    """One caption of each of ``count`` images of COCO's ``captions_*.json``; all are drawn at random.

    Addressed by (seed, image's name, order): the same file, count and seed give the same list, and a smaller count
    its beginning.

    Raises:
        DataError: not of COCO's form. ConfigError: it has fewer images than asked for.
    """
    file = CaptionFile(path)
    names = sorted(name for name in file.names() if usable(file.of(name)))
    if count > len(names):
        raise ConfigError(f"{path} has captions of {len(names):,} images, not of {count:,}", "ask for fewer")
    order = np.random.default_rng([seed, 0]).permutation(len(names))[:count].tolist()
    chosen = []
    for place in order:
        captions = usable(file.of(names[place]))
        chosen.append(captions[int(np.random.default_rng([seed, 1, place]).integers(len(captions)))])
    return chosen


COCO_COUNT = 30_000
"""Captions that published figures are of."""


def read_prompts(path: Path, count: int, seed: int) -> list[str]:
    """COCO's captions of a ``.json``, the prompts of any other file; ``count`` 0: 30,000 captions, or every prompt."""
    if path.suffix == ".json":
        return coco_captions(path, count or COCO_COUNT, seed)
    return prompts_of_file(path, count)


def prompts_of_file(path: Path, count: int = 0) -> list[str]:
    """Prompts of a ``.jsonl`` (``{"prompt": …}`` a line) or of any other file (one a line); ``count`` 0: all.

    Raises:
        DataError: a line is no such object; no prompts, or fewer than ``count``. StorageError: it cannot be read.
    """
    with os_errors(path):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text ({error})", "give a file of prompts") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_prompt(path, number, line) if path.suffix == ".jsonl" else line.strip())
    if not prompts or count > len(prompts):
        raise DataError(f"{path} has {len(prompts)} prompts", f"give {count or 'some'}, one a line")
    return prompts[:count] if count else prompts


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {number}: no JSON object with a prompt ({type(error).__name__}: {error})",
            'write {"prompt": "…"} on one line',
        ) from error
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{path}, line {number}: the prompt is {found!r}", 'write {"prompt": "…"} on one line')
    return found.strip()
