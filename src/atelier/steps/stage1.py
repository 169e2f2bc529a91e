"""Stage 1: which model the second stage of a recipe starts from, when it was trained before."""

import shutil
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError, ConfigError, DataError
from atelier.steps.runtime import StepContext, run_step
from atelier.steps.start import ADAPTER, REGISTRY, starting_point
from atelier.storage.digest import sha256_json
from atelier.storage.manifest import MANIFEST, Manifest
from atelier.storage.uri import is_local, join, local_path

VERSION = 1
TRAIN, TAKE, AUTO = "true", "false", "auto"


def run(*, stage1: str, name: str, base: Manifest, artifacts: str) -> Manifest:
    """A manifest of kind ``start``, whose metadata ``address`` is what the step ``train`` starts from.

    A model of ours is taken where it lies. A foreign one is converted: the manifest then holds its adapter.

    Args:
        stage1: ``models:/name@alias``, ``models:/name/version``, the URI of a model's folder (ours, or a diffusers one)
            or of a file that ``atelier convert`` reads; "": the champion of ``name``.
        base: the frozen base of both stages.

    Raises:
        ConfigError: there is no such model, or it is of another base. DataError: it is not complete.
    """
    address = stage1 or f"{REGISTRY}{name}@champion"
    if not address.startswith(REGISTRY) and not _has_manifest(address):
        return _foreign(address, base, artifacts)
    found = starting_point(address, base)
    facts = found.lineage()

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "start", facts

    return run_step(
        name="stage1",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"model": found.model, "base": base},
        params=facts,
        artifacts=artifacts,
    )


def address_of(start: Manifest) -> str:
    """What ``train`` is told to start from."""
    return str(start.metadata.get("address") or start.uri)


def choose(train_stage1: str, stage1: str, name: str, profile: str) -> str:
    """Whether stage 1 is to be trained first ("true" or "false"), settled before anything runs.

    Args:
        train_stage1: "auto" trains it for the profile ``laptop`` when there is no champion of that profile yet.
        stage1: as for ``run``.

    Raises:
        ConfigError: there is nothing to start from, or both ways are asked for.
        ServiceError: MLflow does not answer.
    """
    if train_stage1 == TRAIN:
        if stage1:
            raise ConfigError(f"train_stage1=true and stage1={stage1}: two ways to one model", "leave one of them out")
        return TRAIN
    if stage1 and not stage1.startswith(REGISTRY):
        _look_at(stage1)
        return TAKE
    address = stage1 or f"{REGISTRY}{name}@champion"
    problem = _unusable(address, profile)
    if not problem:
        return TAKE
    if train_stage1 == AUTO and profile == "laptop" and not stage1:
        return TRAIN
    raise ConfigError(
        f"stage 2 starts from {address}: {problem}",
        'SET="train_stage1=true" trains stage 1 first; SET="stage1=URI" starts from another model',
    )


def _unusable(address: str, profile: str) -> str:
    """Why a registered model cannot be started from, or ""."""
    from atelier.storage.folder import existing
    from atelier.tracking.registry import find
    from atelier.tracking.service import shown, tracking_uri

    found = find(address)
    if found is None:
        return f"the registry {shown(tracking_uri())} has no such model"
    model = existing(found.source)
    if model is None:
        return f"its files at {found.source} are not there any more"
    if model.metadata.get("profile", profile) != profile:
        return f"{found.uri} is of the profile {model.metadata['profile']}, not {profile}"
    return ""


def _look_at(place: str) -> None:
    """Sees that something lies at a local place; a remote one is looked at by its step."""
    if is_local(place) and not local_path(place).exists():
        raise ConfigError(f"stage1={place}: there is nothing", "give a model's folder or file, or a models:/ address")


def _has_manifest(place: str) -> bool:
    from atelier.storage.uri import read_text

    if is_local(place):
        return (local_path(place) / MANIFEST).is_file()
    if place.startswith("hf://") or place.endswith(".safetensors"):
        return False
    try:
        read_text(join(place, MANIFEST))
    except AtelierError:
        return False
    return True


def _foreign(place: str, base: Manifest, artifacts: str) -> Manifest:
    _look_at(place)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.convert.conversion import convert

        scratch = ctx.out.path / ".fetched"
        source = local_path(place) if is_local(place) else _fetched(place, scratch)
        target = ctx.out.path / ADAPTER
        target.unlink(missing_ok=True)
        for line in convert(source, target, to="adapter", base=ctx.inputs["base"].fetch_all()).lines:
            print(line)
        shutil.rmtree(scratch, ignore_errors=True)
        ctx.note(source=place)
        return "start", {}

    return run_step(
        name="stage1",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"base": base},
        params={"source": place, "seen": _seen(place)},
        artifacts=artifacts,
    )


def _fetched(place: str, folder: Path) -> Path:
    """A remote file, or the UNet of a remote diffusers folder."""
    from atelier.storage.transfer import download, file_name

    if place.endswith((".safetensors", ".pth", ".ckpt", ".bin")):
        return download(place, folder / file_name(place))
    from atelier.steps.base import fetch_folder

    fetch_folder(place, folder, ("unet",))
    return folder


def _seen(place: str) -> str:
    """Marks a local source's state: sizes and times of its files; "" for a remote one."""
    if not is_local(place):
        return ""
    root = local_path(place)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    try:
        stats = {path.relative_to(root).as_posix(): path.stat() for path in files}
    except OSError as error:
        raise DataError(f"stage1={place} cannot be read: {error.strerror}", "check its permissions") from error
    return sha256_json({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})[:16]
