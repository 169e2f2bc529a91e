"""Where the annotating models come from, looked at before anything starts: light, nothing is loaded.

A model is a folder (``/models/dino``, ``file:///…``) or an id of the hub (``org/name``, ``org/name@revision``). Only
safetensors are read. A folder is known by its files' digest, an id by its commit, so that a result can be told from
one that other weights made.
"""

import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atelier.annotate.config import RICH_PROFILES, Config, RichConfig
from atelier.annotate.vocabulary import words
from atelier.errors import ConfigError
from atelier.storage import hub
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_file, sha256_json
from atelier.storage.uri import is_local, local_path

#: ``model_type`` of the folders that each role takes.
TYPES = {
    "detector": ("grounding-dino",),
    "captioner": ("blip-2",),
    "phrase_encoder": ("clip", "clip_text_model"),
    "tagger": ("clip", "siglip", "siglip2"),
    "segmenter": ("sam",),
    "clip": ("clip",),
}
NAMED = {
    "detector": "a Grounding DINO, e.g. IDEA-Research/grounding-dino-base",
    "captioner": "a BLIP-2, e.g. Salesforce/blip2-flan-t5-xxl",
    "phrase_encoder": "a CLIP text encoder, e.g. openai/clip-vit-large-patch14",
    "tagger": "ram, or a CLIP or SigLIP, e.g. openai/clip-vit-large-patch14",
    "segmenter": "a SAM, e.g. facebook/sam-vit-huge",
    "clip": "a CLIP, e.g. openai/clip-vit-base-patch32",
}
NONE = "none"
RAM, RAM_WEIGHTS = "ram", "xinyu1205/recognize_anything_model"
RAM_FILE = "ram_swin_large_14m.pth"
VOCABULARY_MODEL = "openai/clip-vit-large-patch14"

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_UNUSED = (".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".md")


@dataclass(frozen=True)
class Place:
    """A model.

    Attributes:
        name: a folder's absolute path, or an id of the hub.
        revision: the commit, for an id.
        digest: of the folder's files; of id and commit.
        kind: "ram" for RAM's own weights, else the folder's ``model_type``, "" where it is not known yet.
    """

    name: str
    revision: str
    digest: str
    kind: str = ""


def resolve(config: Config) -> dict[str, Any]:
    """Finds every model; a JSON object: the ``Place`` of each role, and ``words`` for a vocabulary's tagger.

    ``tagger=""`` is RAM where its package is installed; else, where the other models are the hub's, a CLIP over the
    vocabulary.

    Raises:
        ConfigError: models are not given, missing, of another kind, or hold no safetensors; all of them are named.
        ServiceError, StorageError: the hub does not tell a revision's commit.
    """
    asked = {role: getattr(config, role) for role in config.models}
    if not asked["tagger"]:
        asked["tagger"] = RAM if ram_installed() else VOCABULARY_MODEL if _ID.fullmatch(config.detector) else ""
    asked = {role: name for role, name in asked.items() if name or role not in config.optional}
    missing = [role for role, name in asked.items() if not name]
    if missing:
        raise ConfigError(
            f"no {' and no '.join(missing)} given: annotating needs models, and none is shipped",
            "give folders (or ids of the hub): "
            + "; ".join(f"{role}=… ({_named(role, config)})" for role in missing)
            + ". docs/annotate.md says more",
        )
    found: dict[str, Any] = {}
    for role, name in asked.items():
        if name == NONE and role in ("phrase_encoder", *config.optional):
            continue
        place = _ram(name) if role == "tagger" and name.split(":")[0] == RAM else _place(role, name, config)
        found[role] = asdict(place)
    if found["tagger"]["kind"] != RAM:
        found["words"] = words(config.vocabulary)
    return found


def ram_installed() -> bool:
    """Whether RAM's package (recognize-anything) is there; it is not imported."""
    return importlib.util.find_spec("ram") is not None


def _place(role: str, name: str, config: Config) -> Place:
    if _ID.fullmatch(name) and not Path(name).is_dir():
        repo, _, revision = name.partition("@")
        commit = hub.commit(repo, revision)
        return Place(repo, commit, sha256_json({"id": repo, "commit": commit}))
    if not is_local(name):
        raise ConfigError(
            f"{role}={name}: neither a folder nor an id of the hub", f"give {_named(role, config)}, or a folder"
        )
    # What describes objects at length may be any model that transformers opens as one; it says so when it cannot.
    types = None if role == "captioner" and isinstance(config, RichConfig) else TYPES[role]
    return _folder(role, local_path(name).absolute(), types, _named(role, config))


def _named(role: str, config: Config) -> str:
    if role == "captioner" and isinstance(config, RichConfig):
        return f"an image-to-text model, e.g. {RICH_PROFILES['paper'].captioner}"
    return NAMED[role]


def _folder(role: str, folder: Path, types: tuple[str, ...] | None, named: str) -> Place:
    """A folder of the right kind; of a diffusers folder (phrase encoder) the text encoder and tokenizer."""
    parts = ("text_encoder", "tokenizer") if (folder / "model_index.json").is_file() else ("",)
    config = folder / parts[0] / "config.json"
    if not config.is_file():
        raise ConfigError(f"{role}={folder}: there is no {config.name} in it", f"give {named}, or its folder")
    try:
        kind = str(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{config}: not a readable JSON object ({error})", "download the model again") from error
    if not kind or (types is not None and kind not in types):
        raise ConfigError(f"{role}={folder}: it is a {kind or 'model without a type'}", f"give {named}")
    files = [
        path
        for part in parts
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and path.suffix not in _UNUSED and not path.name.startswith(".")
    ]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ConfigError(
            f"{role}={folder}: it holds no safetensors", "pickled weights are not read: convert them, or take a "
            "revision that has safetensors",
        )  # fmt: skip
    with os_errors(folder), ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(sha256_file, files))
    names = [path.relative_to(folder).as_posix() for path in files]
    return Place(str(folder), "", sha256_json(dict(zip(names, digests, strict=True))), kind)


def _ram(name: str) -> Place:
    """``ram``, ``ram:/weights.pth`` or ``ram:org/repo@revision`` (of which ``RAM_FILE`` is read)."""
    if not ram_installed():
        raise ConfigError(
            f"tagger={name}: the package ram is not installed",
            "install recognize-anything (https://github.com/xinyu1205/recognize-anything), or give a CLIP or SigLIP "
            "model as the tagger",
        )
    given = name.partition(":")[2] or RAM_WEIGHTS
    if _ID.fullmatch(given) and not Path(given).is_file():
        repo, _, revision = given.partition("@")
        commit = hub.commit(repo, revision)
        return Place(repo, commit, sha256_json({"id": repo, "commit": commit, "file": RAM_FILE}), RAM)
    path = local_path(given).absolute()
    if not path.is_file():
        raise ConfigError(f"tagger={name}: there is no file {path}", f"give {RAM_FILE}")
    with os_errors(path):
        return Place(str(path), "", sha256_file(path), RAM)
