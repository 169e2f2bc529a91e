"""Makes a twin's folder part by part; what is there already is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from atelier.convert.training_checkpoint import trainable_state
from atelier.data import digits
from atelier.recipes.twins import text, vae
from atelier.recipes.twins.shape import TwinShape
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


def parts(shape: TwinShape, folder: Path, size: int, seed: int) -> dict[str, float]:
    """Tokenizers, text encoders, autoencoder and scheduler into ``folder``.

    Args:
        size: pixels of a canvas's side.

    Returns:
        ``text_right`` (share of captions read rightly) and ``vae_psnr`` in dB, of the parts made now.
    """
    facts: dict[str, float] = {}
    if not all((folder / name).is_dir() for name in shape.index if name.startswith("text_encoder")):
        facts["text_right"] = _make_text(shape, folder, seed)
    if not (folder / "vae").is_dir():
        facts["vae_psnr"] = _make_vae(folder, size, seed)
    shape.make_scheduler().save_pretrained(folder / "scheduler")
    return facts


def _make_text(shape: TwinShape, folder: Path, seed: int) -> float:
    rng = np.random.default_rng([seed, 1])

    def examples(count: int) -> tuple[list[str], Tensor]:
        captions, target = [], torch.zeros(count, 10)
        for row in range(count):
            labels = rng.integers(0, 10, int(rng.integers(1, 5)))
            captions.append(digits.caption([digits.Placement((0, 0, 1, 1), int(label)) for label in labels]))
            target[row, torch.from_numpy(labels)] = 1
        return captions, target

    tokenizer = text.make_tokenizer(WORDS, TOKENS)
    encoders = shape.make_text(tokenizer, seed)
    right = text.teach(tokenizer, encoders, examples, classes=10, steps=250)
    text.save(folder, tokenizer, *encoders)
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


def finish(shape: TwinShape, folder: Path, checkpoint: Path, size: int) -> None:
    """Writes the trained UNet's moving average (in half precision: half the bytes to ship) and the folder's index."""
    unet = shape.make_unet(size // 4)
    unet.load_state_dict(trainable_state(checkpoint, average=True))
    unet.half().save_pretrained(folder / "unet")
    write_index(shape, folder)


def write_index(shape: TwinShape, folder: Path) -> None:
    """``model_index.json`` of the base's pipeline, as diffusers writes it."""
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    index: dict[str, Any] = {
        "_diffusers_version": json.loads((folder / "vae" / "config.json").read_text())["_diffusers_version"],
        "scheduler": ["diffusers", scheduler],
        **shape.index,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for part, opened in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        opened.from_pretrained(folder / part)  # that what was written opens is seen here, not in a later step
