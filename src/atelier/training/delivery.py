"""What a training on other machines hands over: its files on S3, and last a list of them.

The files lie where the step's output will lie (``<artifacts>/train/<key>/``), so nothing is copied twice; the output
does not exist before the step writes its manifest. Names that begin with "." are ours alone.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.atomic import NotFound
from atelier.storage.digest import sha256_bytes, sha256_file
from atelier.storage.manifest import FileEntry
from atelier.training.checkpoint import MANIFEST

LIST = ".delivered.json"


def deliver(folder: Path, place: str, checkpoints: list[str]) -> None:
    """Puts a complete training's files at ``place``; called by rank 0.

    Args:
        folder: what this machine holds of it; hidden files stay.
        checkpoints: checkpoints that are at ``place`` already, by their names below it.

    Raises:
        StorageError, ServiceError: S3 did not take a file; nothing is handed over then.
    """
    entries = []
    for name in _files(folder):
        path = folder / name
        s3.upload(path, uris.join(place, name))
        entries.append(FileEntry(name, path.stat().st_size, sha256_file(path)))
    for name in checkpoints:
        entries += _of_checkpoint(place, name)
    written = [{"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256} for entry in entries]
    s3.write_bytes(uris.join(place, LIST), json.dumps(written).encode())


def delivered(place: str) -> list[FileEntry] | None:
    """The files of a complete training; None where nothing whole was handed over.

    Raises:
        ServiceError: S3 does not answer.
    """
    try:
        listed: list[dict[str, Any]] = json.loads(s3.read_bytes(uris.join(place, LIST)))
    except NotFound:
        return None
    entries = [FileEntry(str(entry["path"]), int(entry["bytes"]), str(entry["sha256"])) for entry in listed]
    stored = s3.sizes(place)
    return entries if all(stored.get(entry.path) == entry.bytes for entry in entries) else None


def _of_checkpoint(place: str, name: str) -> Iterator[FileEntry]:
    manifest = s3.read_bytes(uris.join(place, name, MANIFEST))
    yield FileEntry(f"{name}/{MANIFEST}", len(manifest), sha256_bytes(manifest))
    for entry in json.loads(manifest)["files"]:
        yield FileEntry(f"{name}/{entry['path']}", int(entry["bytes"]), str(entry["sha256"]))


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                yield Path(parent, file).relative_to(folder).as_posix()
