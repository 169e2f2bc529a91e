"""Component ``look``: whether a scheduled run has anything to do."""

from kfp.dsl import Markdown, Output

from components import images


@images.ops
def look(
    said: Output[Markdown],
    name: str,
    tars: str = "",
    latents: str = "",
    pictures: str = "",
    captions: str = "",
    boxes: str = "",
    images: int = 0,
    seed: int = 0,
    only_if_new: bool = True,
    cron: str = "",
    timezone: str = "",
    scheduled_at: str = "",
) -> str:
    """Compares the data with those of the champion. Returns go or stop.

    Args:
        name: the registered model's name.
        tars: URI of SA-1B-shaped tars.
        latents: URI of SA-1B's published latents.
        pictures: URI of image files.
        captions: URI of the captions.
        boxes: URI of the boxes.
        images: how many canvases are drawn where there are no URIs.
        seed: seeds the drawing.
        only_if_new: false goes on whatever the data are.
        cron: the schedule, where Kubeflow's clock runs more often than that.
        timezone: the schedule's time zone.
        scheduled_at: when the run was due, in UTC.
    """
    from atelier.steps.look import run

    return run(
        said=said.path,
        addresses={"tars": tars, "latents": latents, "pictures": pictures, "captions": captions, "boxes": boxes},
        images=images,
        seed=seed,
        name=name,
        only_if_new=only_if_new,
        cron=cron,
        timezone=timezone,
        scheduled_at=scheduled_at,
    )
