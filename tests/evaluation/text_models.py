"""A tiny CrossFlow, CLIP, detector and Inception weights in folders, and captions, for the evaluation's tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.inception import FidInception
from atelier.sampling.crossflow import CrossFlowPipeline
from tests.models.crossflow.tiny import DIT, TEXT, base, made

CLASSES = ("bench", "remote", "stop sign", "dog")


def crossflow(folder: Path) -> Path:
    """A DiT that draws 32 px."""
    config = CrossFlowConfig("dit", DIT.flow, TEXT | {"width": 128, "tokens": 16}, (4, 8, 8), None)
    CrossFlowPipeline.around(base(), made(config)).save_pretrained(folder)
    return folder


def inception_weights(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Inception's parameters at random, by the file's names (counters left out)."""
    torch.manual_seed(seed)
    state = {name: t for name, t in FidInception().state_dict().items() if not name.endswith("num_batches_tracked")}
    state |= changes
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    if path.suffix == ".safetensors":
        save_file(kept, path)
    else:
        torch.save(kept, path)
    return path


def detector(folder: Path) -> Path:
    """A DETR that knows four classes and nothing about them."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=12, init_std=0.5, id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def captions(path: Path, images: int = 12) -> Path:
    """A captions file of COCO's form: three captions an image, one image without any."""
    path.write_text(
        json.dumps(
            {
                "images": [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(images + 1)],
                "annotations": [
                    {"id": 3 * n + k, "image_id": n, "caption": f"a {w} above a {v} \n"}
                    for n in range(images)
                    for k, (w, v) in enumerate((("two", n), ("six", n), ("one", n)))
                ],
            }
        )
    )
    return path
