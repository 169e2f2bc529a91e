"""Pictures with what img2dataset leaves beside them: ``<picture>.json`` with a caption and the size before a border."""

import functools
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import orjson

from atelier.data.coco import usable
from atelier.data.coco_folder import FETCHES, COCOFolder
from atelier.data.geometry import image_size
from atelier.data.letterbox import Rectangle, content
from atelier.data.prompt_list import PromptList
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import is_label, is_list, is_validation
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.cache import default_cache
from atelier.storage.digest import sha256_bytes
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest


class PictureFolder(COCOFolder):
    """``RawUnits`` of image files, with ``<image>.json``, ``*captions*.json`` of COCO's form and lists of prompts
    (``*.jsonl``, see ``PromptList``) where there are such.

    Args:
        manifest: of kind ``rich-context-images-raw``.
        cache: where remote files are kept, see ``InputFolder``.
        unit_images: images of a unit; 0 is ``coco_folder.UNIT_IMAGES``.

    Raises:
        DataError: no images, two different files of one name, or several files of captions.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None, unit_images: int = 0) -> None:
        super().__init__(manifest, cache, unit_images)
        self._stems = {PurePosixPath(image).stem for image in self.images}
        self._facts: dict[str, str] = {}
        for name in self._folder.names("*.json"):
            if not (is_label(name) or is_validation(name)):
                note(self._facts, PurePosixPath(name).stem, name, manifest, self._stems)

    @functools.cached_property
    def _prompts(self) -> PromptList | None:
        """The lists of prompts, fetched and read once."""
        names = [name for name in self._folder.names() if is_list(name)]
        return PromptList(self._folder, names, self.cache or default_cache()) if names else None

    def fetch(self, name: str) -> Any:
        """A unit's images and what lies beside them; see ``RawUnits``."""
        examples = super().fetch(name)
        with ThreadPoolExecutor(FETCHES) as pool:
            list(pool.map(self._folder.fetch, self._beside(name)))
        return examples

    def forget(self, name: str) -> None:
        """The unit's files' copies; see ``RawUnits``."""
        super().forget(name)
        for file in self._beside(name):
            self._folder.forget(file)

    def _known(self) -> tuple[Mapping[str, str], ...]:
        """The files of images, by the images' names."""
        return (self._facts,)

    def _beside(self, unit: str) -> list[str]:
        stems = [PurePosixPath(image).stem for image in self._of_unit(unit)]
        return [known[stem] for stem in stems for known in self._known() if stem in known]

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        """With the caption that COCO's file, a list or the file beside it states, if any."""
        facts = self._facts_of(key)
        listed, beside = self._prompts.of(name) if self._prompts else None, facts.get("caption")
        captions = (
            self._captions_of(name)
            or usable([] if listed is None else [listed])
            or usable([beside] if isinstance(beside, str) else [])
        )
        inner, size = inner_of(facts, image_size(data))
        none, boxes = np.empty(0, np.float32), np.empty((0, 4), np.float32)
        return RawExample(key, data, size, "".join(captions[:1]), boxes, none, (), captions=captions, inner=inner)

    def _facts_of(self, key: str) -> dict[str, Any]:
        """What the file beside an image states; {}: there is none."""
        if key not in self._facts:
            return {}
        try:
            stated = orjson.loads(checked_bytes(self._folder, self._facts[key], "its size"))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the file beside it is no JSON: {error}") from error
        if not isinstance(stated, dict):
            raise ValueError("the file beside it is no JSON object")
        return stated


def note(
    known: dict[str, str], image: str, name: str, manifest: Manifest, images: Container[str] | None = None
) -> None:
    """Notes the file of an image; one of no image of ``images`` is left aside.

    Raises:
        DataError: another file of that image is known.
    """
    if images is not None and image not in images:
        return
    # The same file twice: one pattern gave it with the pictures, and another with the labels.
    if image in known and manifest.file(known[image]).sha256 != manifest.file(name).sha256:
        raise DataError(f"{manifest.uri}: {known[image]} and {name} are of one image", "give each image one")
    known[image] = name


def checked_bytes(folder: InputFolder, name: str, what: str) -> bytes:
    """A file's content.

    Raises:
        ValueError: it is not what the manifest says.
    """
    path = folder.fetch(name)
    with os_errors(path):
        data = path.read_bytes()
    if sha256_bytes(data) != folder.manifest.file(name).sha256:
        raise ValueError(f"damaged: {what} is not the bytes that the manifest states")
    return data


def inner_of(facts: Mapping[str, Any], size: tuple[int, int]) -> tuple[Rectangle | None, tuple[int, int]]:
    """Where a picture of ``size`` (H, W) lies within its border, None: it has none; and its own size.

    Args:
        facts: of the file beside it.

    Raises:
        ValueError: they state a size that is none.
    """
    original = _original_size(facts)
    if original is None or (place := content(size, original)) == (0, 0, size[1], size[0]):
        return None, size
    return place, (place[3] - place[1], place[2] - place[0])


def states_size(facts: Mapping[str, Any]) -> bool:
    """Whether the file beside a picture says what its size was before a border was added."""
    return facts.get("original_height") is not None or facts.get("original_width") is not None


def _original_size(facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size before a border was added; None: none is stated."""
    if not states_size(facts):
        return None
    height, width = facts.get("original_height"), facts.get("original_width")
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(f"the file beside it states no size: {height}×{width}")
    return height, width
