"""The intermediate checkpoints of one training: a folder of them, on a disk that all ranks see or on S3."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from atelier.errors import AtelierError, DataError, StorageError
from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.atomic import NotFound, os_errors, write_json
from atelier.storage.digest import sha256_file
from atelier.storage.transfer import download
from atelier.training import checkpoint as checkpoints
from atelier.training.checkpoint import MANIFEST, Checkpoint
from atelier.training.parts import part_name

ENTRY = ".entry.json"


class Series(Protocol):
    """Where checkpoints are kept. Each rank delivers its file; rank 0 publishes when all have."""

    place: str

    def begin(self, step: int) -> None:
        """Called by rank 0 before any rank writes: what interrupted saves and earlier resumes left here goes."""
        ...

    def scratch(self, step: int) -> Path:
        """A folder of this machine in which the rank's file is to be written."""
        ...

    def deliver(self, step: int, rank: int, entries: list[dict[str, Any]]) -> None:
        """Hands over a rank's files, which ``entries`` describe, from ``scratch(step)``, and sees that they arrived."""
        ...

    def publish(self, step: int, ranks: int, state: dict[str, Any]) -> None:
        """Makes the checkpoint visible, once every rank delivered.

        Raises:
            StorageError: a rank's file is not there.
        """
        ...

    def sweep(self) -> None:
        """Removes what interrupted saves left elsewhere than here; called by rank 0 while no save is going on."""
        ...

    def steps(self) -> list[int]:
        """Steps of the visible checkpoints, newest first."""
        ...

    def read(self, step: int) -> Checkpoint | None:
        """A visible checkpoint by its manifest; a damaged one is named on stderr and None."""
        ...

    def obtain(self, checkpoint: Checkpoint, needed: list[str], share: list[str]) -> None:
        """Has the ``needed`` files here, verified, and looks at every byte of ``share``.

        Raises:
            ValueError: one is damaged or missing.
        """
        ...

    def remove(self, step: int) -> None:
        """Removes a checkpoint; never leaves half of it visible."""
        ...

    def clear(self) -> None:
        """Removes all of it: the training is complete."""
        ...


def open_series(place: str, work: Path) -> Series:
    """The series at a path, ``file://`` or ``s3://``; ``work`` is a folder of this machine for what is on its way."""
    return LocalSeries(uris.local_path(place)) if uris.is_local(place) else S3Series(place, work)


def open_single(place: str, work: Path) -> Series:
    """One checkpoint that lies at ``place`` itself, whatever its step."""
    return LocalSingle(uris.local_path(place)) if uris.is_local(place) else S3Single(place, work)


class LocalSeries:
    """A folder of checkpoints; with several machines it must lie on a disk that all of them see."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoints.folder_name(step)

    def begin(self, step: int) -> None:
        # Not of this step alone: killed again and again, a training saves at other steps each time.
        checkpoints.sweep(self.folder)

    def sweep(self) -> None:
        """All is here, and ``begin`` did it."""

    def scratch(self, step: int) -> Path:
        return checkpoints.scratch_of(self._path(step))

    def deliver(self, step: int, rank: int, entries: list[dict[str, Any]]) -> None:
        scratch = self.scratch(step)
        for entry in entries:
            if sha256_file(scratch / entry["path"]) != entry["sha256"]:
                raise StorageError(f"{scratch / entry['path']}: reads back differently", "check the disk")
        write_json(scratch / (part_name(rank) + ENTRY), entries)

    def publish(self, step: int, ranks: int, state: dict[str, Any]) -> None:
        entries, scratch = [], self.scratch(step)
        for rank in range(ranks):
            path = scratch / (part_name(rank) + ENTRY)
            if not path.is_file():
                raise StorageError(
                    f"{scratch}: the file of rank {rank} is not there",
                    "keep checkpoints where all machines see them: s3:// or a shared disk",
                )
            entries += json.loads(path.read_text())
            path.unlink()
        checkpoints.publish(self._path(step), checkpoints.manifest_of(step, entries, state))

    def steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = (checkpoints.step_of(path.name) for path in self.folder.iterdir())
        return sorted((step for step in found if step is not None), reverse=True)

    def read(self, step: int) -> Checkpoint | None:
        try:
            return checkpoints.read(self._path(step))
        except (OSError, ValueError, KeyError, TypeError) as error:
            checkpoints.report_damage(self._path(step), error)
            return None

    def obtain(self, checkpoint: Checkpoint, needed: list[str], share: list[str]) -> None:
        checkpoints.check(checkpoint, share)

    def remove(self, step: int) -> None:
        checkpoints.discard(self._path(step))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class S3Series:
    """Checkpoints under an S3 prefix: ``step-…/rank-….safetensors``, visible once ``step-…/manifest.json`` is there."""

    def __init__(self, place: str, work: Path) -> None:
        self.place, self.work = place.rstrip("/"), work
        self._swept = False

    def _prefix(self, step: int) -> str:
        return uris.join(self.place, checkpoints.folder_name(step))

    def _uri(self, step: int, name: str) -> str:
        return uris.join(self._prefix(step), name)

    def begin(self, step: int) -> None:
        # Objects of an earlier try of this step are overwritten, or not listed.
        checkpoints.sweep(self.work)

    def sweep(self) -> None:
        if self._swept:  # only an earlier process can have left something
            return
        self._swept = True
        stored = s3.sizes(self.place)
        whole = {name.removesuffix(f"/{MANIFEST}") for name in stored if name.endswith(f"/{MANIFEST}")}
        for name in stored:
            folder = name.partition("/")[0]
            if checkpoints.step_of(folder) is not None and folder not in whole:
                s3.delete(uris.join(self.place, name))
        s3.abort_uploads(self.place)

    def scratch(self, step: int) -> Path:
        return checkpoints.scratch_of(self.work / checkpoints.folder_name(step))

    def deliver(self, step: int, rank: int, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            file, uri = self.scratch(step) / entry["path"], self._uri(step, entry["path"])
            s3.upload(file, uri)
            stored = s3.size(uri)
            if stored != entry["bytes"]:
                raise StorageError(f"{uri}: {stored} bytes arrived of {entry['bytes']}", "check the S3 server")
            file.unlink()
        # An object of its own for each rank, so that no rank needs another's answer.
        s3.write_bytes(self._uri(step, part_name(rank) + ENTRY), json.dumps(entries).encode())

    def publish(self, step: int, ranks: int, state: dict[str, Any]) -> None:
        prefix = self._prefix(step)
        stored = s3.sizes(prefix)
        entries = [
            entry
            for rank in range(ranks)
            for entry in json.loads(s3.read_bytes(self._uri(step, part_name(rank) + ENTRY)))
        ]
        for entry in entries:
            if stored.get(entry["path"]) != entry["bytes"]:
                raise StorageError(f"{prefix}/{entry['path']}: not what was uploaded", "check the S3 server")
        s3.write_bytes(self._uri(step, MANIFEST), json.dumps(checkpoints.manifest_of(step, entries, state)).encode())
        shutil.rmtree(self.scratch(step), ignore_errors=True)

    def steps(self) -> list[int]:
        found = []
        for key in s3.sizes(self.place):
            folder, _, name = key.partition("/")
            step = checkpoints.step_of(folder)
            if name == MANIFEST and step is not None:
                found.append(step)
        return sorted(found, reverse=True)

    def read(self, step: int) -> Checkpoint | None:
        uri = self._uri(step, MANIFEST)
        try:
            fetched = checkpoints.scratch_of(self.work / f"{checkpoints.folder_name(step)}.fetched")
            return checkpoints.parse(json.loads(s3.read_bytes(uri)), fetched)
        except (NotFound, ValueError, KeyError, TypeError) as error:
            checkpoints.report_damage(uri, error)
            return None

    def obtain(self, checkpoint: Checkpoint, needed: list[str], share: list[str]) -> None:
        for entry in checkpoint.files:
            if entry["path"] in needed:
                uri = self._uri(checkpoint.step, entry["path"])
                try:
                    download(uri, checkpoint.folder / entry["path"], entry["sha256"], progress=False)
                except NotFound as error:
                    raise ValueError(f"{entry['path']} is missing") from error
                except DataError as error:
                    raise ValueError(error.what) from error

    def remove(self, step: int) -> None:
        s3.delete_prefix(self._prefix(step), first=MANIFEST)

    def clear(self) -> None:
        # What is left over costs money but harms nothing: a finished training must not fail over it.
        with contextlib.suppress(AtelierError):
            s3.delete_prefix(self.place)
        with os_errors(self.work):
            shutil.rmtree(self.work, ignore_errors=True)


class LocalSingle(LocalSeries):
    """One checkpoint at a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent)
        self._folder = folder

    def begin(self, step: int) -> None:
        shutil.rmtree(self.scratch(step), ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder


class S3Single(S3Series):
    """One checkpoint at a prefix of its own."""

    def _prefix(self, step: int) -> str:
        return self.place
