"""Small COCO folders for the tests, made by the code that makes the twin's."""

import json
from pathlib import Path
from typing import Any

from atelier.data.coco_source import COCOSource
from atelier.data.digits_coco import write_coco
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries

INSTANCES = "annotations/instances_train2017.json"
CAPTIONS = "annotations/captions_train2017.json"


def make(folder: Path, images: int = 12, seed: int = 0) -> Path:
    """Digit canvases in COCO's form."""
    write_coco(folder, images, seed)
    return folder


def manifest(folder: Path) -> Manifest:
    """The folder as it is now."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    entries = [FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path)) for path in files]
    return Manifest("coco-raw", str(folder), sorted_entries(entries))


def source(folder: Path) -> COCOSource:
    """The folder as a source."""
    return COCOSource(manifest(folder))


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    """Replaces members of a JSON object; returns what it now holds."""
    content: dict[str, Any] = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    return content
