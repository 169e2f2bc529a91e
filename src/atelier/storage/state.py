"""What lies behind a pattern now: a mark that changes when files come, go, or are written anew.

For places that change: folders and buckets. Published files (``https``, ``hf``) are told apart by their address alone.
"""

from collections.abc import Sequence
from pathlib import Path

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


def state_of_model(name: str) -> str:
    """Of the files directly in a local model's folder; "" of a hub's id, and of a folder that is not there.

    Raises:
        StorageError: the folder cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return ""
    with os_errors(folder):
        return state_of(sorted(str(path) for path in folder.iterdir() if path.is_file()))


def _local(path: Path) -> list[int | str]:
    with os_errors(path):
        if not path.exists():
            return [-1, ""]
        stat = path.stat()
        return [stat.st_size, str(stat.st_mtime_ns)]
