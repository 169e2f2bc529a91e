"""The files of a checkpoint: one safetensors file a rank, holding fragments of flattened parameters.

Any range of any parameter can be read, whatever the ranks and the ZeRO stage that wrote it: that is all that a resume
on another number of ranks needs. Nothing in it is a pickle.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from atelier.errors import DataError
from atelier.training.masters import WEIGHT, Fragment

SUFFIX = ".safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
_LONGEST_HEADER = 100_000_000
"""Bytes; what safetensors itself accepts."""


def part_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank-{rank:05d}{SUFFIX}"


class Snapshot:
    """A copy in host memory of what a rank owns, taken between two steps so that the training can go on.

    The buffers are kept for the next one (page-locked beside a GPU, where allocating them costs more than the copy).
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self.fragments: list[Fragment] = []

    def take(self, owned: list[Fragment]) -> None:
        """Copies the fragments; they are in ``fragments`` when this returns."""
        on_gpu = False
        self.fragments = []
        for fragment in owned:
            copies = {}
            for field, source in fragment.tensors.items():
                on_gpu = on_gpu or source.is_cuda
                buffer = self._buffers.get((fragment.name, field))
                if buffer is None or buffer.shape != source.shape:
                    buffer = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=source.is_cuda)
                    self._buffers[fragment.name, field] = buffer
                copies[field] = buffer.copy_(source, non_blocking=source.is_cuda)
            self.fragments.append(Fragment(fragment.name, fragment.start, copies))
        if on_gpu:
            torch.cuda.synchronize()


def write_part(path: Path, owned: list[Fragment]) -> dict[str, Any]:
    """Writes fragments (float32, in host memory) as safetensors, flushed to the disk.

    Written here and not by the library: it hashes as it writes and needs no second copy of the tensors.

    Returns:
        ``{"path": name, "bytes", "sha256"}``.
    """
    header: dict[str, Any] = {
        "__metadata__": {"starts": json.dumps({fragment.name: fragment.start for fragment in owned})}
    }
    values, place = [], 0
    for fragment in owned:
        for field, tensor in sorted(fragment.tensors.items()):
            size = tensor.numel() * 4
            header[f"{field}/{fragment.name}"] = {
                "dtype": "F32",
                "shape": [tensor.numel()],
                "data_offsets": [place, place + size],
            }
            values.append(tensor)
            place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    with path.open("wb") as file:
        blocks: Iterator[bytes | memoryview] = (_bytes_of(value) for value in values)
        for block in itertools.chain((len(text).to_bytes(8, "little"), text), blocks):
            file.write(block)
            digest.update(block)
            written += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"path": path.name, "bytes": written, "sha256": digest.hexdigest()}


def _bytes_of(tensor: Tensor) -> bytes | memoryview:
    if tensor.dtype != torch.float32 or tensor.is_cuda or not tensor.is_contiguous():
        raise ValueError(f"a fragment is {tensor.dtype} on {tensor.device}")
    return tensor.numpy().data.cast("B")


@dataclass(frozen=True)
class _Piece:
    file: Any
    start: int
    numel: int


def names_in(file: IO[bytes]) -> set[str]:
    """The parameters that a part holds something of, by its header alone.

    Args:
        file: at its beginning.

    Raises:
        DataError: it is no part of a checkpoint.
    """
    try:
        size = int.from_bytes(file.read(8), "little")
        if size > _LONGEST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        return set(json.loads(json.loads(file.read(size))["__metadata__"]["starts"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"it is no part of a checkpoint ({error})", "run the training step again") from error


class Parts:
    """Reads any range of a checkpoint's parameters.

    Args:
        folder: where the files lie.
        names: the files to open; the range must lie in them.

    Raises:
        DataError: a file is no part of a checkpoint.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._pieces: dict[str, list[_Piece]] = {}
        self._open = contextlib.ExitStack()
        for name in names:
            try:
                file = self._open.enter_context(safe_open(folder / name, framework="pt"))
                starts = json.loads(file.metadata()["starts"])
                for key in file.keys():  # noqa: SIM118  not a dict
                    start = int(starts[key.split("/", 1)[1]])
                    numel = int(file.get_slice(key).get_shape()[0])
                    self._pieces.setdefault(key, []).append(_Piece(file, start, numel))
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise DataError(f"{folder / name} is no part of a checkpoint ({error})", "remove it") from error
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *error: object) -> None:
        self._pieces.clear()
        self._open.close()

    def holds_field(self, field: str) -> bool:
        """Whether there is anything of this field at all."""
        return any(key.startswith(f"{field}/") for key in self._pieces)

    def holds(self, field: str, name: str) -> bool:
        """Whether there is anything of this field of this parameter."""
        return f"{field}/{name}" in self._pieces

    def blocks(self, field: str, name: str, start: int, numel: int) -> Iterator[tuple[int, Tensor]]:
        """The range's elements in runs: (offset from ``start``, float32 values).

        Raises:
            DataError: an element of the range is in no file.
        """
        reached = start
        for piece in self._pieces.get(f"{field}/{name}", []):
            first, last = max(reached, piece.start), min(start + numel, piece.start + piece.numel)
            if first == reached and last > first:
                values = piece.file.get_slice(f"{field}/{name}")[first - piece.start : last - piece.start]
                yield first - start, values
                reached = last
        if reached < start + numel:
            raise DataError(
                f"{self.folder}: elements {reached} to {start + numel} of {field}/{name} are in none of its files",
                "remove the checkpoint: the one before is used",
            )

    def whole(self, field: str, name: str, shape: list[int]) -> Tensor:
        """A whole parameter, float32."""
        flat = torch.empty(int(torch.Size(shape).numel()))
        for offset, values in self.blocks(field, name, 0, flat.numel()):
            flat[offset : offset + values.numel()] = values
        return flat.reshape(shape)


def put_back(held: list[Fragment], parts: Parts) -> None:
    """Fills this rank's fragments from a checkpoint's files.

    An average that the checkpoint does not have starts from its weights. Moments start at zero where it has none of
    any parameter (``start``).
    """
    fresh = {field for field in MOMENTS if not parts.holds_field(field)}
    for fragment in held:
        for field, target in fragment.tensors.items():
            if field in fresh:
                target.zero_()
                continue
            source = WEIGHT if field == "ema" and not parts.holds(field, fragment.name) else field
            for offset, values in parts.blocks(source, fragment.name, fragment.start, fragment.numel):
                target[offset : offset + values.numel()].copy_(values)
