"""Reads a UNet's diffusers configuration off the shapes of an original (ldm) state dict."""

import re
from collections.abc import Mapping
from typing import Any

from atelier.errors import ConfigError, DataError
from atelier.models.keys import Shape

_BASE = "give --base FOLDER, a diffusers folder of the model that it was trained on"
_GROUPS = 32
_SD1_HEADS, _HEAD_DIM = 8, 64
_SAMPLE_SIZE = {"SD1": 64, "SD2": 64, "SDXL": 128}


def config_of(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The configuration of SD 1.x, SD 2.x or SDXL in any width and depth.

    What shapes do not tell is taken from the family: 32 groups; 8 heads in SD 1.x (recognised by its convolutions
    around the transformer blocks), heads of 64 channels in SD 2.x and SDXL; the size the model was made for.

    Raises:
        DataError: this is no such UNet. ConfigError: its widths do not fit those habits.
    """
    try:
        levels = _levels(shapes)
        context = next(
            shape[1] for name, shape in shapes.items() if name.endswith("transformer_blocks.0.attn2.to_k.weight")
        )
        linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
        depths = [level["depth"] for level in levels]
        middle = _depth(shapes, "middle_block.1")
        config: dict[str, Any] = {
            "_class_name": "UNet2DConditionModel",
            "in_channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
        }
    except (KeyError, IndexError, StopIteration) as error:
        raise DataError(f"this is no UNet in the original layout: {error} is missing", _BASE) from error
    widths = [level["width"] for level in levels]
    layers = {level["layers"] for level in levels}
    if len(layers) != 1 or depths[-1] not in (0, middle):
        raise DataError(f"levels of {sorted(layers)} layers: no UNet of SD 1.x, SD 2.x or SDXL", _BASE)
    if any(width % _GROUPS for width in widths):
        raise ConfigError(f"widths {widths} are those of no released model: the groups are unknown", _BASE)
    if linear and any(width % _HEAD_DIM for width in widths):
        raise ConfigError(f"widths {widths} are no multiples of {_HEAD_DIM}: the number of heads is unknown", _BASE)
    family = "SDXL" if "label_emb.0.0.weight" in shapes else "SD2" if linear else "SD1"
    config |= {
        "sample_size": _SAMPLE_SIZE[family],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in depths[::-1]],
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "cross_attention_dim": context,
        "attention_head_dim": [width // _HEAD_DIM for width in widths] if linear else _SD1_HEADS,
        "use_linear_projection": linear,
        "norm_num_groups": _GROUPS,
        "transformer_layers_per_block": [depth or 1 for depth in depths] if family == "SDXL" else 1,
    }
    if family == "SDXL":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def _levels(shapes: Mapping[str, Shape]) -> list[dict[str, int]]:
    """Width, layers and transformer depth (0: none) of each level, from the top."""
    levels: list[dict[str, int]] = [{"layers": 0}]
    number = 1
    while any(f"input_blocks.{number}.0.{leaf}" in shapes for leaf in ("op.weight", "in_layers.2.weight")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append({"layers": 0})
        else:
            depth = _depth(shapes, f"input_blocks.{number}.1")
            if levels[-1].setdefault("depth", depth) != depth:
                raise DataError(f"input_blocks.{number} has another depth than its level", _BASE)
            levels[-1]["width"] = shapes[f"input_blocks.{number}.0.in_layers.2.weight"][0]
            levels[-1]["layers"] += 1
        number += 1
    return levels


def _depth(shapes: Mapping[str, Shape], block: str) -> int:
    pattern = re.compile(re.escape(block) + r"\.transformer_blocks\.(\d+)\.norm1\.weight")
    return max((int(found[1]) + 1 for name in shapes if (found := pattern.fullmatch(name))), default=0)
