"""CrossFlow's released checkpoints (.pth) to a diffusers-style folder and back: every key accounted for, or nothing.

The folder has ``flow`` and ``context_encoder`` in safetensors, the other parts of a base folder (autoencoder, language
model, tokenizer) and ``model_index.json``; ``sampling.crossflow.CrossFlowPipeline`` opens it. The image tower of the
contrastive loss, 0.34 billion parameters that sampling never touches, is left out unless it is asked for.
"""

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atelier.convert.language_model import CONFIG, check_language_model
from atelier.convert.pipeline_folder import write_index
from atelier.convert.weights import (
    DTYPES,
    MAX_SHARD,
    Weights,
    cast,
    of_file,
    of_folder,
    of_safetensors,
    of_state,
    save,
    save_folder,
    shapes_of,
    size_of,
)
from atelier.errors import ConfigError, DataError
from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig
from atelier.models.crossflow.model import PARTS, TRAINING_ONLY, CrossFlow, own_name, released_name
from atelier.models.keys import Shape, require_same_keys
from atelier.storage.atomic import new_folder, replace_file, require_new

TOWER = "image_tower.safetensors"
COPIED = ("vae", "text_encoder", "tokenizer")
LATENT_SCALE = 0.2301
"""What the released models' latents are scaled by."""
_MODULES = {
    "context_encoder": ["atelier.models.crossflow.text_encoder", "CrossFlowTextEncoder"],
    "dit": ["atelier.models.crossflow.dit", "CrossFlowDiT"],
    "dimr": ["atelier.models.crossflow.dimr", "CrossFlowDiMR"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_ADVICE = "use a released CrossFlow checkpoint, or name the configuration that it was trained with"
"""Of a checkpoint whose keys fit none."""


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        configuration: e.g. ``512px_clip_dimr``.
        parameters: written.
        lines: the account for a person.
    """

    configuration: str
    parameters: int
    lines: list[str] = field(default_factory=list)


def to_folder(
    source: Path,
    target: Path,
    configuration: str = "",
    base: Path | None = None,
    dtype: str = "",
    keep_tower: bool = False,
    max_shard_size: str = MAX_SHARD,
    known: Mapping[str, CrossFlowConfig] = RELEASED,
) -> Conversion:
    """A released checkpoint to a folder, which appears whole or not at all.

    Args:
        source: a flat state dict, .pth (opened with ``weights_only``) or .safetensors.
        configuration: which it must be; "": whichever it is.
        base: a folder with ``vae``, ``text_encoder`` and ``tokenizer`` to take into the target.
        dtype: ``fp32``, ``fp16`` or ``bf16``; by default as stored.
        keep_tower: writes the image tower too, as ``image_tower.safetensors``, for a way back without a loss.
        known: the configurations that it may be of.

    Raises:
        ConfigError: keys are missing, unknown or of another shape (they are listed); it is another configuration;
            the base is of another language model; the target exists.
        DataError: the source is missing or damaged.
    """
    require_new(target)
    weights = _read(source)
    found = identify(shapes_of(weights), str(source), configuration, known=known)
    with new_folder(target) as folder:
        done = write_folder(
            weights, known[found], folder, base, dtype, keep_tower, max_shard_size, LATENT_SCALE, found, str(source)
        )
    return replace(done, lines=[*done.lines, f"into  {target}"])


def unpack(source: Path, folder: Path, own: CrossFlowConfig) -> list[str]:
    """A foreign model's weights, and nothing of its base, into a folder that is there: what a training starts from.

    Args:
        source: a released checkpoint, of a released configuration or of ``own``, or a folder that ``to_folder`` wrote.

    Returns:
        what there is to say.

    Raises:
        ConfigError: the checkpoint is of no known configuration. DataError: the source is missing or damaged.
    """
    if source.is_dir():
        folder_weights(source)  # sees that they are whole
        for part in ("flow", "context_encoder"):
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
        if (source / TOWER).is_file():
            shutil.copyfile(source / TOWER, folder / TOWER)
        return [f"read  {source}"]
    weights = _read(source)
    known = {**RELEASED, "of this recipe": own}
    found = identify(_sampling(shapes_of(weights)), str(source), sampling_only=True, known=known)
    return write_folder(weights, known[found], folder, None, keep_tower=True, name=found, origin=str(source)).lines


def write_folder(
    weights: Weights,
    config: CrossFlowConfig,
    folder: Path,
    base: Path | None,
    dtype: str = "",
    keep_tower: bool = False,
    max_shard_size: str = MAX_SHARD,
    latent_scale: float | None = None,
    name: str = "own",
    origin: str = "the model",
) -> Conversion:
    """Writes weights by released names, checked against a configuration, into a folder that is there and empty.

    Args:
        latent_scale: written into the autoencoder's configuration; None: as the base has it.
        name, origin: of the configuration and of the weights, for what is said about them.
        others: as of ``to_folder``.
    """
    expected = expected_shapes(config)
    require_same_keys(_sampling(shapes_of(weights)), _sampling(expected), f"{origin} is no CrossFlow {name}", _ADVICE)
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is no type", f"one of {', '.join(DTYPES)}")
    if base is not None:
        check_language_model(base / CONFIG, config.text.get("width", 768), name, config.language_model)
    parts = _by_part(cast(weights, DTYPES.get(dtype)))
    max_shard = size_of(max_shard_size)
    model = _on_meta(config)
    lines = [f"read  {origin}: CrossFlow {name}, {_count(weights):,} parameters"]
    for part, module in (("flow", model.flow), ("context_encoder", model.context_encoder)):
        (folder / part).mkdir(exist_ok=True)
        module.save_config(folder / part)
        files = save_folder(parts[part], folder / part, max_shard)
        lines.append(f"wrote {part}: {_count(parts[part]):,} parameters in {len(files)} file(s)")
    tower = {key: weight for key, weight in weights.items() if key.partition(".")[0] in TRAINING_ONLY}
    if tower and keep_tower:
        save(tower, folder / TOWER)
        lines.append(f"wrote {TOWER}: {_count(tower):,} parameters")
    elif tower:
        lines.append(f"left out the image tower of the training: {_count(tower):,} parameters")
    index: dict[str, Any] = {
        "_class_name": "CrossFlowPipeline",
        "_diffusers_version": _diffusers_version(),
        "flow": _MODULES[config.backbone],
        "context_encoder": _MODULES["context_encoder"],
    }
    index |= _copied(base, folder, latent_scale) if base is not None else {part: [None, None] for part in COPIED}
    write_index(folder, index)
    written = _count(parts["flow"]) + _count(parts["context_encoder"])
    return Conversion(name, written, lines)


def to_released(folder: Path, target: Path, known: Mapping[str, CrossFlowConfig] = RELEASED) -> Conversion:
    """A folder back to a flat state dict, .pth or .safetensors, which upstream loads strictly.

    Upstream's loader wants the image tower as well. A folder without it gets a fresh one (seed 0): its values play no
    part in sampling, and the account says so.

    Raises:
        ConfigError: the folder is none of the released configurations, or the target exists.
        DataError: it is damaged.
    """
    weights = folder_weights(folder)
    if target.exists():
        raise ConfigError(f"{target} exists already", "choose another target, or remove it")
    name = identify(_sampling(shapes_of(weights)), str(folder), sampling_only=True, known=known)
    lines = [f"read  {folder}: CrossFlow {name}"]
    if json.loads((folder / "context_encoder" / "config.json").read_text()).get("zero_padding"):
        lines.append("      trained with zeros for padding: a loader that reads a text's padding gets other pictures")
    if _tower(shapes_of(weights)) != _tower(expected_shapes(known[name])):
        weights = {key: weight for key, weight in weights.items() if key.partition(".")[0] not in TRAINING_ONLY}
        weights |= of_state(_fresh_tower(known[name]))
        why = "its image tower is not upstream's" if (folder / TOWER).is_file() else "no image tower"
        lines.append(f"      {why}: a fresh one (seed 0) takes its place, which sampling does not use")
    require_same_keys(shapes_of(weights), expected_shapes(known[name]), str(folder), _ADVICE)
    with replace_file(target) as scratch:
        if target.suffix == ".safetensors":
            save(weights, scratch)
        else:
            torch.save({key: weight.tensor() for key, weight in weights.items()}, scratch)
    return Conversion(name, _count(weights), [*lines, f"wrote {target}: {_count(weights):,} parameters"])


def folder_weights(folder: Path) -> Weights:
    """A folder's weights by released names, with the image tower where it is there.

    Raises:
        DataError: a part holds no weights, or damaged ones.
    """
    weights: Weights = {}
    for part, prefix in (("flow", ""), ("context_encoder", "context_encoder.")):
        found = of_folder(folder / part)
        if found is None:
            raise DataError(f"{folder / part} holds no weights", "give the folder of a CrossFlow model")
        weights |= {prefix + key: weight for key, weight in found.items()}
    if (folder / TOWER).is_file():
        weights |= of_safetensors(folder / TOWER)
    return weights


def identify(
    shapes: Mapping[str, Shape],
    what: str,
    wanted: str = "",
    sampling_only: bool = False,
    known: Mapping[str, CrossFlowConfig] = RELEASED,
) -> str:
    """Which configuration these parameters are of.

    Args:
        wanted: which it must be; "": any.
        sampling_only: without the image tower.

    Raises:
        ConfigError: none, or another than wanted: says which it is, or how it differs from the nearest.
    """
    if wanted and wanted not in known:
        raise ConfigError(f"there is no CrossFlow {wanted!r}", f"use one of {', '.join(known)}")
    own = {key: tuple(shape) for key, shape in shapes.items()}
    every = {name: expected_shapes(config) for name, config in known.items()}
    if sampling_only:
        every = {name: _sampling(expected) for name, expected in every.items()}
    found = next((name for name, expected in every.items() if expected == own), "")
    if wanted and found and found != wanted:
        raise ConfigError(f"{what} is CrossFlow {found}, not {wanted}", f"ask for {found}, or give another checkpoint")
    if found:
        return found
    nearest = wanted or max(every, key=lambda name: _likeness(own, every[name]))
    likely = f" (nearest to {nearest})" if not wanted else ""
    require_same_keys(own, every[nearest], f"{what} is no CrossFlow {wanted or 'that was released'}{likely}", _ADVICE)
    raise AssertionError("unequal parameters that do not differ")  # pragma: no cover


def _likeness(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> tuple[float, float]:
    """The share of names that both have, and of those with their shapes: a miniature is like its model, if small."""
    both = len(found.keys() | expected.keys()) or 1
    return len(found.keys() & expected.keys()) / both, len(found.items() & expected.items()) / both


def expected_shapes(config: CrossFlowConfig) -> dict[str, Shape]:
    """Every parameter's shape by its released name."""
    return {released_name(name): tuple(t.shape) for name, t in _on_meta(config).state_dict().items()}


def _read(source: Path) -> Weights:
    if not source.is_file():
        raise DataError(f"{source}: there is no such file", "check the path")
    return of_file(source)


@functools.lru_cache(maxsize=1)
def _diffusers_version() -> str:
    from importlib.metadata import version

    return version("diffusers")


def _on_meta(config: CrossFlowConfig) -> CrossFlow:
    with torch.device("meta"):
        return CrossFlow(config)


def _sampling(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {key: shape for key, shape in shapes.items() if key.partition(".")[0] not in TRAINING_ONLY}


def _tower(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {key: shape for key, shape in shapes.items() if key.partition(".")[0] in TRAINING_ONLY}


def _by_part(weights: Weights) -> dict[str, Weights]:
    """The weights of ``flow`` and of each other part, without their prefixes."""
    parts: dict[str, Weights] = {name: {} for name in ("flow", *PARTS)}
    for key, weight in weights.items():
        part, _, rest = own_name(key).partition(".")
        parts[part][rest] = weight
    return parts


def _count(weights: Weights) -> int:
    return sum(weight.numel for weight in weights.values())


def _fresh_tower(config: CrossFlowConfig) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.device("meta"):
            model: nn.Module = CrossFlow(config)
        state: dict[str, torch.Tensor] = {}
        for part in TRAINING_ONLY:
            module = model.get_submodule(part).to_empty(device="cpu")
            _reset(module)
            state |= {f"{part}.{key}": tensor for key, tensor in module.state_dict().items()}
    return state


def _reset(module: nn.Module) -> None:
    """Fresh values for every parameter; which they are does not matter, that they are finite does."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)


def _copied(base: Path, folder: Path, latent_scale: float | None) -> dict[str, Any]:
    """Copies the base's parts, the latents' scale written into the autoencoder; returns their index entries."""
    missing = [part for part in COPIED if not (base / part).is_dir()]
    if missing:
        raise DataError(f"{base} lacks {', '.join(missing)}", f"give a folder with {', '.join(COPIED)}")
    for part in COPIED:
        shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    if latent_scale is not None:
        path = folder / "vae" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": latent_scale}, indent=2) + "\n")
    kind = json.loads((base / "text_encoder" / "config.json").read_text()).get("model_type")
    tokenizer = json.loads((base / "tokenizer" / "tokenizer_config.json").read_text()).get("tokenizer_class")
    t5 = kind == "t5"
    return {
        "vae": _MODULES["vae"],
        "text_encoder": ["transformers", "T5EncoderModel" if t5 else "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer or ("T5Tokenizer" if t5 else "CLIPTokenizer")],
    }
