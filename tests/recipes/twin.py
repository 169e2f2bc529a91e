"""Tiny SDXL and SD folders with untaught weights, for tests of what reads such folders."""

from pathlib import Path

import torch

from atelier.recipes.twins import make, text, vae
from atelier.recipes.twins.shape import shape


def write_twin(folder: Path, seed: int = 0, twin: str = "sdxl_twin") -> Path:
    """Every part of a laptop twin, freshly initialised: right shapes and configurations, nothing learnt."""
    torch.manual_seed(seed)
    made = shape(twin)
    tokenizer = text.make_tokenizer(make.WORDS, make.TOKENS)
    text.save(folder, tokenizer, *made.make_text(tokenizer, seed))
    vae.make_vae(64).save_pretrained(folder / "vae")
    made.make_unet(16).save_pretrained(folder / "unet")
    made.make_scheduler().save_pretrained(folder / "scheduler")
    make.write_index(made, folder)
    return folder
