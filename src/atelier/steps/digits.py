"""Digits: real handwritten digits drawn onto canvases, in the very form in which SA-1B is published."""

import math
from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1
IMAGES_PER_TAR = 1000


def run(*, images: int, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``sa1b-source``: ``sa_*.tar``, ``captions.parquet``, ``boxes/sa_*.npy``.

    Args:
        images: how many canvases.
        seed: seeds layouts and drawing.

    Raises:
        ConfigError: no images, or a negative seed.
    """
    if images < 1 or seed < 0:
        raise ConfigError(f"images={images}, seed={seed}", "images must be 1 or more, seed 0 or more")

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.data.digits_sa1b import write_sa1b

        tars = math.ceil(images / IMAGES_PER_TAR)
        write_sa1b(ctx.out.path, images=images, tars=tars, seed=seed)
        return "sa1b-source", {"images": images, "tars": tars, "seed": seed, "source": "UCI handwritten digits"}

    return run_step(
        name="source",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params={"images": images, "seed": seed},
        artifacts=artifacts,
    )
