"""The published ``coco_train2017.pth``: a list of images with boxes, phrases, their embeddings and captions.

Source of the form: facts sheet of GLIGEN, section 3.1. The file is a pickle; it is opened with ``weights_only``, which
runs nothing, with paths (which the published one holds) as the one class allowed besides.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from atelier.data.coco import Annotated
from atelier.data.sa1b import checked_text
from atelier.errors import DataError
from atelier.storage.torch_zip import is_zip

EMBEDDING = "text_embeddings_before_projection"


class PublishedFile:
    """``coco.Annotations`` of such a file.

    Embeddings are kept as float16 (1.5 kB a box); the tensors' storages are mapped, not read, until they are copied.

    Raises:
        DataError: not of that form, or it holds more than tensors, plain containers and paths.
    """

    def __init__(self, path: Path) -> None:
        entries = _load(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: holds a {type(entries).__name__}, not a list", "give a coco_train2017.pth")
        self._entries: dict[str, Annotated] = {}
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str | PurePosixPath):
                raise DataError(f"{path}: element {number} names no file_path", "give a coco_train2017.pth")
            # A path of the machine that made it, of either kind of system.
            name = PureWindowsPath(str(entry["file_path"])).name
            entries[number] = None  # lets go of its tensors
            self._entries[name] = _annotated(entry)

    def names(self) -> Iterable[str]:
        return self._entries

    def of(self, image: str) -> Annotated | None:
        return self._entries.get(image)


def _load(path: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([PosixPath, PurePosixPath]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: not a readable list of annotations ({why})",
            "it is damaged, or holds more than tensors, plain containers and paths; download it again",
        ) from error


def _annotated(entry: dict[str, Any]) -> Annotated:
    try:
        annos = entry["annos"]
        boxes = np.array([[float(value) for value in anno["bbox"]] for anno in annos], np.float64).reshape(-1, 4)
        phrases = tuple(checked_text(str(anno["caption"]), "phrase") for anno in annos)
        embeddings = None
        if annos and all(EMBEDDING in anno for anno in annos):
            embeddings = np.stack([anno[EMBEDDING].detach().float().numpy() for anno in annos]).astype(np.float16)
            if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
                raise ValueError(f"phrase embeddings of shape {embeddings.shape}, or not finite")
        captions = tuple(str(caption) for caption in entry.get("captions", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Annotated(problem=f"its annotations are not readable: {type(error).__name__}: {error}")
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Annotated(
        captions,
        boxes[good],
        tuple(phrase for phrase, own in zip(phrases, good, strict=True) if own),
        embeddings=None if embeddings is None else embeddings[good],
        dropped=int((~good).sum()),
    )
