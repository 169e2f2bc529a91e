"""Small CrossFlows of both backbones."""

from pathlib import Path
from typing import Any

import torch

from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.crossflow.model import CrossFlow
from atelier.recipes.twins.assets import shipped

TEXT = {"width": 32, "tokens": 6, "num_layers": 1, "num_heads": 4, "hidden": 24, "num_reductions": 2}
TOWER = {"channels": 4, "image_size": 8, "patch": 2, "width": 24, "layers": 1, "heads": 2}


def stage(kind: str, **fields: Any) -> dict[str, Any]:
    """The fields of a DiMR stage."""
    own = {"num_attention_heads": 4} if kind == "TransformerBlock" else {"kernel_size": 7}
    return {"block_type": kind, "num_blocks": 3, **own, **fields}


DIT = CrossFlowConfig(
    "dit",
    {"latent_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 4},
    TEXT,
    (4, 8, 8),
    TOWER,
)
DIMR = CrossFlowConfig(
    "dimr",
    {
        "stage_configs": [
            stage("TransformerBlock", dim=32, hidden_dim=48, max_height=4, max_width=4, input_feature_ratio=2),
            stage("ConvNeXtBlock", dim=16, hidden_dim=24, max_height=8, max_width=8, input_feature_ratio=1),
        ],
        "loss_coeffs": [0.25, 1],
    },
    TEXT,
    (4, 8, 8),
    TOWER,
)
KNOWN = {"tiny_dit": DIT, "tiny_dimr": DIMR}


def made(config: CrossFlowConfig, seed: int = 0) -> CrossFlow:
    """A model for evaluation with every parameter away from its start (DiT's output starts at zero)."""
    torch.manual_seed(seed)
    model = CrossFlow(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def base() -> Path:
    """A folder with an autoencoder (f = 4), a CLIP text encoder of width 128 and 16 tokens, and its tokenizer."""
    return shipped("sd_twin")
