"""Predecessor: which model a training starts from, when that was made before; what of it fits is said here already."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError, ConfigError
from atelier.recipes.starting import Starting
from atelier.steps.runtime import StepContext, run_step
from atelier.steps.start import REGISTRY, Start, check_recipe, starting_point
from atelier.storage.manifest import MANIFEST, Manifest
from atelier.storage.state import tree_state
from atelier.storage.uri import is_local, join, local_path

if TYPE_CHECKING:
    from atelier.models.keys import Shape

VERSION = 2
TRAIN, TAKE, AUTO = "true", "false", "auto"
SCRATCH = "scratch"
"""In the place of an address: begin from nothing."""


def run(*, address: str, name: str, base: Manifest, recipe: str, profile: str, artifacts: str) -> Manifest:
    """A manifest of kind ``start``, whose metadata ``address`` is what the step ``train`` starts from.

    A model of ours is taken where it lies. A foreign one is converted: the manifest then holds its weights. Where a
    part of what is trained may begin afresh, ``start.json`` says of every key what will become of it.

    Args:
        address: ``models:/name@alias``, ``models:/name/version``, the URI of a model's folder (ours, or a foreign one)
            or of a file of the recipe's published form; "": the champion of ``name``; "scratch": none.
        base: the frozen base of the new training.
        recipe, profile: what is trained.

    Raises:
        ConfigError: there is no such model, it is of another recipe or base (the champion of ``name``: of another than
            the recipe's predecessor), or nothing of it fits.
        DataError: it is not complete.
    """
    from atelier.recipes.registry import get, module_of, predecessor_of

    chosen = get(recipe, profile)
    own: dict[str, Any] = {"recipe": recipe, "profile": profile}
    modules = (module_of(recipe),)
    if not address and not name and (before := predecessor_of(recipe)):
        raise ConfigError(
            f"{recipe} starts from a model of {before}, and none is named",
            f"give start_name (its registered name), start (an address), or start={SCRATCH}",
        )
    if address == SCRATCH or not (address or name):
        return _step({**own, "start": SCRATCH}, {}, lambda ctx: ("start", {"address": ""}), artifacts, modules)
    place = address or f"{REGISTRY}{name}@champion"
    if not place.startswith(REGISTRY) and not _has_manifest(place):
        return _foreign(place, base, chosen, own, artifacts, modules)
    found = starting_point(place, base, chosen, "" if address else predecessor_of(recipe))
    facts = found.lineage()

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "start", {**facts, **_account(ctx, found, chosen)}

    return _step({**own, **facts}, {**found.inputs, "base": base}, produce, artifacts, modules)


def check(*, address: str, recipe: str, profile: str) -> None:
    """Refuses what is no start.

    Raises:
        ConfigError: a place of this machine where nothing lies.
    """
    from atelier.recipes.registry import get

    get(recipe, profile)
    if address and address != SCRATCH:
        _look_at(address)


def address_of(start: Manifest) -> str:
    """What ``train`` is told to start from; "" for nothing."""
    return str(start.metadata.get("address", start.uri))


def choose(train_first: str, start: str, name: str, profile: str) -> str:
    """Whether the predecessor is to be trained first ("true" or "false"), settled before anything runs.

    Args:
        train_first: "auto" trains it for the profile ``laptop`` when there is no champion of that profile yet.
        start: as for ``run``.

    Raises:
        ConfigError: there is nothing to start from, or both ways are asked for.
        ServiceError: MLflow does not answer.
    """
    if train_first == TRAIN:
        if start:
            raise ConfigError(f"train_stage1=true and stage1={start}: two ways to one model", "leave one of them out")
        return TRAIN
    if start and not start.startswith(REGISTRY):
        _look_at(start)
        return TAKE
    address = start or f"{REGISTRY}{name}@champion"
    problem = unusable(address, profile)
    if not problem:
        return TAKE
    if train_first == AUTO and profile == "laptop" and not start:
        return TRAIN
    raise ConfigError(
        f"stage 2 starts from {address}: {problem}",
        'SET="train_stage1=true" trains stage 1 first; SET="stage1=URI" starts from another model',
    )


def require(*, address: str, name: str, recipe: str, profile: str, made_by: str) -> None:
    """Sees before anything runs that there is something to start from, as far as can be told without the base.

    Args:
        address, name: as for ``run``.
        made_by: the pipeline that makes the champion of ``name``, for the advice.

    Raises:
        ConfigError: there is not; says which command makes it.
        ServiceError: MLflow does not answer.
    """
    from atelier.recipes.registry import get, predecessor_of
    from atelier.storage.folder import existing
    from atelier.tracking.registry import find

    check(address=address, recipe=recipe, profile=profile)
    if address == SCRATCH or (address and not address.startswith(REGISTRY)):
        return
    place = address or f"{REGISTRY}{name}@champion"
    problem = unusable(place, profile)
    if problem:
        ways = [f'SET="start={SCRATCH}" begins from nothing']
        if not address:
            ways.insert(0, f"make run PIPELINE={made_by} PROFILE={profile} makes it")
            if not unusable(f"{REGISTRY}{name}@challenger", profile):
                newest = f"{REGISTRY}{name}@challenger"
                ways.insert(1, f'SET="start={newest}" takes the newest, which did not pass its bars')
        raise ConfigError(f"{recipe} starts from {place}: {problem}", "; ".join(ways))
    found = find(place)
    model = existing(found.source) if found else None
    if found is not None and model is not None:
        check_recipe(model, found.uri, get(recipe, profile), "" if address else predecessor_of(recipe))


def unusable(address: str, profile: str) -> str:
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


def _account(ctx: StepContext, found: Start, recipe: Any) -> dict[str, Any]:
    """Writes ``start.json`` where a part may begin afresh; returns its summary."""
    if not recipe.starting.partial:
        return {}
    from atelier.steps.start_weights import start_shapes

    shapes = start_shapes(ctx.inputs["start"], ctx.inputs.get("start_training"), recipe.starting)
    return _compared(ctx, shapes, found.address, recipe)


def _compared(ctx: StepContext, shapes: "dict[str, Shape]", origin: str, recipe: Any) -> dict[str, Any]:
    from atelier.training.partial_start import REPORT, compare

    account = compare(recipe.starting.shapes(), shapes, origin)
    print("\n".join(account.lines()), flush=True)
    account.write(ctx.out.path)
    ctx.track.log_params({"start": account.summary()})
    ctx.track.log_text((ctx.out.path / REPORT).read_text(), REPORT)
    return {"account": account.summary()}


def _step(
    params: dict[str, Any], inputs: dict[str, Manifest], produce: Any, artifacts: str, modules: tuple[str, ...]
) -> Manifest:
    return run_step(
        name="predecessor",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs=inputs,
        params=params,
        artifacts=artifacts,
        extra_modules=modules,
    )


def _look_at(place: str) -> None:
    """Sees that something lies at a local place; a remote one is looked at by its step."""
    if not place.startswith(REGISTRY) and is_local(place) and not local_path(place).exists():
        raise ConfigError(
            f"{place}: there is nothing to start from", "give a model's folder or file, or a models:/ address"
        )


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


def _foreign(
    place: str, base: Manifest, recipe: Any, own: dict[str, Any], artifacts: str, modules: tuple[str, ...]
) -> Manifest:
    _look_at(place)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.convert.weights import shapes_of

        scratch = ctx.out.path / ".fetched"
        source = local_path(place) if is_local(place) else _fetched(place, scratch, recipe.starting)
        for line in recipe.starting.take(source, ctx.out.path, ctx.inputs["base"]):
            print(line)
        shutil.rmtree(scratch, ignore_errors=True)
        ctx.note(source=place)
        if not recipe.starting.partial:
            return "start", {}
        return "start", _compared(ctx, shapes_of(recipe.starting.read(ctx.out.path)), place, recipe)

    return _step({**own, "source": place, "seen": tree_state(place)}, {"base": base}, produce, artifacts, modules)


def _fetched(place: str, folder: Path, starting: Starting) -> Path:
    """A remote file, or what a start reads of a remote diffusers folder."""
    from atelier.storage.transfer import download, expand, file_name

    if place.endswith((".safetensors", ".pth", ".ckpt", ".bin")):
        return download(place, folder / file_name(place))
    from atelier.steps.base import fetch_folder

    fetch_folder(place, folder, starting.parts)
    beside = {name for name in starting.files if "/" not in name and not (folder / name).is_file()}
    for url in expand(place.rstrip("/") + "/"):
        if file_name(url) in beside:
            download(url, folder / file_name(url))
    return folder
