"""The checkpoint that a training starts from: weights that were made elsewhere, before the first update."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.training import checkpoint as checkpoints
from atelier.training.masters import WEIGHT, Fragment
from atelier.training.parts import part_name, write_part


def write_start(folder: Path, pieces: Iterable[Mapping[str, Tensor]]) -> str:
    """Writes the checkpoint of step 0 into the folder of a training's checkpoints.

    It holds the weights alone: a training that finds it begins with AdamW's moments at zero, an average at the weights.

    Args:
        pieces: the trained parameters by the names of the objective's model; each group becomes a file, in float32.

    Returns:
        the checkpoint's name.
    """
    place = folder / checkpoints.folder_name(0)
    scratch = checkpoints.scratch_of(place)
    scratch.mkdir(parents=True)
    files: list[dict[str, Any]] = []
    shapes: dict[str, list[int]] = {}
    for number, piece in enumerate(pieces):
        fragments = [
            Fragment(name, 0, {WEIGHT: tensor.detach().reshape(-1).to(torch.float32).contiguous()})
            for name, tensor in piece.items()
        ]
        files.append(write_part(scratch / part_name(number), fragments))
        shapes |= {name: list(tensor.shape) for name, tensor in piece.items()}
    state = {
        "step": 0,
        "seconds": 0.0,
        "samples": 0,
        "updates": 0,
        "skipped": 0,
        "scaler": {},
        "meter": {"names": [], "sums": [[]], "seen": [0]},
        "metrics": {},
        # No rank and no stage of DeepSpeed's wrote it: every rank looks into all files.
        "processes": 0,
        "zero_stage": 0,
        "config": {},
        "parameters": shapes,
    }
    checkpoints.publish(place, checkpoints.manifest_of(0, files, state))
    return place.name
