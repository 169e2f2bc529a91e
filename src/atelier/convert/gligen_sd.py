"""Exports a trained GLIGEN adapter over an SD 1.x base: as safetensors of its own, and as a whole diffusers folder."""

import json
import shutil
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from atelier.models.grounded_unet import attach, load_adapter

ADAPTER = "gligen_adapter.safetensors"
COPIED = ("scheduler", "tokenizer", "text_encoder", "vae")


def export(base: Path, adapter: dict[str, Tensor], folder: Path) -> dict[str, int]:
    """Writes the adapter and the diffusers folder that holds it.

    ``unet/`` alone (config.json, diffusion_pytorch_model.safetensors: the whole gated UNet) is what Hzzone/GLIGEN_COCO
    publishes. The folder opens in stock diffusers and, with boxes and phrases, in
    ``atelier.sampling.gligen_sd.StableDiffusionGLIGENPipeline.from_pretrained``.

    Args:
        base: the frozen base's diffusers folder, gated or not.
        adapter: fusers and position net by their diffusers names.

    Returns:
        parameter counts: ``adapter`` and ``total``.

    Raises:
        ConfigError: lists the adapter's keys that are missing, unknown or of another shape.
    """
    unet = attach(UNet2DConditionModel.from_pretrained(base / "unet"))
    load_adapter(unet, adapter)
    save_file({name: tensor.contiguous() for name, tensor in sorted(adapter.items())}, folder / ADAPTER)
    for part in COPIED:
        shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    unet.save_pretrained(folder / "unet")
    index = json.loads((base / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionPipeline",
        # Not taken along, so not looked for.
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return {
        "adapter": sum(tensor.numel() for tensor in adapter.values()),
        "total": sum(parameter.numel() for parameter in unet.parameters()),
    }
