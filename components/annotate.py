"""Component ``annotate``: images to boxes with a caption and its embedding each, or to labels that describe them."""

from kfp.dsl import Dataset, Input, Model, Output

from components import images


@images.annotate
def annotate(
    raw: Input[Dataset],
    annotators: Input[Model],
    annotations: Output[Dataset],
    artifacts: str,
    profile: str = "laptop",
    box_threshold: float = 0.0,
    text_threshold: float = 0.0,
    batch_size: int = 0,
    caption_batch_size: int = 0,
    images_per_shard: int = 0,
    max_quarantined: float = 0.0,
    workers: int = 0,
    recipe: str = "gligen_coco",
    prompt: str = "",
    caption_prompt: str = "",
) -> None:
    """Tags, detects, captions and embeds; what cannot be read is quarantined and counted.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        profile: laptop or paper.
        box_threshold: least score of a box; 0 is the profile's own.
        text_threshold: least score of a word in a box's label; 0 is the profile's own.
        batch_size: images annotated at once; 0 is the profile's own.
        caption_batch_size: crops captioned at once; 0 is the profile's own.
        images_per_shard: images in a shard; 0 is the profile's own.
        max_quarantined: the share of bad images at which the run fails; 0 is the profile's own.
        workers: processes that annotate; 0 is one for each GPU.
        recipe: what is annotated for, gligen_coco or rich_context.
        prompt: what rich_context's captioner is asked about an object; empty is the profile's own, none asks nothing.
        caption_prompt: and about a whole picture.
    """
    from atelier.steps.annotate import run
    from atelier.steps.artifact import read_input, write_output

    made = run(
        raw=read_input(raw),
        annotators=read_input(annotators),
        profile=profile,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
        batch_size=batch_size,
        caption_batch_size=caption_batch_size,
        images_per_shard=images_per_shard,
        max_quarantined=max_quarantined,
        workers=workers,
        recipe=recipe,
        prompt=prompt,
        caption_prompt=caption_prompt,
        artifacts=artifacts,
    )
    write_output(annotations, made)
