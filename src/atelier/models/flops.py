"""Floating-point operations of a forward pass, counted by torch on meta tensors (1 MAC = 2 FLOP)."""

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode


def sdxl_forward_flops(unet: UNet2DConditionModel, latent_size: int, boxes: int, tokens: int = 77) -> float:
    """FLOPs of one sample through a UNet of SDXL's shape that lies on the meta device.

    Args:
        latent_size: side of the square latent.
        boxes: grounding tokens; 0 leaves the fusers out.
        tokens: text tokens.
    """
    config = unet.config
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    width = config["cross_attention_dim"]
    with torch.device("meta"), torch.no_grad():
        grounding = {
            "gligen": {
                "boxes": torch.zeros(1, boxes, 4),
                "masks": torch.zeros(1, boxes),
                "positive_embeddings": torch.zeros(1, boxes, width),
            }
        }
        with FlopCounterMode(display=False) as counter:
            unet(
                torch.zeros(1, config["in_channels"], latent_size, latent_size),
                torch.zeros(1, dtype=torch.long),
                torch.zeros(1, tokens, width),
                added_cond_kwargs={"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)},
                cross_attention_kwargs=grounding if boxes else None,
            )
    return float(counter.get_total_flops())
