"""Component ``source``: where the raw data comes from."""

from kfp.dsl import Dataset, Output

from components import images


@images.evaluate
def source(
    source: Output[Dataset],
    artifacts: str,
    tars: str = "",
    captions: str = "",
    boxes: str = "",
    images: int = 2000,
    seed: int = 0,
    pictures: str = "",
    latents: str = "",
    recipe: str = "igligen_xl",
    profile: str = "laptop",
    form: str = "",
) -> None:
    """The URIs of published data or, where none are given, canvases of real handwritten digits in the same form.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        tars: URI of SA-1B-shaped tars; may hold {000..009}. Empty: draw digits.
        captions: URI of the caption parquet, or of a captions JSON.
        boxes: URI of the boxes files, or of an instances JSON or .pth.
        images: how many canvases to draw.
        seed: seeds the drawing.
        pictures: URI of image files, or of tars of them for a recipe that reads captioned pictures; may hold *.
        latents: URI of SA-1B's published latents, in the place of tars and captions; may hold *.
        recipe: the recipe's name, which decides the form.
        profile: laptop or paper.
        form: another form than the recipe's, e.g. coco-images for images that have no boxes yet.
    """
    from atelier.steps.artifact import write_output
    from atelier.steps.source import run

    made = run(
        tars=tars,
        captions=captions,
        boxes=boxes,
        images=images,
        seed=seed,
        pictures=pictures,
        latents=latents,
        recipe=recipe,
        profile=profile,
        form=form,
        artifacts=artifacts,
    )
    write_output(source, made)
