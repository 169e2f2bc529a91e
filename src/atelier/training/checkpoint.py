"""Checkpoints: directories that appear whole or not at all, and resume exactly.

``step-00000120/`` holds DeepSpeed's own files of the trainable parameters and the optimizer (the frozen base is not
in it), ``state.json`` with what the engine keeps besides, and ``manifest.json`` with size and sha256 of each. All of it
is written and flushed under a temporary name, hashed back from the disk, and renamed. Random draws are addressed by
sample and the schedule by step, so no generator's or scheduler's state needs saving.
"""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from atelier.errors import ConfigError, StorageError
from atelier.storage.atomic import fsync_folder, storage_error, write_json
from atelier.storage.digest import sha256_file
from atelier.training.runtime import Ranks

TAG = "state"
MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d+)")
WRAPPER_PREFIX = "model."
"""The engine wraps the objective's model in one module, whose attribute name leads DeepSpeed's parameter names."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file has the size and sha256 that its manifest says."""

    path: Path
    step: int
    state: dict[str, Any]


def folder_name(step: int) -> str:
    """The name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def save(engine: Any, path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Writes a checkpoint at ``path``; collective.

    Args:
        engine: the DeepSpeed engine.
        state: JSON values, with at least ``"step"``.

    Raises:
        StorageError: the disk is full or cannot be written; ``path`` does not exist then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier(ranks)
        engine.save_checkpoint(str(temporary), tag=TAG, client_state={}, exclude_frozen_parameters=True)
        if ranks.first:
            write_json(temporary / STATE, state)
        _barrier(ranks)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        mine = [_flushed_entry(file, temporary) for file in files[ranks.rank :: ranks.world]]
        entries = _gather(mine, ranks)
        if ranks.first:
            write_json(
                temporary / MANIFEST,
                {
                    "schema": 1,
                    "kind": "checkpoint",
                    "step": state["step"],
                    "files": sorted(entries, key=lambda entry: str(entry["path"])),
                },
            )
            for folder in {file.parent for file in files}:
                fsync_folder(folder)
            if path.exists():
                shutil.rmtree(path)  # a damaged one of the same step
            temporary.rename(path)
            fsync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, temporary) from error
    except RuntimeError as error:
        # What torch.save says of a disk that takes no more: its archive writer is not where it should be.
        if any(sign in str(error) for sign in ("PytorchStreamWriter", "inline_container", "unexpected pos")):
            free = shutil.disk_usage(path.parent).free
            raise StorageError(
                f"{temporary}: a checkpoint could not be written ({free / 2**20:,.1f} MiB free on its "
                f"disk): {str(error).splitlines()[0]}",
                "free some space; running again resumes",
            ) from error
        raise
    _barrier(ranks)


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints; called after a new one was verified and renamed."""
    for path, _ in _listed(folder)[keep:]:
        # Renamed first, so that a kill in the middle of the removal leaves no half checkpoint under a good name.
        doomed = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def newest_valid(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in ``folder`` whose every file verifies; damaged ones are named on stderr and skipped."""
    for path, _ in _listed(folder):
        checkpoint = verified(path)
        if checkpoint is not None:
            return checkpoint
    return None


def verified(path: Path) -> Checkpoint | None:
    """The checkpoint at ``path`` if every file has the size and sha256 that its manifest says, else None."""
    if not path.is_dir():
        return None
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for entry in manifest["files"]:
            file = path / entry["path"]
            if not file.is_file():
                raise ValueError(f"{entry['path']} is missing")
            if file.stat().st_size != entry["bytes"]:
                raise ValueError(f"{entry['path']} has {file.stat().st_size} bytes, not {entry['bytes']}")
            if sha256_file(file) != entry["sha256"]:
                raise ValueError(f"{entry['path']} has another sha256 than when it was written")
        return Checkpoint(path, int(manifest["step"]), json.loads((path / STATE).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"checkpoint {path} is damaged and is not used: {error}", file=sys.stderr, flush=True)
        return None


def restore(engine: Any, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Puts a verified checkpoint's parameters and optimizer state into ``engine``; collective.

    Raises:
        ConfigError: it was made by another number of processes, ZeRO stage, precision or set of parameters.
    """
    ours = {
        "processes": ranks.world,
        "zero_stage": int(engine.zero_optimization_stage()),
        "parameters": parameter_shapes(engine.module),
    }
    for name, value in ours.items():
        saved = checkpoint.state[name]
        if saved != value:
            detail = "other trainable parameters" if name == "parameters" else f"{name} {saved}, not {value}"
            raise ConfigError(
                f"checkpoint {checkpoint.path} was made with {detail}",
                "resume with the settings it was made with, or start in an empty folder",
            )
    # Not strict: the frozen base is not in the file. That nothing else is missing was seen above.
    loaded, _ = engine.load_checkpoint(str(checkpoint.path), tag=TAG, load_module_strict=False)
    if loaded is None:
        raise StorageError(f"checkpoint {checkpoint.path} could not be loaded", "remove it: the one before is used")


def parameter_shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    """Names (as in the objective's model) and shapes of the trainable parameters."""
    return {
        name.removeprefix(WRAPPER_PREFIX): list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _listed(folder: Path) -> list[tuple[Path, int]]:
    """Checkpoint folders by their names, newest first."""
    if not folder.is_dir():
        return []
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    found = [(path, int(match.group(1))) for path, match in named if match]
    return sorted(found, key=lambda item: item[1], reverse=True)


def _flushed_entry(file: Path, root: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return {"path": file.relative_to(root).as_posix(), "bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _gather(mine: list[dict[str, Any]], ranks: Ranks) -> list[dict[str, Any]]:
    if ranks.world == 1:
        return mine
    gathered: list[Any] = [None] * ranks.world
    distributed.all_gather_object(gathered, mine)
    return [entry for entries in gathered for entry in entries]


def _barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        distributed.barrier()
