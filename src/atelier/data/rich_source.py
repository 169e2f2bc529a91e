"""Rich-context data as a raw source: images, and a ``label_<image>.json`` each that describes every object at length.

What is read are CC3M and LAION as the labelling of rich-context layout-to-image leaves them (a picture may lie within a
border, and has a JSON beside it with its true size), and COCO labelled likewise at another resolution.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from atelier.data.picture_folder import PictureFolder
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.rich_examples import RichExamples, joined
from atelier.data.rich_labels import RichLabels
from atelier.storage.manifest import Manifest


class RichSource(RichExamples, PictureFolder):
    """``RawSource`` of image files and their labels, joined by the image's name: ``a.jpg`` and ``label_a.json``.

    Args:
        manifest: of kind ``rich-context-raw``: images, ``label_*.json`` (files, or members of ``*.tar`` as the step
            ``annotate`` writes them), and where there are such ``<image>.json`` (the size before a border was added),
            ``*captions*.json`` of COCO's form (for labels without a caption), and ``validation*.json``: names of
            images, or pairs of an image and its label, that are held out.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, no labels, two different ones of one name, labels both as files and in tars, or several
            files of captions.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache)
        self._labels = RichLabels(self._folder, self._stems)

    def _known(self) -> tuple[Mapping[str, str], ...]:
        return (*super()._known(), self._labels.files)

    def _example(self, image: str, path: Path) -> RawExample | Quarantined | Filtered:
        key = PurePosixPath(image).stem
        return Filtered(key, "held out") if key in self._labels.held_out else super()._example(image, path)

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        return joined(key, data, self._labels.of(key), self._facts_of(key), lambda: self._captions_of(name))
