"""Base: the frozen model that a recipe trains on, as one folder: shipped, fetched from a URI, or pretrained."""

from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.digest import sha256_file, sha256_json
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, recipe: str, profile: str, pretrain: bool, uri: str, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``base``: a diffusers folder (scheduler, tokenizers, text encoders, vae, unet).

    Args:
        pretrain: make the laptop twin's base from nothing (about ten minutes).
        uri: where else to take it from; "" is the recipe's own.

    Raises:
        ConfigError: pretrain together with a URI, or for a recipe's published size.
    """
    from atelier.recipes.registry import get

    own = get(recipe, profile).config.base_model
    if pretrain:
        if uri or own:
            raise ConfigError(
                f"pretrain=true makes the laptop twin's base, not {uri or own}",
                "leave pretrain out, or use PROFILE=laptop",
            )
        from atelier.steps import pretrain as step

        return step.run(recipe=recipe, profile=profile, seed=seed, artifacts=artifacts)
    place = uri or own
    return _fetched(place, artifacts) if place else _shipped(artifacts)


def _shipped(artifacts: str) -> Manifest:
    from atelier.recipes.twins.assets import shipped

    folder = shipped("sdxl_twin")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    digests = {name: sha256_file(folder / name) for name in names}

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        import shutil

        shutil.copytree(folder, ctx.out.path, dirs_exist_ok=True)
        ctx.note(source="shipped sdxl_twin")
        return "base", {}

    return _step({"shipped": sha256_json(digests)}, produce, artifacts)


def _fetched(uri: str, artifacts: str) -> Manifest:
    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        fetch_folder(uri, ctx.out.path)
        ctx.note(source=uri)
        return "base", {}

    return _step({"uri": uri}, produce, artifacts)


def fetch_folder(uri: str, folder: Path) -> None:
    """Downloads the parts of a diffusers SDXL folder; what is there already is kept.

    Raises:
        DataError: a part is missing at the URI.
    """
    from atelier.recipes.twins.assets import SDXL_PARTS
    from atelier.storage.transfer import download, expand, file_name

    root = uri.rstrip("/")
    wanted = {"model_index.json": f"{root}/model_index.json"}
    for part in SDXL_PARTS:
        for url in expand(f"{root}/{part}/"):
            name = file_name(url)
            # Repositories hold the same weights in other formats and precisions beside the one that is opened.
            foreign = name.endswith((".bin", ".onnx", ".onnx_data", ".msgpack", ".xml")) or ".fp16." in name
            if not foreign:
                wanted[f"{part}/{name}"] = url
    missing = [name for name in wanted if not (folder / name).is_file()]
    progress = Progress("fetching the base", len(wanted), "files", start=len(wanted) - len(missing))
    for name in missing:
        download(wanted[name], folder / name)
        progress.advance()


def _step(params: dict[str, Any], produce: Any, artifacts: str) -> Manifest:
    return run_step(
        name="base", version=VERSION, module=__name__, produce=produce, inputs={}, params=params, artifacts=artifacts
    )
