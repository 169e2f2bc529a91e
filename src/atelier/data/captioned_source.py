"""Captioned pictures as a raw source: a folder of images and a JSON-lines file that names each one's prompt.

The form in which CrossFlow's training data is listed, JourneyDB's among it: ``{"img_path": …, "prompt": …}`` a line.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.coco_folder import COCOFolder
from atelier.data.geometry import image_size
from atelier.data.prompt_list import PromptList
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import is_list
from atelier.data.raw_source import Examples
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.cache import default_cache
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest


class Prompts:
    """The lists of prompts of a folder, read when the first prompt is asked for.

    Raises:
        DataError: it has none.
    """

    def __init__(self, folder: InputFolder, cache: Path | None) -> None:
        self._folder, self._scratch = folder, cache or default_cache()
        self._names = sorted(name for name in folder.names() if is_list(name))
        if not self._names:
            raise DataError(f"{folder.manifest.uri}: no .jsonl of prompts", "give one with img_path and prompt a line")

    @functools.cached_property
    def read(self) -> PromptList:
        """All of them."""
        return PromptList(self._folder, self._names, self._scratch)

    def example(self, key: str, name: str, data: bytes) -> RawExample:
        """A picture with its prompt.

        Raises:
            ValueError: no prompt names it, or it is no image.
        """
        prompt = self.read.of(name)
        if prompt is None:
            raise ValueError("no prompt names it")
        none = np.empty((0, 4), np.float32)
        return RawExample(key, data, image_size(data), prompt, none, np.empty(0, np.float32), ())


def record(example: RawExample) -> dict[str, Any]:
    """The prompt and the picture's size."""
    return {"key": example.key, "caption": example.caption, "original_size": list(example.original_size)}


class CaptionedSource(COCOFolder):
    """``RawSource`` of image files and one or more lists of prompts, joined by the image's file name.

    Args:
        manifest: of kind ``captioned-raw``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, two of one name, or no list of prompts.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache)
        self._prompts = Prompts(self._folder, cache)

    def fetch(self, name: str) -> Any:
        """A unit's images; the first unit also gives the lines that are of no use, so that they are counted."""
        examples = super().fetch(name)
        if name != self.units[0]:
            return examples

        def with_bad_lines() -> Examples:
            yield from self._prompts.read.bad
            yield from examples()

        return with_bad_lines

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """There are no boxes to choose among."""
        return example

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """See ``record``."""
        return record(example)

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        return self._prompts.example(key, name, data)
