"""The released CrossFlow models, and what a configuration of one says."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CrossFlowConfig:
    """Everything that decides a model's parameters.

    Attributes:
        backbone: the flow network, ``dit`` or ``dimr``.
        flow: its arguments.
        text: arguments of the text encoder, but for the latent's shape.
        latent_shape: [C, H, W].
        tower: arguments of the contrastive loss's image tower; None: a model without one.
        language_model: whose states it was trained on, ``clip`` or ``t5``; "" where nobody said. The width does not
            tell: T5-base is as wide as CLIP ViT-L/14.
    """

    backbone: Literal["dit", "dimr"]
    flow: dict[str, Any]
    text: dict[str, Any]
    latent_shape: tuple[int, int, int]
    tower: dict[str, Any] | None = field(default_factory=dict)
    language_model: Literal["clip", "t5", ""] = ""


def _transformer(dim: int, blocks: int, ratio: int) -> dict[str, Any]:
    return {
        "block_type": "TransformerBlock",
        "dim": dim,
        "hidden_dim": 2 * dim,
        "num_attention_heads": 16,
        "num_blocks": blocks,
        "max_height": 16,
        "max_width": 16,
        "input_feature_ratio": ratio,
    }


def _convnext(dim: int, blocks: int, side: int, ratio: int) -> dict[str, Any]:
    return {
        "block_type": "ConvNeXtBlock",
        "dim": dim,
        "hidden_dim": 2 * dim,
        "kernel_size": 7,
        "num_blocks": blocks,
        "max_height": side,
        "max_width": side,
        "input_feature_ratio": ratio,
    }


_DIMR_256 = {
    "stage_configs": [_transformer(1024, 65, 2), _convnext(512, 33, 32, 1)],
    "loss_coeffs": [1 / 4, 1],
}
_DIMR_512 = {
    "stage_configs": [_transformer(1024, 65, 4), _convnext(512, 33, 32, 2), _convnext(256, 33, 64, 1)],
    "loss_coeffs": [1 / 4, 1 / 2, 1],
}
_DIMR_DEMO = {
    "stage_configs": [_transformer(960, 29, 4), _convnext(480, 15, 32, 2), _convnext(240, 15, 64, 1)],
    "loss_coeffs": [1 / 4, 1 / 2, 1],
}
_DIT_H_2 = {"latent_size": 64, "hidden_size": 1280, "depth": 36, "num_heads": 20, "patch_size": 2}
_WIDTHS = {"clip": 768, "t5": 4096}
_256, _512 = (4, 32, 32), (4, 64, 64)


def _released(
    backbone: Literal["dit", "dimr"], flow: dict[str, Any], kind: Literal["clip", "t5"], latent: tuple[int, int, int]
) -> CrossFlowConfig:
    return CrossFlowConfig(backbone, flow, {"width": _WIDTHS[kind]}, latent, language_model=kind)


RELEASED = {
    "256px_clip_dimr": _released("dimr", _DIMR_256, "clip", _256),
    "256px_t5_dimr": _released("dimr", _DIMR_256, "t5", _256),
    "512px_clip_dimr": _released("dimr", _DIMR_512, "clip", _512),
    "512px_t5_dimr": _released("dimr", _DIMR_512, "t5", _512),
    "512px_t5_dit": _released("dit", _DIT_H_2, "t5", _512),
    "training_demo": _released("dimr", _DIMR_DEMO, "clip", _512),
}
"""The five released models, and the small one of upstream's training tutorial."""
