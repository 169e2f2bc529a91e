"""Reads the trained weights out of a DeepSpeed ZeRO checkpoint, without running anything that is in it.

Every file is opened with ``weights_only``; of DeepSpeed's own classes only three plain value types are admitted.
(DeepSpeed's ``zero_to_fp32.py`` opens with ``weights_only=False``.)
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.errors import DataError
from atelier.training.checkpoint import TAG, WRAPPER_PREFIX, verified

_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")


def trainable_state(checkpoint: Path, average: bool = False) -> dict[str, Tensor]:
    """The trained parameters, float32, by the names of the objective's model.

    Args:
        checkpoint: a folder written by ``atelier.training.checkpoint.save``, of ZeRO stage 0, 1 or 2.
        average: the exponential moving average of the weights instead of the last ones.

    Raises:
        DataError: the checkpoint is damaged, of ZeRO stage 3, or holds no moving average.
    """
    found = verified(checkpoint)
    if found is None:
        raise DataError(
            f"{checkpoint} is no whole checkpoint", "run the training step again: it resumes and saves anew"
        )
    stage = int(found.state["zero_stage"])
    if stage == 3:
        raise DataError(f"{checkpoint} is of ZeRO stage 3", "train an adapter with stage 0, 1 or 2")
    folder = checkpoint / TAG
    states = _load(folder / "mp_rank_00_model_states.pt")
    shapes = {name: shape for group in states["param_shapes"] for name, shape in group.items()} if stage else {}
    if stage == 0:
        if average:
            raise DataError(
                f"{checkpoint} is of ZeRO stage 0: its moving average is not addressed by name", "use stage 1"
            )
        flat = {name: tensor.float() for name, tensor in states["module"].items()}
    else:
        flat = _joined(folder, average)
        if flat.keys() != shapes.keys():
            raise DataError(
                f"{checkpoint} lacks {sorted(shapes.keys() - flat.keys())}", "its ranks' files do not match"
            )
    trained = found.state["parameters"]
    return {
        name.removeprefix(WRAPPER_PREFIX): tensor.reshape(shapes[name]) if stage else tensor
        for name, tensor in flat.items()
        if name.removeprefix(WRAPPER_PREFIX) in trained
    }


def _joined(folder: Path, average: bool) -> dict[str, Tensor]:
    """Flat parameters put together from the fragments that each rank holds, in rank order."""
    ranked = sorted((int(m.group(1)), p) for p in folder.iterdir() if (m := _RANK.fullmatch(p.name)))
    fragments: dict[str, list[Tensor]] = {}
    for _, path in ranked:
        state = _load(path)["optimizer_state_dict"]
        for group, mapping in enumerate(state["param_slice_mappings"]):
            if average:
                partition = state["base_optimizer_state"]["state"].get(group, {}).get("ema")
                if partition is None:
                    raise DataError(f"{path} holds no moving average", "train with ema_decay")
            else:
                partition = state["single_partition_of_fp32_groups"][group]
            for name, place in mapping.items():
                fragments.setdefault(name, []).append(
                    partition[place.start : place.start + place.numel].float().clone()
                )
    return {name: torch.cat(parts) for name, parts in fragments.items()}


def _load(path: Path) -> dict[str, Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
