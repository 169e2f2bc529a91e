"""Captioned pictures as a raw source: a folder of images and a JSON-lines file that names each one's prompt.

The form in which CrossFlow's training data is listed, JourneyDB's among it: ``{"img_path": …, "prompt": …}`` a line.
"""

import functools
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.data.coco_folder import COCOFolder
from atelier.data.geometry import image_size
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import Examples
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.manifest import Manifest


class CaptionedSource(COCOFolder):
    """``RawSource`` of image files and one or more ``.jsonl`` files of prompts, joined by the image's file name.

    Args:
        manifest: of kind ``captioned-raw``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, two of one name, or no file of prompts.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache)
        self._lists = sorted(name for name in self._folder.names() if name.endswith(".jsonl"))
        if not self._lists:
            raise DataError(f"{manifest.uri}: no .jsonl of prompts", "give one with img_path and prompt a line")

    @functools.cached_property
    def _read(self) -> tuple[dict[str, str], list[Quarantined]]:
        """Prompts by file name, and the lines that are of no use."""
        prompts: dict[str, str] = {}
        bad: list[Quarantined] = []
        for name in self._lists:
            path = self._folder.fetch(name)
            with os_errors(path), path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        image, prompt = _entry(line)
                        prompts[image] = prompt
                    except ValueError as error:
                        bad.append(Quarantined(f"{PurePosixPath(name).stem}-line-{number}", str(error)))
        if not prompts:
            reason = bad[0].reason if bad else "it is empty"
            raise DataError(f"{self.manifest.uri}: no line of its list can be used ({reason})", "correct the .jsonl")
        return prompts, bad

    def fetch(self, name: str) -> Any:
        """A unit's images; the first unit also gives the lines that are of no use, so that they are counted."""
        examples = super().fetch(name)
        if name != self.units[0]:
            return examples

        def with_bad_lines() -> Examples:
            yield from self._read[1]
            yield from examples()

        return with_bad_lines

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """There are no boxes to choose among."""
        return example

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """The prompt and the picture's size."""
        return {"key": example.key, "caption": example.caption, "original_size": list(example.original_size)}

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        prompt = self._read[0].get(name)
        if prompt is None:
            raise ValueError("no prompt names it")
        none = np.empty((0, 4), np.float32)
        return RawExample(key, data, image_size(data), prompt, none, np.empty(0, np.float32), ())


def _entry(line: bytes) -> tuple[str, str]:
    """A line's file name and prompt.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError("the line is no JSON") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("img_path", "prompt")):
        raise ValueError("the line has no img_path and prompt")
    if not found["prompt"].strip():
        raise ValueError("the prompt is empty")
    return PurePosixPath(found["img_path"]).name, found["prompt"]
