"""Exports a trained IGLIGEN-XL adapter: as safetensors of its own, and as a whole diffusers folder."""

import json
import shutil
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from atelier.models.grounded_unet import attach, load_adapter

ADAPTER = "gligen_adapter.safetensors"
COPIED = ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae")


def export(base: Path, adapter: dict[str, Tensor], folder: Path) -> dict[str, int]:
    """Writes the adapter and the diffusers folder that holds it.

    The folder opens in stock diffusers (its UNet with ``attention_type="gated"``) and, with boxes and phrases, in
    ``atelier.sampling.gligen_sdxl.StableDiffusionXLGLIGENPipeline.from_pretrained``.

    Args:
        base: the frozen base's diffusers folder.
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
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return {
        "adapter": sum(tensor.numel() for tensor in adapter.values()),
        "total": sum(parameter.numel() for parameter in unet.parameters()),
    }
