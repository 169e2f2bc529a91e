"""What a folder holds: every file with size and sha256, what it is and how it was made."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.errors import DataError
from atelier.storage import uri as uris
from atelier.storage.digest import sha256_json

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class FileEntry:
    """One file: POSIX ``path`` relative to the folder, size in ``bytes``, hex ``sha256``."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A published folder.

    Attributes:
        kind: what it is, e.g. ``"sa1b-raw"``.
        uri: the folder's place.
        files: sorted by path.
        metadata: what a reader of the content needs to know (JSON); part of the digest.
        made_by: step, parameters, versions, times (JSON); not part of the digest.
        schema: version of this file's form.
    """

    kind: str
    uri: str
    files: tuple[FileEntry, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """``"sha256:…"`` over kind, files and metadata: equal content has an equal digest wherever it lies."""
        files = [dataclasses.asdict(entry) for entry in self.files]
        return "sha256:" + sha256_json({"kind": self.kind, "files": files, "metadata": self.metadata})

    @property
    def total_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(entry.bytes for entry in self.files)

    @functools.cached_property
    def _by_path(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.files}

    def file(self, name: str) -> FileEntry:
        """The entry of file ``name``.

        Raises:
            DataError: there is none.
        """
        if name in self._by_path:
            return self._by_path[name]
        raise DataError(
            f"{self.uri}: its manifest lists no file {name!r}",
            f"it holds {len(self.files)} files, e.g. {[entry.path for entry in self.files[:3]]}",
        )

    def to_json(self) -> str:
        """Readable JSON that ``parse`` reads back; carries the digest for people and metadata tools."""
        record = dataclasses.asdict(self) | {"digest": self.digest}
        return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def parse(text: str, source: str = "manifest") -> "Manifest":
        """Reads ``to_json``'s form.

        Raises:
            DataError: no JSON, an unknown schema, a field missing, a path that leaves the folder, or a digest
                that does not fit the content.
        """
        try:
            record = json.loads(text)
            if record["schema"] != SCHEMA:
                raise DataError(
                    f"{source}: manifest schema {record['schema']!r}, this version reads {SCHEMA}",
                    "make the artifact again with this version",
                )
            manifest = Manifest(
                kind=str(record["kind"]),
                uri=str(record["uri"]),
                files=tuple(
                    FileEntry(_inside(entry["path"], source), int(entry["bytes"]), str(entry["sha256"]))
                    for entry in record["files"]
                ),
                metadata=dict(record["metadata"]),
                made_by=dict(record.get("made_by", {})),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{source}: not a manifest ({type(error).__name__}: {error})",
                "delete the folder; the next run makes it again",
            ) from error
        if record.get("digest", manifest.digest) != manifest.digest:
            raise DataError(
                f"{source}: content does not fit its digest {record['digest']}",
                "it was edited or damaged; delete the folder and make it again",
            )
        return manifest

    @staticmethod
    def load(place: str | Path) -> "Manifest":
        """Reads a manifest from a folder (URI or path) or from a JSON file.

        A folder's manifest gets that folder as its ``uri``, so that a copied folder works where it lies; a lone
        JSON file (an artifact handed on by a pipeline) keeps the ``uri`` that is written in it.

        Raises:
            NotFound: nothing there. DataError: not a manifest.
        """
        name = str(place)
        if name.endswith(".json") or (uris.is_local(name) and uris.local_path(name).is_file()):
            return Manifest.parse(uris.read_text(name), name)
        text = uris.read_text(uris.join(name, MANIFEST))
        folder = str(uris.local_path(name).resolve()) if uris.is_local(name) else name.rstrip("/")
        return dataclasses.replace(Manifest.parse(text, name), uri=folder)


def sorted_entries(entries: Iterable[FileEntry]) -> tuple[FileEntry, ...]:
    """Entries in the order that a manifest keeps them."""
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _inside(path: str, source: str) -> str:
    parts = PurePosixPath(path).parts
    if not path or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise DataError(f"{source}: file path {path!r} leaves the folder", "do not use this manifest")
    return path
