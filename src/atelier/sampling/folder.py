"""Opens a diffusers folder that carries layers for layouts as the pipeline that fits it."""

import json
from pathlib import Path
from typing import Any

import torch

from atelier.errors import ConfigError


def open_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline of its layers and its family: Rich-context's, ``StableDiffusionXLRegionalPipeline`` or
    ``StableDiffusionRegionalPipeline``, where those lie beside it, else GLIGEN's, ``StableDiffusionXLGLIGENPipeline``
    or ``StableDiffusionGLIGENPipeline``; the first of each where there are two text encoders.

    Raises:
        ConfigError: no diffusers folder, or its UNet has no grounding layers.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ConfigError(
            f"{folder} is not a model's folder: it has no model_index.json",
            "give the folder of an exported model; one on a hub is fetched first (hf download … --local-dir …)",
        )
    parts: dict[str, Any] = json.loads(index.read_text())
    if parts.get("_class_name") == "CrossFlowPipeline":
        raise ConfigError(f"{folder} is a CrossFlow, which knows no boxes", "draw with it by `atelier paint`")
    from atelier.models.regional.rules import ADAPTER

    regional, xl = (folder / ADAPTER).is_file(), (parts.get("text_encoder_2") or [None])[0] is not None
    return _class_of(regional, xl).from_pretrained(folder, torch_dtype=dtype)


def _class_of(regional: bool, xl: bool) -> Any:
    if regional and xl:
        from atelier.sampling.regional_sdxl import StableDiffusionXLRegionalPipeline

        return StableDiffusionXLRegionalPipeline
    if regional:
        from atelier.sampling.regional_sd import StableDiffusionRegionalPipeline

        return StableDiffusionRegionalPipeline
    if xl:
        from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline

        return StableDiffusionXLGLIGENPipeline
    from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline

    return StableDiffusionGLIGENPipeline
