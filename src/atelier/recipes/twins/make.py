"""Makes the SDXL twin's folder part by part; what is there already is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from atelier.convert.training_checkpoint import trainable_state
from atelier.data import digits
from atelier.recipes.twins import sdxl, text, vae
from atelier.training.config import TrainConfig

WORDS = ("a", "an", "and", ",", *digits.WORDS)
TOKENS = 16
"""Four phrases, three separators, begin and end."""


def base_train_config(seed: int) -> TrainConfig:
    """The UNet's training: 100,800 canvases, each seen once."""
    return TrainConfig(
        steps=2100,
        batch_size=48,
        processes=2,
        zero_stage=2,
        lr=2e-3,
        schedule="flat_cosine",
        warmup_steps=50,
        ema_decay=0.998,
        seed=seed,
        log_every=20,
        checkpoint_every_s=60,
    )


def parts(folder: Path, size: int, seed: int) -> dict[str, float]:
    """Tokenizers, text encoders, autoencoder and scheduler into ``folder``.

    Args:
        size: pixels of a canvas's side.

    Returns:
        ``text_right`` (share of captions read rightly) and ``vae_psnr`` in dB, of the parts made now.
    """
    facts: dict[str, float] = {}
    if not (folder / "text_encoder_2").is_dir():
        facts["text_right"] = _make_text(folder, seed)
    if not (folder / "vae").is_dir():
        facts["vae_psnr"] = _make_vae(folder, size, seed)
    sdxl.make_scheduler().save_pretrained(folder / "scheduler")
    return facts


def _make_text(folder: Path, seed: int) -> float:
    rng = np.random.default_rng([seed, 1])

    def examples(count: int) -> tuple[list[str], Tensor]:
        captions, target = [], torch.zeros(count, 10)
        for row in range(count):
            labels = rng.integers(0, 10, int(rng.integers(1, 5)))
            captions.append(digits.caption([digits.Placement((0, 0, 1, 1), int(label)) for label in labels]))
            target[row, torch.from_numpy(labels)] = 1
        return captions, target

    tokenizer = text.make_tokenizer(WORDS, TOKENS)
    first, second = text.make_encoders(tokenizer, sdxl.TEXT_WIDTH, seed)
    right = text.teach(tokenizer, first, second, examples, classes=10, steps=250)
    text.save(folder, tokenizer, first, second)
    return right


def _make_vae(folder: Path, size: int, seed: int) -> float:
    rng, glyphs = np.random.default_rng([seed, 2]), digits.split().canvas

    def images(count: int) -> Tensor:
        drawn = [digits.draw(rng, digits.layout_random(rng), glyphs, (size, size)) for _ in range(count)]
        return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1

    torch.manual_seed(seed)
    model = vae.make_vae(size)
    psnr = vae.train_vae(model, images, steps=700, batch=16, seed=seed)
    model.save_pretrained(folder / "vae")
    return psnr


def finish(folder: Path, checkpoint: Path, size: int) -> None:
    """Writes the trained UNet's moving average (in half precision: half the bytes to ship) and the folder's index."""
    unet = sdxl.make_unet(size // 4)
    unet.load_state_dict(trainable_state(checkpoint, average=True))
    unet.half().save_pretrained(folder / "unet")
    write_index(folder)


def write_index(folder: Path) -> None:
    """``model_index.json`` of an SDXL pipeline, as diffusers writes it."""
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": json.loads((folder / "vae" / "config.json").read_text())["_diffusers_version"],
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": False,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for part, opened in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        opened.from_pretrained(folder / part)  # that what was written opens is seen here, not in a later step
