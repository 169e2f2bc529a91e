"""Checkpoint folders: they appear whole or not at all, and only one that verifies is ever used.

A checkpoint holds ``rank-00000.safetensors`` and so on (``parts``) and ``manifest.json`` with size and sha256 of each
and the training's state. It is made beside its place under a hidden name and renamed when everything is on the disk.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.storage.atomic import fsync_folder, write_json
from atelier.storage.digest import sha256_file

MANIFEST, SCHEMA = "manifest.json", 2
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and where it lies.

    Attributes:
        folder: where its files are, here.
        step: optimizer updates done.
        files: ``{"path", "bytes", "sha256"}`` of each.
        state: the training's state, JSON.
    """

    folder: Path
    step: int
    files: list[dict[str, Any]]
    state: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Its files' names."""
        return [str(entry["path"]) for entry in self.files]


def folder_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name says; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def manifest_of(step: int, files: list[dict[str, Any]], state: dict[str, Any]) -> dict[str, Any]:
    """The content of ``manifest.json``."""
    return {
        "schema": SCHEMA,
        "kind": "checkpoint",
        "step": step,
        "files": sorted(files, key=lambda entry: str(entry["path"])),
        "state": state,
    }


def parse(record: Any, folder: Path) -> Checkpoint:
    """A checkpoint from its manifest.

    Raises:
        ValueError, KeyError, TypeError: it is none, or of another version.
    """
    if record["schema"] != SCHEMA or record["kind"] != "checkpoint":
        raise ValueError(f"its manifest has schema {record['schema']!r}, this version reads {SCHEMA}")
    files = [{"path": str(e["path"]), "bytes": int(e["bytes"]), "sha256": str(e["sha256"])} for e in record["files"]]
    for name in (str(entry["path"]) for entry in files):
        if "/" in name or name.startswith("."):
            raise ValueError(f"its manifest names {name!r}")
    return Checkpoint(folder, int(record["step"]), files, dict(record["state"]))


def read(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder`` by its manifest alone; its files are not looked at.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is none, or its manifest is damaged.
    """
    return parse(json.loads((folder / MANIFEST).read_text()), folder)


def check(checkpoint: Checkpoint, names: list[str] | None = None) -> None:
    """Looks at every byte of the named files (all without names).

    Raises:
        ValueError: one is missing, or differs from what was written.
    """
    for entry in checkpoint.files:
        file, name = checkpoint.folder / entry["path"], entry["path"]
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}")
        if (names is None or name in names) and sha256_file(file) != entry["sha256"]:
            raise ValueError(f"{name} has another sha256 than when it was written")


def verified(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder`` if every file verifies; a damaged one is named on stderr."""
    if not folder.is_dir():
        return None
    try:
        checkpoint = read(folder)
        check(checkpoint)
        return checkpoint
    except (OSError, ValueError, KeyError, TypeError) as error:
        report_damage(folder, error)
        return None


def report_damage(place: object, error: object) -> None:
    """Says on stderr why a checkpoint is not used."""
    print(f"checkpoint {place} is damaged and is not used: {error}", file=sys.stderr, flush=True)


def scratch_of(folder: Path) -> Path:
    """Where a checkpoint is made before it is renamed to ``folder``."""
    return folder.with_name(f".{folder.name}.tmp")


def publish(folder: Path, manifest: dict[str, Any]) -> None:
    """Completes what lies in ``scratch_of(folder)`` and gives it its name."""
    scratch = scratch_of(folder)
    write_json(scratch / MANIFEST, manifest)
    fsync_folder(scratch)
    # What has that name (a damaged one of the same step, the end of a shorter training) makes room at the last moment.
    before = _put_aside(folder) if folder.exists() else None
    scratch.rename(folder)
    fsync_folder(folder.parent)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def discard(folder: Path) -> None:
    """Removes a checkpoint; a kill in the middle leaves no half of it under a good name."""
    shutil.rmtree(_put_aside(folder), ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what interrupted saves, removals and resumes left among a series' checkpoints."""
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _put_aside(folder: Path) -> Path:
    doomed = folder.with_name(f".{folder.name}.doomed.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    return folder.rename(doomed)
