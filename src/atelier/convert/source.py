"""What a person gave to convert: finds out which form it has and reads its names, shapes and where its weights lie."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.convert import ldm_config, original, unet_folder
from atelier.convert.pipeline_folder import INDEX
from atelier.convert.weights import Weights, of_file, of_state, shapes_of
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import is_adapter_key

_ACCEPTED = (
    "give an original GLIGEN checkpoint (.pth, .ckpt, .safetensors), a diffusers folder, an adapter (.safetensors), "
    "a checkpoint folder of atelier's, or one of DeepSpeed's"
)
_DEEPSPEED = "mp_rank_00_model_states.pt"


@dataclass(frozen=True)
class Source:
    """A checkpoint by its diffusers names.

    Attributes:
        form: ``original``, ``diffusers``, ``unet``, ``adapter``, ``checkpoint`` or ``deepspeed``.
        path: where it is.
        weights: the whole UNet, or the adapter alone.
        config: the UNet's configuration; None for an adapter alone.
        pipeline: the diffusers folder with the other parts, if it is one.
        notes: what else it holds, and what was chosen.
    """

    form: str
    path: Path
    weights: Weights
    config: dict[str, Any] | None = None
    pipeline: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether it has the frozen part too."""
        return any(not is_adapter_key(name) for name in self.weights)


def open_source(path: Path, base_config: dict[str, Any] | None, average: bool = False) -> Source:
    """Opens a checkpoint of any form.

    Args:
        base_config: the base UNet's configuration; wanted where names or shapes do not tell it.
        average: the moving average of the trained weights, where there is one, instead of the last ones.

    Raises:
        DataError: there is nothing, it is damaged, or of no known form.
        ConfigError: it cannot be told without a base.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder", "check the path")
    source = _folder(path, average) if path.is_dir() else _file(path, base_config, average)
    if average and source.form not in ("original", "checkpoint", "deepspeed"):
        raise ConfigError(f"{path} is of the form {source.form}, which has no moving average", "leave --average out")
    if not source.weights:
        raise DataError(f"{path} holds no weights", _ACCEPTED)
    if not any(is_adapter_key(name) for name in source.weights):
        raise DataError(f"{path} has no GLIGEN layers (no fuser, no position net)", "give a grounded model")
    return source


def _folder(path: Path, average: bool) -> Source:
    if (path / "unet" / unet_folder.CONFIG).is_file():
        weights, config = unet_folder.read(path / "unet")
        return Source("diffusers", path, weights, config, path if (path / INDEX).is_file() else None)
    if (path / unet_folder.CONFIG).is_file():
        weights, config = unet_folder.read(path)
        return Source("unet", path, weights, config)
    if (deepspeed := _deepspeed_folder(path)) is not None:
        from atelier.convert.zero_checkpoint import zero_trainable_state

        state = _without_wrapper(zero_trainable_state(deepspeed, average))
        return Source("deepspeed", deepspeed, of_state(state), notes=_which(average))
    if (checkpoint := _own_checkpoint(path)) is not None:
        from atelier.convert.training_checkpoint import trainable_state

        state = _without_wrapper(trainable_state(checkpoint, average))
        return Source("checkpoint", checkpoint, of_state(state), notes=_which(average))
    raise DataError(f"{path} is a folder of no known form", _ACCEPTED)


def _which(average: bool) -> list[str]:
    return ["the moving average of the trained weights" if average else "the trained weights as of its last step"]


def _deepspeed_folder(path: Path) -> Path | None:
    """A tag's folder, or the newest tag of a ``save_checkpoint`` directory."""
    latest = path / "latest"
    tag = path / latest.read_text().strip() if latest.is_file() else path
    return tag if (tag / _DEEPSPEED).is_file() else None


def _own_checkpoint(path: Path) -> Path | None:
    """A checkpoint's folder, a finished training's (``checkpoint/``), or the newest of a running one's."""
    for candidate in (path, path / "checkpoint", *sorted(path.glob("step-*"), reverse=True)):
        manifest = candidate / "manifest.json"
        if manifest.is_file():
            try:
                record = json.loads(manifest.read_text())
            except ValueError as error:
                raise DataError(f"{manifest} cannot be read ({error})", "take another checkpoint") from error
            if isinstance(record, dict) and record.get("kind") == "checkpoint":
                return candidate
    return None


def _without_wrapper(state: dict[str, Any]) -> dict[str, Any]:
    """Names from the UNet on, where a training wrapped it in other modules (``module.unet.``…)."""
    anchor = next((name for name in state if "position_net." in name), "")
    prefix = anchor[: anchor.find("position_net.")]
    if prefix and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _file(path: Path, base_config: dict[str, Any] | None, average: bool) -> Source:
    if (path.parent / unet_folder.CONFIG).is_file() and path.name.startswith("diffusion_pytorch_model."):
        return _folder(path.parent, average)
    found = original.read(path, average)
    names = found.unet.keys()
    if _is_original(names):
        return _original(path, found, base_config)
    if all(is_adapter_key(name) for name in names):
        return Source("adapter", path, of_file(path))
    if "conv_in.weight" in names:
        if base_config is None:
            raise ConfigError(f"{path} is a UNet without its config.json", "give --base FOLDER, or put it beside")
        return Source("unet", path, of_file(path), base_config)
    raise DataError(f"{path} holds no weights of a known form (e.g. {', '.join(sorted(names)[:3])})", _ACCEPTED)


def _is_original(names: Iterable[str]) -> bool:
    return any(name.startswith(("input_blocks.", "middle_block.", "output_blocks.")) for name in names)


def _original(path: Path, found: original.OriginalFile, base_config: dict[str, Any] | None) -> Source:
    notes = [f"not converted: {', '.join(found.others)}"] if found.others else []
    alone = "input_blocks.0.0.weight" not in found.unet
    if alone and base_config is None:
        raise ConfigError(f"{path} holds the adapter alone, under its original names", "give --base FOLDER")
    config = ldm_config.config_of(shapes_of(found.unet)) if base_config is None else base_config
    weights = original.to_diffusers(found.unet, config, str(path))
    return Source("original", path, weights, None if alone else config, notes=notes)
