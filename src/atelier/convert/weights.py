"""Weights by name that are read when they are needed, and files of them that hold no code.

A converted model passes through memory one shard at a time: what is kept here is names, shapes and where to read.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.errors import ConfigError, DataError
from atelier.models.keys import Shape
from atelier.storage.atomic import os_errors
from atelier.storage.torch_zip import is_zip

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_SHARD = "5GB"
_OF_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,  # a text encoder's position ids, beside a UNet in one file
    "I32": torch.int32,
}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_FOREIGN = ("omegaconf.", "typing.")


@dataclass(frozen=True)
class Weight:
    """One tensor, not yet read.

    Attributes:
        shape: its shape.
        dtype: as stored.
        read: gives it, on the CPU.
        to: the type that it is to be written as; None: as stored.
    """

    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]
    to: torch.dtype | None = None

    @property
    def bytes(self) -> int:
        """Its size when written."""
        return self.numel * (self.to or self.dtype).itemsize

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    def tensor(self) -> Tensor:
        """The tensor as it is to be written."""
        found = self.read()
        return (found if self.to is None else found.to(self.to)).contiguous()


Weights = dict[str, Weight]


def shapes_of(weights: Mapping[str, Weight]) -> dict[str, Shape]:
    """Shapes by name."""
    return {name: weight.shape for name, weight in weights.items()}


def cast(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """The weights, to be written as ``dtype``; None: as stored."""
    return {name: replace(weight, to=dtype) for name, weight in weights.items()}


def of_state(state: Mapping[str, Tensor]) -> Weights:
    """Weights that are in memory already (or mapped into it)."""

    def one(tensor: Tensor) -> Weight:
        return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach())

    return {name: one(tensor) for name, tensor in state.items()}


def of_safetensors(path: Path) -> Weights:
    """The tensors of a safetensors file.

    Raises:
        DataError: it is none, is cut off, or holds numbers of a type that no checkpoint has.
    """
    from safetensors import SafetensorError, safe_open

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    weights: Weights = {}
    try:
        with os_errors(path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                piece = file.get_slice(name)
                dtype = _OF_SAFETENSORS[piece.get_dtype()]
                weights[name] = Weight(tuple(piece.get_shape()), dtype, reader(name))
    except SafetensorError as error:
        raise DataError(f"{path} is no whole safetensors file ({error})", "copy or download it again") from error
    except KeyError as error:
        raise DataError(f"{path} holds numbers of type {error}", "convert checkpoints of floats") from error
    return weights


class _Inert:
    """Stands in for a foreign class of a settings object that lies beside the weights; nothing of it is used."""


def load_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, mapped into memory, opened with ``weights_only``.

    Settings of omegaconf, which the original's checkpoints carry, become empty stand-ins.

    Raises:
        DataError: it is no such file, is cut off, or wants to run or build anything else.
    """
    from pickle import UnpicklingError

    try:
        zipped = is_zip(path)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        foreign = [name for name in unsafe if not name.startswith(_FOREIGN)]
        if foreign:
            raise DataError(
                f"{path} wants to build {', '.join(sorted(foreign)[:5])}: it holds more than weights",
                "ask its author for a safetensors file",
            )
        # A class of its own for each name: the unpickler tells them apart by class.
        stand_ins: list[Any] = [(type("Inert", (_Inert,), {}), name) for name in unsafe]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is no file of weights that torch can open safely ({reason[:200]})",
            "copy or download it again, or ask its author for a safetensors file",
        ) from error


def of_file(path: Path) -> Weights:
    """A safetensors file, or a bare state dict that ``torch.save`` wrote."""
    if path.suffix == ".safetensors":
        return of_safetensors(path)
    return of_state(tensors_of(load_torch(path), path))


def tensors_of(state: Any, path: Path) -> dict[str, Tensor]:
    """A bare state dict.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(state, Mapping) and state:
        strange = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
        if not strange:
            return dict(state)
        raise DataError(f"{path} is no state dict: {strange[:5]} are no tensors", "give a file of weights")
    raise DataError(f"{path} holds a {type(state).__name__}, no weights", "give a file of weights")


def of_folder(folder: Path, stem: str = "diffusion_pytorch_model") -> Weights | None:
    """A diffusers model's weights: whole or in shards, safetensors before ``.bin``, ``fp16`` variants last.

    Returns:
        None when the folder holds none.

    Raises:
        DataError: a file is damaged, or a shard is missing.
    """
    for variant in ("", ".fp16"):
        for suffix in ("safetensors", "bin"):
            index = folder / f"{stem}.{suffix}.index{variant}.json"
            single = folder / f"{stem}{variant}.{suffix}"
            if index.is_file():
                return _of_shards(index)
            if single.is_file():
                return of_file(single)
    return None


def _of_shards(index: Path) -> Weights:
    try:
        places = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index} is no list of shards ({error})", "copy or download it again") from error
    weights: Weights = {}
    for name in sorted(set(places.values())):
        shard = index.with_name(Path(name).name)
        if not shard.is_file():
            raise DataError(f"{shard} is missing, which {index.name} names", "copy or download it again")
        weights |= of_file(shard)
    if weights.keys() != places.keys():
        raise DataError(f"{index} and its shards name other weights", "copy or download them again")
    return weights


def size_of(text: str) -> int:
    """Bytes of ``5GB``, ``500MB`` or a plain number.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\d+)\s*([KMG]B)?", text.strip().upper())
    if not found or int(found[1]) == 0:
        raise ConfigError(f"{text!r} is no size", "write 5GB or 500MB")
    return int(found[1]) * _UNITS.get(found[2] or "", 1)


def save(weights: Weights, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file, names sorted, with ``metadata`` beside the mark of torch's layout in its header."""
    from safetensors.torch import save_file

    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: weights[name].tensor() for name in sorted(weights)},
            path,
            metadata={"format": "pt"} | dict(metadata or {}),
        )


def save_folder(weights: Weights, folder: Path, max_shard: int, stem: str = "diffusion_pytorch_model") -> list[str]:
    """Writes a diffusers model's weights, with an index when they do not fit in one file.

    Args:
        max_shard: bytes of a file; a tensor larger than that has a file of its own.

    Returns:
        the files' names.
    """
    shards = list(shards_of(weights, max_shard))
    if len(shards) == 1:
        save(weights, folder / f"{stem}.safetensors")
        return [f"{stem}.safetensors"]
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save(shard, folder / name)
    index = {
        "metadata": {"total_size": sum(weight.bytes for weight in weights.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return names


def shards_of(weights: Weights, max_shard: int) -> Iterator[Weights]:
    """The weights in name order, in groups of up to ``max_shard`` bytes (or of one tensor that is larger)."""
    shard: Weights = {}
    held = 0
    for name in sorted(weights):
        if shard and held + weights[name].bytes > max_shard:
            yield shard
            shard, held = {}, 0
        shard[name] = weights[name]
        held += weights[name].bytes
    yield shard
