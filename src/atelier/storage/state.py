"""What lies behind a pattern now: a mark that changes when files come, go, or are written anew.

For places that change: folders and buckets. Published files (``https``, ``hf``) are told apart by their address alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_json
from atelier.storage.transfer import expand, split_fragment


def state(pattern: str) -> str:
    """A mark (16 hex digits) of the names, sizes and versions of the files that ``transfer.expand`` finds.

    A file's version is its time of change, on S3 its ETag. "" where nothing but published addresses is named. A file
    that is named and missing has the mark of a missing one: whoever wants it will say so.

    Raises:
        DataError, StorageError, ServiceError: the place cannot be listed.
    """
    return state_of(expand(pattern))


def state_of(urls: Sequence[str]) -> str:
    """As ``state``, of files that are named one by one; ``*`` and the like are letters of their names.

    Raises:
        StorageError, ServiceError: a file or bucket that cannot be looked at.
    """
    places = [split_fragment(url)[0] for url in urls]
    local = [uris.local_path(place) for place in places if uris.is_local(place)]
    remote = [place for place in places if not uris.is_local(place) and uris.scheme(place) == "s3"]
    if not local and not remote:
        return ""
    found: dict[str, list[int | str]] = {str(path): _local(path) for path in local}
    listed: dict[str, dict[str, tuple[int, str]]] = {}
    for place in remote:
        folder, _, name = place.rpartition("/")
        if folder not in listed:
            listed[folder] = s3.versions(folder)
        found[place] = list(listed[folder].get(name, (-1, "")))
    return sha256_json(found)[:16]


def tree_state(place: str) -> str:
    """As ``state``, of a file or of all that lies below a folder.

    Raises:
        StorageError, ServiceError: the place cannot be listed.
    """
    if uris.is_local(place):
        root = uris.local_path(place)
        below: dict[str, Any] = {path.relative_to(root).as_posix(): _local(path) for path in _files(root)}
    else:
        below = s3.versions(place.rstrip("/") + "/", deep=True) if uris.scheme(place) == "s3" else {}
    return sha256_json(below)[:16] if below else state_of([place])


def _files(root: Path) -> list[Path]:
    with os_errors(root):
        return sorted(path for path in root.rglob("*") if path.is_file())


def state_of_model(name: str) -> str:
    """As ``tree_state`` of a local model's folder; "" of a hub's id, and of a folder that is not there.

    Raises:
        StorageError: the folder cannot be read.
    """
    return tree_state(name) if Path(name).is_dir() else ""


def _local(path: Path) -> list[int | str]:
    with os_errors(path):
        if not path.exists():
            return [-1, ""]
        stat = path.stat()
        return [stat.st_size, str(stat.st_mtime_ns)]
