"""Reads the trained weights out of a checkpoint that DeepSpeed itself saved, without running anything that is in it.

Every file is opened with ``weights_only``; of DeepSpeed's own classes only plain value types are admitted.
(DeepSpeed's ``zero_to_fp32.py`` opens with ``weights_only=False``.)
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.errors import DataError
from atelier.storage.torch_zip import is_zip

_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL = "mp_rank_00_model_states.pt"


def zero_trainable_state(folder: Path, average: bool = False) -> dict[str, Tensor]:
    """The trained parameters' fp32 masters, by the names that the saved module gave them.

    Args:
        folder: ``<save_dir>/<tag>`` of ``engine.save_checkpoint``, ZeRO stage 1 or 2.
        average: the optimizer's ``"ema"`` instead of the last weights.

    Raises:
        DataError: another stage, a rank's file is missing, or there is no moving average.
    """
    ranked = sorted((int(m.group(1)), path) for path in folder.iterdir() if (m := _RANK.fullmatch(path.name)))
    if not (folder / _MODEL).is_file() or not ranked:
        raise DataError(
            f"{folder} is no DeepSpeed checkpoint of ZeRO stage 1 or 2",
            "give the folder that holds mp_rank_00_model_states.pt; of stage 3 run DeepSpeed's zero_to_fp32.py first",
        )
    shapes = {name: shape for group in _load(folder / _MODEL)["param_shapes"] for name, shape in group.items()}
    flat = _joined([path for _, path in ranked], average)
    wrong = sorted(name for name in shapes if name not in flat or flat[name].numel() != shapes[name].numel())
    if wrong:
        raise DataError(f"{folder} lacks elements of {', '.join(wrong[:5])}", "some ranks' files are missing")
    return {name: flat[name].reshape(shape) for name, shape in shapes.items()}


def _joined(paths: list[Path], average: bool) -> dict[str, Tensor]:
    """Flat parameters put together from the fragments that each rank holds, in rank order."""
    fragments: dict[str, list[Tensor]] = {}
    for path in paths:
        state = _load(path)["optimizer_state_dict"]
        for group, mapping in enumerate(state["param_slice_mappings"]):
            if average:
                partition = state["base_optimizer_state"]["state"].get(group, {}).get("ema")
                if partition is None:
                    raise DataError(f"{path} holds no moving average", "ask for the last weights")
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

    is_zip(path)  # refuses a bomb
    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
