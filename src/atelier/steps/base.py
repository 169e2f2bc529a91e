"""Base: the frozen parts that a recipe trains on, as one folder: shipped, fetched from URIs, or pretrained."""

import shutil
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, DataError
from atelier.progress import Progress
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.digest import sha256_file, sha256_json
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from atelier.storage.state import tree_state

VERSION = 1
FOREIGN = (".onnx", ".onnx_data", ".msgpack", ".xml", ".ckpt", ".h5", ".ot")
INDEX, FETCHED = "model_index.json", ".fetched"
TOKENIZER = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What of a language model's own folder is its tokenizer."""


def run(
    *, recipe: str, profile: str, pretrain: bool, uri: str, seed: int, artifacts: str, text_uri: str = ""
) -> Manifest:
    """A manifest of kind ``base``: a diffusers folder (scheduler, tokenizers, text encoders, vae, unet).

    Args:
        pretrain: make the laptop twin's base from nothing (about ten minutes).
        uri: where else to take it from; "" is the recipe's own.
        text_uri: where else to take its language model from, for a recipe whose language model (T5) is not the base's
            own; "" is the recipe's.

    Raises:
        ConfigError: see ``check``; the language model is another than the recipe reads.
        DataError: a part is missing.
    """
    from atelier.recipes.registry import get

    check(recipe=recipe, profile=profile, pretrain=pretrain, uri=uri, text_uri=text_uri)
    if pretrain:
        from atelier.steps import pretrain as step

        return step.run(recipe=recipe, profile=profile, seed=seed, artifacts=artifacts)
    chosen = get(recipe, profile)
    made = _made(chosen, uri or chosen.config.base_model, text_uri, artifacts)
    # Also of one that another recipe made from the same place.
    chosen.check_base(InputFolder(made).fetch)
    return made


def check(*, recipe: str, profile: str, pretrain: bool, uri: str, text_uri: str = "") -> None:
    """Refuses what ``run`` cannot make.

    Raises:
        ConfigError: pretrain together with a URI, or for a recipe's published size; no such base is shipped; a
            language model for a recipe that reads its base's own.
    """
    from atelier.recipes.registry import get
    from atelier.recipes.twins.assets import shipped

    chosen = get(recipe, profile)
    place = uri or chosen.config.base_model
    if pretrain and place:
        raise ConfigError(
            f"pretrain=true makes the laptop twin's base, not {place}", "leave pretrain out, or use PROFILE=laptop"
        )
    if text_uri and chosen.text_model is None:
        raise ConfigError(
            f"recipe {recipe} reads its base's own language model, not {text_uri}",
            "leave text_model out, or use a recipe that reads T5",
        )
    if not pretrain and not place:
        shipped(chosen.twin)


def _made(recipe: Any, place: str, text_uri: str, artifacts: str) -> Manifest:
    """The parts of a base folder, and where the recipe reads another language model than the base's, that too."""
    from atelier.recipes.registry import module_of

    parts = recipe.base_parts
    params, into = _fetched(place, parts) if place else _shipped(recipe.twin, parts)
    text = None if recipe.text_model is None else text_uri or recipe.text_model
    modules: tuple[str, ...] = ()
    if text is not None:
        params |= {"text": text or f"made for {recipe.name}", **_seen("text_seen", text)}
        modules = (module_of(recipe.name), "atelier.recipes.twins.t5") if not text else ()

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        folder = ctx.out.path
        if text:
            fetch_text_model(text, folder, recipe.check_base)
        elif text is not None:
            recipe.make_text_model(folder)
        into(folder)
        own = {} if text is None else {"text": text or "made here"}
        ctx.note(source=place or f"shipped {recipe.twin}", **own)
        return "base", {}

    return run_step(
        name="base",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params=params,
        artifacts=artifacts,
        extra_modules=modules,
    )


def _shipped(twin: str, parts: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """(What decides the bytes, a function that writes them)."""
    from atelier.recipes.twins.assets import PARTS, shipped

    source = shipped(twin)
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    whole = set(parts) >= set(PARTS[twin])
    names = [name for name in names if name.partition("/")[0] in parts or (whole and name == INDEX)]

    def into(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)

    return {"shipped": sha256_json({name: sha256_file(source / name) for name in names})}, into


def _fetched(uri: str, parts: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    return {"uri": uri, "parts": parts, **_seen("seen", uri)}, lambda folder: fetch_folder(
        uri, folder, parts, index="unet" in parts
    )


def _seen(name: str, uri: str) -> dict[str, str]:
    """The state of a place whose files may be written anew; nothing for published ones."""
    seen = tree_state(uri) if uri else ""
    return {name: seen} if seen else {}


def fetch_folder(uri: str, folder: Path, parts: tuple[str, ...], index: bool = True) -> None:
    """Downloads parts (subfolders) of a diffusers folder; what is there already is kept.

    Args:
        index: its ``model_index.json`` too.

    Raises:
        DataError: a part is missing at the URI.
    """
    from atelier.storage.transfer import expand

    root = uri.rstrip("/")
    wanted = {INDEX: f"{root}/{INDEX}"} if index else {}
    for part in parts:
        wanted |= {f"{part}/{name}": url for name, url in _weights_once(expand(f"{root}/{part}/")).items()}
    _download(wanted, folder, "fetching the base")


def fetch_text_model(uri: str, folder: Path, check: Any) -> None:
    """Downloads a T5 encoder into ``text_encoder``, as safetensors in bf16, and its tokenizer into ``tokenizer``.

    The hub's T5-XXL is pickled and in fp32. It is used in bf16, and every exported model holds a copy.

    Args:
        uri: a folder that is the model (``config.json``, weights and tokenizer side by side, as on the hub), or a
            diffusers folder with those two subfolders.
        check: ``Recipe.check_base``, called as soon as the model's configuration is there, before its weights.

    Raises:
        ConfigError: it is another model than the recipe reads. DataError: there is none.
    """
    from atelier.convert.t5_encoder import write_encoder
    from atelier.convert.t5_tokenizer import make_fast
    from atelier.storage.atomic import NotFound
    from atelier.storage.transfer import expand

    root = uri.rstrip("/")
    try:
        flat = _weights_once(expand(f"{root}/"))
    except (DataError, NotFound):
        flat = {}
    if "config.json" in flat:
        wanted = {f"{'tokenizer' if name in TOKENIZER else 'text_encoder'}/{name}": flat[name] for name in _model(flat)}
    else:
        parts = ("text_encoder", "tokenizer")
        wanted = {f"{part}/{n}": url for part in parts for n, url in _weights_once(expand(f"{root}/{part}/")).items()}
    small = {name: url for name, url in wanted.items() if name.endswith(".json")}
    fetched = folder / FETCHED
    _download(small, fetched, "looking at the language model")
    check(lambda name: fetched / name)
    _download(wanted, fetched, "fetching the language model")
    write_encoder(fetched / "text_encoder", folder / "text_encoder")
    # What was fetched from this disk is the user's own file by another name: only a copy is written to.
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    shutil.copytree(fetched / "tokenizer", folder / "tokenizer", copy_function=shutil.copyfile)
    make_fast(folder / "tokenizer")
    shutil.rmtree(fetched)


def _model(names: dict[str, str]) -> list[str]:
    """The files of a transformers model and of its tokenizer, without a repository's others."""
    ends = (".json", ".safetensors", ".bin")
    return [name for name in names if name in TOKENIZER or name.endswith(ends)]


def _weights_once(urls: list[str]) -> dict[str, str]:
    """File names → URLs, without the same weights in other formats and precisions that repositories hold beside."""
    from atelier.storage.transfer import file_name

    found = {
        name: url
        for url in urls
        if ".fp16." not in (name := file_name(url)) and ".non_ema." not in name and not name.endswith(FOREIGN)
    }
    safe = any(name.endswith(".safetensors") for name in found)
    return {name: url for name, url in found.items() if not (safe and name.endswith((".bin", ".bin.index.json")))}


def _download(wanted: dict[str, str], folder: Path, label: str) -> None:
    from atelier.storage.transfer import download

    missing = [name for name in wanted if not (folder / name).is_file()]
    progress = Progress(label, len(wanted), "files", start=len(wanted) - len(missing))
    for name in missing:
        download(wanted[name], folder / name)
        progress.advance()
