"""What a text-to-image model is evaluated on: one caption of each of COCO's images, or the prompts of a file."""

from pathlib import Path

import numpy as np

from atelier.data.coco import CaptionFile, usable
from atelier.errors import ConfigError, DataError
from atelier.sampling.requests import prompt_requests


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
    """The prompts of ``sampling.requests.prompt_requests``; ``count`` 0: all.

    Raises:
        DataError: as there, or fewer than ``count``. StorageError: it cannot be read.
    """
    prompts = [request.prompt for request in prompt_requests(path)]
    if count > len(prompts):
        raise DataError(f"{path} has {len(prompts)} prompts", f"give {count}, one a line, or ask for fewer")
    return prompts[:count] if count else prompts
