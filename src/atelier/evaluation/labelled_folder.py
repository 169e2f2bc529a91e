"""Folders of pictures and of their labels, here, as sources of the raw form ``rich-context``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from atelier.data.raw_form import PICTURES, is_label, is_validation
from atelier.data.rich_label import PREFIX
from atelier.data.rich_labels import held_out
from atelier.data.rich_source import RichSource
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries

LEAST = 64
"""Pictures of a source: captions of COCO's form are read anew in each."""


def labelled_sources(
    images: Path, labels: Path, validation: Path | None = None, at_once: int = 0
) -> Iterator[RichSource]:
    """Sources of some of the pictures each, those with a label in the order of their names, at the end all others.

    A source's files are read, for their digests, when it is asked for: a few of many pictures want few of them.

    Args:
        images, labels: folders; whatever lies below them in any depth. They may be the same.
        validation: a list of the pictures to take; None: all but those of the folders' own ``validation*.json``.
        at_once: pictures of a source, ``LEAST`` at least; 0: all.

    Raises:
        DataError: no pictures, two of one name, no labels. StorageError: they cannot be read.
    """
    wanted: set[str] | None = None
    if validation is not None:
        with os_errors(validation):
            wanted = held_out(validation.read_bytes(), str(validation))
    files = sorted({file.resolve() for folder in (images, labels) for file in _files(folder)})
    pictures = [path for path in files if _is_picture(path) and (wanted is None or path.stem in wanted)]
    beside: dict[str, list[Path]] = {path.stem: [] for path in pictures}
    others = []
    for path in files:
        if path.suffix != ".json" or (wanted is not None and is_validation(path.name)):
            continue
        if path.stem.removeprefix(PREFIX) in beside and not is_validation(path.name):
            beside[path.stem.removeprefix(PREFIX)].append(path)
        elif not is_label(path.name):
            others.append(path)
    labelled = [path for path in pictures if any(is_label(each.name) for each in beside[path.stem])]
    bare = set(pictures).difference(labelled)
    step = max(at_once, LEAST) if at_once and len(beside) == len(pictures) else max(len(labelled), 1)
    for first in range(0, max(len(labelled), 1), step):
        some = labelled[first : first + step]
        if first + step >= len(labelled):
            some += sorted(bare)
        yield RichSource(_manifest([*some, *(each for path in some for each in beside[path.stem]), *others]))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _manifest(files: Sequence[Path]) -> Manifest:
    root = Path("/")
    entries = [
        FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, sha256_file(path)) for path in set(files)
    ]
    return Manifest("rich-context-raw", str(root), sorted_entries(entries))


def _files(folder: Path) -> list[Path]:
    with os_errors(folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
        return [path for path in folder.rglob("*") if path.is_file()]
