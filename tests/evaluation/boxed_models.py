"""A tiny SAM in a folder, which is sure of whatever it sees."""

from pathlib import Path

import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

SIDE = 64


def sam(folder: Path, estimate: float = 0.9) -> Path:
    """Its masks are of random weights, its estimate of them is ``estimate``."""
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8,
        global_attn_indexes=[1], window_size=3, mlp_dim=32, num_pos_feats=8,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=SIDE, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
    )
    model = SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompts.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )
    with torch.no_grad():
        last = model.mask_decoder.iou_prediction_head.proj_out
        last.weight.zero_()
        last.bias.fill_(estimate)
    model.save_pretrained(folder)
    return folder
