"""What the GLIGEN recipes share: how the adapter starts, its parameter groups, padded boxes, what a step costs."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from atelier.models.grounded_unet import adapter_parameters


class AdapterStart(Protocol):
    """The fields of a recipe's configuration that say how a fresh adapter starts."""

    @property
    def gate_start(self) -> float: ...

    @property
    def position_gain(self) -> float | None: ...

    @property
    def fuser_gain(self) -> float | None: ...


@torch.no_grad()
def start_adapter(unet: nn.Module, config: AdapterStart) -> None:
    """Sets the gates, and makes matrices orthogonal where the configuration gives them a gain."""
    for name, parameter in adapter_parameters(unet).items():
        gain = config.position_gain if name.startswith("position_net.") else config.fuser_gain
        if name.endswith(("alpha_attn", "alpha_dense")):
            parameter.fill_(config.gate_start)
        elif gain is not None and parameter.dim() == 2:
            nn.init.orthogonal_(parameter, gain)


def adapter_groups(model: nn.Module, gate_lr: float | None) -> list[dict[str, Any]]:
    """AdamW's groups, the gates in one of their own: they may have another learning rate."""
    named = adapter_parameters(model)
    alphas = [p for name, p in named.items() if ".alpha_" in name]
    others = [p for name, p in named.items() if ".alpha_" not in name]
    group: dict[str, Any] = {"params": alphas, "name": "gates"}
    if gate_lr is not None:
        group["lr"] = gate_lr
    return [{"params": others, "name": "adapter"}, group]


def pad_boxes(samples: list[dict[str, Any]], limit: int) -> dict[str, Tensor]:
    """``boxes`` [B, limit, 4] and ``masks`` [B, limit] of shard samples, float32; the samples are left as they are."""
    boxes = np.zeros((len(samples), limit, 4), np.float32)
    masks = np.zeros((len(samples), limit), np.float32)
    for row, sample in enumerate(samples):
        used = min(len(sample["json"]["boxes"]), limit)
        if used:
            boxes[row, :used] = sample["json"]["boxes"][:used]
            masks[row, :used] = 1
    return {"boxes": torch.from_numpy(boxes), "masks": torch.from_numpy(masks)}


def pad_phrases(samples: list[dict[str, Any]], limit: int) -> dict[str, Tensor]:
    """``pad_boxes`` with ``phrases`` [B, limit, D]: each box's embedding."""
    phrases = np.zeros((len(samples), limit, samples[0]["phrases"].shape[-1]), np.float32)
    for row, sample in enumerate(samples):
        used = min(len(sample["json"]["boxes"]), limit)
        phrases[row, :used] = sample["phrases"][:used]
    return {**pad_boxes(samples, limit), "phrases": torch.from_numpy(phrases)}


def base_sizes(base: Path, resolution: int) -> tuple[dict[str, Any], int, int]:
    """A base's UNet configuration, the side of its latent of ``resolution`` pixels, and its text tokens."""
    config: dict[str, Any] = dict(UNet2DConditionModel.load_config(base / "unet"))
    tokens = json.loads((base / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    vae = AutoencoderKL.load_config(base / "vae")
    return config, resolution // 2 ** (len(vae["block_out_channels"]) - 1), tokens
