"""Digits: real handwritten digits drawn onto canvases, in the very form in which a recipe's raw data is published."""

from typing import Any

from atelier.data import raw_form
from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, images: int, seed: int, artifacts: str, form: str = "sa1b", size: int = 64) -> Manifest:
    """A manifest of kind ``<form>-source``: the files of ``data.digits_sa1b`` or ``data.digits_coco``.

    Args:
        images: how many canvases.
        seed: seeds layouts and drawing.
        form: see ``data.raw_form``.
        size: pixels of the canvases' short side; digits are of one size in pixels on all.

    Raises:
        ConfigError: no images, a negative seed, or a form that is unknown or cannot be drawn.
    """
    check(images=images, seed=seed)
    draw = raw_form.form(form).draw
    if draw is None:
        raise ConfigError(f"digits cannot be drawn in the form {form}", "draw them as sa1b or coco")

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        facts = draw(ctx.out.path, images, seed, size)
        return f"{form}-source", {"images": images, **facts, "seed": seed, "source": "UCI handwritten digits"}

    return run_step(
        name="source",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params={"images": images, "seed": seed, "form": form, "size": size},
        artifacts=artifacts,
    )


def check(*, images: int, seed: int) -> None:
    """Refuses what cannot be drawn.

    Raises:
        ConfigError: no images, or a negative seed.
    """
    if images < 1 or seed < 0:
        raise ConfigError(f"images={images}, seed={seed}", "images must be 1 or more, seed 0 or more")
