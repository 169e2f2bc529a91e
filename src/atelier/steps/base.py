"""Base: the frozen model that a recipe trains on, as one folder: shipped, fetched from a URI, or pretrained."""

from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.digest import sha256_file, sha256_json
from atelier.storage.manifest import Manifest

VERSION = 1
FOREIGN = (".onnx", ".onnx_data", ".msgpack", ".xml", ".ckpt")


def run(*, recipe: str, profile: str, pretrain: bool, uri: str, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``base``: a diffusers folder (scheduler, tokenizers, text encoders, vae, unet).

    Args:
        pretrain: make the laptop twin's base from nothing (about ten minutes).
        uri: where else to take it from; "" is the recipe's own.

    Raises:
        ConfigError: see ``check``.
    """
    from atelier.recipes.registry import get

    check(recipe=recipe, profile=profile, pretrain=pretrain, uri=uri)
    if pretrain:
        from atelier.steps import pretrain as step

        return step.run(recipe=recipe, profile=profile, seed=seed, artifacts=artifacts)
    chosen = get(recipe, profile)
    place = uri or chosen.config.base_model
    return _fetched(place, chosen.twin, artifacts) if place else _shipped(chosen.twin, artifacts)


def check(*, recipe: str, profile: str, pretrain: bool, uri: str) -> None:
    """Refuses what ``run`` cannot make.

    Raises:
        ConfigError: pretrain together with a URI, or for a recipe's published size; no such base is shipped.
    """
    from atelier.recipes.registry import get
    from atelier.recipes.twins.assets import shipped

    chosen = get(recipe, profile)
    place = uri or chosen.config.base_model
    if pretrain and place:
        raise ConfigError(
            f"pretrain=true makes the laptop twin's base, not {place}", "leave pretrain out, or use PROFILE=laptop"
        )
    if not pretrain and not place:
        shipped(chosen.twin)


def _shipped(twin: str, artifacts: str) -> Manifest:
    from atelier.recipes.twins.assets import shipped

    folder = shipped(twin)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    digests = {name: sha256_file(folder / name) for name in names}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        import shutil

        shutil.copytree(folder, ctx.out.path, dirs_exist_ok=True)
        ctx.note(source=f"shipped {twin}")
        return "base", {}

    return _step({"shipped": sha256_json(digests)}, produce, artifacts)


def _fetched(uri: str, twin: str, artifacts: str) -> Manifest:
    from atelier.recipes.twins.assets import PARTS

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        fetch_folder(uri, ctx.out.path, PARTS[twin])
        ctx.note(source=uri)
        return "base", {}

    return _step({"uri": uri, "parts": PARTS[twin]}, produce, artifacts)


def fetch_folder(uri: str, folder: Path, parts: tuple[str, ...]) -> None:
    """Downloads parts (subfolders) of a diffusers folder; what is there already is kept.

    Raises:
        DataError: a part is missing at the URI.
    """
    from atelier.storage.transfer import download, expand, file_name

    root = uri.rstrip("/")
    wanted = {"model_index.json": f"{root}/model_index.json"}
    for part in parts:
        # Repositories hold the same weights in other formats and precisions beside the one that is opened.
        urls = {
            name: url
            for url in expand(f"{root}/{part}/")
            if ".fp16." not in (name := file_name(url)) and ".non_ema." not in name and not name.endswith(FOREIGN)
        }
        safe = any(name.endswith(".safetensors") for name in urls)
        wanted |= {f"{part}/{name}": url for name, url in urls.items() if not (safe and name.endswith(".bin"))}
    missing = [name for name in wanted if not (folder / name).is_file()]
    progress = Progress("fetching the base", len(wanted), "files", start=len(wanted) - len(missing))
    for name in missing:
        download(wanted[name], folder / name)
        progress.advance()


def _step(params: dict[str, Any], produce: Any, artifacts: str) -> Manifest:
    return run_step(
        name="base", version=VERSION, module=__name__, produce=produce, inputs={}, params=params, artifacts=artifacts
    )
