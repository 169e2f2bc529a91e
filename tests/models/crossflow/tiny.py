"""Small CrossFlows of both backbones."""

from typing import Any

from atelier.models.crossflow.configs import CrossFlowConfig

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
