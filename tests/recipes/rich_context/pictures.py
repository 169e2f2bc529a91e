"""Pictures with layouts, as the tests of the recipe encode and draw them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from atelier.data.raw_example import RawExample
from atelier.recipes.registry import get
from atelier.recipes.rich_context_objective import TEXTS
from atelier.recipes.sd_text import SDText
from atelier.recipes.sdxl_text import SDXLText

OVERLAPPING = [[0.1, 0.1, 0.6, 0.6], [0.4, 0.4, 0.9, 0.9]]
PHRASES = ("a big seven", "a tiny three")


def text_of(name: str, base: Path) -> SDXLText | SDText:
    return TEXTS[get(name, "laptop").config.family].load(base)


def example(number: int, boxes: list[list[float]], phrases: tuple[str, ...]) -> RawExample:
    return RawExample(
        f"rich_{number}", b"", (64, 64), "a seven and a three", np.asarray(boxes, np.float32).reshape(-1, 4),
        np.ones(len(boxes), np.float32), phrases,
    )  # fmt: skip


EXAMPLES = [
    example(0, OVERLAPPING, PHRASES),
    example(1, [[0.0, 0.0, 1.0, 1.0]], ("a two",)),  # no background
    example(2, [], ()),
]


def encoded(name: str, base: Path, **given: Any) -> list[dict[str, Any]]:
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    made = get(name, "laptop", given).encoder(base).encode(images, EXAMPLES)
    return [
        arrays | {"json": {"boxes": one.boxes.tolist()}, "epoch": 0, "index": i}
        for i, (arrays, one) in enumerate(zip(made, EXAMPLES, strict=True))
    ]


def draw(pipeline: Any, **given: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    images: np.ndarray = pipeline(
        "a seven and a three", height=64, width=64, num_inference_steps=3, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(5), **given,
    ).images[0]  # fmt: skip
    return images
