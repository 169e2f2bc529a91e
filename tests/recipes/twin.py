"""A tiny SDXL folder with untaught weights, for tests of what reads such folders."""

from pathlib import Path

import torch

from atelier.recipes.twins import make, sdxl, text, vae


def write_twin(folder: Path, seed: int = 0) -> Path:
    """Every part of the laptop twin, freshly initialised: right shapes and configurations, nothing learnt."""
    torch.manual_seed(seed)
    tokenizer = text.make_tokenizer(make.WORDS, make.TOKENS)
    text.save(folder, tokenizer, *text.make_encoders(tokenizer, sdxl.TEXT_WIDTH, seed))
    vae.make_vae(64).save_pretrained(folder / "vae")
    sdxl.make_unet(16).save_pretrained(folder / "unet")
    sdxl.make_scheduler().save_pretrained(folder / "scheduler")
    make.write_index(folder)
    return folder
